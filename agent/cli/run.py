"""`nodediag run`: the daemon."""

import argparse
import logging
import os
import select
import signal
import sys
from collections.abc import Collection
from typing import TYPE_CHECKING

from agent import __version__, allocator, app, logs
from agent.acts import Caller
from agent.api.endpoint import EndpointError, EndpointInUseError, Place, TlsFiles, is_unix
from agent.cli.arguments import add_config, load_or_explain
from agent.cli.exits import EXIT_OK, EXIT_UNKNOWN
from agent.clock import Clock, StallMeter
from agent.exporters.http import HttpExporter, ListenError
from agent.exporters.metrics import Metrics
from agent.exporters.site import Site
from agent.model import Action
from agent.pipeline.feed import Feed
from agent.settings import GrpcSettings, Loaded

if TYPE_CHECKING:
    from agent.act_flow import ActFlow
    from agent.api.grpc_server import Service
    from agent.api.server import ApiServer
    from agent.exporters.node_conditions.exporter import NodeConditions

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
    """Run until SIGTERM or SIGINT; 2 if the settings or an address cannot be used."""
    loaded = load_or_explain(arguments.config)
    if loaded is None:
        return EXIT_UNKNOWN
    allocator.share_one_arena()
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
        self._acting = _act_flow(loaded, clock, self._agent)
        tally = self._acting.engine.tally if self._acting else dict
        self._node_conditions = _node_conditions(loaded, clock, self._agent)
        own = (self._node_conditions,) if self._node_conditions else ()
        meters = (*self._agent.meters, *own)
        metrics = Metrics(self._agent.board, clock, self._agent.detectors, __version__, tally, meters)
        site = Site(self._agent.board, self._alive, metrics.expose)
        self._listen = loaded.settings.http.listen
        self._http = HttpExporter(self._listen, site)
        self._api_is_asked_for = loaded.is_set("grpc.listen")
        self._is_to_mend = loaded.settings.remediation.enabled
        self._api: ApiServer | None = None
        self._local_api: ApiServer | None = None
        if self._acting:
            self._api, self._local_api = _apis(loaded, self._agent, self._acting)

    def run(self) -> int:
        """Serve and watch until a signal comes."""
        try:
            self._http.start()
            self._start_api()
        except (ListenError, EndpointError) as error:
            print(f"nodediag: {error}", file=sys.stderr)
            self._http.stop()
            return EXIT_UNKNOWN
        self._watch()
        log.info("stopped")
        return EXIT_OK

    def _watch(self) -> None:
        """Let the detectors look until a signal comes, then stop every part."""
        runners = self._agent.runners
        listen = f"{self._listen.rpartition(':')[0]}:{self._http.port}"
        api = self._api.endpoint if self._api else ""
        parts = {"listen": listen, "api": api, "detectors": [r.name for r in runners]}
        log.info("started", extra={"version": __version__, **parts})
        for runner in runners:
            runner.start()
        if self._node_conditions:
            self._node_conditions.start()
        while not self._stop.wait(TICK_SECONDS):
            self._beat = self._clock.awake()
            for runner in runners:
                runner.check_overdue()
        for runner in runners:
            runner.stop()
        if self._node_conditions:
            self._node_conditions.stop()
        if self._acting:
            self._acting.engine.stop()
        for server in (self._api, self._local_api):
            if server:
                server.stop()
        self._http.stop()

    def _start_api(self) -> None:
        """Serve the API. Where it is only a default, a socket we may not make is no reason to leave the node unwatched.

        Raises EndpointError.
        """
        try:
            if self._api and self._acting:
                # Whoever is to mend a node comes when its disk hangs, too: then nothing can be loaded any more.
                self._api.start(ahead=self._is_to_mend)
                self._acting.engine.start()
        except EndpointError as error:
            if self._api_is_asked_for or isinstance(error, EndpointInUseError):
                raise
            log.warning("no API is served", extra={"why": str(error)})
            self._api = None
        try:
            if self._local_api:
                self._local_api.start()
        except EndpointError as error:
            log.warning("no API is served to those on this node", extra={"why": str(error)})
            self._local_api = None

    def _alive(self) -> bool:
        return self._clock.awake() - self._beat < ALIVE_SECONDS


def _act_flow(loaded: Loaded, clock: Clock, agent: app.Agent) -> "ActFlow | None":
    """Return the act flow if there is an API through which it can be asked."""
    if not loaded.settings.grpc.listen:
        return None
    from agent import act_flow  # noqa: PLC0415 - without the API nobody can ask it, and its memory is not spent

    return act_flow.build(loaded, clock, agent.board)


def _node_conditions(loaded: Loaded, clock: Clock, agent: app.Agent) -> "NodeConditions | None":
    """Return the part that tells the API server, if it is switched on."""
    if not loaded.settings.node_conditions.enabled:
        return None
    from agent import telling  # noqa: PLC0415 - it brings TLS and the kubernetes package

    return telling.build(loaded.settings, clock, agent.board)


def _apis(loaded: Loaded, agent: app.Agent, acting: "ActFlow") -> "tuple[ApiServer, ApiServer | None]":
    """Return the API that is to be served; and where that is over TCP, the same on the default Unix socket.

    So root on the node has a way in that takes no certificate, and `kubectl exec` into the pod works as ever.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # or every stranger writes a line into our log
    from agent.api.server import ApiServer  # noqa: PLC0415 - without the API, its memory is not spent

    feed = Feed(agent.board)
    types = app.condition_types(agent.detectors)

    def services() -> "Collection[Service]":
        from agent.api.diagnostics import Diagnostics  # noqa: PLC0415 - nor is grpc's, until somebody calls
        from agent.api.grpc_server import diagnostics  # noqa: PLC0415
        from agent.api.remediation import remediation  # noqa: PLC0415

        return [diagnostics(Diagnostics(agent.board, feed, types, acting.evidence)), remediation(acting.engine)]

    place = _place(loaded.settings.grpc)
    local = None if is_unix(place.listen) else ApiServer(Place(GrpcSettings().listen), agent.board, feed, services)
    return ApiServer(place, agent.board, feed, services), local


def _place(grpc: GrpcSettings) -> Place:
    """Return what the API is served on in its own words."""
    callers = (Caller(each.identity, frozenset(map(Action, each.actions))) for each in grpc.callers)
    tls = TlsFiles(grpc.tls.cert_file, grpc.tls.key_file, grpc.tls.client_ca_file) if grpc.callers else None
    return Place(grpc.listen, tls, tuple(callers))
