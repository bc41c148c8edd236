"""The command line: its words, and which function each leads to."""

import argparse
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Protocol, cast

from agent import __version__

COMMANDS = ("run", "check", "report", "watch", "actions", "remediate", "remediations", "evidence", "config")
"""The subcommands in the order of --help, each a module here."""


class Command(Protocol):
    """What a subcommand's module holds."""

    NAME: str
    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add its options."""

    def main(self, arguments: argparse.Namespace) -> int:
        """Do it and return the exit code."""


def parse(arguments: list[str] | None) -> tuple[Callable[[argparse.Namespace], int], argparse.Namespace]:
    """Return the subcommand's function and its arguments.

    Exits on --help, --version and usage errors; argparse's 2 for these is our Unknown: a typo must
    not look like a node on which something is wrong. Only the subcommand that is meant is imported: a
    client may run in the daemon's container, within the same memory limit.
    """
    words = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog="nodediag",
        description="Names what is wrong on this Kubernetes node, where, and whose it is.",
        epilog="Exit codes of check and report: 0 nothing is wrong, 1 something is, 2 it could not be determined.",
    )
    parser.add_argument("--version", action="version", version=f"nodediag {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in words[:1] if words and words[0] in COMMANDS else COMMANDS:
        module = cast("Command", import_module(f"agent.cli.{name}"))
        command = commands.add_parser(module.NAME, help=module.HELP, description=module.HELP)
        module.add_arguments(command)
        command.set_defaults(function=module.main)
    found = parser.parse_args(words)
    return found.function, found
