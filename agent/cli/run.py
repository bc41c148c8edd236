"""`nodediag run`: the daemon."""

import argparse
import logging
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
STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})
TICK_SECONDS = 1.0
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
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # before any thread: they inherit it
    logs.configure()
    clock = StallMeter()
    clock.start()
    return Supervisor(loaded, clock).run()


class Supervisor:
    """Starts the parts, watches over the looks under way, and stops everything within a moment.

    The stop signals must be blocked: they are waited for, not handled, since a handler may
    interrupt any line of Python and nearly nothing is safe to do in it.
    """

    def __init__(self, loaded: Loaded, clock: Clock) -> None:
        self._clock = clock
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
        while not _told_to_stop():
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


def _told_to_stop() -> bool:
    """Wait a tick for a signal to stop.

    Python answers with an empty siginfo where the wait was cut short and its time is over, as a SIGSTOP
    and SIGCONT do, so only a signal that was waited for counts.
    """
    received = signal.sigtimedwait(STOP_SIGNALS, TICK_SECONDS)
    return received is not None and received.si_signo in STOP_SIGNALS
