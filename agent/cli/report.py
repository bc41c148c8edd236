"""`nodediag report`: what a running agent knows, printed as `check` prints what it finds."""

import argparse
import sys

from agent.cli.arguments import add_endpoint, client_of
from agent.cli.exits import EXIT_UNKNOWN
from agent.cli.output import add_report_format, tell

NAME = "report"
HELP = "ask the running agent what is wrong, without looking again"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this subcommand's options."""
    add_endpoint(parser)
    add_report_format(parser)


def main(arguments: argparse.Namespace) -> int:
    """Ask, print, and exit as `check` does."""
    from agent.client import ClientError  # noqa: PLC0415 - grpc costs time and memory only clients need spend

    try:
        with client_of(arguments) as client:
            report = client.get_node_report()
    except ClientError as error:
        print(f"nodediag: {error}", file=sys.stderr)
        return EXIT_UNKNOWN
    return tell(report, arguments.format)
