"""When DNS queries lose the race for their conntrack entry, and what is said of it.

What it means, and what it does not prove, is told in conntrack_dns.
"""

from collections import Counter

from agent.detectors.conntrack_dns_look import (
    SECOND_LOOK,
    ConntrackDnsObservation,
    Events,
    Part,
    events_of,
    lost_one,
    raced,
    waiting_flows,
)
from agent.durations import duration, rounded
from agent.host.conntrack import DnsFlow
from agent.host.dns import Exchange
from agent.host.dns_conversation import Fate
from agent.model import Action, Finding, PodRef, Target, TargetKind, Value

RACE = "ConntrackDNSRace"
TOP = 3
"""How many pods or addresses a message names."""
_AVOID_RACE = (
    "Clients wait 5 s for such a name: run NodeLocal DNSCache, or set `options single-request-reopen` (glibc) or "
    "`use-vc` (DNS over TCP) in the pods' dnsConfig; a lower `ndots` makes fewer queries"
)


def race(
    seen: ConntrackDnsObservation,
    *,
    crowded: bool,
    min_lost_inserts: int,
    min_unreplied_flows: int,
    min_lost_pairs: int,
) -> Part:
    """Judge the race; `crowded` says that the table has no room, the limits are the detector's settings."""
    if seen.elsewhere:
        return Part(unknown=seen.elsewhere)
    findings = _lost_queries(seen, min_lost_pairs) + _insert_failed(seen, min_lost_inserts, min_unreplied_flows)
    if findings and crowded:
        return Part(unknown="packets are dropped for want of room in the conntrack table, which hides any race")
    if seen.current is None:
        healthy = f"{seen.not_tracked}: nothing is tracked here, so nothing races"
        return Part(findings, unknown=seen.blind, healthy=healthy)
    unknown = seen.current.blind if not seen.current.counters else ("" if seen.base else SECOND_LOOK)
    return Part(findings, unknown=unknown, healthy=_race_text(seen))


def _lost_queries(seen: ConntrackDnsObservation, min_lost_pairs: int) -> tuple[Finding, ...]:
    """Accuse conntrack on the way to each server that shows the pattern of the race."""
    accused = [each for each in seen.exchanges if raced(each, min_lost_pairs) and not each.node_local]
    return tuple(_lost_query(seen, each) for each in accused)


def _lost_query(seen: ConntrackDnsObservation, exchange: Exchange) -> Finding:
    events, waiting = events_of(seen), waiting_flows(seen)
    lost, pairs = lost_one(exchange), len(exchange.pairs)
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


def _insert_failed(
    seen: ConntrackDnsObservation, min_lost_inserts: int, min_unreplied_flows: int
) -> tuple[Finding, ...]:
    """Accuse the race on the counters, if something about DNS agrees with them."""
    events, waiting = events_of(seen), waiting_flows(seen)
    pairs = sum(lost_one(each) for each in seen.exchanges if not each.node_local)
    corroborated = pairs > 0 or len(waiting) >= min_unreplied_flows
    if events.lost_inserts < min_lost_inserts or not corroborated:
        return ()
    own = f"{pairs} of our own parallel DNS pairs lost one query. " if pairs else ""
    text = (
        f"{events.lost_inserts} packets lost the race for their conntrack entry in the last "
        f"{duration(seen.window_seconds)} (insert_failed and drop rose together). {own}"
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


def _race_text(seen: ConntrackDnsObservation) -> str:
    events = events_of(seen)
    parts = [f"in the last {duration(seen.window_seconds)} {_counter_text(seen, events)}"]
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


def _counter_text(seen: ConntrackDnsObservation, events: Events) -> str:
    if seen.current is None or not seen.current.counters:
        return "this node's packet counters are not visible"
    if seen.base is None:
        return "this node's packet counters are not known yet"
    if events.lost_inserts:
        return f"this node's conntrack lost {events.lost_inserts} inserts"
    return "this node's conntrack lost no insert" + ("" if seen.current.entries else " (it tracks nothing now)")


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


def _race_values(seen: ConntrackDnsObservation, events: Events, waiting: tuple[DnsFlow, ...]) -> dict[str, Value]:
    return {
        "lost_inserts": events.lost_inserts,
        "clash_resolve": events.rises.get("clash_resolve", 0),
        "window_seconds": rounded(seen.window_seconds),
        "unreplied_flows": len(waiting),
        "unreplied_flows_of": _owners_text(seen, waiting),
    }
