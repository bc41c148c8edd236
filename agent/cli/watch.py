"""`nodediag watch`: a line per change of a condition, told by the running agent until Ctrl-C."""

import argparse
import sys
import time

from agent.cli.arguments import add_endpoint, client_of
from agent.cli.exits import EXIT_OK, EXIT_UNKNOWN
from agent.cli.output import add_format
from agent.exporters import event_lines

NAME = "watch"
HELP = "print how things stand and then each change, as the running agent tells them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this subcommand's options."""
    add_endpoint(parser)
    add_format(parser)
    parser.add_argument(
        "--type",
        action="append",
        default=[],
        metavar="TYPE",
        help="only conditions of this type, such as ContainerdShimHung; may be repeated",
    )


def main(arguments: argparse.Namespace) -> int:
    """Print until the reader goes away; 2 if the agent does, or never was there."""
    from agent.client import ClientError  # noqa: PLC0415 - grpc costs time and memory only clients need spend

    if sys.stdout is None:
        print("nodediag: standard output is closed", file=sys.stderr)
        return EXIT_UNKNOWN
    lines = event_lines.as_json if arguments.format == "json" else event_lines.as_text
    try:
        with client_of(arguments) as client:
            for event in client.watch(arguments.type):
                for line in lines(event, time.time()):
                    _print(line)
    except ClientError as error:
        print(f"nodediag: {error}", file=sys.stderr)
        return EXIT_UNKNOWN
    except BrokenPipeError:  # a reader such as `head` has what it wanted
        return EXIT_OK
    except OSError as error:
        print(f"nodediag: cannot write to standard output: {error.strerror}", file=sys.stderr)
        return EXIT_UNKNOWN
    print("nodediag: the agent has ended the watch", file=sys.stderr)
    return EXIT_UNKNOWN


def _print(line: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), flush=True)
