"""Packets lost in connection tracking, and DNS as the node's clients see it.

What it means. Every UDP packet of a new flow makes an entry in the conntrack table, and the
entry is inserted only when the packet leaves the node. A C library sends its A and AAAA
queries from one socket at the same moment; on two CPUs both make an entry, and only one can
be inserted. Old kernels drop the packet of the other, and the client waits 5 s for an answer
to a query that never left: insert_failed and drop rise together. Kernels from about 5.10 on
resolve nearly all of these clashes, clash_resolve rises and nothing is lost.

Four things look alike in the counters and are told apart here:

- a lost race: insert_failed, less those of chain_toolong, with drop at least as large;
- exposure: clash_resolve. It says that races happen and that the kernel wins them. It is
  never a finding; it stands in the message of a healthy condition and in the metrics;
- pressure: the table is full or nearly so, entries are evicted early, or packets are dropped
  without a failed insert;
- chains too long: the hash table is too small or under attack; it raises insert_failed too.

When it is harmless. A few failed inserts are daily bread: a port clash in source NAT, a
packet sent twice. No counter is specific to DNS. So failed inserts alone accuse nobody: it
takes a number of them and either a query of our own that got lost in a parallel pair, or
several DNS flows of others that wait for an answer while the servers we ask do answer.

The active probe asks on its own account. Parallel pairs that lose exactly one query, several
times in a row, while queries sent one after the other all come through: that is the pattern
of the race wherever on the path it happens, also in a node or a kernel we cannot read. All
queries lost is a server or path that is down; all answered late is a slow server. One lost
packet is nobody's fault. While the table is full, lost queries prove nothing about servers.

What it does not prove. The loser of a race leaves no entry of its own, its flow is the same
as the winner's. The flows without an answer show whose queries wait, not which packet was
dropped. Traffic to NodeLocal DNSCache is exempt from conntrack, so a pair lost there is no race
of this node, whatever it looks like.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from statistics import median
from typing import ClassVar, Protocol

from agent.clock import Clock
from agent.host.conntrack import EVENTS, ConntrackSample, DnsFlow, Flows, NotTrackedError, Rise, rise
from agent.host.dns import DnsServer, DnsServers, Exchange, Fate, Query
from agent.model import (
    Action,
    CannotSeeError,
    CheckResult,
    Finding,
    Metric,
    MetricKind,
    NotApplicableError,
    PodRef,
    Sample,
    Target,
    TargetKind,
    Value,
)
from agent.schema import DetectorSettings, setting

RACE = "ConntrackDNSRace"
PRESSURE = "ConntrackTablePressure"
UNAVAILABLE = "DNSUnavailable"

FIRST_RECHECK_SECONDS = 1.0
"""The counters need a second look before they say anything."""
FOLLOW_SECONDS = 5.0
"""While something is wrong: so that it is seen to end well within 15 s."""
STALE_SECONDS = 60.0
"""An older sample (or three periods, if that is longer) is no base any more: we were away."""
WAITING_SECONDS = 1
"""A flow without an answer for less than this is just under way."""
MAX_FLOWS = 256
MAX_OWNERS = 32
TOP = 3
"""How many pods or addresses a message names."""
CROWDED_RATIO = 0.9
"""Drops in a table filled more than this are the table's, however few they are."""


@dataclass(frozen=True, slots=True)
class ConntrackDnsSettings(DetectorSettings):
    """What conntrack_dns can be told."""

    period_seconds: float = setting(
        8.0,
        "time between two looks; each is jittered by 10 % (8 s, since a silent server takes 4 s to be sure of)",
        minimum=1,
        maximum=3600,
    )
    window_seconds: float = setting(
        3.0,
        "packet counters are compared over at least this long, so that a second look at once still sees their rise",
        minimum=1,
        maximum=60,
    )
    nearly_full_ratio: float = setting(
        0.9, "entries / nf_conntrack_max from which the table counts as nearly full", minimum=0.1, maximum=1
    )
    min_lost_inserts: int = setting(
        3, "lost inserts between two looks below which no race is suspected", minimum=1, maximum=1_000_000
    )
    min_unreplied_flows: int = setting(
        3, "DNS flows without an answer that corroborate lost inserts", minimum=1, maximum=MAX_FLOWS
    )
    min_drops: int = setting(
        10,
        "packets dropped between two looks, in a table that is not full, from which it is named all the same",
        minimum=1,
        maximum=1_000_000,
    )
    min_early_drops: int = setting(
        1, "entries evicted early between two looks from which it is named", minimum=1, maximum=1_000_000
    )
    min_chain_toolong: int = setting(
        3,
        "packets dropped for a hash chain too long between two looks from which it is named",
        minimum=1,
        maximum=1_000_000,
    )
    attempt_seconds: float = setting(
        2.0,
        "how long a DNS query may go unanswered before the next attempt; it is listened for twice as long",
        minimum=0.1,
        maximum=3,
    )
    slow_seconds: float = setting(
        1.0, "DNS answers slower than this, in the median of a probe, make a slow server", minimum=0.01, maximum=3
    )
    repeat_pairs: int = setting(
        4, "further parallel pairs, and controls, sent at once after some query was lost", minimum=1, maximum=20
    )
    min_lost_pairs: int = setting(
        2, "parallel pairs of one probe that must lose exactly one query to show the race", minimum=2, maximum=20
    )


class ConntrackSense(Protocol):
    """What this detector reads of conntrack (agent.host.conntrack.Conntrack)."""

    def sample(self) -> ConntrackSample:
        """Read counters and fill."""
        ...

    def unreplied_dns_flows(self, limit: int) -> Flows:
        """Read DNS flows without an answer."""
        ...


class DnsSense(Protocol):
    """What this detector asks of DNS (agent.host.dns.Dns)."""

    def servers(self) -> DnsServers:
        """Return the servers to ask."""
        ...

    def ask(self, servers: tuple[DnsServer, ...], attempt_seconds: float, repeats: int) -> tuple[Exchange, ...]:
        """Ask them."""
        ...


@dataclass(frozen=True, slots=True)
class ConntrackDnsObservation:
    """One look. `base` is the sample the counters are compared with, `window_seconds` older than `current`.

    Exactly one of `current`, `not_tracked`, `blind` and `elsewhere` is set: what was read, that
    there is nothing to read, why it cannot be read, or that this is not the node's network.
    `flows` is None if nothing called for them, or if `flows_blind` says why they could not be read.
    """

    servers: DnsServers
    exchanges: tuple[Exchange, ...] = ()
    current: ConntrackSample | None = None
    previous: ConntrackSample | None = None
    base: ConntrackSample | None = None
    window_seconds: float = 0.0
    not_tracked: str = ""
    blind: str = ""
    elsewhere: str = ""
    flows: Flows | None = None
    flows_blind: str = ""
    owners: Mapping[str, PodRef] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Part:
    """What one condition came to: findings, or why it is unknown, or why it is well; the first that is set counts."""

    findings: tuple[Finding, ...] = ()
    unknown: str = ""
    healthy: str = ""


class ConntrackDnsDetector:
    """Tells a lost race, a full table, a silent server and a slow one apart."""

    name: ClassVar[str] = "conntrack_dns"
    conditions: ClassVar[Mapping[str, Mapping[str, str]]] = {
        RACE: {
            "DNSQueriesLost": (
                "Of DNS queries sent in parallel from one socket one is lost again and again, while queries sent one "
                "after the other are all answered: clients wait 5 s for names. Run NodeLocal DNSCache, or set "
                "`options single-request-reopen` (glibc) or `use-vc` in the pods' dnsConfig."
            ),
            "InsertFailed": (
                "The kernel lost packets that raced for a conntrack entry, and DNS queries go unanswered meanwhile. "
                "Run NodeLocal DNSCache or a kernel from 5.10 on."
            ),
        },
        PRESSURE: {
            "TableFull": (
                "The conntrack table has no room and packets of new connections are dropped. Raise "
                "net.netfilter.nf_conntrack_max and find out who opens so many connections."
            ),
            "TableNearlyFull": (
                "The conntrack table is nearly full; when it is full, new connections fail. Raise "
                "net.netfilter.nf_conntrack_max in time."
            ),
            "EarlyDrop": "The kernel evicts live conntrack entries to make room for new ones: connections may break.",
            "ChainTooLong": (
                "Packets are dropped because a hash chain of the conntrack table is too long. Raise "
                "net.netfilter.nf_conntrack_buckets."
            ),
        },
        UNAVAILABLE: {
            "ServerUnreachable": "A DNS server of this node answers no queries, or loses most: it or the path is down.",
            "ServerSlow": "A DNS server of this node answers, but late.",
        },
    }
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("conntrack_entries", MetricKind.GAUGE, "Entries in the conntrack table."),
        Metric("conntrack_entries_limit", MetricKind.GAUGE, "Most entries the table may have; 0 means no limit."),
        Metric(
            "conntrack_events_total",
            MetricKind.COUNTER,
            "Events counted by conntrack since this agent started, over all CPUs.",
            ("event",),
        ),
        Metric(
            "dns_probe_seconds",
            MetricKind.HISTOGRAM,
            "Time from a DNS query to its answer, of those answered.",
            ("mode",),
            (0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 2.0, 5.0),
        ),
        Metric("dns_probe_lost_total", MetricKind.COUNTER, "DNS queries of the probe without an answer.", ("mode",)),
    )

    def __init__(
        self,
        settings: ConntrackDnsSettings,
        conntrack: ConntrackSense,
        dns: DnsSense,
        flow_owner: Callable[[frozenset[str]], Mapping[str, PodRef]],
        clock: Clock,
        in_host_network: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._conntrack = conntrack
        self._dns = dns
        self._flow_owner = flow_owner
        self._clock = clock
        self._in_host_network = in_host_network
        self._history: deque[tuple[float, ConntrackSample]] = deque()

    def probe(self) -> ConntrackDnsObservation:
        """Ask the DNS servers, then read conntrack, so that the counters hold what became of our own queries.

        Raises NotApplicableError where there is neither conntrack nor a DNS server.
        """
        servers = self._dns.servers()
        exchanges = self._dns.ask(servers.servers, self._settings.attempt_seconds, self._settings.repeat_pairs)
        elsewhere = self._in_host_network()
        if elsewhere is not None:
            return ConntrackDnsObservation(servers, exchanges, elsewhere=elsewhere)
        try:
            sample = self._conntrack.sample()
        except NotTrackedError as error:
            self._history.clear()
            if not servers.servers:
                raise NotApplicableError(f"{error}, and there is no DNS server to ask: {servers.problem}") from None
            return ConntrackDnsObservation(servers, exchanges, not_tracked=str(error))
        except CannotSeeError as error:
            self._history.clear()
            return ConntrackDnsObservation(servers, exchanges, blind=str(error))
        return self._with_flows(self._remembered(servers, exchanges, sample))

    def check(self, seen: ConntrackDnsObservation) -> CheckResult:
        """Decide."""
        pressure = self._pressure(seen)
        crowded = any(found.reason in ("TableFull", "EarlyDrop") for found in pressure.findings)
        unavailable = self._unavailable(seen, crowded=crowded)
        race = self._race(seen, crowded=crowded)
        parts = {RACE: race, PRESSURE: pressure, UNAVAILABLE: unavailable}
        findings = tuple(found for part in parts.values() for found in part.findings)
        quiet = {name: part for name, part in parts.items() if not part.findings}
        return CheckResult(
            findings=findings,
            healthy={name: part.healthy for name, part in quiet.items() if not part.unknown},
            unknown={name: part.unknown for name, part in quiet.items() if part.unknown},
            samples=(*_conntrack_samples(seen), *_dns_samples(seen)),
            recheck_seconds=FIRST_RECHECK_SECONDS if seen.current is not None and seen.base is None else None,
            follow_seconds=FOLLOW_SECONDS if findings else None,
        )

    # Reading

    def _remembered(
        self, servers: DnsServers, exchanges: tuple[Exchange, ...], sample: ConntrackSample
    ) -> ConntrackDnsObservation:
        """Keep the sample, and choose the one to compare it with: the newest that is `window_seconds` old."""
        now = self._clock.monotonic()
        history = self._history
        stale = max(STALE_SECONDS, 3 * self._settings.period_seconds)
        if history and (now - history[-1][0] > stale or rise(history[-1][1], sample).reset):
            history.clear()
        previous = history[-1][1] if history else None
        while len(history) > 1 and now - history[1][0] >= self._settings.window_seconds:
            history.popleft()
        since, base = history[0] if history else (now, None)
        history.append((now, sample))
        return ConntrackDnsObservation(
            servers, exchanges, current=sample, previous=previous, base=base, window_seconds=now - since
        )

    def _with_flows(self, seen: ConntrackDnsObservation) -> ConntrackDnsObservation:
        """Add the flows without an answer, if something calls for them: the kernel walks its whole table for it."""
        suspected = _events(seen).lost_inserts >= self._settings.min_lost_inserts
        if not suspected and not any(_lost_one(exchange) for exchange in seen.exchanges):
            return seen
        flows: Flows | None = None
        why = ""
        try:
            flows = self._conntrack.unreplied_dns_flows(MAX_FLOWS)
        except (CannotSeeError, NotTrackedError) as error:
            why = str(error)
        sources = Counter(flow.source for flow in flows.flows) if flows else Counter[str]()
        asked = frozenset(source for source, _ in sources.most_common(MAX_OWNERS))
        owners = self._flow_owner(asked) if asked else {}
        return replace(seen, flows=flows, flows_blind=why, owners=owners)

    # Deciding: the table

    def _pressure(self, seen: ConntrackDnsObservation) -> _Part:
        if seen.current is None:
            unknown = seen.elsewhere or seen.blind
            return _Part(unknown=unknown, healthy=f"{seen.not_tracked}: nothing is tracked, so no table can fill")
        findings = [found for found in (self._fill(seen, seen.current), self._chains(seen)) if found]
        if findings:
            return _Part(tuple(findings))
        if seen.current.entries is None or not seen.current.counters:
            return _Part(unknown=seen.current.blind or "the number of conntrack entries cannot be read")
        if seen.base is None:
            return _Part(unknown=_SECOND_LOOK)
        return _Part(healthy=_fill_text(seen.current) + _drops_text(seen))

    def _fill(self, seen: ConntrackDnsObservation, current: ConntrackSample) -> Finding | None:
        """Name the worst that is wrong with the room in the table."""
        events = _events(seen)
        ratio = _ratio(current)
        crowded = max(ratio, _ratio(seen.base) if seen.base else 0.0) >= CROWDED_RATIO
        values = _fill_values(seen, current)
        dropped = f"{events.pressure_drops} packets were dropped in the last {seen.window_seconds:.0f} s"
        if ratio >= 1:
            harm = dropped if events.pressure_drops else "new connections fail or evict others"
            text = f"{_fill_text(current)}: it is full; {harm}. {_RAISE_LIMIT}"
            return _table_finding("TableFull", text, values)
        if events.pressure_drops >= (1 if crowded else self._settings.min_drops):
            text = (
                f"{dropped}, though not for a failed insert; {_fill_text(current)} now, so it was full in between, or "
                f"the kernel had no memory for an entry (`dmesg | grep conntrack` tells which). {_RAISE_LIMIT}"
            )
            return _table_finding("TableFull", text, values)
        if events.rises.get("early_drop", 0) >= self._settings.min_early_drops:
            text = (
                f"{events.rises['early_drop']} live entries were evicted in the last {seen.window_seconds:.0f} s to "
                f"make room; {_fill_text(current)}. {_RAISE_LIMIT}"
            )
            return _table_finding("EarlyDrop", text, values)
        if ratio >= self._settings.nearly_full_ratio:
            return _table_finding("TableNearlyFull", f"{_fill_text(current)}. {_RAISE_LIMIT}", values)
        return None

    def _chains(self, seen: ConntrackDnsObservation) -> Finding | None:
        number = _events(seen).rises.get("chain_toolong", 0)
        if number < self._settings.min_chain_toolong or seen.current is None:
            return None
        text = (
            f"{number} packets were dropped in the last {seen.window_seconds:.0f} s because their hash chain in the "
            "conntrack table is too long: the hash table is too small for its entries, or someone makes them collide. "
            "Raise net.netfilter.nf_conntrack_buckets to at least a quarter of nf_conntrack_max, then look for a "
            "source with very many flows (`conntrack -L | grep -o 'src=[^ ]*' | sort | uniq -c | sort -n | tail`)"
        )
        return _table_finding("ChainTooLong", text, _fill_values(seen, seen.current))

    # Deciding: the race

    def _race(self, seen: ConntrackDnsObservation, *, crowded: bool) -> _Part:
        if seen.elsewhere:
            return _Part(unknown=seen.elsewhere)
        findings = self._lost_queries(seen) + self._insert_failed(seen)
        if findings and crowded:
            return _Part(unknown="packets are dropped for want of room in the conntrack table, which hides any race")
        if seen.current is None:
            healthy = f"{seen.not_tracked}: nothing is tracked here, so nothing races"
            return _Part(findings, unknown=seen.blind, healthy=healthy)
        unknown = seen.current.blind if not seen.current.counters else ("" if seen.base else _SECOND_LOOK)
        return _Part(findings, unknown=unknown, healthy=_race_text(seen))

    def _lost_queries(self, seen: ConntrackDnsObservation) -> tuple[Finding, ...]:
        """Accuse conntrack on the way to each server that shows the pattern of the race."""
        raced = [each for each in seen.exchanges if self._raced(each) and not each.node_local]
        return tuple(self._lost_query(seen, each) for each in raced)

    def _raced(self, exchange: Exchange) -> bool:
        return _lost_one(exchange) >= self._settings.min_lost_pairs and not _control_lost(exchange)

    def _lost_query(self, seen: ConntrackDnsObservation, exchange: Exchange) -> Finding:
        events, waiting = _events(seen), _waiting(seen)
        lost, pairs = _lost_one(exchange), len(exchange.pairs)
        asked = sum(query.fate is Fate.ANSWERED for control in exchange.controls for query in control)
        text = (
            f"DNS server {exchange.server}: {lost} of {pairs} parallel A and AAAA pairs lost exactly one query, while "
            f"all {asked} sent one after the other were answered; {_counter_text(seen, events)}. "
            f"{_waiting_text(seen, waiting)}{_AVOID_RACE}"
        )
        values: dict[str, Value] = {
            "server": str(exchange.server),
            "pairs": pairs,
            "pairs_lost_one": lost,
            "controls_answered": asked,
            **_race_values(seen, events, waiting),
        }
        return Finding(
            RACE,
            "DNSQueriesLost",
            text,
            Action.DELETE_CONNTRACK_FLOWS if waiting else Action.NONE,
            Target(TargetKind.DNS_SERVER, address=str(exchange.server)),
            pod=_only_pod(seen, waiting),
            values=values,
            sightings=lost,
            timed=True,
        )

    def _insert_failed(self, seen: ConntrackDnsObservation) -> tuple[Finding, ...]:
        """Accuse the race on the counters, if something about DNS agrees with them."""
        events, waiting = _events(seen), _waiting(seen)
        pairs = sum(_lost_one(each) for each in seen.exchanges if not each.node_local)
        corroborated = pairs > 0 or len(waiting) >= self._settings.min_unreplied_flows
        if events.lost_inserts < self._settings.min_lost_inserts or not corroborated:
            return ()
        own = f"{pairs} of our own parallel DNS pairs lost one query. " if pairs else ""
        text = (
            f"{events.lost_inserts} packets lost the race for their conntrack entry in the last "
            f"{seen.window_seconds:.0f} s (insert_failed and drop rose together). {own}"
            f"{_waiting_text(seen, waiting)}{_AVOID_RACE}"
        )
        return (
            Finding(
                RACE,
                "InsertFailed",
                text,
                Action.DELETE_CONNTRACK_FLOWS if waiting else Action.NONE,
                Target(TargetKind.CONNTRACK),
                pod=_only_pod(seen, waiting),
                values={"pairs_lost_one": pairs, **_race_values(seen, events, waiting)},
            ),
        )

    # Deciding: the servers

    def _unavailable(self, seen: ConntrackDnsObservation, *, crowded: bool) -> _Part:
        if not seen.servers.servers:
            return _Part(unknown=f"there is no DNS server to ask: {seen.servers.problem}; set dns.servers to name one")
        judged = [self._server(each) for each in seen.exchanges]
        findings = tuple(finding for finding in judged if finding)
        blocked = [each for each in seen.exchanges if _fates(each) == {Fate.BLOCKED}]
        if crowded and (blocked or any(finding.reason == "ServerUnreachable" for finding in findings)):
            return _Part(unknown="queries are lost, but the conntrack table has no room: that says nothing of servers")
        if findings:
            return _Part(findings)
        if blocked:
            names = ", ".join(str(each.server) for each in blocked)
            return _Part(
                unknown=f"this node itself does not let our queries to {names} out ({blocked[0].detail}): look for a "
                "packet filter rule for this agent, and at the conntrack table"
            )
        return _Part(healthy=_servers_text(seen))

    def _server(self, exchange: Exchange) -> Finding | None:
        """Judge one server by all its queries; each outcome excludes the next."""
        fates = _fates(exchange)
        if Fate.ANSWERED not in fates:
            return self._unanswered(exchange, fates)
        queries = _sent(exchange)
        lost = sum(query.fate is not Fate.ANSWERED for query in queries)
        if _control_lost(exchange) and len(queries) >= _LOSSY_QUERIES and 2 * lost >= len(queries):
            text = f"loses {lost} of {len(queries)} queries, also those sent one by one. {_LOOK_AT_SERVER}"
            return _server_finding("ServerUnreachable", exchange, text, sightings=_SURE, timed=True)
        if self._raced(exchange) and exchange.node_local:
            text = (
                f"answers only one of two simultaneous queries ({_lost_one(exchange)} of {len(exchange.pairs)} pairs). "
                "It is NodeLocal DNSCache, whose traffic is exempt from conntrack, so this is not the conntrack race: "
                "look at the node-local-dns pod of this node, its limits and its log"
            )
            return _server_finding("ServerUnreachable", exchange, text, sightings=_SURE, timed=True)
        times = _times(exchange)
        if len(times) >= _SLOW_ANSWERS and median(times) >= self._settings.slow_seconds:
            text = f"answers late: {median(times):.1f} s in the median of {len(times)} answers. {_LOOK_AT_SERVER}"
            return _server_finding("ServerSlow", exchange, text, sightings=_SURE, timed=True)
        return None

    def _unanswered(self, exchange: Exchange, fates: frozenset[Fate]) -> Finding | None:
        if Fate.REFUSED in fates:
            text = f"refuses queries (ICMP port unreachable): nothing listens on UDP port {exchange.server.port} there"
            if exchange.node_local:
                text += ". It is NodeLocal DNSCache: is the node-local-dns pod of this node running?"
            return _server_finding("ServerUnreachable", exchange, text)
        if Fate.UNREACHABLE in fates:
            text = (
                f"cannot be reached from this node: {exchange.detail}. Look at `ip route get {exchange.server.address}`"
            )
            return _server_finding("ServerUnreachable", exchange, text)
        if fates == {Fate.BLOCKED}:
            return None
        number = len(_sent(exchange))
        text = f"answered none of {number} queries within {exchange.waited_seconds:.1f} s. {_LOOK_AT_SERVER}"
        if exchange.junk:
            text = f"{text}. It did send {exchange.junk} datagrams that answer nothing we asked"
        return _server_finding("ServerUnreachable", exchange, text, sightings=len(exchange.controls) + 1, timed=True)


_RAISE_LIMIT = (
    "Raise the limit (`sysctl -w net.netfilter.nf_conntrack_max=N`, about 320 bytes of kernel memory an entry), then "
    "see who opens so many: `conntrack -L | grep -o 'src=[^ ]*' | sort | uniq -c | sort -n | tail`"
)
_AVOID_RACE = (
    "Clients wait 5 s for such a name: run NodeLocal DNSCache, or set `options single-request-reopen` (glibc) or "
    "`use-vc` (DNS over TCP) in the pods' dnsConfig; a lower `ndots` makes fewer queries"
)
_LOOK_AT_SERVER = "Check that it runs (CoreDNS: its pods, their CPU throttling and their upstream) and the path to it"
_SECOND_LOOK = "the packet counters need a second look; it follows at once"
_LOSSY_QUERIES = 6
"""Queries a probe must have sent before losing half of them says something."""
_SLOW_ANSWERS = 2
_SURE = 2
"""Sightings of a probe that repeated its question."""


@dataclass(frozen=True, slots=True)
class _Events:
    """The rises that matter, told apart."""

    rises: Mapping[str, int]
    lost_inserts: int
    pressure_drops: int


def _events(seen: ConntrackDnsObservation) -> _Events:
    """Tell the rises since `base` apart by what the kernel counts when (nf_conntrack_core.c).

    A chain too long counts as insert_failed without drop; an unresolved clash as both; a
    full table as drop alone. Lost inserts without as many drops fit none of these.
    """
    change = rise(seen.base, seen.current) if seen.base and seen.current else Rise({})
    failed = max(0, change.events.get("insert_failed", 0) - change.events.get("chain_toolong", 0))
    dropped = change.events.get("drop", 0)
    return _Events(change.events, failed if dropped >= failed else 0, max(0, dropped - failed))


def _ratio(sample: ConntrackSample) -> float:
    """Return entries / limit; 0 where there is no limit or it cannot be read."""
    return sample.entries / sample.limit if sample.entries is not None and sample.limit else 0.0


def _fill_text(sample: ConntrackSample) -> str:
    if not sample.limit:
        return f"the conntrack table has {sample.entries} entries and no limit"
    return f"the conntrack table has {sample.entries} of {sample.limit} entries ({_ratio(sample):.0%})"


def _fill_values(seen: ConntrackDnsObservation, current: ConntrackSample) -> dict[str, Value]:
    events = _events(seen)
    return {
        "entries": current.entries,
        "limit": current.limit,
        "dropped": events.pressure_drops,
        "early_drop": events.rises.get("early_drop", 0),
        "chain_toolong": events.rises.get("chain_toolong", 0),
        "window_seconds": round(seen.window_seconds, 1),
    }


def _table_finding(reason: str, text: str, values: Mapping[str, Value]) -> Finding:
    return Finding(PRESSURE, reason, text, Action.NONE, Target(TargetKind.CONNTRACK), values=values)


def _drops_text(seen: ConntrackDnsObservation) -> str:
    number = _events(seen).pressure_drops
    return f"; {number} packets dropped in the last {seen.window_seconds:.0f} s" if number else "; none dropped"


def _race_text(seen: ConntrackDnsObservation) -> str:
    events = _events(seen)
    parts = [f"in the last {seen.window_seconds:.0f} s {_counter_text(seen, events)}"]
    clashes = events.rises.get("clash_resolve", 0)
    if clashes:
        parts.append(f"races happen here and nothing is lost to them (clashes resolved by the kernel: {clashes})")
    if seen.servers.servers:
        pairs = sum(len(each.pairs) for each in seen.exchanges)
        whole = sum(
            all(query.fate is Fate.ANSWERED for query in pair) for each in seen.exchanges for pair in each.pairs
        )
        parts.append(f"{whole} of {pairs} parallel DNS pairs were answered")
    else:
        parts.append("no DNS server to probe")
    if seen.current and seen.current.blind:
        parts.append(seen.current.blind)
    return "; ".join(parts)


def _counter_text(seen: ConntrackDnsObservation, events: _Events) -> str:
    if seen.current is None or not seen.current.counters:
        return "this node's packet counters are not visible"
    if seen.base is None:
        return "this node's packet counters are not known yet"
    if events.lost_inserts:
        return f"this node's conntrack lost {events.lost_inserts} inserts"
    return "this node's conntrack lost no insert" + ("" if seen.current.entries else " (it tracks nothing now)")


def _waiting(seen: ConntrackDnsObservation) -> tuple[DnsFlow, ...]:
    """Return the flows that truly wait, less those to servers whose silence explains them."""
    if seen.flows is None:
        return ()
    silent = {each.server.address for each in seen.exchanges if Fate.ANSWERED not in _fates(each)}
    return tuple(
        flow for flow in seen.flows.flows if flow.waited_seconds >= WAITING_SECONDS and flow.server not in silent
    )


def _waiting_text(seen: ConntrackDnsObservation, waiting: tuple[DnsFlow, ...]) -> str:
    if seen.flows_blind:
        return f"Whose queries wait is not visible ({seen.flows_blind}). "
    if not waiting or seen.flows is None:
        return ""
    more = "" if seen.flows.complete else "more than "
    return f"{more}{len(waiting)} DNS flows wait for an answer: {', '.join(_owners_text(seen, waiting))}. "


def _owners_text(seen: ConntrackDnsObservation, waiting: tuple[DnsFlow, ...]) -> tuple[str, ...]:
    """Return the few with the most waiting flows, by pod where it is known."""
    counted = Counter(str(seen.owners.get(flow.source, flow.source)) for flow in waiting)
    return tuple(f"{name} ({number})" for name, number in counted.most_common(TOP))


def _only_pod(seen: ConntrackDnsObservation, waiting: tuple[DnsFlow, ...]) -> PodRef | None:
    owners = {seen.owners.get(flow.source) for flow in waiting}
    return owners.pop() if len(owners) == 1 else None


def _race_values(seen: ConntrackDnsObservation, events: _Events, waiting: tuple[DnsFlow, ...]) -> dict[str, Value]:
    return {
        "lost_inserts": events.lost_inserts,
        "clash_resolve": events.rises.get("clash_resolve", 0),
        "window_seconds": round(seen.window_seconds, 1),
        "unreplied_flows": len(waiting),
        "unreplied_flows_of": _owners_text(seen, waiting),
    }


def _sent(exchange: Exchange) -> list[Query]:
    """Return every query that was to be sent."""
    both = (*exchange.pairs, *exchange.controls)
    return [query for couple in both for query in couple if query.fate is not Fate.UNSENT]


def _fates(exchange: Exchange) -> frozenset[Fate]:
    return frozenset(query.fate for query in _sent(exchange))


def _times(exchange: Exchange) -> list[float]:
    return [query.seconds for query in _sent(exchange) if query.seconds is not None]


def _lost_one(exchange: Exchange) -> int:
    """Count the pairs of which exactly one query was answered.

    Where the race is lost on this very node, the kernel tells the sender (EPERM), hence BLOCKED.
    """
    gone = (Fate.LOST, Fate.BLOCKED)
    return sum(
        {first.fate, second.fate} in ({Fate.ANSWERED, fate} for fate in gone) for first, second in exchange.pairs
    )


def _control_lost(exchange: Exchange) -> int:
    return sum(query.fate not in (Fate.ANSWERED, Fate.UNSENT) for control in exchange.controls for query in control)


def _server_finding(reason: str, exchange: Exchange, text: str, *, sightings: int = 1, timed: bool = False) -> Finding:
    queries, times = _sent(exchange), _times(exchange)
    values: dict[str, Value] = {
        "server": str(exchange.server),
        "queries": len(queries),
        "answered": len(times),
        "median_seconds": round(median(times), 3) if times else None,
        "node_local_dns": exchange.node_local,
    }
    return Finding(
        UNAVAILABLE,
        reason,
        f"DNS server {exchange.server} {text}",
        Action.NONE,
        Target(TargetKind.DNS_SERVER, address=str(exchange.server)),
        values=values,
        sightings=sightings,
        timed=timed,
    )


def _servers_text(seen: ConntrackDnsObservation) -> str:
    """Say how every server answered, and what is odd about them."""
    parts = []
    for each in seen.exchanges:
        times = _times(each)
        text = f"{each.server} answers in {median(times) * 1000:.1f} ms" if times else f"{each.server} was not asked"
        lost = len(_sent(each)) - len(times)
        text += f" ({lost} of {len(_sent(each))} queries lost)" if lost else ""
        parts.append(text + (" (NodeLocal DNSCache, exempt from conntrack)" if each.node_local else ""))
    if seen.servers.problem:
        parts.append(seen.servers.problem)
    return "; ".join(parts)


def _conntrack_samples(seen: ConntrackDnsObservation) -> Iterable[Sample]:
    if seen.current is None:
        return
    if seen.current.entries is not None:
        yield Sample("conntrack_entries", seen.current.entries)
    if seen.current.limit is not None:
        yield Sample("conntrack_entries_limit", seen.current.limit)
    counted = {name for counters in seen.current.counters.values() for name in counters}
    since = rise(seen.previous, seen.current).events if seen.previous else {}
    for name in EVENTS:
        if name in counted:
            yield Sample("conntrack_events_total", since.get(name, 0), (name,))


def _dns_samples(seen: ConntrackDnsObservation) -> Iterable[Sample]:
    if not seen.exchanges:
        return
    for mode in ("parallel", "sequential"):
        couples = [pair for each in seen.exchanges for pair in (each.pairs if mode == "parallel" else each.controls)]
        queries = [query for couple in couples for query in couple if query.fate is not Fate.UNSENT]
        for query in queries:
            if query.seconds is not None:
                yield Sample("dns_probe_seconds", query.seconds, (mode,))
        yield Sample("dns_probe_lost_total", sum(query.seconds is None for query in queries), (mode,))
