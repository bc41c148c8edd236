"""`nodediag evidence`: what the running agent captured before it acted."""

import argparse
import hashlib
import json
import sys
from typing import TYPE_CHECKING, TextIO

from agent.acts import Evidence
from agent.cli.arguments import add_endpoint
from agent.cli.connection import ask, complain
from agent.cli.exits import EXIT_OK, EXIT_UNKNOWN
from agent.cli.output import add_format, emit
from agent.cli.saying import say, say_json
from agent.exporters.remediation_json import dumps, evidence_json
from agent.exporters.remediation_text import evidence_line
from agent.printable import printable

if TYPE_CHECKING:
    from agent.client import Client

NAME = "evidence"
HELP = "list what the running agent captured before it acted, or print one piece of it as JSON"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this subcommand's options."""
    add_endpoint(parser)
    add_format(parser)
    parser.add_argument("id", nargs="?", metavar="ID", help="print this piece, a JSON document; without it, list all")


def main(arguments: argparse.Namespace) -> int:
    """Ask and print; 2 if the agent does not answer, or what it sends is not what it lists."""
    if arguments.id is not None:
        document = ask(arguments, lambda client: _checked(client, arguments.id))
        return EXIT_OK if document and emit(lambda stream: _write(stream, document)) else EXIT_UNKNOWN
    stored = ask(arguments, lambda client: client.list_evidence())
    if stored is None:
        return EXIT_UNKNOWN
    if arguments.format == "json":
        said = say_json({"evidence": [evidence_json(each) for each in stored]})
    else:
        said = say(map(evidence_line, stored) if stored else ["No evidence is stored."])
    return EXIT_OK if said else EXIT_UNKNOWN


def _checked(client: "Client", evidence_id: str) -> bytes:
    """Fetch one piece; empty, with the reason told, if there is none or it is not what was listed."""
    listed = next((each for each in client.list_evidence() if each.id == evidence_id), None)
    if listed is None:
        complain(f"no evidence {printable(evidence_id, 80)} is stored (any more); `nodediag evidence` lists what is")
        return b""
    document = client.fetch_evidence(evidence_id)
    problem = _problem(listed, document)
    if problem:
        complain(f"evidence {printable(evidence_id, 80)} is damaged and was not printed: {problem}")
        return b""
    return document


def _problem(listed: Evidence, document: bytes) -> str:
    if len(document) != listed.size:
        return f"it has {len(document)} bytes instead of {listed.size}"
    digest = hashlib.sha256(document).hexdigest()
    return "" if digest == listed.sha256 else f"its sha256 is {digest} instead of {printable(listed.sha256, 64)}"


def _write(stream: TextIO, document: bytes) -> None:
    """Write to a file or a pipe just the bytes that were stored, and to a terminal what is safe to show."""
    if stream.isatty():
        stream.write(_shown(document))
    else:
        sys.stdout.buffer.write(document)


def _shown(document: bytes) -> str:
    try:
        return dumps(json.loads(document))
    except (ValueError, RecursionError):
        return f"{printable(document.decode(errors='surrogateescape'))}\n"
