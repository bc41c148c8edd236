"""`nodediag run`: the daemon."""

import argparse
import logging
import os
import select
import signal
import sys

from agent import __version__, app, logs
from agent.cli.arguments import add_config, load_or_explain
from agent.cli.exits import EXIT_OK, EXIT_UNKNOWN
from agent.clock import Clock, StallMeter
from agent.exporters.http import HttpExporter, ListenError
from agent.exporters.metrics import Metrics
from agent.exporters.site import Site
from agent.settings import Loaded

NAME = "run"
HELP = "watch this node until told to stop (the daemon)"
TICK_SECONDS = 1.0
SWITCH_SECONDS = 0.001
"""A scan of thousands of processes lets a scrape in between this often; Python's own 5 ms adds up over one answer."""
ALIVE_SECONDS = 10.0
"""/livez fails once the supervising loop has not come round for this long of awake time."""

log = logging.getLogger("nodediag")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this subcommand's options."""
    add_config(parser)


def main(arguments: argparse.Namespace) -> int:
    """Run until SIGTERM or SIGINT; 2 if the settings or the address cannot be used."""
    loaded = load_or_explain(arguments.config)
    if loaded is None:
        return EXIT_UNKNOWN
    sys.setswitchinterval(SWITCH_SECONDS)
    stop = StopSignals()
    logs.configure()
    clock = StallMeter()
    clock.start()
    return Supervisor(loaded, clock, stop).run()


class StopSignals:
    """Waits for SIGTERM or SIGINT on the descriptor the interpreter itself writes signals to.

    A handler written in Python may interrupt any line, and nearly nothing is safe to do in one. And
    sigtimedwait is no way out: cut short by SIGSTOP and SIGCONT, CPython returns a siginfo of garbage.
    """

    def __init__(self) -> None:
        self._arrived, written = os.pipe()
        os.set_blocking(written, False)
        signal.set_wakeup_fd(written, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: None)

    def wait(self, seconds: float) -> bool:
        """Return True once such a signal has come, False if none came in time."""
        return bool(select.select([self._arrived], [], [], seconds)[0])


class Supervisor:
    """Starts the parts, watches over the looks under way, and stops everything within a moment."""

    def __init__(self, loaded: Loaded, clock: Clock, stop: StopSignals) -> None:
        self._clock = clock
        self._stop = stop
        self._beat = clock.awake()
        self._agent = app.build(loaded, clock)
        metrics = Metrics(self._agent.board, clock, self._agent.detectors, __version__)
        site = Site(self._agent.board, self._alive, metrics.expose)
        self._listen = loaded.settings.http.listen
        self._http = HttpExporter(self._listen, site)

    def run(self) -> int:
        """Serve and watch until a signal comes."""
        try:
            self._http.start()
        except ListenError as error:
            print(f"nodediag: {error}", file=sys.stderr)
            return EXIT_UNKNOWN
        runners = self._agent.runners
        listen = f"{self._listen.rpartition(':')[0]}:{self._http.port}"
        log.info("started", extra={"version": __version__, "listen": listen, "detectors": [r.name for r in runners]})
        for runner in runners:
            runner.start()
        while not self._stop.wait(TICK_SECONDS):
            self._beat = self._clock.awake()
            for runner in runners:
                runner.check_overdue()
        for runner in runners:
            runner.stop()
        self._http.stop()
        log.info("stopped")
        return EXIT_OK

    def _alive(self) -> bool:
        return self._clock.awake() - self._beat < ALIVE_SECONDS
