"""Lets in who may come: looks at the user behind every connection on the Unix socket before a byte of it is read.

The mode of a socket file is not enough: a `chmod`, or a bind mount with other ideas, opens it to everybody. The kernel
knows who connects (SO_PEERCRED, unix(7)), but grpc neither asks nor tells. So the socket that is seen is ours; grpc
listens on one that nobody can reach, because its file is removed as soon as it is made and only our own descriptor of
it is left; and one thread copies bytes between the two. Only our own user and root are let in.

grpc sees the name our end of a connection is bound to, and so a servicer can tell which user calls.

Everything is bounded: connections, and what is read of one side before the other has taken it (`agent.api.relay`).
The thread sleeps while nothing moves.
"""

import errno
import itertools
import logging
import os
import secrets
import selectors
import socket
import struct
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from agent.api.endpoint import SCHEME, path_of, take_path
from agent.api.relay import READ, Relay

log = logging.getLogger("nodediag.api")

MAX_CONNECTIONS = 128
"""Open at once; one more is closed at once. Enough for a hundred callers, whom grpc then tells what is too many."""
PIECE_BYTES = 64 * 1024
"""What is read at once, and so what may wait for the other side, in each direction."""
ACCEPTED_AT_ONCE = 16
PAUSE_SECONDS = 0.2
"""How long nobody is let in after the system had no descriptor or memory left for it."""
LOG_SECONDS = 60.0
"""One kind of message about those who were not let in comes at most this often."""
ROOT = 0
_SCARCE = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_CREDENTIALS = struct.Struct("iII")
"""struct ucred: pid, uid, gid (unix(7))."""


class HiddenSocket:
    """The place grpc listens on: made in a folder only we can enter, and then taken away from there.

    A descriptor opened with O_PATH can be connected to through /proc/self/fd after the file is gone, and leaves nothing
    to clean up after a crash. It also spares the limit on the length of a path.
    """

    def __init__(self, beside: Path) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix=".nodediag-", dir=beside))  # mode 0700
        self._name = secrets.token_hex(8)
        self._descriptors = [os.open(self._folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)]
        self._path = f"/proc/self/fd/{self._descriptors[0]}/{self._name}"
        self.address = f"{SCHEME}{self._path}"

    def hide(self) -> None:
        """Take the file away, now that grpc listens there. Raises OSError."""
        self._descriptors.append(os.open(self._path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC))
        self._path = f"/proc/self/fd/{self._descriptors[-1]}"
        self._remove()

    def connect(self, name: str) -> socket.socket:
        """Return a connection to it, our end bound to this abstract name. Raises OSError."""
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.setblocking(False)
            connection.bind(f"\0{name}")
            connection.connect(self._path)
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        """Forget it."""
        self._remove()
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _remove(self) -> None:
        with suppress(OSError):
            (self._folder / self._name).unlink(missing_ok=True)
            self._folder.rmdir()


class Doorkeeper:
    """Keeps the socket of `endpoint` (unix:PATH), and lets root and our own user in to grpc at `inner.address`.

    Made, it holds the place; once started, it lets callers in. Raises EndpointError and OSError.
    """

    def __init__(self, endpoint: str, limit: int = MAX_CONNECTIONS) -> None:
        self._welcome = frozenset({ROOT, os.geteuid()})
        self._limit = limit
        self._path = path_of(endpoint)
        self._prefix = f"nodediag.{secrets.token_hex(16)}."
        self._numbers = itertools.count()
        self._listener = take_path(endpoint)
        self._listener.setblocking(False)
        self._file = _inode(self._path)
        try:
            self.inner = HiddenSocket(self._path.parent)
        except BaseException:
            self._shut()
            raise
        self._relays: set[Relay] = set()
        self._scratch = memoryview(bytearray(PIECE_BYTES))
        self._told: dict[str, float] = {}
        self._selector = selectors.DefaultSelector()
        self._bell, self._rope = socket.socketpair()
        self._closing = False
        self._end_at: float | None = None
        self._reopen_at: float | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Let callers in from now on; grpc listens. Raises OSError."""
        self.inner.hide()
        self._selector.register(self._bell, READ)
        self._selector.register(self._listener, READ)
        self._thread = threading.Thread(target=self._keep, name="api-door", daemon=True)
        self._thread.start()

    def user_of(self, peer: str) -> int | None:
        """Return the user id behind a peer as grpc names it; None if it did not come through this door."""
        prefix = f"unix-abstract:{self._prefix}"
        uid = peer.removeprefix(prefix).partition(".")[0]
        return int(uid) if peer.startswith(prefix) and uid.isascii() and uid.isdigit() else None

    def close(self) -> None:
        """Let nobody in any more, and remove the socket file; who is in stays."""
        self._closing = True
        if self._thread:
            self._ring()
        else:
            self._shut()

    def stop(self, seconds: float) -> None:
        """End once every connection is at its end, at the latest after so many seconds. Called when grpc has ended."""
        self._end_at = time.monotonic() + seconds
        self.close()
        if self._thread:
            self._thread.join(seconds + PAUSE_SECONDS)
        self.inner.close()

    def _ring(self) -> None:
        with suppress(OSError):  # the thread has ended
            self._rope.send(b".")

    # -- the thread

    def _keep(self) -> None:
        while not self._at_end():
            for key, mask in self._selector.select(self._seconds_to_sleep()):
                if key.fileobj is self._listener:
                    self._answer_the_door()
                elif key.fileobj is self._bell:
                    self._bell.recv(PIECE_BYTES)
                else:
                    relay, side = key.data
                    self._move(relay, side, mask)
            if self._closing:
                self._shut()
            elif self._reopen_at is not None and time.monotonic() >= self._reopen_at:
                self._reopen_at = None
                self._selector.register(self._listener, READ)
        for relay in tuple(self._relays):
            self._drop(relay)
        self._selector.close()
        self._bell.close()
        self._rope.close()

    def _at_end(self) -> bool:
        return self._end_at is not None and (not self._relays or time.monotonic() >= self._end_at)

    def _seconds_to_sleep(self) -> float | None:
        moments = [moment for moment in (self._end_at, self._reopen_at) if moment is not None]
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    def _answer_the_door(self) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                caller = self._listener.accept()[0]
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _SCARCE:
                    self._rest(error)
                    return
                continue  # it has gone already
            self._admit(caller)

    def _admit(self, caller: socket.socket) -> None:
        """Let a caller in, or close its connection."""
        try:
            uid = _CREDENTIALS.unpack(caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[1]
            if uid not in self._welcome:
                self._tell("a user who may not call was shut out", uid=uid)
            elif len(self._relays) >= self._limit:
                self._tell("a caller was shut out: there are too many connections", limit=self._limit)
            else:
                caller.setblocking(False)
                self._connect(caller, self.inner.connect(f"{self._prefix}{uid}.{next(self._numbers)}"))
                return
        except OSError as error:
            self._tell("a caller was shut out: it could not be connected with grpc", why=error.strerror or str(error))
        caller.close()

    def _connect(self, caller: socket.socket, inner: socket.socket) -> None:
        relay = Relay(caller, inner, self._scratch)
        self._relays.add(relay)
        for side in relay.sockets:
            self._selector.register(side, READ, (relay, side))

    def _move(self, relay: Relay, side: socket.socket, mask: int) -> None:
        """Copy what has come; a pair of which one side is broken, or both have ended, is closed."""
        if relay not in self._relays:
            return  # closed in this very round
        try:
            relay.move(side, mask)
        except OSError:
            self._drop(relay)
            return
        if relay.done:
            self._drop(relay)
            return
        for each in relay.sockets:
            self._wait_for(relay, each)

    def _wait_for(self, relay: Relay, side: socket.socket) -> None:
        """Wait for just what can be used: anything else that is ready would wake us for ever."""
        mask, key = relay.awaited(side), self._selector.get_map().get(side)
        if key is None and mask:
            self._selector.register(side, mask, (relay, side))
        elif key is not None and not mask:
            self._selector.unregister(side)
        elif key is not None and key.events != mask:
            self._selector.modify(side, mask, (relay, side))

    def _drop(self, relay: Relay) -> None:
        self._relays.discard(relay)
        for side in relay.sockets:
            with suppress(KeyError):
                self._selector.unregister(side)
        relay.close()

    def _rest(self, error: OSError) -> None:
        """Leave those who come in the queue for a moment: there is nothing to receive them with."""
        self._selector.unregister(self._listener)
        self._reopen_at = time.monotonic() + PAUSE_SECONDS
        self._tell("callers have to wait", why=error.strerror)

    def _shut(self) -> None:
        """Close the listening socket and remove its file, unless another agent's lies there by now."""
        if self._listener.fileno() < 0:
            return
        with suppress(KeyError, AttributeError):
            self._selector.unregister(self._listener)
        self._reopen_at = None
        self._listener.close()
        with suppress(OSError):
            if _inode(self._path) == self._file:
                self._path.unlink()

    def _tell(self, message: str, **what: object) -> None:
        """Log, but each kind of message only once in a while: who is shut out may come again at once."""
        now = time.monotonic()
        if now - self._told.get(message, -LOG_SECONDS) >= LOG_SECONDS:
            self._told[message] = now
            log.warning(message, extra={**what, "socket": str(self._path)})


def _inode(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino
