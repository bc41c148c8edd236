"""The gRPC server: services, health and reflection on one Unix socket.

Everything is bounded: calls under way (each has a thread, so none waits for another's to end), the size of a
message, and what a slow reader may keep waiting (see `agent.pipeline.feed`).
"""

import logging
import threading
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from agent.api import endpoint as place
from agent.api.diagnostics import Diagnostics
from agent.api.pb import diagnostics_service_pb2 as pb
from agent.api.pb import diagnostics_service_pb2_grpc as pb_grpc
from agent.pipeline.board import Board, Entry
from agent.pipeline.feed import MAX_WATCHERS, Feed

log = logging.getLogger("nodediag.api")

MAX_CALLS = MAX_WATCHERS + 16
"""Calls under way at once; one more is refused at once."""
MAX_RECEIVED_BYTES = 64 * 1024
MAX_METADATA_BYTES = 8 * 1024
STOP_SECONDS = 0.3
"""How long calls may take to end by themselves when the agent stops."""
CANCEL_SECONDS = 0.3
"""How long we then wait for the cancelled ones."""
SERVICES = tuple(each.full_name for each in pb.DESCRIPTOR.services_by_name.values())
OPTIONS = (
    ("grpc.max_receive_message_length", MAX_RECEIVED_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.http2.bdp_probe", 0),  # so that the window, and what waits for a slow reader, stays small
)


class ApiServer:
    """Serves one board on a Unix socket from threads of its own; `types` are all conditions there may be."""

    def __init__(self, listen: str, board: Board, types: Collection[str]) -> None:
        self.listen = listen
        self._board = board
        self._types = types
        self._feed = Feed(board)
        self._health = health.HealthServicer()
        self._server: grpc.Server | None = None
        self._lock = threading.Lock()
        self._serving: bool | None = None

    def start(self) -> None:
        """Listen and serve until `stop`. Raises EndpointError."""
        place.take(self.listen)
        server = grpc.server(
            ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="api"),
            options=OPTIONS,
            maximum_concurrent_rpcs=MAX_CALLS,
        )
        self._register(server)
        try:
            with place.private():
                server.add_insecure_port(place.address_of(self.listen))
        except RuntimeError as error:
            raise place.EndpointError(f"cannot serve gRPC on {self.listen}: {error}") from error
        self._tell_health()
        self._board.subscribe(self._hear)
        server.start()
        self._server = server

    def stop(self) -> None:
        """End every call and remove the socket. Returns within a second; may be called at any time."""
        server, self._server = self._server, None
        if server is None:
            return
        self._health.enter_graceful_shutdown()
        self._feed.close()
        if not server.stop(STOP_SECONDS).wait(STOP_SECONDS + CANCEL_SECONDS):
            log.warning("calls are still under way and are left behind")
        with suppress(OSError):  # grpc has removed it, unless calls are left behind
            place.path_of(self.listen).unlink()

    def _register(self, server: grpc.Server) -> None:
        pb_grpc.add_DiagnosticsServiceServicer_to_server(Diagnostics(self._board, self._feed, self._types), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)

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
            for service in ("", *SERVICES):
                self._health.set(service, words.SERVING if serving else words.NOT_SERVING)
