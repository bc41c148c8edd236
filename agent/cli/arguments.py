"""Arguments several subcommands share, and how settings are loaded for them."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from agent.values import GRPC_SOCKET, endpoint_problem

if TYPE_CHECKING:
    from agent.client import Client
    from agent.settings import Loaded


def add_config(parser: argparse._ActionsContainer) -> None:
    """Add `--config FILE`."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="settings file, or a folder of files *.yaml that add up; without it every default holds",
    )


def add_endpoint(parser: argparse.ArgumentParser) -> None:
    """Add `--endpoint`, and what a client over TCP shows and trusts; see `client_of`."""
    group = parser.add_argument_group("the agent")
    group.add_argument(
        "--endpoint",
        type=_endpoint,
        default=GRPC_SOCKET,
        metavar="unix:PATH|HOST:PORT",
        help=f"where the agent serves its API: its setting grpc.listen (default: {GRPC_SOCKET})",
    )
    group.add_argument("--cert", metavar="FILE", help="over TCP: your certificate, which names you to the agent")
    group.add_argument("--key", metavar="FILE", help="over TCP: its private key")
    group.add_argument("--ca", metavar="FILE", help="over TCP: the authority that signs the agent's certificate")
    group.add_argument(
        "--server-name",
        default="",
        metavar="NAME",
        help="over TCP: what the agent's certificate is made out to, if that is not the host of --endpoint",
    )


def client_of(arguments: argparse.Namespace) -> "Client":
    """Return a client as the arguments of `add_endpoint` say. Raises ClientError."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its own lines would stand between ours
    from agent.client import Client, ClientTls  # noqa: PLC0415 - grpc costs time and memory only clients need spend

    files = (arguments.cert or "", arguments.key or "", arguments.ca or "")
    return Client(arguments.endpoint, tls=ClientTls(*files, arguments.server_name) if any(files) else None)


def _endpoint(text: str) -> str:
    problem = endpoint_problem(text)
    if problem:
        raise argparse.ArgumentTypeError(problem)
    return text


def load_or_explain(path: Path | None) -> "Loaded | None":
    """Load the settings; if they cannot be used, say every mistake on standard error and return None."""
    from agent.settings import SettingsError, load  # noqa: PLC0415 - they know every detector, and clients know none

    try:
        return load(path)
    except SettingsError as error:
        print(f"nodediag: settings refused: {error}", file=sys.stderr)
        return None
