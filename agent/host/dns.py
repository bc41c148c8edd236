"""DNS as a client of this node sees it: which servers there are, and how they answer.

Asks each server the way a C library does: A and AAAA from one socket at the same moment,
sent by two threads so that they can meet in conntrack on two CPUs; and, as the control, A
and AAAA one after the other from another socket. Any answer to the question counts, whatever
its rcode: the subject is lost packets, not names. Several servers are asked at once.

Every socket is read once more after its time is up, so that a process that could not run takes
no answer for lost that waits there.
"""

import selectors
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.clock import Clock
from agent.host import local_addresses
from agent.host.dns_conversation import Conversation, Fate, Query, encode_name
from agent.host.dns_servers import MAX_SERVERS, DnsServer, DnsServers, parse_resolv_conf, parse_server

MAX_RESOLV_CONF_BYTES = 1 << 16
MAX_FIB_BYTES = 1 << 21

NODE_LOCAL_DNS = "169.254.20.10"
"""Where NodeLocal DNSCache listens by convention; its traffic is exempt from conntrack (NOTRACK)."""

_REPEAT_WITHIN = 2.5  # attempts; no further repetition is begun later


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
            local = local_addresses.ipv4(_read(self._proc / "net/fib_trie", MAX_FIB_BYTES))
        except OSError:
            local = frozenset()
        return local if NODE_LOCAL_DNS in local else frozenset({NODE_LOCAL_DNS})

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
        self._pairs: list[Conversation] = []
        self._controls: list[Conversation] = []
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

    def _open(self) -> Conversation:
        made = Conversation.about(self._name, self.server, self._clock)
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

    def _wait(self, conversations: Sequence[Conversation]) -> None:
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


def _read(path: Path, limit: int) -> str:
    with path.open("rb") as stream:
        return stream.read(limit).decode("ascii", errors="replace")
