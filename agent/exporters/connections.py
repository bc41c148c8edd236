"""The open connections of a server: bounded in number and in the time each may take.

When all are taken, the one that has kept us waiting longest makes room: whoever connects and stays
silent never costs others their turn, for they send their request at once.
"""

import contextlib
import socket
import threading
import time


class Connections:
    """At most `limit` connections; each may take `seconds` to send a request, and again to take its answer."""

    def __init__(self, limit: int, seconds: float) -> None:
        self._limit = limit
        self._seconds = seconds
        self._lock = threading.Lock()
        self._waiting: dict[socket.socket, float] = {}
        self._answering: dict[socket.socket, float] = {}

    def admit(self, connection: socket.socket) -> bool:
        """Take in a new connection; if all are taken, the one we wait for longest goes. False: no room."""
        with self._lock:
            if len(self._waiting) + len(self._answering) >= self._limit:
                if not self._waiting:
                    return False
                self._drop(min(self._waiting, key=self._waiting.__getitem__))
            self._waiting[connection] = time.monotonic()
            return True

    def waiting(self, connection: socket.socket) -> None:
        """Note that an answer is out and the next request may come; one that was dropped stays dropped."""
        with self._lock:
            if self._answering.pop(connection, None) is not None:
                self._waiting[connection] = time.monotonic()

    def answering(self, connection: socket.socket) -> None:
        """Note that a request is read and its answer is on its way."""
        with self._lock:
            if self._waiting.pop(connection, None) is not None:
                self._answering[connection] = time.monotonic()

    def forget(self, connection: socket.socket) -> None:
        """Note that a connection is closed."""
        with self._lock:
            self._waiting.pop(connection, None)
            self._answering.pop(connection, None)

    def drop_late(self) -> None:
        """End the connections that have taken too long."""
        with self._lock:
            limit = time.monotonic() - self._seconds
            for connection, since in (*self._waiting.items(), *self._answering.items()):
                if since < limit:
                    self._drop(connection)

    def drop_all(self) -> None:
        """End every connection."""
        with self._lock:
            for connection in (*self._waiting, *self._answering):
                self._drop(connection)

    def _drop(self, connection: socket.socket) -> None:
        self._waiting.pop(connection, None)
        self._answering.pop(connection, None)
        with contextlib.suppress(OSError):  # its thread wakes up, and closes it
            connection.shutdown(socket.SHUT_RDWR)
