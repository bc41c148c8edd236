"""Copies bytes between two sockets, both ways, and holds at most one piece of them in each direction.

A side is read only when the other has taken everything read before, so that a side that does not read is felt by the
other as it would be without us. The end of one direction is passed on, and the other goes on.
"""

import selectors
import socket
from contextlib import suppress

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Relay:
    """Two connected non-blocking sockets, which it owns. `scratch` is what pieces are read into, and their size."""

    def __init__(self, one: socket.socket, other: socket.socket, scratch: memoryview) -> None:
        self.sockets = (one, other)
        self._ways = (_Way(one, other, scratch), _Way(other, one, scratch))

    @property
    def done(self) -> bool:
        """Whether both directions are at their end."""
        return all(way.ended for way in self._ways)

    def awaited(self, side: socket.socket) -> int:
        """Return what this side is waited for: READ, WRITE, both or 0."""
        mask = 0
        for way in self._ways:
            if way.source is side and way.wants_more:
                mask |= READ
            if way.sink is side and way.waiting:
                mask |= WRITE
        return mask

    def move(self, side: socket.socket, mask: int) -> None:
        """Copy what can be copied now that this side is ready. Raises OSError if a side is gone."""
        for way in self._ways:
            if mask & WRITE and way.sink is side and way.waiting:
                way.push()
            if mask & READ and way.source is side and way.wants_more:
                way.pull()

    def close(self) -> None:
        """Close both sockets."""
        for side in self.sockets:
            side.close()


class _Way:
    """One direction. `waiting` is what was read and the sink has not taken yet."""

    def __init__(self, source: socket.socket, sink: socket.socket, scratch: memoryview) -> None:
        self.source = source
        self.sink = sink
        self.waiting = b""
        self.ended = False
        self._scratch = scratch

    @property
    def wants_more(self) -> bool:
        return not self.ended and not self.waiting

    def pull(self) -> None:
        try:
            count = self.source.recv_into(self._scratch)
        except BlockingIOError:
            return
        if count:
            self._send(self._scratch[:count])
            return
        self.ended = True
        with suppress(OSError):  # it may be gone altogether, which its own direction will tell
            self.sink.shutdown(socket.SHUT_WR)

    def push(self) -> None:
        self._send(memoryview(self.waiting))

    def _send(self, piece: memoryview) -> None:
        try:
            sent = self.sink.send(piece)
        except BlockingIOError:
            sent = 0
        self.waiting = bytes(piece[sent:])
