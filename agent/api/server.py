"""The gRPC API on a Unix socket, or over TCP with certificates on both sides.

Its place is taken at once; what serves there (`agent.api.grpc_server`) is loaded and started when the first caller has
shown who it is. Only then is its memory spent: on a node nobody asks, never. Where it must be there even when the
disk it is loaded from hangs, it is started ahead.
"""

import threading
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from agent.api.door import Door
from agent.api.endpoint import Place
from agent.api.hidden import HiddenSocket
from agent.pipeline.board import Board
from agent.pipeline.feed import Feed

if TYPE_CHECKING:
    from agent.api.grpc_server import GrpcServer, Service

STOP_SECONDS = 0.3
"""How long calls may take to end by themselves when the agent stops."""
CANCEL_SECONDS = 0.3
"""How long we then wait for the cancelled ones, and for what they were told to be on its way."""


class ApiServer:
    """Serves these services from threads of its own; `feed` is closed when it stops, and so are its watches."""

    def __init__(self, place: Place, board: Board, feed: Feed, services: "Callable[[], Collection[Service]]") -> None:
        self.listen = place.listen
        self._place = place
        self._board = board
        self._feed = feed
        self._services = services
        self._lock = threading.Lock()
        self._door: Door | None = None
        self._server: GrpcServer | None = None

    @property
    def endpoint(self) -> str:
        """Where it serves, once it does: as `listen`, but with the port that was found if 0 was asked for."""
        door = self._door
        return door.endpoint if door else self.listen

    def start(self, *, ahead: bool = False) -> None:
        """Listen, and serve whoever comes, until `stop`; `ahead`: be ready before the first. Raises EndpointError."""
        door = self._door = Door(self.listen, self._place, self._serve)
        try:
            door.open(ahead=ahead)
        except BaseException:
            self._door = None
            door.close()
            door.stop(0.0)
            raise

    def stop(self) -> None:
        """End every call and remove the socket. Returns within a second; may be called at any time."""
        with self._lock:
            door, self._door = self._door, None
            server, self._server = self._server, None
        if door is None:
            return
        door.close()
        if server:
            server.part()
        self._feed.close()
        if server:
            server.stop(STOP_SECONDS, CANCEL_SECONDS)
        door.stop(CANCEL_SECONDS)

    def _serve(self, inner: HiddenSocket) -> None:
        """Start what serves, for the first caller; nothing once we have stopped. Called in the door's own thread."""
        from agent.api.grpc_server import GrpcServer  # noqa: PLC0415 - its 16 MiB are spent once somebody calls

        services = self._services()
        with self._lock:
            if self._door is None:
                raise RuntimeError("the agent is stopping")
            server = GrpcServer(self._door, self._board, services)
            try:
                server.start(inner.address)
                inner.hide()
            except BaseException:
                server.stop(0.0, 0.0)
                raise
            self._server = server
