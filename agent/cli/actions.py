"""`nodediag actions`: what the running agent can mend, and what it may do now."""

import argparse

from agent.cli.arguments import add_endpoint
from agent.cli.connection import ask
from agent.cli.exits import EXIT_OK, EXIT_UNKNOWN
from agent.cli.output import add_format
from agent.cli.saying import say, say_json
from agent.exporters.remediation_json import status_json
from agent.exporters.remediation_text import status_lines

NAME = "actions"
HELP = "list what the running agent can mend, and what it may do now"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this subcommand's options."""
    add_endpoint(parser)
    add_format(parser)


def main(arguments: argparse.Namespace) -> int:
    """Ask and print; 2 if the agent does not answer."""
    status = ask(arguments, lambda client: client.list_actions())
    if status is None:
        return EXIT_UNKNOWN
    said = say_json(status_json(status)) if arguments.format == "json" else say(status_lines(status))
    return EXIT_OK if said else EXIT_UNKNOWN
