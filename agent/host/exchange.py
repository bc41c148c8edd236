"""Holds one question on a socket of our own, with one total deadline that no peer can stretch.

All times are seconds of `clock.awake()`: while this process stands still, nobody is late.
Nothing here blocks longer than its deadline, and nothing raises for what a peer does: every way
a try can end is an `Ending`. The protocols (h11, h2) are sans-IO and belong to the callers.
"""

import errno
import os
import selectors
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, Protocol, TypeVar

from agent.clock import Clock

RECEIVE_LIMIT = 128 * 1024
"""Bytes taken from one peer in one try; who sends more is not answering this question."""
LINGER_SECONDS = 0.25
"""How long the second try may still run once the first has ended: if both waited for the same
stall of the peer, both answers arrive together."""
RETRY_SECONDS = 0.05
"""Pause before a unix socket whose accept queue is full is tried again (connect(2), EAGAIN)."""
MAX_DETAIL = 120
_SHORTEST_WAIT = 0.001


class Phase(StrEnum):
    """What a try was waiting for."""

    CONNECT = "connect"
    FIRST_BYTE = "first_byte"
    TOTAL = "total"


class Ending(StrEnum):
    """How a try ended."""

    ANSWERED = "answered"
    TIMEOUT = "timeout"
    LEFT = "left"
    """Unfinished when the other try had ended; see `total_seconds` for how long it had waited."""
    REFUSED = "refused"
    """Nobody listens (ECONNREFUSED), or the unix socket does not exist (ENOENT)."""
    CLOSED = "closed"
    """The peer closed or reset the connection before its answer was whole."""
    MALFORMED = "malformed"
    TOO_LARGE = "too_large"
    ERROR = "error"
    """Our own side failed: no permission, no descriptors, no route."""


class NoAnswerError(Exception):
    """What arrived will not become an answer; `ending` tells in which way."""

    def __init__(self, ending: Ending, detail: str) -> None:
        self.ending = ending
        super().__init__(detail)


A = TypeVar("A")
A_co = TypeVar("A_co", covariant=True)


class Talk(Protocol[A_co]):
    """A protocol without sockets: what to ask, and what is made of that which arrives."""

    question: bytes

    @property
    def answer(self) -> A_co | None:
        """The answer once it is whole; what there is of it if it is too large."""
        ...

    def hear(self, data: bytes) -> bytes:
        """Take what arrived (b"" = the peer closed) and return what to send back.

        Raises NoAnswerError.
        """
        ...


@dataclass(frozen=True, slots=True)
class Peer:
    """Where to connect: a socket family and an address in its form (socket(7))."""

    family: int
    address: Any


@dataclass(frozen=True, slots=True)
class Attempt(Generic[A]):
    """One try on one connection. Times are awake seconds since it began.

    `waiting_for` is the phase in which it ended; a phase not reached has no time.
    `detail` is the errno's name and text, or what was wrong with the answer; `code` the errno, 0 if there was none.
    """

    ending: Ending
    waiting_for: Phase
    total_seconds: float
    connect_seconds: float | None = None
    first_byte_seconds: float | None = None
    started: float = 0.0
    answer: A | None = None
    detail: str = ""
    code: int = 0

    @property
    def ended(self) -> float:
        """The awake time at which it ended."""
        return self.started + self.total_seconds


def converse(
    peer: Peer, talk: Callable[[], Talk[A]], *, deadline: float, hedge: float, clock: Clock
) -> tuple[Attempt[A], ...]:
    """Ask, and ask a second time on a new connection if there was no answer after `hedge` seconds.

    Both tries share one deadline, counted from the start. The first is the one that is
    measured: it may use up the deadline; the second tells whether it was bad luck, and is left
    soon after the first has ended. Returns one attempt or two; never raises for the peer.
    """
    begin = clock.awake()
    with selectors.DefaultSelector() as selector:
        tries = [_Try(peer, talk(), clock, selector)]
        try:
            while (wait := _wait(tries, begin, deadline, hedge, clock.awake())) > 0:
                _advance(tries, selector, wait)
                if len(tries) == 1 and not tries[0].attempt and clock.awake() - begin >= hedge:
                    tries.append(_Try(peer, talk(), clock, selector))
            # An answer that lies in our socket buffer was in time: it is we who come late.
            _advance(tries, selector, 0)
            late = clock.awake() - begin >= deadline
            return tuple(each.attempt or each.end(Ending.TIMEOUT if late else Ending.LEFT) for each in tries)
        finally:
            for each in tries:
                each.close()


class _Try(Generic[A]):
    """One connection, from its beginning to its end."""

    def __init__(self, peer: Peer, talk: Talk[A], clock: Clock, selector: selectors.BaseSelector) -> None:
        self.attempt: Attempt[A] | None = None
        self.queue_full = False
        self._peer = peer
        self._talk = talk
        self._clock = clock
        self._selector = selector
        self._socket: socket.socket | None = None
        self._unsent = talk.question
        self._received = 0
        self._started = clock.awake()
        self._connected: float | None = None
        self._first_byte: float | None = None
        self.advance()

    def advance(self) -> None:
        """Do whatever the socket allows now. An error ends the try and goes no further."""
        try:
            if self._connected is None and not self._connect():
                return
            self._send()
            self._receive()
            self._listen_for(selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0))
        except OSError as error:
            self.end(_ending(error), _detail(error), error.errno or 0)
        except NoAnswerError as error:
            self.end(error.ending, str(error))

    def end(self, ending: Ending, detail: str = "", code: int = 0) -> Attempt[A]:
        """Close the connection and fix what became of the try."""
        self.close()
        phase = Phase.CONNECT if self._connected is None else Phase.TOTAL
        if self._connected is not None and self._first_byte is None:
            phase = Phase.FIRST_BYTE
        whole = ending in (Ending.ANSWERED, Ending.TOO_LARGE)
        self.attempt = Attempt(
            ending,
            phase,
            self._clock.awake() - self._started,
            self._connected,
            self._first_byte,
            self._started,
            self._talk.answer if whole else None,
            detail,
            code,
        )
        return self.attempt

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._socket is None:
            return
        with suppress(KeyError):
            self._selector.unregister(self._socket)
        self._socket.close()
        self._socket = None

    def _connect(self) -> bool:
        """Begin to connect, or see how it goes. Raises OSError."""
        if self._socket is None:
            self._socket = socket.socket(self._peer.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        code = self._socket.connect_ex(self._peer.address)
        self.queue_full = code == errno.EAGAIN
        if code in (errno.EINPROGRESS, errno.EALREADY):
            self._listen_for(selectors.EVENT_WRITE)
        elif code in (0, errno.EISCONN):
            self._connected = self._clock.awake() - self._started
            return True
        elif not self.queue_full:
            raise OSError(code, os.strerror(code))
        return False

    def _send(self) -> None:
        # An error in sending is told by what can be read: a peer may answer and close at once.
        with suppress(BlockingIOError, ConnectionError):
            while self._unsent and self._socket is not None:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]

    def _receive(self) -> None:
        """Hear all that has arrived. Raises OSError, NoAnswerError."""
        while self._socket is not None:
            try:
                data = self._socket.recv(16384)
            except BlockingIOError:
                return
            self._hear(data)

    def _hear(self, data: bytes) -> None:
        if data and self._first_byte is None:
            self._first_byte = self._clock.awake() - self._started
        self._received += len(data)
        try:
            self._unsent += self._talk.hear(data)
        except NoAnswerError:
            if data:
                raise
        if self._talk.answer is not None:
            self.end(Ending.ANSWERED)
        elif not data:
            self.end(Ending.CLOSED, "the connection was closed before the answer was whole")
        elif self._received > RECEIVE_LIMIT:
            raise NoAnswerError(Ending.TOO_LARGE, f"no whole answer within {RECEIVE_LIMIT // 1024} KiB")
        else:
            self._send()

    def _listen_for(self, events: int) -> None:
        if self._socket is None:
            return
        try:
            self._selector.modify(self._socket, events, self)
        except KeyError:
            self._selector.register(self._socket, events, self)


def _wait(tries: list[_Try[A]], begin: float, deadline: float, hedge: float, now: float) -> float:
    """Return how long nothing needs to be done but to listen; 0 when all is told."""
    ends = begin + deadline
    unfinished = [each for each in tries if not each.attempt]
    if not unfinished:
        return 0
    if tries[0].attempt:
        ends = min(ends, tries[0].attempt.ended + LINGER_SECONDS)
    if now >= ends:
        return 0
    if len(tries) == 1 and now < begin + hedge:
        ends = min(ends, begin + hedge)
    if any(each.queue_full for each in unfinished):
        ends = min(ends, now + RETRY_SECONDS)
    return max(ends - now, _SHORTEST_WAIT)


def _advance(tries: list[_Try[A]], selector: selectors.BaseSelector, wait: float) -> None:
    for key, _ in selector.select(wait):
        key.data.advance()
    for each in tries:
        if each.queue_full and not each.attempt:
            each.advance()


def _ending(error: OSError) -> Ending:
    match error.errno:
        case errno.ECONNREFUSED | errno.ENOENT:
            return Ending.REFUSED
        case errno.ECONNRESET | errno.ECONNABORTED | errno.EPIPE:
            return Ending.CLOSED
        case errno.ETIMEDOUT:
            return Ending.TIMEOUT
        case _:
            return Ending.ERROR


def _detail(error: OSError) -> str:
    if error.errno is None:
        return str(error)
    return f"{errno.errorcode.get(error.errno, error.errno)}: {os.strerror(error.errno).lower()}"
