"""What serves behind the door: the services, health and reflection. The only part of it that loads grpc.

Everything is bounded: calls under way (each has a thread, so none waits for another's to end), the size of a message,
how long a call may stay without its request (see `agent.api.limits`), and what a slow reader may keep waiting (see
`agent.pipeline.feed`).
"""

import logging
import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from agent.api.callers import CallerCheck, by_certificate, by_user
from agent.api.door import Door
from agent.api.limits import MAX_CALLS, OPTIONS, TCP_OPTIONS, Deadlines
from agent.api.pb import diagnostics_service_pb2 as pb
from agent.api.pb import diagnostics_service_pb2_grpc as pb_grpc
from agent.pipeline.board import Board, Entry

log = logging.getLogger("nodediag.api")

Service: TypeAlias = Callable[[grpc.Server], str]
"""Adds a service to the server and returns its full name."""


def diagnostics(servicer: pb_grpc.DiagnosticsServiceServicer) -> Service:
    """Return DiagnosticsService as a service to serve."""

    def add(server: grpc.Server) -> str:
        pb_grpc.add_DiagnosticsServiceServicer_to_server(servicer, server)
        return str(pb.DESCRIPTOR.services_by_name["DiagnosticsService"].full_name)

    return add


class GrpcServer:
    """Serves these services from threads of its own. Health is SERVING once every detector of the board has looked."""

    def __init__(self, door: Door, board: Board, services: Collection[Service]) -> None:
        self._board = board
        self._deadlines = Deadlines()
        self._health = health.HealthServicer(experimental_non_blocking=False)
        self._lock = threading.Lock()
        self._serving: bool | None = None
        recognize = by_certificate(door.visitor, door.callers) if door.over_tcp else by_user(door.visitor)
        self._server = grpc.server(
            ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="api"),
            options=(*OPTIONS, *(TCP_OPTIONS if door.over_tcp else ())),
            maximum_concurrent_rpcs=MAX_CALLS,
            interceptors=[CallerCheck(recognize, self._deadlines)],
        )
        self._names = tuple(add(self._server) for add in services)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    def start(self, address: str) -> None:
        """Listen there and serve. Raises RuntimeError if that cannot be done."""
        self._server.add_insecure_port(address)
        self._tell_health()
        self._board.subscribe(self._hear)
        self._server.start()

    def part(self) -> None:
        """Tell whoever watches our health that we leave."""
        self._health.enter_graceful_shutdown()

    def stop(self, seconds: float, cancel_seconds: float) -> None:
        """End: calls may end by themselves, and then are cancelled and waited for."""
        if not self._server.stop(seconds).wait(seconds + cancel_seconds):
            log.warning("calls are still under way and are left behind")
        self._deadlines.stop()

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
