"""`nodediag check`: every detector once, without a daemon.

A detector looks again at once where one look cannot tell: a rate needs two samples and a
suspicion needs its confirmation. All detectors run side by side, and one whose probe is stuck
is reported as overdue instead of waited for.
"""

import argparse
import logging
import sys
import threading
import time

from agent import app
from agent.cli.arguments import add_config, load_or_explain
from agent.cli.exits import EXIT_UNKNOWN
from agent.cli.output import add_report_format, tell
from agent.clock import StallMeter
from agent.pipeline.runner import Runner

NAME = "check"
HELP = "look at this node once and report what is wrong"
SETTLE_SECONDS = 30.0
"""A suspicion that is neither confirmed nor gone by then leaves its condition undetermined."""
TICK_SECONDS = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this subcommand's options."""
    add_config(parser)
    add_report_format(parser)
    parser.add_argument(
        "--detector",
        action="append",
        choices=app.DETECTOR_NAMES,
        metavar="NAME",
        help=f"only this one; may be repeated ({', '.join(app.DETECTOR_NAMES)})",
    )


def main(arguments: argparse.Namespace) -> int:
    """Look, report, and exit as node-problem-detector's custom plugins do."""
    loaded = load_or_explain(arguments.config)
    if loaded is None:
        return EXIT_UNKNOWN
    names = tuple(dict.fromkeys(arguments.detector or app.enabled(loaded.settings)))
    off = [name for name in names if name not in app.enabled(loaded.settings)]
    if off or not names:
        print(f"nodediag: switched off in the settings: {', '.join(off) or 'every detector'}", file=sys.stderr)
        return EXIT_UNKNOWN
    logging.basicConfig(level=logging.CRITICAL)  # the report says what failed
    clock = StallMeter()
    clock.start()
    agent = app.build(loaded, clock, names)
    _run_all(agent.runners)
    return tell(agent.board.report(), arguments.format)


def _run_all(runners: tuple[Runner, ...]) -> None:
    threads = [threading.Thread(target=_settle, args=(runner,), name=runner.name, daemon=True) for runner in runners]
    for thread in threads:
        thread.start()
    while any(_unfinished(runner, thread) for runner, thread in zip(runners, threads, strict=True)):
        time.sleep(TICK_SECONDS)


def _unfinished(runner: Runner, thread: threading.Thread) -> bool:
    return thread.is_alive() and not runner.check_overdue()


def _settle(runner: Runner) -> None:
    """Look until another look would tell no more."""
    deadline = time.monotonic() + SETTLE_SECONDS
    runner.look()
    while runner.unsettled and (left := deadline - time.monotonic()) > 0:
        time.sleep(min(runner.pause_seconds(), left))
        runner.look()
