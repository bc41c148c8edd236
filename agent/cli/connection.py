"""How a subcommand reaches the agent, and what it says if that cannot be done."""

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from agent.cli.arguments import client_of
from agent.printable import printable

if TYPE_CHECKING:
    from agent.client import Client

Answer = TypeVar("Answer")


def ask(arguments: argparse.Namespace, question: Callable[["Client"], Answer]) -> Answer | None:
    """Ask the agent one thing; if it does not answer, say so on standard error and return None."""
    from agent.client import ClientError  # noqa: PLC0415 - grpc costs time and memory only clients need spend

    try:
        with client_of(arguments) as client:
            return question(client)
    except ClientError as error:
        complain(printable(str(error)))
        return None


def complain(text: str) -> None:
    """Say on standard error what is wrong."""
    print(f"nodediag: {text}", file=sys.stderr)
