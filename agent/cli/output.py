"""Writing to standard output, where anything may be connected."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable
from typing import TextIO

from agent.cli.exits import EXIT_UNKNOWN, exit_code
from agent.exporters import report_json, report_line, report_text
from agent.model import NodeReport


def add_format(parser: argparse.ArgumentParser) -> None:
    """Add `--format text|json`."""
    parser.add_argument("--format", choices=("text", "json"), default="text", help="text for people, json for programs")


def add_report_format(parser: argparse.ArgumentParser) -> None:
    """Add `--format text|json|line`."""
    parser.add_argument(
        "--format",
        choices=("text", "json", "line"),
        default="text",
        help="text for people, json for programs, line for node-problem-detector: one line, the worst first",
    )


def tell(report: NodeReport, form: str) -> int:
    """Print a report and return the exit code it stands for."""
    if form == "json":
        printed = emit(lambda stream: stream.write(report_json.dumps(report)))
    elif form == "line":
        printed = emit(lambda stream: stream.write(report_line.line(report)))
    else:
        printed = emit(lambda stream: report_text.write(report, stream, colour=_colour()))
    return exit_code(report) if printed else EXIT_UNKNOWN


def emit(write: Callable[[TextIO], object]) -> bool:
    """Let `write` write to standard output; False, with the reason on standard error, if it cannot be written.

    A reader that went away early, such as `head`, has what it wanted.
    """
    if sys.stdout is None:
        print("nodediag: standard output is closed", file=sys.stderr)
        return False
    try:
        with contextlib.suppress(BrokenPipeError):
            write(sys.stdout)
            sys.stdout.flush()
    except OSError as error:
        print(f"nodediag: cannot write to standard output: {error.strerror}", file=sys.stderr)
        return False
    return True


def _colour() -> bool:
    """Whether a person looks (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
