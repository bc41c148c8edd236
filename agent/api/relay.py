"""Copies bytes between a caller and what listens inside, both ways, and holds at most one piece in each direction.

A side is read only when the other has taken everything read before, so that a side that does not read is felt by the
other as it would be without us. A caller that says no more is passed on and still hears the answer; when the inside
ends, all is over. The caller's side may be a TLS socket, for which reading may mean writing first.
"""

import selectors
import socket
import ssl
from contextlib import suppress

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Relay:
    """Two connected non-blocking sockets, which it owns. `scratch` is what pieces are read into, and their size.

    A piece must have room for a TLS record (16 KiB), or some of it could stay unseen in the TLS socket.
    """

    def __init__(self, caller: socket.socket, inside: socket.socket, scratch: memoryview) -> None:
        self.sockets = (caller, inside)
        self._in = _Way(caller, inside, scratch)
        self._out = _Way(inside, caller, scratch)

    @property
    def done(self) -> bool:
        """Whether the inside has ended, and everything it said is on its way."""
        return self._out.ended

    def awaited(self, side: socket.socket) -> int:
        """Return what this side is waited for: READ, WRITE, both or 0."""
        mask = 0
        for way in (self._in, self._out):
            if way.source is side and way.wants_more:
                mask |= way.awaits
            if way.sink is side and way.waiting:
                mask |= WRITE
        return mask

    def move(self, side: socket.socket, mask: int) -> None:
        """Copy what can be copied now that this side is ready. Raises OSError if a side is gone."""
        for way in (self._in, self._out):
            if mask & WRITE and way.sink is side and way.waiting:
                way.push()
            if mask & way.awaits and way.source is side and way.wants_more:
                way.pull()

    def close(self) -> None:
        """Close both sockets."""
        caller, _ = self.sockets
        if isinstance(caller, ssl.SSLSocket):
            with suppress(OSError, ValueError):
                caller.unwrap()  # says that it ends here; whether that is heard is not waited for
        for side in self.sockets:
            side.close()


class _Way:
    """One direction. `waiting` is what was read and the sink has not taken yet; `awaits` is what reading waits for."""

    def __init__(self, source: socket.socket, sink: socket.socket, scratch: memoryview) -> None:
        self.source = source
        self.sink = sink
        self.waiting = b""
        self.ended = False
        self.awaits = READ
        self._scratch = scratch

    @property
    def wants_more(self) -> bool:
        return not self.ended and not self.waiting

    def pull(self) -> None:
        self.awaits = READ
        try:
            count = self.source.recv_into(self._scratch)
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except ssl.SSLWantWriteError:
            self.awaits = WRITE
            return
        if count:
            self._send(self._scratch[:count])
            return
        self.ended = True
        if not isinstance(self.sink, ssl.SSLSocket):
            with suppress(OSError):  # it may be gone altogether, which its own direction will tell
                self.sink.shutdown(socket.SHUT_WR)

    def push(self) -> None:
        self._send(memoryview(self.waiting))

    def _send(self, piece: memoryview) -> None:
        try:
            sent = self.sink.send(piece)
        except (BlockingIOError, ssl.SSLWantWriteError):
            sent = 0
        self.waiting = bytes(piece[sent:])
