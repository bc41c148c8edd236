"""When the conntrack table lacks room, and what is said of it: a full table, early evictions, chains too long.

What it means is told in conntrack_dns.
"""

from collections.abc import Mapping

from agent.detectors.conntrack_dns_look import SECOND_LOOK, ConntrackDnsObservation, Part, events_of
from agent.durations import duration, rounded
from agent.host.conntrack import ConntrackSample
from agent.model import Action, Finding, Target, TargetKind, Value

PRESSURE = "ConntrackTablePressure"
CROWDED_RATIO = 0.9
"""Drops in a table filled more than this are the table's, however few they are."""
_RAISE_LIMIT = (
    "Raise the limit (`sysctl -w net.netfilter.nf_conntrack_max=N`, about 320 bytes of kernel memory an entry), then "
    "see who opens so many: `conntrack -L | grep -o 'src=[^ ]*' | sort | uniq -c | sort -n | tail`"
)


def pressure(
    seen: ConntrackDnsObservation,
    *,
    nearly_full_ratio: float,
    min_drops: int,
    min_early_drops: int,
    min_chain_toolong: int,
) -> Part:
    """Judge the table; the limits are the detector's settings."""
    if seen.current is None:
        unknown = seen.elsewhere or seen.blind
        return Part(unknown=unknown, healthy=f"{seen.not_tracked}: nothing is tracked, so no table can fill")
    fill = _fill(
        seen,
        seen.current,
        nearly_full_ratio=nearly_full_ratio,
        min_drops=min_drops,
        min_early_drops=min_early_drops,
    )
    chains = _chains(seen, seen.current, min_chain_toolong)
    findings = tuple(found for found in (fill, chains) if found)
    if findings:
        return Part(findings)
    if seen.current.entries is None or not seen.current.counters:
        return Part(unknown=seen.current.blind or "the number of conntrack entries cannot be read")
    if seen.base is None:
        return Part(unknown=SECOND_LOOK)
    return Part(healthy=_fill_text(seen.current) + _drops_text(seen))


def _fill(
    seen: ConntrackDnsObservation,
    current: ConntrackSample,
    *,
    nearly_full_ratio: float,
    min_drops: int,
    min_early_drops: int,
) -> Finding | None:
    """Name the worst that is wrong with the room in the table."""
    events = events_of(seen)
    ratio = _ratio(current)
    crowded = max(ratio, _ratio(seen.base) if seen.base else 0.0) >= CROWDED_RATIO
    values = _fill_values(seen, current)
    dropped = f"{events.pressure_drops} packets were dropped in the last {duration(seen.window_seconds)}"
    if ratio >= 1:
        harm = dropped if events.pressure_drops else "new connections fail or evict others"
        text = f"{_fill_text(current)}: it is full; {harm}. {_RAISE_LIMIT}"
        return _table_finding("TableFull", text, values)
    if events.pressure_drops >= (1 if crowded else min_drops):
        text = (
            f"{dropped}, though not for a failed insert; {_fill_text(current)} now, so it was full in between, or "
            f"the kernel had no memory for an entry (`dmesg | grep conntrack` tells which). {_RAISE_LIMIT}"
        )
        return _table_finding("TableFull", text, values)
    if events.rises.get("early_drop", 0) >= min_early_drops:
        text = (
            f"{events.rises['early_drop']} live entries were evicted in the last {duration(seen.window_seconds)} to "
            f"make room; {_fill_text(current)}. {_RAISE_LIMIT}"
        )
        return _table_finding("EarlyDrop", text, values)
    if ratio >= nearly_full_ratio:
        return _table_finding("TableNearlyFull", f"{_fill_text(current)}. {_RAISE_LIMIT}", values)
    return None


def _chains(seen: ConntrackDnsObservation, current: ConntrackSample, min_chain_toolong: int) -> Finding | None:
    number = events_of(seen).rises.get("chain_toolong", 0)
    if number < min_chain_toolong:
        return None
    text = (
        f"{number} packets were dropped in the last {duration(seen.window_seconds)} because their hash chain in the "
        "conntrack table is too long: the hash table is too small for its entries, or someone makes them collide. "
        "Raise net.netfilter.nf_conntrack_buckets to at least a quarter of nf_conntrack_max, then look for a "
        "source with very many flows (`conntrack -L | grep -o 'src=[^ ]*' | sort | uniq -c | sort -n | tail`)"
    )
    return _table_finding("ChainTooLong", text, _fill_values(seen, current))


def _ratio(sample: ConntrackSample) -> float:
    """Return entries / limit; 0 where there is no limit or it cannot be read."""
    return sample.entries / sample.limit if sample.entries is not None and sample.limit else 0.0


def _fill_text(sample: ConntrackSample) -> str:
    if not sample.limit:
        return f"the conntrack table has {sample.entries} entries and no limit"
    return f"the conntrack table has {sample.entries} of {sample.limit} entries ({_ratio(sample):.0%})"


def _fill_values(seen: ConntrackDnsObservation, current: ConntrackSample) -> dict[str, Value]:
    events = events_of(seen)
    return {
        "entries": current.entries,
        "limit": current.limit,
        "dropped": events.pressure_drops,
        "early_drop": events.rises.get("early_drop", 0),
        "chain_toolong": events.rises.get("chain_toolong", 0),
        "window_seconds": rounded(seen.window_seconds),
    }


def _table_finding(reason: str, text: str, values: Mapping[str, Value]) -> Finding:
    return Finding(PRESSURE, reason, text, Action.NONE, Target(TargetKind.CONNTRACK), values=values)


def _drops_text(seen: ConntrackDnsObservation) -> str:
    number = events_of(seen).pressure_drops
    return f"; {number} packets dropped in the last {duration(seen.window_seconds)}" if number else "; none dropped"
