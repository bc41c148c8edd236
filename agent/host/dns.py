"""DNS as a client of this node sees it: which servers there are, and how they answer.

Asks each server the way a C library does: A and AAAA from one socket at the same moment,
sent by two threads so that they can meet in conntrack on two CPUs; and, as the control, A
and AAAA one after the other from another socket. Any answer to the question counts, whatever
its rcode: the subject is lost packets, not names. Several servers are asked at once.

Whether an answer came in time is measured by the kernel's receive stamp, and every socket is
read once more after its time is up: a process that could not run (throttled, stopped) finds
the answers waiting there and does not take them for lost.
"""

import contextlib
import errno
import ipaddress
import re
import secrets
import selectors
import socket
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from agent.clock import Clock

MAX_SERVERS = 3
"""As many as the C library asks (MAXNS in resolv.h)."""

MAX_RESOLV_CONF_BYTES = 1 << 16
MAX_FIB_BYTES = 1 << 21
MAX_JUNK = 64
"""Datagrams read from one socket that answer nothing; after these it is not listened to any more."""

NODE_LOCAL_DNS = "169.254.20.10"
"""Where NodeLocal DNSCache listens by convention; its traffic is exempt from conntrack (NOTRACK)."""

DNS_PORT = 53
_QTYPES = (1, 28)  # A, AAAA
_HEADER = struct.Struct("!HHHHHH")
_FLAGS_RECURSION_DESIRED = 0x0100
_FLAG_RESPONSE = 0x8000
_SO_TIMESTAMPNS = 35  # asm-generic/socket.h; where the number means something else, no stamp arrives
_TIMESPEC = struct.Struct("@ll")
_MAX_DATAGRAM = 4096
_REPEAT_WITHIN = 2.5  # attempts; no further repetition is begun later
_SEND_NS = 1_000_000  # a send() takes no longer than this, unless we do not run
_HOST_LOCAL = re.compile(r"\|-- (\d+\.\d+\.\d+\.\d+)\n\s+/32 host LOCAL")


class Fate(StrEnum):
    """What became of one query."""

    ANSWERED = "answered"
    LOST = "lost"  # sent, and no answer came while it was listened for
    REFUSED = "refused"  # an ICMP error came back: nothing listens there
    UNREACHABLE = "unreachable"  # this node has no way there: no route, no address of that family
    BLOCKED = "blocked"  # this node's own packet filter or conntrack refused to send it
    UNSENT = "unsent"  # left out, since the one before it got no answer


@dataclass(frozen=True, slots=True)
class DnsServer:
    """Address (IPv6 with its %zone, if it has one) and UDP port of a server."""

    address: str
    port: int = DNS_PORT

    def __str__(self) -> str:
        """`10.96.0.10`, or `10.96.0.10:5353` and `[::1]:5353` with a port of its own."""
        if self.port == DNS_PORT:
            return self.address
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class DnsServers:
    """The servers to ask, where the list is from, and what is wrong with it if something is."""

    servers: tuple[DnsServer, ...]
    origin: str
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Query:
    """One query's fate. `seconds` from sending to the answer's arrival in this kernel, if it was answered."""

    fate: Fate
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Exchange:
    """How one server took the queries of one probe.

    `pairs` are parallel A and AAAA from one socket, `controls` the same in sequence, each
    from a socket of its own. `waited_seconds` is how long the last of them was listened for.
    `junk` counts datagrams that came from the server and answered nothing we had asked.
    """

    server: DnsServer
    pairs: tuple[tuple[Query, Query], ...]
    controls: tuple[tuple[Query, Query], ...]
    waited_seconds: float
    node_local: bool = False
    junk: int = 0
    detail: str = ""


def parse_server(text: str) -> DnsServer:
    """Read `1.2.3.4`, `1.2.3.4:5353`, `::1`, `[::1]:5353` or `fe80::1%eth0`.

    Raises ValueError with what would be right.
    """
    address, port = text.strip(), str(DNS_PORT)
    if address.startswith("["):
        address, _, rest = address[1:].partition("]")
        port = rest[1:] if rest.startswith(":") else (rest or port)
        if "]" not in text or (rest and not rest.startswith(":")):
            address = ""
    elif address.count(":") == 1:
        address, _, port = address.partition(":")
    try:
        ipaddress.ip_address(address)
    except ValueError:
        raise ValueError(f"{text[:80]!r} is no server address such as 10.96.0.10, ::1 or [::1]:53") from None
    if not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
        raise ValueError(f"{text[:80]!r} has no port between 1 and 65535 after its colon")
    return DnsServer(address, int(port))


def servers_problem(servers: Sequence[str]) -> str | None:
    """Return what is wrong with a list of servers for `Dns`, or None."""
    for text in servers:
        try:
            parse_server(text)
        except ValueError as error:
            return str(error)
    return None


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


def parse_resolv_conf(text: str) -> tuple[tuple[DnsServer, ...], tuple[str, ...]]:
    """Return the servers of the `nameserver` lines, and the addresses there that are none (resolv.conf(5))."""
    servers: list[DnsServer] = []
    bad: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            ipaddress.ip_address(words[1])
        except ValueError:
            bad.append(words[1][:80])
            continue
        if DnsServer(words[1]) not in servers:
            servers.append(DnsServer(words[1]))
    return tuple(servers[:MAX_SERVERS]), tuple(bad[:MAX_SERVERS])


def parse_local_addresses(fib_trie: str) -> frozenset[str]:
    """Return this node's own IPv4 addresses from /proc/net/fib_trie."""
    return frozenset(_HOST_LOCAL.findall(fib_trie))


@dataclass(slots=True)
class _Asked:
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
        return Query(self.fate, self.seconds)


@dataclass(slots=True)
class _Conversation:
    """One socket, connected to one server (so the kernel drops what comes from elsewhere), and its two queries."""

    server: DnsServer
    clock: Clock
    asked: list[_Asked]
    junk: int = 0
    detail: str = ""
    link: socket.socket | None = None

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
        if self.link is not None:
            self.link.close()
            self.link = None

    def send(self, query: _Asked) -> None:
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

        def send(query: _Asked) -> None:
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

    def _failed(self, query: _Asked, error: OSError) -> None:
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


class Dns:
    """The sense.

    `servers` as `parse_server` reads them; empty: those of `resolv_conf`. Raises ValueError
    on a server or name that is none.
    """

    def __init__(
        self,
        clock: Clock,
        name: str,
        servers: Sequence[str] = (),
        resolv_conf: Path = Path("/etc/resolv.conf"),
        proc: Path = Path("/proc"),
    ) -> None:
        self._clock = clock
        self._name = encode_name(name)
        self._configured = tuple(dict.fromkeys(parse_server(text) for text in servers))
        self._resolv_conf = resolv_conf
        self._proc = proc

    def servers(self) -> DnsServers:
        """Return the servers to ask, at most MAX_SERVERS. Reads resolv.conf anew each time."""
        if self._configured:
            more = len(self._configured) - MAX_SERVERS
            problem = f"only the first {MAX_SERVERS} are asked, {more} are not" if more > 0 else ""
            return DnsServers(self._configured[:MAX_SERVERS], "the settings", problem)
        origin = str(self._resolv_conf)
        try:
            text = _read(self._resolv_conf, MAX_RESOLV_CONF_BYTES)
        except OSError as error:
            return DnsServers((), origin, f"{origin} cannot be read: {error.strerror}")
        servers, bad = parse_resolv_conf(text)
        if bad:
            return DnsServers(servers, origin, f"{origin} names {', '.join(map(repr, bad))}, which is no address")
        return DnsServers(servers, origin, "" if servers else f"{origin} names no nameserver")

    def node_local(self) -> frozenset[str]:
        """Return the addresses NodeLocal DNSCache may serve on this node; empty where it does not run."""
        try:
            local = parse_local_addresses(_read(self._proc / "net/fib_trie", MAX_FIB_BYTES))
        except OSError:
            local = frozenset()
        if NODE_LOCAL_DNS not in local:
            return frozenset({NODE_LOCAL_DNS})
        return frozenset(address for address in local if not address.startswith("127."))

    def ask(self, servers: Sequence[DnsServer], attempt_seconds: float, repeats: int) -> tuple[Exchange, ...]:
        """Ask every server, all at the same time.

        Each gets one pair and one control; where some of these queries were answered and
        some were not, `repeats` further pairs and controls at once. Takes at most six times
        `attempt_seconds`, twice if a server is silent, and milliseconds if all is well.
        """
        exempt = self.node_local()
        inquiries = [_Inquiry(self._clock, self._name, server, attempt_seconds, repeats) for server in servers]
        others = [threading.Thread(target=each.run, name="dns-ask", daemon=True) for each in inquiries[1:]]
        for other in others:
            other.start()
        for each in inquiries[:1]:
            each.run()
        for other in others:
            other.join()
        return tuple(each.exchange(node_local=each.server.address in exempt) for each in inquiries)


class _Inquiry:
    """All that one server is asked in one probe."""

    def __init__(self, clock: Clock, name: bytes, server: DnsServer, attempt_seconds: float, repeats: int) -> None:
        self.server = server
        self._clock = clock
        self._name = name
        self._attempt = attempt_seconds
        self._repeats = repeats
        self._pairs: list[_Conversation] = []
        self._controls: list[_Conversation] = []
        self._started = clock.awake()
        self._waited = 0.0
        self._error: Exception | None = None

    def run(self) -> None:
        """Ask; an error is kept for `exchange` to raise, since this may run in a thread of its own."""
        try:
            self._converse()
        except Exception as error:  # noqa: BLE001 - raised again by exchange
            self._error = error
        finally:
            for each in (*self._pairs, *self._controls):
                each.read()
                each.close()

    def _converse(self) -> None:
        self._pair()
        self._wait(self._pairs)
        self._control()
        if self._mixed():
            self._repeat()

    def exchange(self, *, node_local: bool) -> Exchange:
        """Return what came of it. Raises what `run` met."""
        if self._error is not None:
            raise self._error
        every = (*self._pairs, *self._controls)
        return Exchange(
            server=self.server,
            pairs=tuple((each.asked[0].outcome(), each.asked[1].outcome()) for each in self._pairs),
            controls=tuple((each.asked[0].outcome(), each.asked[1].outcome()) for each in self._controls),
            waited_seconds=self._waited,
            node_local=node_local,
            junk=sum(each.junk for each in every),
            detail=next((each.detail for each in every if each.detail), ""),
        )

    def _open(self) -> _Conversation:
        idents = secrets.SystemRandom().sample(range(1 << 16), 2)
        packets = [_question(ident, self._name, qtype) for ident, qtype in zip(idents, _QTYPES, strict=True)]
        made = _Conversation(self.server, self._clock, [_Asked(packet) for packet in packets])
        made.open()
        return made

    def _pair(self) -> None:
        pair = self._open()
        self._pairs.append(pair)
        pair.send_together()

    def _control(self) -> None:
        """Ask A, wait for its answer, then AAAA; if A goes unanswered, AAAA is left out."""
        control = self._open()
        self._controls.append(control)
        for query in control.asked:
            control.send(query)
            self._wait([control])
            if query.fate is not Fate.ANSWERED:
                break
        for query in control.asked:
            if query.fate in (Fate.LOST, Fate.REFUSED) and not query.sent_ns:
                query.fate = Fate.UNSENT

    def _repeat(self) -> None:
        """Repeat pair and control, the pairs waited for together."""
        fresh = len(self._pairs)
        for _ in range(self._repeats):
            if self._clock.awake() - self._started > _REPEAT_WITHIN * self._attempt:
                break
            self._pair()
            self._control()
            if any(query.fate is not Fate.ANSWERED for query in self._controls[-1].asked):
                break
        self._wait(self._pairs[fresh:])

    def _mixed(self) -> bool:
        for each in self._pairs:
            each.read()
        fates = [query.fate for each in (*self._pairs, *self._controls) for query in each.asked]
        return Fate.ANSWERED in fates and bool({Fate.LOST, Fate.BLOCKED} & set(fates)) and not self._late()

    def _late(self) -> bool:
        """Whether every answer came later than an attempt lasts: then the server is slow and loses nothing."""
        times = [query.seconds for each in self._pairs for query in each.asked if query.seconds is not None]
        return bool(times) and min(times) > self._attempt

    def _wait(self, conversations: Sequence[_Conversation]) -> None:
        """Listen until all these are answered or their time is up, by the time in which we were awake."""
        deadline = self._clock.awake() + self._attempt
        with selectors.PollSelector() as selector:
            for each in conversations:
                if each.link is not None and each.pending():
                    selector.register(each.link, selectors.EVENT_READ, each)
            left = self._attempt
            while left > 0 and selector.get_map():
                for key, _ in selector.select(left):
                    key.data.read()
                    if not key.data.pending():
                        selector.unregister(key.fileobj)
                left = deadline - self._clock.awake()
        for each in conversations:
            each.read()
        self._waited = self._clock.awake() - self._started


def _question(ident: int, name: bytes, qtype: int) -> bytes:
    """Return a query for (name, qtype, IN) that wants recursion (RFC 1035, 4.1)."""
    return _HEADER.pack(ident, _FLAGS_RECURSION_DESIRED, 1, 0, 0, 0) + name + struct.pack("!HH", qtype, 1)


def _stamp_ns(stamps: list[tuple[int, int, bytes]]) -> int | None:
    for level, kind, data in stamps:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS and len(data) == _TIMESPEC.size:
            seconds, nanoseconds = _TIMESPEC.unpack(data)
            return int(seconds) * 1_000_000_000 + int(nanoseconds)
    return None


def _read(path: Path, limit: int) -> str:
    with path.open("rb") as stream:
        return stream.read(limit).decode("ascii", errors="replace")
