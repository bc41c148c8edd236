"""When a DNS server counts as down or slow by its answers to the probe, and what is said of it.

What it means is told in conntrack_dns.
"""

from statistics import median

from agent.detectors.conntrack_dns_look import (
    ConntrackDnsObservation,
    Part,
    control_lost,
    fates_of,
    lost_one,
    raced,
    sent_queries,
    times_of,
)
from agent.durations import measured_duration, rounded
from agent.host.dns import Exchange
from agent.host.dns_conversation import Fate
from agent.model import Action, Finding, Target, TargetKind, Value

UNAVAILABLE = "DNSUnavailable"
_LOOK_AT_SERVER = "Check that it runs (CoreDNS: its pods, their CPU throttling and their upstream) and the path to it"
_LOSSY_QUERIES = 6
"""Queries a probe must have sent before losing half of them says something."""
_SLOW_ANSWERS = 2
_SURE = 2
"""Sightings of a probe that repeated its question."""


def unavailable(seen: ConntrackDnsObservation, *, crowded: bool, slow_seconds: float, min_lost_pairs: int) -> Part:
    """Judge every server; `crowded` says that the conntrack table has no room, the limits are the settings."""
    if seen.elsewhere:
        return Part(unknown=seen.elsewhere)
    if not seen.servers.servers:
        return Part(unknown=f"there is no DNS server to ask: {seen.servers.problem}; set dns.servers to name one")
    judged = [_server(each, slow_seconds, min_lost_pairs) for each in seen.exchanges]
    findings = tuple(finding for finding in judged if finding)
    blocked = [each for each in seen.exchanges if fates_of(each) == {Fate.BLOCKED}]
    if crowded and (blocked or any(finding.reason == "ServerUnreachable" for finding in findings)):
        return Part(unknown="queries are lost, but the conntrack table has no room: that says nothing of servers")
    if findings:
        return Part(findings)
    if blocked:
        names = ", ".join(str(each.server) for each in blocked)
        return Part(
            unknown=f"this node itself does not let our queries to {names} out ({blocked[0].detail}): look for a "
            "packet filter rule for this agent, and at the conntrack table"
        )
    return Part(healthy=_servers_text(seen))


def _server(exchange: Exchange, slow_seconds: float, min_lost_pairs: int) -> Finding | None:
    """Judge one server by all its queries; each outcome excludes the next."""
    fates = fates_of(exchange)
    if Fate.ANSWERED not in fates:
        return _unanswered(exchange, fates)
    queries = sent_queries(exchange)
    lost = sum(query.fate is not Fate.ANSWERED for query in queries)
    if control_lost(exchange) and len(queries) >= _LOSSY_QUERIES and 2 * lost >= len(queries):
        text = f"loses {lost} of {len(queries)} queries, also those sent one by one. {_LOOK_AT_SERVER}"
        return _server_finding("ServerUnreachable", exchange, text, sightings=_SURE, timed=True)
    if raced(exchange, min_lost_pairs) and exchange.node_local:
        text = (
            f"answers only one of two simultaneous queries ({lost_one(exchange)} of {len(exchange.pairs)} pairs). "
            "It is NodeLocal DNSCache, whose traffic is exempt from conntrack, so this is not the conntrack race: "
            "look at the node-local-dns pod of this node, its limits and its log"
        )
        return _server_finding("ServerUnreachable", exchange, text, sightings=_SURE, timed=True)
    times = times_of(exchange)
    if len(times) >= _SLOW_ANSWERS and median(times) >= slow_seconds:
        text = (
            f"answers late: {measured_duration(median(times))} in the median of {len(times)} answers. {_LOOK_AT_SERVER}"
        )
        return _server_finding("ServerSlow", exchange, text, sightings=_SURE, timed=True)
    return None


def _unanswered(exchange: Exchange, fates: frozenset[Fate]) -> Finding | None:
    if Fate.REFUSED in fates:
        text = f"refuses queries (ICMP port unreachable): nothing listens on UDP port {exchange.server.port} there"
        if exchange.node_local:
            text += ". It is NodeLocal DNSCache: is the node-local-dns pod of this node running?"
        return _server_finding("ServerUnreachable", exchange, text)
    if Fate.UNREACHABLE in fates:
        text = f"cannot be reached from this node: {exchange.detail}. Look at `ip route get {exchange.server.address}`"
        return _server_finding("ServerUnreachable", exchange, text)
    if fates == {Fate.BLOCKED}:
        return None
    number = len(sent_queries(exchange))
    text = f"answered none of {number} queries within {measured_duration(exchange.waited_seconds)}. {_LOOK_AT_SERVER}"
    if exchange.junk:
        text = f"{text}. It did send {exchange.junk} datagrams that answer nothing we asked"
    return _server_finding("ServerUnreachable", exchange, text, sightings=len(exchange.controls) + 1, timed=True)


def _server_finding(reason: str, exchange: Exchange, text: str, *, sightings: int = 1, timed: bool = False) -> Finding:
    queries, times = sent_queries(exchange), times_of(exchange)
    values: dict[str, Value] = {
        "server": str(exchange.server),
        "queries": len(queries),
        "answered": len(times),
        "median_seconds": rounded(median(times)) if times else None,
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
        times = times_of(each)
        text = (
            f"{each.server} answers in {measured_duration(median(times))}" if times else f"{each.server} was not asked"
        )
        lost = len(sent_queries(each)) - len(times)
        text += f" ({lost} of {len(sent_queries(each))} queries lost)" if lost else ""
        parts.append(text + (" (NodeLocal DNSCache, exempt from conntrack)" if each.node_local else ""))
    if seen.servers.problem:
        parts.append(seen.servers.problem)
    return "; ".join(parts)
