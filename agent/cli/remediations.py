"""`nodediag remediations`: what was asked of the running agent, and what came of it."""

import argparse

from agent.acts import Remediation
from agent.cli.arguments import add_endpoint, client_of
from agent.cli.connection import ask, complain
from agent.cli.exits import EXIT_OK, EXIT_UNKNOWN
from agent.cli.output import add_format
from agent.cli.request_ids import request_id
from agent.cli.saying import say, say_json
from agent.exporters.remediation_json import remediation_json
from agent.exporters.remediation_text import remediation_line, remediation_lines
from agent.printable import printable

NAME = "remediations"
HELP = "list what the running agent was asked to mend, the latest first, or tell one in full"
LIMIT = 20
MAX_LIMIT = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this subcommand's options."""
    add_endpoint(parser)
    add_format(parser)
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--request-id", type=request_id, metavar="UUID", help="only this one, in full")
    one.add_argument(
        "--limit",
        type=_limit,
        default=LIMIT,
        metavar="N",
        help=f"at most so many, 1 to {MAX_LIMIT} (default: {LIMIT})",
    )


def main(arguments: argparse.Namespace) -> int:
    """Ask and print; 2 if the agent does not answer or has no record of it."""
    if arguments.request_id:
        return _tell_one(arguments)
    found = ask(arguments, lambda client: client.list_remediations(arguments.limit))
    if found is None:
        return EXIT_UNKNOWN
    if arguments.format == "json":
        said = say_json({"remediations": [remediation_json(each) for each in found]})
    else:
        said = say(map(remediation_line, found) if found else ["Nothing was asked for, as far as is recorded."])
    return EXIT_OK if said else EXIT_UNKNOWN


def _tell_one(arguments: argparse.Namespace) -> int:
    found = _recorded(arguments)
    if found is None:
        return EXIT_UNKNOWN
    said = say_json(remediation_json(found)) if arguments.format == "json" else say(remediation_lines(found))
    return EXIT_OK if said else EXIT_UNKNOWN


def _recorded(arguments: argparse.Namespace) -> Remediation | None:
    from agent.client import ClientError  # noqa: PLC0415 - grpc costs time and memory only clients need spend

    try:
        with client_of(arguments) as client:
            return client.get_remediation(arguments.request_id)
    except ClientError as error:
        if error.code.name == "NOT_FOUND":
            complain(
                f"no remediation {arguments.request_id} is recorded: it never reached the agent, was refused at "
                "once, or is so old that it was dropped"
            )
        else:
            complain(printable(str(error)))
        return None


def _limit(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text[:9]) <= MAX_LIMIT:
        raise argparse.ArgumentTypeError(f"must be a number from 1 to {MAX_LIMIT}")
    return int(text)
