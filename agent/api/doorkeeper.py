"""Lets in who may come: looks at who is behind every connection before a byte of it reaches grpc.

On a Unix socket the mode of the file is not enough: a `chmod`, or a bind mount with other ideas, opens it to everybody.
The kernel knows who connects, but grpc neither asks nor tells. Over TCP, grpc's certificates that change while it
serves crash it when two connect at once (grpc/grpc#36693), and it lets callers resume sessions whose certificate has
expired since. So the socket that is seen is ours; grpc listens on one that nobody can reach (`agent.api.hidden`); and
one thread receives callers (`agent.api.reception`) and copies bytes between the two (`agent.api.relay`).

grpc sees the name our end of a connection is bound to, and so a servicer can tell who calls.

What listens inside is started once there is somebody to let in, or ahead of that if told to (`agent.api.opening`). Who
has come waits meanwhile; after a failure the next caller has it tried again.

Everything is bounded: connections, how long one may take to show who it is or has to wait, and what is read of one
side before the other has taken it. The thread sleeps while nothing moves.
"""

import errno
import itertools
import logging
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from agent.api.hidden import HiddenSocket
from agent.api.opening import Opening
from agent.api.reception import Arrival, NotAdmittedError, Reception, Visitor
from agent.api.relay import READ, Relay

log = logging.getLogger("nodediag.api")

MAX_CONNECTIONS = 128
"""Let in at once; one more is closed at once. Enough for a hundred callers, whom grpc then tells what is too many."""
MAX_ARRIVALS = 32
"""Connections that have not shown yet who they are; for one more, the one that has taken longest goes."""
ARRIVAL_SECONDS = 10.0
OPENING_SECONDS = 60.0
"""How long a caller is kept waiting for what is started inside: seconds even where the CPU is throttled to a tenth."""
PIECE_BYTES = 64 * 1024
"""What is read at once, and so what may wait for the other side, in each direction."""
ACCEPTED_AT_ONCE = 16
PAUSE_SECONDS = 0.2
"""How long nobody is let in after the system had no descriptor or memory left for it."""
LOG_SECONDS = 60.0
"""One kind of message about those who were not let in comes at most this often."""
_SCARCE = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Doorkeeper:
    """Lets callers of `listener` in to what listens inside; owns both. `on_close` is called by its end.

    `inside` starts what listens there and returns its socket; it is called for the first caller, and may raise.
    """

    def __init__(
        self,
        listener: socket.socket,
        reception: Reception,
        inside: Callable[[], HiddenSocket],
        on_close: Callable[[], object] = lambda: None,
        limit: int = MAX_CONNECTIONS,
    ) -> None:
        listener.setblocking(False)
        self._opening = Opening(inside, self._ring)
        self._listener = listener
        self._reception = reception
        self._on_close = on_close
        self._limit = limit
        self._prefix = f"nodediag.{secrets.token_hex(16)}."
        self._numbers = itertools.count()
        self._arrivals: dict[Arrival, float] = {}
        self._waiting: dict[Arrival, tuple[Visitor, float]] = {}
        self._relays: dict[Relay, str] = {}
        self._visitors: dict[str, Visitor] = {}
        self._scratch = memoryview(bytearray(PIECE_BYTES))
        self._told: dict[str, float] = {}
        self._selector = selectors.DefaultSelector()
        self._bell, self._rope = socket.socketpair()
        self._closing = False
        self._end_at: float | None = None
        self._reopen_at: float | None = None
        self._thread: threading.Thread | None = None

    def start(self, *, ahead: bool = False) -> None:
        """Let callers in from now on; `ahead`: start what listens inside now, not for the first. Raises OSError."""
        self._selector.register(self._bell, READ)
        self._selector.register(self._listener, READ)
        if ahead:
            self._opening.begin()
        self._thread = threading.Thread(target=self._keep, name="api-door", daemon=True)
        self._thread.start()

    def visitor(self, peer: str) -> Visitor | None:
        """Return who is behind a peer as grpc names it; None if it did not come through this door, or has left."""
        return self._visitors.get(peer.removeprefix("unix-abstract:"))

    def close(self) -> None:
        """Let nobody in any more; who is in stays."""
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
        self._opening.close()

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
                elif isinstance(key.data, Relay):
                    self._move(key.data, key.fileobj, mask)
                else:
                    self._receive(key.data)
            self._mind_the_time()
        for arrival in (*self._arrivals, *self._waiting):
            self._turn_away(arrival)
        for relay in tuple(self._relays):
            self._drop(relay)
        self._selector.close()
        self._bell.close()
        self._rope.close()

    def _at_end(self) -> bool:
        return self._end_at is not None and (not self._relays or time.monotonic() >= self._end_at)

    def _seconds_to_sleep(self) -> float | None:
        moments = [moment for moment in (self._end_at, self._reopen_at) if moment is not None]
        moments += itertools.islice(self._arrivals.values(), 1)  # the first of them is due first
        moments += (due for _, due in itertools.islice(self._waiting.values(), 1))
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    def _mind_the_time(self) -> None:
        now = time.monotonic()
        if self._opening.take_up():
            self._welcome(self._opening.inner)
        waiting = ((arrival, due) for arrival, (_, due) in self._waiting.items())
        for arrival in [arrival for arrival, due in (*self._arrivals.items(), *waiting) if due <= now]:
            self._turn_away(arrival)
        if self._closing:
            self._shut()
        elif self._reopen_at is not None and now >= self._reopen_at:
            self._reopen_at = None
            self._selector.register(self._listener, READ)

    def _answer_the_door(self) -> None:
        for caller in self._accepted():
            try:
                caller.setblocking(False)
                arrival = self._reception(caller)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with one must not close the door to all
                self._tell("a caller was shut out: it could not be received", why=str(error))
                caller.close()
                continue
            if len(self._arrivals) >= MAX_ARRIVALS:
                self._turn_away(next(iter(self._arrivals)))
            self._arrivals[arrival] = time.monotonic() + ARRIVAL_SECONDS
            self._receive(arrival)

    def _accepted(self) -> Iterator[socket.socket]:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                yield self._listener.accept()[0]
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _SCARCE:
                    self._rest(error)
                    return
                # else it has gone already

    def _receive(self, arrival: Arrival) -> None:
        """Go on with an arrival: wait, let it in, or turn it away."""
        if arrival not in self._arrivals:
            return  # turned away in this very round
        with self._shutting_out(arrival):
            found = arrival.step()
            if not isinstance(found, Visitor):
                self._wait_for(arrival.socket, found, arrival)
            elif len(self._relays) + len(self._waiting) >= self._limit:
                raise NotAdmittedError("a caller was shut out: there are too many connections", limit=self._limit)
            elif self._opening.inner is None:
                self._keep_waiting(arrival, found)
            else:
                self._let_in(arrival, found, self._opening.inner)

    @contextmanager
    def _shutting_out(self, arrival: Arrival) -> Iterator[None]:
        """Turn an arrival away if the block fails with it, and say why."""
        try:
            yield
        except NotAdmittedError as refused:
            self._tell(str(refused), **refused.what)
        except OSError as error:
            self._tell("a caller was shut out: its connection broke", why=error.strerror or str(error))
        except Exception:
            log.exception("a caller was shut out: it could not be received")
        else:
            return
        self._turn_away(arrival)

    def _keep_waiting(self, arrival: Arrival, visitor: Visitor) -> None:
        """Leave what it says where it is until somebody listens inside."""
        with suppress(KeyError):
            self._selector.unregister(arrival.socket)
        del self._arrivals[arrival]
        self._waiting[arrival] = (visitor, time.monotonic() + OPENING_SECONDS)
        self._opening.begin()

    def _welcome(self, inner: HiddenSocket | None) -> None:
        """Let in who has waited, if somebody listens inside now; turn them away if nobody could be had to."""
        for arrival, (visitor, _) in tuple(self._waiting.items()):
            if inner is None:
                self._turn_away(arrival)
            else:
                with self._shutting_out(arrival):
                    self._let_in(arrival, visitor, inner)

    def _let_in(self, arrival: Arrival, visitor: Visitor, inner: HiddenSocket) -> None:
        name = f"{self._prefix}{next(self._numbers)}"
        self._visitors[name] = visitor  # before grpc can ask
        try:
            inside = inner.connect(name)
        except OSError:
            del self._visitors[name]
            raise
        self._arrivals.pop(arrival, None)
        self._waiting.pop(arrival, None)
        relay = Relay(arrival.socket, inside, self._scratch)
        self._relays[relay] = name
        self._await(relay)
        self._move(relay, arrival.socket, READ)  # a TLS socket may hold already what the system would not tell of

    def _move(self, relay: Relay, side: object, mask: int) -> None:
        """Copy what has come; when one side is broken, or the inside has ended, all of it is closed."""
        if relay not in self._relays:
            return  # closed in this very round
        try:
            for each in relay.sockets:
                if each is side:
                    relay.move(each, mask)
        except OSError:
            self._drop(relay)
            return
        if relay.done:
            self._drop(relay)
        else:
            self._await(relay)

    def _await(self, relay: Relay) -> None:
        for side in relay.sockets:
            self._wait_for(side, relay.awaited(side), relay)

    def _wait_for(self, side: socket.socket, mask: int, data: Relay | Arrival) -> None:
        """Wait for just what can be used: anything else that is ready would wake us for ever."""
        key = self._selector.get_map().get(side)
        if key is None and mask:
            self._selector.register(side, mask, data)
        elif key is not None and not mask:
            self._selector.unregister(side)
        elif key is not None and (key.events != mask or key.data is not data):
            self._selector.modify(side, mask, data)

    def _turn_away(self, arrival: Arrival) -> None:
        if self._arrivals.pop(arrival, None) is not None or self._waiting.pop(arrival, None) is not None:
            with suppress(KeyError):
                self._selector.unregister(arrival.socket)
            arrival.socket.close()

    def _drop(self, relay: Relay) -> None:
        self._visitors.pop(self._relays.pop(relay), None)
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
        if self._listener.fileno() < 0:
            return
        with suppress(KeyError):
            self._selector.unregister(self._listener)
        self._reopen_at = None
        self._listener.close()
        self._on_close()

    def _tell(self, message: str, **what: object) -> None:
        """Log, but each kind of message only once in a while: who is shut out may come again at once."""
        now = time.monotonic()
        if now - self._told.get(message, -LOG_SECONDS) >= LOG_SECONDS:
            self._told[message] = now
            log.warning(message, extra=what)
