"""How a subcommand reaches the agent, and what it says if that cannot be done."""

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from agent.exporters.printable import printable

if TYPE_CHECKING:
    from agent.client import Client

Answer = TypeVar("Answer")


def client_for(arguments: argparse.Namespace) -> "Client":
    """Return a client of the agent that the arguments of `add_endpoint` name."""
    from agent.client import Client  # noqa: PLC0415 - grpc costs time and memory only clients need spend

    return Client(arguments.endpoint)


def ask(arguments: argparse.Namespace, question: Callable[["Client"], Answer]) -> Answer | None:
    """Ask the agent one thing; if it does not answer, say so on standard error and return None."""
    from agent.client import ClientError  # noqa: PLC0415 - as above

    try:
        with client_for(arguments) as client:
            return question(client)
    except ClientError as error:
        complain(printable(str(error)))
        return None


def complain(text: str) -> None:
    """Say on standard error what is wrong."""
    print(f"nodediag: {text}", file=sys.stderr)
