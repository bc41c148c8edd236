"""The command line: its words, and which function each leads to."""

import argparse
from collections.abc import Callable

from agent import __version__
from agent.cli import actions, check, config, evidence, remediate, remediations, report, run, watch


def parse(arguments: list[str] | None) -> tuple[Callable[[argparse.Namespace], int], argparse.Namespace]:
    """Return the subcommand's function and its arguments.

    Exits on --help, --version and usage errors; argparse's 2 for these is our Unknown: a typo must
    not look like a node on which something is wrong.
    """
    parser = argparse.ArgumentParser(
        prog="nodediag",
        description="Names what is wrong on this Kubernetes node, where, and whose it is.",
        epilog="Exit codes of check and report: 0 nothing is wrong, 1 something is, 2 it could not be determined.",
    )
    parser.add_argument("--version", action="version", version=f"nodediag {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (run, check, report, watch, actions, remediate, remediations, evidence, config):
        command = commands.add_parser(module.NAME, help=module.HELP, description=module.HELP)
        module.add_arguments(command)
        command.set_defaults(function=module.main)
    found = parser.parse_args(arguments)
    return found.function, found
