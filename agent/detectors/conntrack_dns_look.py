"""One look of conntrack_dns, and what can be counted in it: rises told apart, queries by their fate.

No thresholds and no wording.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.host.conntrack import ConntrackSample, DnsFlow, Flows, Rise, rise
from agent.host.dns import Exchange
from agent.host.dns_conversation import Fate, Query
from agent.host.dns_servers import DnsServers
from agent.model import DeploymentFault, Finding, PodRef

SECOND_LOOK = "the packet counters need a second look; it follows at once"
WAITING_SECONDS = 1
"""A flow without an answer for less than this is just under way."""


@dataclass(frozen=True, slots=True)
class ConntrackDnsObservation:
    """One look. `base` is the sample the counters are compared with, `window_seconds` older than `current`.

    Exactly one of `current`, `not_tracked`, `blind` and `elsewhere` is set: what was read, that
    there is nothing to read, why it cannot be read, or that this is not the node's network.
    `fault` is set where the agent's deployment is why something of that cannot be seen.
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
    fault: DeploymentFault | None = None
    owners: Mapping[str, PodRef] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Part:
    """What one condition came to: findings, or why it is unknown, or why it is well; the first that is set counts."""

    findings: tuple[Finding, ...] = ()
    unknown: str = ""
    healthy: str = ""


@dataclass(frozen=True, slots=True)
class Events:
    """The rises that matter, told apart."""

    rises: Mapping[str, int]
    lost_inserts: int
    pressure_drops: int


def events_of(seen: ConntrackDnsObservation) -> Events:
    """Tell the rises since `base` apart by what the kernel counts when (nf_conntrack_core.c).

    A chain too long counts as insert_failed without drop; an unresolved clash as both; a
    full table as drop alone. Lost inserts without as many drops fit none of these.
    """
    change = rise(seen.base, seen.current) if seen.base and seen.current else Rise({})
    failed = max(0, change.events.get("insert_failed", 0) - change.events.get("chain_toolong", 0))
    dropped = change.events.get("drop", 0)
    return Events(change.events, failed if dropped >= failed else 0, max(0, dropped - failed))


def waiting_flows(seen: ConntrackDnsObservation) -> tuple[DnsFlow, ...]:
    """Return the flows that truly wait, less those to servers whose silence explains them."""
    if seen.flows is None:
        return ()
    silent = {each.server.address for each in seen.exchanges if Fate.ANSWERED not in fates_of(each)}
    return tuple(
        flow for flow in seen.flows.flows if flow.waited_seconds >= WAITING_SECONDS and flow.server not in silent
    )


def sent_queries(exchange: Exchange) -> list[Query]:
    """Return every query that was to be sent."""
    both = (*exchange.pairs, *exchange.controls)
    return [query for couple in both for query in couple if query.fate is not Fate.UNSENT]


def fates_of(exchange: Exchange) -> frozenset[Fate]:
    """Return what became of the queries, each fate once."""
    return frozenset(query.fate for query in sent_queries(exchange))


def times_of(exchange: Exchange) -> list[float]:
    """Return how long each answer took, in seconds."""
    return [query.seconds for query in sent_queries(exchange) if query.seconds is not None]


def lost_one(exchange: Exchange) -> int:
    """Count the pairs of which exactly one query was answered.

    Where the race is lost on this very node, the kernel tells the sender (EPERM), hence BLOCKED.
    """
    gone = (Fate.LOST, Fate.BLOCKED)
    return sum(
        {first.fate, second.fate} in ({Fate.ANSWERED, fate} for fate in gone) for first, second in exchange.pairs
    )


def control_lost(exchange: Exchange) -> int:
    """Count the queries sent one after the other that were not answered."""
    return sum(query.fate not in (Fate.ANSWERED, Fate.UNSENT) for control in exchange.controls for query in control)


def raced(exchange: Exchange, min_lost_pairs: int) -> bool:
    """Whether a server's queries show the pattern of the race: pairs lose one, and the control loses none."""
    return lost_one(exchange) >= min_lost_pairs and not control_lost(exchange)
