"""The gRPC server: services, health and reflection on a Unix socket, or over TCP with certificates on both sides.

Everything is bounded: calls under way (each has a thread, so none waits for another's to end), the size of a message,
how long a call may stay without its request (see `agent.api.limits`), and what a slow reader may keep waiting (see
`agent.pipeline.feed`).
"""

import logging
import socket
import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from agent.api import endpoint as places
from agent.api.callers import CallerCheck, by_certificate, by_user
from agent.api.credentials import CertificateError, CertificateWatch
from agent.api.doorkeeper import Doorkeeper
from agent.api.endpoint import EndpointError, Place, TlsFiles
from agent.api.hidden import HiddenSocket
from agent.api.limits import MAX_CALLS, OPTIONS, TCP_OPTIONS, Deadlines
from agent.api.pb import diagnostics_service_pb2 as pb
from agent.api.pb import diagnostics_service_pb2_grpc as pb_grpc
from agent.api.reception import CertificateArrival, UserArrival
from agent.pipeline.board import Board, Entry
from agent.pipeline.feed import Feed

log = logging.getLogger("nodediag.api")

STOP_SECONDS = 0.3
"""How long calls may take to end by themselves when the agent stops."""
CANCEL_SECONDS = 0.3
"""How long we then wait for the cancelled ones, and for what they were told to be on its way."""

Service: TypeAlias = Callable[[grpc.Server], str]
"""Adds a service to the server and returns its full name."""
Options: TypeAlias = tuple[tuple[str, int], ...]


def diagnostics(servicer: pb_grpc.DiagnosticsServiceServicer) -> Service:
    """Return DiagnosticsService as a service to serve."""

    def add(server: grpc.Server) -> str:
        pb_grpc.add_DiagnosticsServiceServicer_to_server(servicer, server)
        return str(pb.DESCRIPTOR.services_by_name["DiagnosticsService"].full_name)

    return add


class ApiServer:
    """Serves these services from threads of its own; `feed` is closed when it stops, and so are its watches.

    Health is SERVING once every detector of the board has looked.
    """

    def __init__(self, place: Place, board: Board, feed: Feed, services: Collection[Service]) -> None:
        self.listen = place.listen
        self._place = place
        self._board = board
        self._feed = feed
        self._services = tuple(services)
        self._health = health.HealthServicer(experimental_non_blocking=False)
        self._names: tuple[str, ...] = ()
        self._running: _Running | None = None
        self._lock = threading.Lock()
        self._serving: bool | None = None

    @property
    def endpoint(self) -> str:
        """Where it serves, once it does: as `listen`, but with the port that was found if 0 was asked for."""
        return self._running.door.endpoint if self._running else self.listen

    def start(self) -> None:
        """Listen and serve until `stop`. Raises EndpointError."""
        door = _Door(self.listen, self._place)
        deadlines = Deadlines()
        try:
            server = grpc.server(
                ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="api"),
                options=(*OPTIONS, *door.options),
                maximum_concurrent_rpcs=MAX_CALLS,
                interceptors=[CallerCheck(door.recognize, deadlines)],
            )
            self._register(server)
            door.listen(server)
            self._tell_health()
            self._board.subscribe(self._hear)
            server.start()
            door.open()
        except BaseException:
            door.close()
            door.stop(0.0)
            raise
        self._running = _Running(server, door, deadlines)

    def stop(self) -> None:
        """End every call and remove the socket. Returns within a second; may be called at any time."""
        running, self._running = self._running, None
        if running is None:
            return
        running.door.close()
        self._health.enter_graceful_shutdown()
        self._feed.close()
        if not running.server.stop(STOP_SECONDS).wait(STOP_SECONDS + CANCEL_SECONDS):
            log.warning("calls are still under way and are left behind")
        running.deadlines.stop()
        running.door.stop(CANCEL_SECONDS)

    def _register(self, server: grpc.Server) -> None:
        self._names = tuple(add(server) for add in self._services)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME), server)

    def _hear(self, _: Entry) -> None:
        self._tell_health()

    def _tell_health(self) -> None:
        """Serving once the board is fresh: every detector has looked. Whoever watches is told of changes only."""
        with self._lock:
            serving = not self._board.waiting()
            if serving == self._serving:
                return
            self._serving = serving
            words = health_pb2.HealthCheckResponse
            for service in ("", *self._names):
                self._health.set(service, words.SERVING if serving else words.NOT_SERVING)


class _Door:
    """The way in: takes its place when it is made, and tells who comes. Raises EndpointError."""

    def __init__(self, listen: str, place: Place) -> None:
        self._watch: CertificateWatch | None = None
        if places.is_unix(listen):
            self.options: Options = ()
            self.endpoint = listen
            self._keeper = self._unix_keeper(listen)
            self.recognize = by_user(self._keeper.visitor)
        else:
            if place.tls is None or not place.callers:
                raise EndpointError(f"cannot serve gRPC on {listen}: over TCP, grpc.tls and grpc.callers must be set")
            self.options = TCP_OPTIONS
            self._watch = self._loaded(listen, place.tls)
            listener = places.take_address(listen)
            self.endpoint = f"{listen.rpartition(':')[0]}:{listener.getsockname()[1]}"
            self._keeper = self._tcp_keeper(listener, self._watch)
            self.recognize = by_certificate(self._keeper.visitor, place.callers)

    def listen(self, server: grpc.Server) -> None:
        """Have grpc listen behind it, before it starts."""
        try:
            server.add_insecure_port(self._keeper.inner.address)
        except RuntimeError as error:
            raise EndpointError(f"cannot serve gRPC on {self.endpoint}: {error}") from error

    def open(self) -> None:
        """Let callers in; grpc has started."""
        if self._watch:
            self._watch.start()
        self._keeper.start()

    def close(self) -> None:
        """Let nobody in any more."""
        self._keeper.close()

    def stop(self, seconds: float) -> None:
        """End, within so many seconds; grpc has ended."""
        self._keeper.stop(seconds)
        if self._watch:
            self._watch.stop()

    @staticmethod
    def _unix_keeper(listen: str) -> Doorkeeper:
        listener = places.take_path(listen)
        remove = places.remover(listen)
        try:
            inner = HiddenSocket([places.path_of(listen).parent])
        except OSError as error:
            listener.close()
            remove()
            raise EndpointError(f"cannot serve gRPC on {listen}: {error.strerror or error}") from error
        return Doorkeeper(listener, UserArrival, inner, remove)

    @staticmethod
    def _tcp_keeper(listener: socket.socket, watch: CertificateWatch) -> Doorkeeper:
        try:
            inner = HiddenSocket()
        except OSError as error:
            listener.close()
            why = error.strerror or error
            raise EndpointError(f"cannot serve gRPC over TCP: no folder for a socket in /run or /tmp: {why}") from error
        return Doorkeeper(listener, lambda connection: CertificateArrival(connection, watch.context()), inner)

    @staticmethod
    def _loaded(listen: str, tls: TlsFiles) -> CertificateWatch:
        watch = CertificateWatch(tls)
        try:
            watch.load()
        except CertificateError as error:
            raise EndpointError(f"cannot serve gRPC on {listen}: {error}. See the settings grpc.tls.") from error
        return watch


class _Running:
    def __init__(self, server: grpc.Server, door: _Door, deadlines: Deadlines) -> None:
        self.server = server
        self.door = door
        self.deadlines = deadlines
