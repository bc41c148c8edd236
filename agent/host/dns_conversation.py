"""Two DNS queries from one socket to one server: the wire (RFC 1035), and what became of each.

Whether an answer came in time is measured by the kernel's receive stamp: a process that could not run (throttled,
stopped) finds the answers waiting in the socket and does not take them for lost.
"""

import contextlib
import errno
import secrets
import socket
import struct
import threading
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from agent.clock import Clock
from agent.host.dns_servers import DnsServer

MAX_JUNK = 64
"""Datagrams read from one socket that answer nothing; after these it is not listened to any more."""

_QTYPES = (1, 28)  # A, AAAA
_HEADER = struct.Struct("!HHHHHH")
_FLAGS_RECURSION_DESIRED = 0x0100
_FLAG_RESPONSE = 0x8000
_SO_TIMESTAMPNS = 35  # asm-generic/socket.h; where the number means something else, no stamp arrives
_TIMESPEC = struct.Struct("@ll")
_MAX_DATAGRAM = 4096
_SEND_NS = 1_000_000  # a send() takes no longer than this, unless we do not run


class Fate(StrEnum):
    """What became of one query."""

    ANSWERED = "answered"
    LOST = "lost"  # sent, and no answer came while it was listened for
    REFUSED = "refused"  # an ICMP error came back: nothing listens there
    UNREACHABLE = "unreachable"  # this node has no way there: no route, no address of that family
    BLOCKED = "blocked"  # this node's own packet filter or conntrack refused to send it
    UNSENT = "unsent"  # left out, since the one before it got no answer


@dataclass(frozen=True, slots=True)
class Query:
    """One query's fate. `seconds` from sending to the answer's arrival in this kernel, if it was answered."""

    fate: Fate
    seconds: float | None = None


def name_problem(name: str) -> str | None:
    """Return what is wrong with a name for `Dns`, or None."""
    try:
        encode_name(name)
    except ValueError as error:
        return str(error)
    return None


def encode_name(name: str) -> bytes:
    """Return a name as DNS writes it. Raises ValueError where it cannot be one (RFC 1035, 2.3.4)."""
    labels = [label.encode("ascii", errors="replace") for label in name.rstrip(".").split(".")]
    if not name.isascii() or not all(0 < len(label) < 64 for label in labels):
        raise ValueError(f"{name[:80]!r} is no DNS name: labels are 1 to 63 ASCII characters")
    encoded = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    if len(encoded) > 255:
        raise ValueError(f"{name[:80]!r}... is no DNS name: it is longer than 255 bytes")
    return encoded


@dataclass(slots=True)
class Asked:
    """A query under way; `sent` in clock seconds (awake), `sent_ns` since the epoch and 0 until it is sent."""

    packet: bytes
    sent: float = 0.0
    sent_ns: int = 0
    fate: Fate = Fate.LOST
    seconds: float | None = None

    def answered_by(self, datagram: bytes) -> bool:
        """Whether this is the answer: our id, a response, our question; or an error that leaves the question out."""
        if len(datagram) < _HEADER.size:
            return False
        ident, flags, questions, *_ = _HEADER.unpack_from(datagram)
        if ident != int.from_bytes(self.packet[:2], "big") or not flags & _FLAG_RESPONSE:
            return False
        question = self.packet[_HEADER.size :]
        if questions == 0:
            return bool(flags & 0xF)
        echoed = datagram[_HEADER.size : _HEADER.size + len(question)]
        return questions == 1 and echoed.lower() == question.lower()

    def outcome(self) -> Query:
        """Return what became of it."""
        return Query(self.fate, self.seconds)


@dataclass(slots=True)
class Conversation:
    """One socket, connected to one server (so the kernel drops what comes from elsewhere), and its two queries."""

    server: DnsServer
    clock: Clock
    asked: list[Asked]
    junk: int = 0
    detail: str = ""
    link: socket.socket | None = None

    @classmethod
    def about(cls, name: bytes, server: DnsServer, clock: Clock) -> Self:
        """Return a conversation that is to ask for A and AAAA of an encoded name; nothing is sent yet."""
        idents = secrets.SystemRandom().sample(range(1 << 16), 2)
        packets = [question(ident, name, qtype) for ident, qtype in zip(idents, _QTYPES, strict=True)]
        return cls(server, clock, [Asked(packet) for packet in packets])

    def open(self) -> None:
        """Connect. A failure becomes the fate of both queries."""
        family = socket.AF_INET6 if ":" in self.server.address else socket.AF_INET
        made: socket.socket | None = None
        try:
            made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            with contextlib.suppress(OSError):
                made.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            place = socket.getaddrinfo(
                self.server.address,
                self.server.port,
                type=socket.SOCK_DGRAM,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            made.connect(place[0][4])
        except OSError as error:
            for query in self.asked:
                self._failed(query, error)
            if made is not None:
                made.close()
            return
        self.link = made

    def close(self) -> None:
        """Give the socket back; what comes from now on is not read."""
        if self.link is not None:
            self.link.close()
            self.link = None

    def send(self, query: Asked) -> None:
        """Send one query now. A failure becomes its fate."""
        if self.link is None:
            return
        query.sent, before = self.clock.awake(), time.time_ns()
        try:
            self.link.send(query.packet)
        except OSError as error:
            self._failed(query, error)
        # If we were stopped around the call, the answer shall look early rather than late.
        query.sent_ns = max(before, time.time_ns() - _SEND_NS)

    def send_together(self) -> None:
        """Send both queries from two threads that wait for each other."""
        gate = threading.Barrier(2)

        def send(query: Asked) -> None:
            gate.wait()
            self.send(query)

        other = threading.Thread(target=send, args=(self.asked[1],), name="dns-pair", daemon=True)
        other.start()
        send(self.asked[0])
        other.join()

    def pending(self) -> bool:
        """Whether an answer may still come."""
        if self.link is None or self.junk >= MAX_JUNK:
            return False
        return any(query.sent_ns and query.fate is Fate.LOST for query in self.asked)

    def read(self) -> None:
        """Take everything that waits in the socket, and no more than MAX_JUNK datagrams that answer nothing."""
        while self.link is not None and self.junk < MAX_JUNK:
            try:
                datagram, stamps, _, _ = self.link.recvmsg(_MAX_DATAGRAM, socket.CMSG_SPACE(_TIMESPEC.size))
            except BlockingIOError:
                return
            except OSError as error:
                for query in self.asked:
                    if query.sent_ns and query.fate is Fate.LOST:
                        self._failed(query, error)
                return
            self._take(datagram, _stamp_ns(stamps))

    def _take(self, datagram: bytes, stamp_ns: int | None) -> None:
        for query in self.asked:
            if query.sent_ns and query.fate is Fate.LOST and query.answered_by(datagram):
                query.fate = Fate.ANSWERED
                query.seconds = max(0.0, self.clock.awake() - query.sent)
                if stamp_ns is not None:
                    # a wall clock set forward meanwhile makes the stamp late: the smaller one is right
                    query.seconds = min(query.seconds, max(0.0, (stamp_ns - query.sent_ns) / 1e9))
                return
        self.junk += 1

    def _failed(self, query: Asked, error: OSError) -> None:
        query.fate = _FATES.get(error.errno or 0, Fate.UNREACHABLE)
        self.detail = error.strerror or str(error)
        if query.fate is Fate.REFUSED:
            # the socket reports it once, to whichever call comes next: it concerns every query before
            for other in self.asked:
                other.fate = Fate.REFUSED if other.fate is Fate.LOST else other.fate


_FATES = {
    errno.ECONNREFUSED: Fate.REFUSED,
    errno.EPERM: Fate.BLOCKED,
    errno.EACCES: Fate.BLOCKED,
    errno.EAGAIN: Fate.BLOCKED,
    errno.ENOBUFS: Fate.BLOCKED,
    errno.ENOMEM: Fate.BLOCKED,
    errno.EMFILE: Fate.BLOCKED,
    errno.ENFILE: Fate.BLOCKED,
}


def question(ident: int, name: bytes, qtype: int) -> bytes:
    """Return a query for (name, qtype, IN) that wants recursion (RFC 1035, 4.1)."""
    return _HEADER.pack(ident, _FLAGS_RECURSION_DESIRED, 1, 0, 0, 0) + name + struct.pack("!HH", qtype, 1)


def _stamp_ns(stamps: list[tuple[int, int, bytes]]) -> int | None:
    for level, kind, data in stamps:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS and len(data) == _TIMESPEC.size:
            seconds, nanoseconds = _TIMESPEC.unpack(data)
            return int(seconds) * 1_000_000_000 + int(nanoseconds)
    return None
