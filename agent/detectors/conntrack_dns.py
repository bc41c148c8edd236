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
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

from agent.clock import Clock
from agent.detectors.conntrack_dns_look import ConntrackDnsObservation, events_of, lost_one
from agent.detectors.conntrack_findings import PRESSURE, pressure
from agent.detectors.dns_findings import UNAVAILABLE, unavailable
from agent.detectors.race_findings import RACE, race
from agent.host.conntrack import ConntrackSample, Flows, NotTrackedError, rise
from agent.host.ctnetlink import EVENTS
from agent.host.dns import Exchange
from agent.host.dns_conversation import Fate
from agent.host.dns_servers import DnsServer, DnsServers
from agent.model import (
    CannotSeeError,
    CheckResult,
    DeploymentFault,
    Metric,
    MetricKind,
    NotApplicableError,
    PodRef,
    Sample,
)
from agent.schema import DetectorSettings, setting

FIRST_RECHECK_SECONDS = 1.0
"""The counters need a second look before they say anything."""
FOLLOW_SECONDS = 5.0
"""While something is wrong: so that it is seen to end well within 15 s."""
STALE_SECONDS = 60.0
"""An older sample (or three periods, if that is longer) is no base any more: we were away."""
STALL_TOLERANCE_SECONDS = 1.0
"""After a longer stall of our own the counters begin anew, too."""
MAX_FLOWS = 256
MAX_OWNERS = 32


@dataclass(frozen=True, slots=True)
class ConntrackDnsSettings(DetectorSettings):
    """What conntrack_dns can be told."""

    period_seconds: float = setting(
        5.0,
        "time between two looks; each is jittered by 10 % (a silent server takes 4 s more to be sure of)",
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
        in_host_network: Callable[[], DeploymentFault | None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._conntrack = conntrack
        self._dns = dns
        self._flow_owner = flow_owner
        self._clock = clock
        self._in_host_network = in_host_network
        self._history: deque[tuple[float, ConntrackSample]] = deque()
        self._stalled = clock.stalled()

    def probe(self) -> ConntrackDnsObservation:
        """Ask the DNS servers, then read conntrack, so that the counters hold what became of our own queries.

        Raises NotApplicableError where there is neither conntrack nor a DNS server.
        """
        servers = self._dns.servers()
        exchanges = self._dns.ask(servers.servers, self._settings.attempt_seconds, self._settings.repeat_pairs)
        elsewhere = self._in_host_network()
        if elsewhere is not None:
            return ConntrackDnsObservation(servers, exchanges, elsewhere=str(elsewhere), fault=elsewhere)
        try:
            sample = self._conntrack.sample()
        except NotTrackedError as error:
            self._history.clear()
            if not servers.servers:
                raise NotApplicableError(f"{error}, and there is no DNS server to ask: {servers.problem}") from None
            return ConntrackDnsObservation(servers, exchanges, not_tracked=str(error))
        except CannotSeeError as error:
            self._history.clear()
            return ConntrackDnsObservation(servers, exchanges, blind=str(error), fault=error.fault)
        return self._with_flows(self._remembered(servers, exchanges, sample))

    def check(self, seen: ConntrackDnsObservation) -> CheckResult:
        """Decide."""
        limits = self._settings
        table = pressure(
            seen,
            nearly_full_ratio=limits.nearly_full_ratio,
            min_drops=limits.min_drops,
            min_early_drops=limits.min_early_drops,
            min_chain_toolong=limits.min_chain_toolong,
        )
        crowded = any(found.reason in ("TableFull", "EarlyDrop") for found in table.findings)
        servers = unavailable(
            seen, crowded=crowded, slow_seconds=limits.slow_seconds, min_lost_pairs=limits.min_lost_pairs
        )
        lost = race(
            seen,
            crowded=crowded,
            min_lost_inserts=limits.min_lost_inserts,
            min_unreplied_flows=limits.min_unreplied_flows,
            min_lost_pairs=limits.min_lost_pairs,
        )
        parts = {RACE: lost, PRESSURE: table, UNAVAILABLE: servers}
        findings = tuple(found for part in parts.values() for found in part.findings)
        quiet = {name: part for name, part in parts.items() if not part.findings}
        unknown = {name: part.unknown for name, part in quiet.items() if part.unknown}
        return CheckResult(
            findings=findings,
            healthy={name: part.healthy for name, part in quiet.items() if not part.unknown},
            unknown=unknown,
            deployment=_deployment(seen, unknown),
            samples=(*_conntrack_samples(seen), *_dns_samples(seen)),
            recheck_seconds=FIRST_RECHECK_SECONDS if seen.current is not None and seen.base is None else None,
            follow_seconds=FOLLOW_SECONDS if findings else None,
        )

    def _remembered(
        self, servers: DnsServers, exchanges: tuple[Exchange, ...], sample: ConntrackSample
    ) -> ConntrackDnsObservation:
        """Keep the sample, and choose the one to compare it with: the newest that is `window_seconds` old."""
        now, stalled = self._clock.monotonic(), self._clock.stalled()
        away, self._stalled = stalled - self._stalled > STALL_TOLERANCE_SECONDS, stalled
        history = self._history
        stale = max(STALE_SECONDS, 3 * self._settings.period_seconds)
        if history and (away or now - history[-1][0] > stale or rise(history[-1][1], sample).reset):
            history.clear()  # what rose while we were away is no rise of one window
        previous = history[-1][1] if history else None
        while len(history) > 1 and now - history[1][0] >= self._settings.window_seconds:
            history.popleft()
        since, base = history[0] if history else (now, None)
        history.append((now, sample))
        return ConntrackDnsObservation(
            servers,
            exchanges,
            fault=sample.fault,
            current=sample,
            previous=previous,
            base=base,
            window_seconds=now - since,
        )

    def _with_flows(self, seen: ConntrackDnsObservation) -> ConntrackDnsObservation:
        """Add the flows without an answer, if something calls for them: the kernel walks its whole table for it."""
        suspected = events_of(seen).lost_inserts >= self._settings.min_lost_inserts
        if not suspected and not any(lost_one(exchange) for exchange in seen.exchanges):
            return seen
        flows: Flows | None = None
        why = ""
        try:
            flows = self._conntrack.unreplied_dns_flows(MAX_FLOWS)
        except (CannotSeeError, NotTrackedError) as error:
            why = str(error)
            fault = error.fault if isinstance(error, CannotSeeError) else None
            seen = replace(seen, fault=seen.fault or fault)
        sources = Counter(flow.source for flow in flows.flows) if flows else Counter[str]()
        asked = frozenset(source for source, _ in sources.most_common(MAX_OWNERS))
        owners = self._flow_owner(asked) if asked else {}
        return replace(seen, flows=flows, flows_blind=why, owners=owners)


def _deployment(seen: ConntrackDnsObservation, unknown: Mapping[str, str]) -> tuple[DeploymentFault, ...]:
    """What the agent was denied, with the conditions that are Unknown, or known in part only, because of it."""
    if seen.fault is None:
        return ()
    if seen.current is not None and seen.current.counters:  # only single flows, which would name a pod, are missing
        return (replace(seen.fault, impairs=(RACE,)),)
    concerned = (RACE, PRESSURE, UNAVAILABLE) if seen.elsewhere else (RACE, PRESSURE)
    hides = tuple(each for each in concerned if each in unknown)
    return (replace(seen.fault, hides=hides, impairs=tuple(each for each in concerned if each not in hides)),)


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
