"""The conntrack_dns detector: what sequences of counters and fates of queries mean, old kernels included."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import pytest

from agent.detectors.conntrack_dns import ConntrackDnsDetector, ConntrackDnsSettings
from agent.detectors.conntrack_dns_look import ConntrackDnsObservation
from agent.detectors.conntrack_findings import PRESSURE
from agent.detectors.dns_findings import UNAVAILABLE
from agent.detectors.race_findings import RACE
from agent.host.conntrack import ConntrackSample, DnsFlow, Flows, NotTrackedError
from agent.host.dns import Exchange
from agent.host.dns_conversation import Fate, Query
from agent.host.dns_servers import DnsServer, DnsServers
from agent.model import (
    Action,
    CannotSeeError,
    CheckResult,
    Detector,
    NotApplicableError,
    PodRef,
    Sample,
    Target,
    TargetKind,
)
from agent.pipeline.runner import JITTER
from agent.schema import rule_of
from tests.unit.doubles import denied_fault

SERVER = DnsServer("10.96.0.10")
SERVERS = DnsServers((SERVER,), "the settings")
OK = Query(Fate.ANSWERED, 0.002)
LOST = Query(Fate.LOST)
UNSENT = Query(Fate.UNSENT)
REFUSED = Query(Fate.REFUSED)
BLOCKED = Query(Fate.BLOCKED)
SLOW = Query(Fate.ANSWERED, 1.7)
POD = PodRef("payments", "api-7", "uid-1")
ZERO = dict.fromkeys(
    (
        "found",
        "invalid",
        "insert_failed",
        "drop",
        "early_drop",
        "error",
        "search_restart",
        "clash_resolve",
        "chain_toolong",
    ),
    0,
)
OLD_KERNEL = {name: value for name, value in ZERO.items() if name not in ("clash_resolve", "chain_toolong")}


def sample(
    *cpus: Mapping[str, int], entries: int | None = 50, limit: int | None = 1000, **fields: Any
) -> ConntrackSample:
    counters = dict(enumerate(cpus))
    return ConntrackSample(counters, entries, limit, **{"source": "netlink", **fields})


def exchange(
    pairs: list[tuple[Query, Query]] | None = None,
    controls: list[tuple[Query, Query]] | None = None,
    server: DnsServer = SERVER,
    **fields: Any,
) -> Exchange:
    return Exchange(server, tuple(pairs or [(OK, OK)]), tuple(controls or [(OK, OK)]), 4.0, **fields)


WELL = exchange()
RACED = exchange([(OK, LOST), (LOST, OK), (OK, OK), (OK, LOST), (OK, OK)], [(OK, OK)] * 5)
SILENT = exchange([(LOST, LOST)], [(LOST, UNSENT)])


def flows(number: int, source: str = "10.0.0.7", waited: int = 3, server: str = "10.96.0.10") -> Flows:
    return Flows(tuple(DnsFlow(source, 40000 + port, server, waited) for port in range(number)))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0
        self.stalls = 0.0

    def wall(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def awake(self) -> float:
        return self.now

    def stalled(self) -> float:
        return self.stalls


class FakeConntrack:
    """Gives the samples it was given, one a look; an exception is raised."""

    def __init__(self, *samples: ConntrackSample | Exception, flows: Flows | Exception | None = None) -> None:
        self.samples = list(samples)
        self.flows = flows or Flows(())
        self.flow_reads = 0

    def sample(self) -> ConntrackSample:
        given = self.samples.pop(0) if len(self.samples) > 1 else self.samples[0]
        if isinstance(given, Exception):
            raise given
        return given

    def unreplied_dns_flows(self, limit: int) -> Flows:
        self.flow_reads += 1
        if isinstance(self.flows, Exception):
            raise self.flows
        return Flows(self.flows.flows[:limit], self.flows.complete)


class FakeDns:
    def __init__(self, *exchanges: Exchange, servers: DnsServers | None = None) -> None:
        self.exchanges = exchanges
        given = DnsServers(tuple(each.server for each in exchanges), "the settings")
        self.given = servers or given

    def servers(self) -> DnsServers:
        return self.given

    def ask(self, servers: tuple[DnsServer, ...], attempt_seconds: float, repeats: int) -> tuple[Exchange, ...]:
        assert (attempt_seconds, repeats) == (2.0, 4)
        return tuple(each for each in self.exchanges if each.server in servers)


class Bench:
    """A detector with its surroundings."""

    def __init__(self, conntrack: FakeConntrack, dns: FakeDns | None = None, elsewhere: str | None = None) -> None:
        self.clock, self.conntrack, self.dns = Clock(), conntrack, dns or FakeDns(WELL)
        self.asked_owners: list[frozenset[str]] = []
        self.settings = ConntrackDnsSettings()
        self.detector = ConntrackDnsDetector(
            self.settings,
            conntrack,
            self.dns,
            self.owners,
            self.clock,
            lambda: denied_fault(elsewhere) if elsewhere else None,
        )

    def owners(self, sources: frozenset[str]) -> Mapping[str, PodRef]:
        self.asked_owners.append(sources)
        return {"10.0.0.7": POD}

    def look(self, after: float = 5.0) -> CheckResult:
        self.clock.now += after
        return self.detector.check(self.detector.probe())


def decide(**seen: Any) -> CheckResult:
    """Decide on one observation; a conntrack at rest and one healthy server unless told otherwise."""
    given = {"servers": SERVERS, "exchanges": (WELL,), "window_seconds": 5.0, **seen}
    if not {"current", "blind", "elsewhere", "not_tracked"} & seen.keys():
        given |= {"current": sample(ZERO), "base": sample(ZERO), "previous": sample(ZERO)}
    bench = Bench(FakeConntrack(sample(ZERO)))
    return bench.detector.check(ConntrackDnsObservation(**given))


def rose(*, kernel: Mapping[str, int] = ZERO, entries: int = 50, limit: int = 1000, **rises: int) -> dict[str, Any]:
    """Two samples between which the counters rose, on the second of two CPUs."""
    before = dict.fromkeys(kernel, 100)
    after = {name: 100 + rises.get(name, 0) for name in kernel}
    base = sample(before, before, entries=entries, limit=limit)
    return {"base": base, "previous": base, "current": sample(before, after, entries=entries, limit=limit)}


def reasons(result: CheckResult) -> set[tuple[str, str]]:
    return {(found.condition, found.reason) for found in result.findings}


def all_well(result: CheckResult) -> bool:
    return not result.findings and not result.unknown and result.healthy.keys() == {RACE, PRESSURE, UNAVAILABLE}


class TestKernels:
    """What the counters mean on the kernels that count them (nf_conntrack_core.c)."""

    @pytest.mark.parametrize(
        ("seen", "expected"),
        [
            pytest.param(
                {**rose(kernel=OLD_KERNEL, insert_failed=7, drop=7), "flows": flows(4)},
                {(RACE, "InsertFailed")},
                id="4.19 loses races",
            ),
            pytest.param(
                {**rose(kernel=OLD_KERNEL, insert_failed=7, drop=9), "flows": flows(4)},
                {(RACE, "InsertFailed")},
                id="4.19 loses races, two more drops",
            ),
            pytest.param(
                {**rose(insert_failed=9, drop=7, chain_toolong=2), "flows": flows(4)},
                {(RACE, "InsertFailed")},
                id="lost races beside chains too long",
            ),
            pytest.param({**rose(clash_resolve=5000), "flows": flows(4)}, set(), id="6.1 resolves races"),
            pytest.param({**rose(insert_failed=7), "flows": flows(4)}, set(), id="inserts failed, nothing dropped"),
            pytest.param({**rose(insert_failed=2, drop=2), "flows": flows(9)}, set(), id="too few"),
            pytest.param(rose(insert_failed=700, drop=700), set(), id="nothing of DNS agrees"),
            pytest.param(
                {**rose(insert_failed=700, drop=700), "flows": flows(2)}, set(), id="hardly anything of DNS agrees"
            ),
            pytest.param(
                {**rose(insert_failed=700, drop=700), "flows": flows(9, waited=0)}, set(), id="queries just under way"
            ),
            pytest.param(
                {**rose(insert_failed=7, drop=7), "exchanges": (exchange([(OK, LOST), (OK, OK)], [(OK, OK)] * 2),)},
                {(RACE, "InsertFailed")},
                id="one pair of ours agrees",
            ),
            pytest.param(rose(insert_failed=9, chain_toolong=9), {(PRESSURE, "ChainTooLong")}, id="chains too long"),
            pytest.param(rose(insert_failed=2, chain_toolong=2), set(), id="a chain too long once or twice"),
            pytest.param(rose(entries=1000), {(PRESSURE, "TableFull")}, id="table full"),
            pytest.param(
                rose(entries=1000, drop=40, early_drop=3), {(PRESSURE, "TableFull")}, id="table full and drops"
            ),
            pytest.param(rose(entries=1200), {(PRESSURE, "TableFull")}, id="limit lowered below the entries"),
            pytest.param(rose(entries=950, drop=1), {(PRESSURE, "TableFull")}, id="table was full in between"),
            pytest.param(rose(entries=100, drop=10), {(PRESSURE, "TableFull")}, id="drops without failed inserts"),
            pytest.param(rose(entries=100, drop=9), set(), id="few drops in a table far from full"),
            pytest.param(rose(entries=899), set(), id="89.9 %"),
            pytest.param(rose(entries=900), {(PRESSURE, "TableNearlyFull")}, id="90 %"),
            pytest.param(rose(entries=950, early_drop=1), {(PRESSURE, "EarlyDrop")}, id="early drop"),
            pytest.param(rose(entries=10**6, limit=0), set(), id="no limit"),
            pytest.param(rose(error=10**6, invalid=10**6, found=10**7, search_restart=999), set(), id="daily bread"),
        ],
    )
    def test_told_apart(self, seen: dict[str, Any], expected: set[tuple[str, str]]) -> None:
        result = decide(**seen)
        assert reasons(result) == expected
        assert result.unknown == {}
        assert result.healthy.keys() == {RACE, PRESSURE, UNAVAILABLE} - {condition for condition, _ in expected}

    def test_race_names_pods_and_what_to_do(self) -> None:
        both = Flows((*flows(4).flows, *flows(2, source="10.0.0.8").flows))
        result = decide(**rose(insert_failed=7, drop=7), flows=both, owners={"10.0.0.7": POD})
        (found,) = result.findings
        assert found.target == Target(TargetKind.CONNTRACK)
        assert found.recommended_action is Action.DELETE_CONNTRACK_FLOWS
        assert "6 DNS flows wait for an answer: payments/api-7 (4), 10.0.0.8 (2)" in found.message
        assert "single-request-reopen" in found.message
        assert found.values["lost_inserts"] == 7
        assert found.values["unreplied_flows_of"] == ("payments/api-7 (4)", "10.0.0.8 (2)")
        assert found.pod is None
        assert decide(**rose(insert_failed=7, drop=7), flows=flows(4), owners={"10.0.0.7": POD}).findings[0].pod == POD

    def test_more_owners_than_a_message_holds(self) -> None:
        many = Flows(tuple(DnsFlow(f"10.0.1.{host}", 4000, "10.96.0.10", 5) for host in range(200)), complete=False)
        (found,) = decide(**rose(insert_failed=7, drop=7), flows=many).findings
        assert "more than 200 DNS flows" in found.message
        assert len(found.message) < 900

    def test_flows_to_a_silent_server_agree_with_no_race(self) -> None:
        result = decide(**rose(insert_failed=7, drop=7), flows=flows(9), exchanges=(SILENT,))
        assert reasons(result) == {(UNAVAILABLE, "ServerUnreachable")}

    def test_exposure_is_told_but_accuses_nobody(self) -> None:
        assert "clashes resolved by the kernel: 12" in decide(**rose(clash_resolve=12)).healthy[RACE]


class TestSequences:
    def test_the_first_look_asks_for_a_second(self) -> None:
        bench = Bench(FakeConntrack(sample(ZERO)))
        first = bench.look()
        assert first.unknown.keys() == {RACE, PRESSURE}
        assert first.healthy.keys() == {UNAVAILABLE}
        assert first.recheck_seconds == 1.0
        second = bench.look(after=1.0)
        assert all_well(second)
        assert second.recheck_seconds is None

    def test_a_full_table_is_named_at_the_first_look(self) -> None:
        assert reasons(Bench(FakeConntrack(sample(ZERO, entries=1000))).look()) == {(PRESSURE, "TableFull")}

    def test_a_rise_is_still_seen_by_the_look_that_confirms_it_and_then_ends(self) -> None:
        lost = sample({**ZERO, "early_drop": 5})
        bench = Bench(FakeConntrack(sample(ZERO), sample(ZERO), lost))
        looks = [bench.look(after) for after in (5, 5, 5, 0.5, 5)]
        assert [reasons(look) for look in looks] == [set(), set(), *[{(PRESSURE, "EarlyDrop")}] * 2, set()]
        assert looks[3].follow_seconds == 5.0
        assert looks[4].follow_seconds is None

    @pytest.mark.parametrize("last_event", [100 + phase / 2 for phase in range(20)])
    def test_it_clears_within_15_s_after_the_last_event(self, last_event: float) -> None:
        bench = Bench(FakeConntrack(sample(ZERO)))
        bench.clock.now = 0.0
        step, found = bench.settings.period_seconds, False
        while bench.clock.now < last_event or found:
            then = bench.clock.now + step * 1.1  # the worst of the jitter
            bench.conntrack.samples = [sample({**ZERO, "early_drop": int(10 * min(then, last_event))})]
            result = bench.look(step * 1.1)
            step, found = (
                result.recheck_seconds or result.follow_seconds or bench.settings.period_seconds,
                bool(result.findings),
            )
        assert bench.clock.now - last_event <= 15

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            pytest.param([{"early_drop": 2**32 - 1, "drop": 0}], [{"early_drop": 1, "drop": 0}], id="wrap"),
            pytest.param(
                [{"early_drop": 5, "drop": 0}],
                [{"early_drop": 6, "drop": 0}, {"early_drop": 9**9, "drop": 9**9}],
                id="CPU appears",
            ),
        ],
    )
    def test_true_rises(self, before: list[dict[str, int]], after: list[dict[str, int]]) -> None:
        bench = Bench(FakeConntrack(sample(*before), sample(*after)))
        bench.look()
        (found,) = bench.look().findings
        assert (found.reason, found.values["dropped"]) == ("EarlyDrop", 0)
        assert found.values["early_drop"] in (1, 2)

    def test_counters_that_began_anew_accuse_nobody(self) -> None:
        bench = Bench(FakeConntrack(sample({**ZERO, "found": 9**9}), sample({**ZERO, "drop": 9**6, "early_drop": 9})))
        bench.look()
        result = bench.look()
        assert result.findings == ()
        assert result.unknown.keys() == {RACE, PRESSURE}
        assert all(each.value == 0 for each in result.samples if each.name == "conntrack_events_total")
        assert all_well(bench.look(1))

    def test_a_gap_in_time_accuses_nobody(self) -> None:
        bench = Bench(FakeConntrack(sample(ZERO), sample({**ZERO, "drop": 9000, "early_drop": 9000})))
        bench.look()
        assert bench.look(after=3600).findings == ()

    def test_what_rose_while_we_stood_still_accuses_nobody(self) -> None:
        dropped = sample({**ZERO, "drop": 900})
        bench = Bench(FakeConntrack(sample(ZERO), sample(ZERO), dropped, sample({**ZERO, "drop": 1800})))
        bench.look()
        assert all_well(bench.look())
        bench.clock.stalls += 40
        assert bench.look(after=45).findings == ()
        assert reasons(bench.look()) == {(PRESSURE, "TableFull")}

    def test_flows_are_read_only_on_suspicion(self) -> None:
        bench = Bench(FakeConntrack(sample(ZERO), sample(ZERO), sample({**ZERO, "insert_failed": 3, "drop": 3})))
        bench.conntrack.flows = flows(3)
        bench.look()
        bench.look()
        assert (bench.conntrack.flow_reads, bench.asked_owners) == (0, [])
        (found,) = bench.look().findings
        assert (bench.conntrack.flow_reads, bench.asked_owners) == (1, [frozenset({"10.0.0.7"})])
        assert found.pod == POD

    def test_a_lost_pair_is_a_suspicion_too(self) -> None:
        bench = Bench(FakeConntrack(sample(ZERO)), FakeDns(RACED))
        bench.look()
        assert bench.conntrack.flow_reads == 1

    def test_only_a_few_owners_are_looked_up(self) -> None:
        many = Flows(tuple(DnsFlow(f"10.0.1.{host}", 4000, "10.96.0.10", 5) for host in range(200)))
        bench = Bench(FakeConntrack(sample(ZERO), flows=many), FakeDns(RACED))
        bench.look()
        assert len(bench.asked_owners[0]) == 32

    def test_flows_that_cannot_be_read_are_said(self) -> None:
        bench = Bench(FakeConntrack(sample(ZERO), flows=CannotSeeError("no CAP_NET_ADMIN")), FakeDns(RACED))
        (found,) = bench.look().findings
        assert "Whose queries wait is not visible (no CAP_NET_ADMIN)" in found.message
        assert found.recommended_action is Action.NONE


class TestDns:
    @pytest.mark.parametrize(
        ("asked", "expected", "timed", "sightings"),
        [
            pytest.param(RACED, (RACE, "DNSQueriesLost"), True, 3, id="race"),
            pytest.param(
                exchange([(OK, BLOCKED), (BLOCKED, OK)], [(OK, OK)] * 2),
                (RACE, "DNSQueriesLost"),
                True,
                2,
                id="race lost on this node",
            ),
            pytest.param(SILENT, (UNAVAILABLE, "ServerUnreachable"), True, 2, id="silent"),
            pytest.param(
                exchange([(REFUSED, REFUSED)], [(REFUSED, UNSENT)]),
                (UNAVAILABLE, "ServerUnreachable"),
                False,
                1,
                id="refused",
            ),
            pytest.param(
                exchange([(Query(Fate.UNREACHABLE),) * 2], [(Query(Fate.UNREACHABLE),) * 2], detail="No route to host"),
                (UNAVAILABLE, "ServerUnreachable"),
                False,
                1,
                id="no route",
            ),
            pytest.param(exchange([(SLOW, SLOW)], [(SLOW, SLOW)]), (UNAVAILABLE, "ServerSlow"), True, 2, id="slow"),
            pytest.param(
                exchange([(SLOW, SLOW)], [(LOST, UNSENT)]), (UNAVAILABLE, "ServerSlow"), True, 2, id="slower than a try"
            ),
            pytest.param(
                exchange([(OK, LOST), (LOST, LOST), (LOST, OK)], [(OK, LOST), (LOST, UNSENT)]),
                (UNAVAILABLE, "ServerUnreachable"),
                True,
                2,
                id="a path that loses most",
            ),
        ],
    )
    def test_told_apart(self, asked: Exchange, expected: tuple[str, str], timed: bool, sightings: int) -> None:
        result = decide(exchanges=(asked,))
        (found,) = result.findings
        assert (found.condition, found.reason) == expected
        assert (found.timed, found.sightings) == (timed, sightings)
        assert found.target == Target(TargetKind.DNS_SERVER, address="10.96.0.10")
        assert found.recommended_action is Action.NONE
        assert (result.recheck_seconds, result.follow_seconds) == (None, 5.0)
        assert result.healthy.keys() == {RACE, PRESSURE, UNAVAILABLE} - {found.condition}

    @pytest.mark.parametrize(
        "asked",
        [
            pytest.param(exchange([(OK, LOST), (OK, OK), (OK, OK)], [(OK, OK)] * 3), id="one packet"),
            pytest.param(exchange([(OK, OK)] * 3, [(OK, LOST), (OK, OK), (OK, OK)]), id="one packet of a control"),
            pytest.param(exchange([(OK, LOST), (OK, LOST)], [(OK, OK), (OK, LOST)]), id="the control loses as well"),
            pytest.param(exchange([(OK, OK)], [(SLOW, OK)]), id="one slow answer"),
        ],
    )
    def test_thin_evidence_accuses_nobody(self, asked: Exchange) -> None:
        assert all_well(decide(exchanges=(asked,)))

    def test_race_message_counts(self) -> None:
        (found,) = decide(exchanges=(RACED,)).findings
        assert "3 of 5 parallel A and AAAA pairs lost exactly one query, while all 10 sent one after" in found.message
        assert "this node's conntrack lost no insert" in found.message

    def test_deletion_is_recommended_only_where_flows_wait(self) -> None:
        waiting = flows(1, server="10.96.0.99")
        assert decide(exchanges=(RACED,), flows=waiting).findings[0].recommended_action is Action.DELETE_CONNTRACK_FLOWS

    def test_node_local_dns_is_no_race(self) -> None:
        asked = replace(RACED, server=DnsServer("169.254.20.10"), node_local=True)
        result = decide(exchanges=(asked,))
        assert reasons(result) == {(UNAVAILABLE, "ServerUnreachable")}
        assert "exempt from conntrack" in result.findings[0].message
        well = decide(exchanges=(replace(WELL, node_local=True),))
        assert "NodeLocal DNSCache" in well.healthy[UNAVAILABLE]

    def test_one_of_two_servers(self) -> None:
        other = exchange(server=DnsServer("::1", 5353))
        result = decide(servers=DnsServers((SERVER, other.server), "the settings"), exchanges=(SILENT, other))
        (found,) = result.findings
        assert found.target.address == "10.96.0.10"

    def test_junk_is_told(self) -> None:
        (found,) = decide(exchanges=(replace(SILENT, junk=64),)).findings
        assert "64 datagrams that answer nothing" in found.message

    @pytest.mark.parametrize("asked", [SILENT, RACED, exchange([(BLOCKED, BLOCKED)], [(BLOCKED, UNSENT)])])
    def test_lost_queries_prove_nothing_while_the_table_has_no_room(self, asked: Exchange) -> None:
        result = decide(**rose(entries=1000, drop=50), exchanges=(asked,))
        assert reasons(result) == {(PRESSURE, "TableFull")}
        assert len(result.unknown) == 1

    def test_a_packet_filter_of_our_own_is_no_fault_of_the_server(self) -> None:
        asked = exchange([(BLOCKED, BLOCKED)], [(BLOCKED, UNSENT)], detail="Operation not permitted")
        result = decide(exchanges=(asked,))
        assert result.findings == ()
        assert "Operation not permitted" in result.unknown[UNAVAILABLE]


class TestBlindness:
    def test_in_another_network(self) -> None:
        result = Bench(
            FakeConntrack(sample(ZERO, entries=1000)), FakeDns(RACED), elsewhere="not the node's network"
        ).look()
        assert result.findings == ()
        every = (RACE, PRESSURE, UNAVAILABLE)
        fault = denied_fault("not the node's network")
        assert result.unknown == dict.fromkeys(every, str(fault))
        assert result.deployment == (replace(fault, hides=every),)

    @pytest.mark.parametrize(("cpus", "hides", "impairs"), [((), (RACE, PRESSURE), ()), ((ZERO,), (), (RACE,))])
    def test_what_a_missing_capability_hides_depends_on_whether_counters_are_seen_otherwise(
        self, cpus: tuple[Mapping[str, int], ...], hides: tuple[str, ...], impairs: tuple[str, ...]
    ) -> None:
        fault = denied_fault()
        result = Bench(FakeConntrack(sample(*cpus, blind="netlink: denied", fault=fault)), FakeDns(WELL)).look()
        assert result.deployment == (replace(fault, hides=hides, impairs=impairs),)

    def test_conntrack_unreadable_leaves_dns_judged(self) -> None:
        bench = Bench(FakeConntrack(CannotSeeError("no CAP_NET_ADMIN")), FakeDns(SILENT))
        result = bench.look()
        assert reasons(result) == {(UNAVAILABLE, "ServerUnreachable")}
        assert result.unknown == dict.fromkeys((RACE, PRESSURE), "no CAP_NET_ADMIN")

    def test_the_race_of_our_own_queries_needs_no_counter(self) -> None:
        result = decide(blind="no CAP_NET_ADMIN", exchanges=(RACED,))
        assert reasons(result) == {(RACE, "DNSQueriesLost")}
        assert result.unknown == {PRESSURE: "no CAP_NET_ADMIN"}

    def test_fill_without_counters(self) -> None:
        blind = sample(entries=100, source="procfs", blind="not visible: packet counters")
        result = decide(current=blind, base=blind, previous=blind)
        assert result.unknown == dict.fromkeys((RACE, PRESSURE), "not visible: packet counters")
        full = sample(entries=1000, source="procfs", blind="not visible: packet counters")
        assert reasons(decide(current=full)) == {(PRESSURE, "TableFull")}

    def test_what_procfs_does_not_show_is_said(self) -> None:
        seen = sample(ZERO, source="procfs", blind="not visible: single DNS flows")
        result = decide(current=seen, base=seen, previous=seen)
        assert all_well(result)
        assert "not visible: single DNS flows" in result.healthy[RACE]

    def test_conntrack_not_loaded(self) -> None:
        result = Bench(FakeConntrack(NotTrackedError("conntrack is not loaded"))).look()
        assert all_well(result)
        assert "not loaded" in result.healthy[RACE]

    def test_neither_conntrack_nor_servers(self) -> None:
        dns = FakeDns(servers=DnsServers((), "resolv.conf", "it names no nameserver"))
        with pytest.raises(NotApplicableError, match="not loaded, and there is no DNS server"):
            Bench(FakeConntrack(NotTrackedError("conntrack is not loaded")), dns).look()

    def test_no_servers(self) -> None:
        none = DnsServers((), "resolv.conf", "it names no nameserver")
        result = decide(servers=none, exchanges=())
        assert result.findings == ()
        assert "it names no nameserver" in result.unknown[UNAVAILABLE]
        assert result.healthy.keys() == {RACE, PRESSURE}


class TestMetrics:
    def test_first_look_gives_every_series_a_zero(self) -> None:
        samples = Bench(FakeConntrack(sample(ZERO))).look().samples
        assert {each.labels[0] for each in samples if each.name == "conntrack_events_total"} == set(ZERO)
        assert sum(each.value for each in samples if each.name == "conntrack_events_total") == 0
        assert Sample("conntrack_entries", 50) in samples
        assert Sample("conntrack_entries_limit", 1000) in samples
        assert Sample("dns_probe_lost_total", 0, ("parallel",)) in samples

    def test_increments_are_since_the_previous_look_and_not_since_the_base(self) -> None:
        three = [sample({**ZERO, "clash_resolve": number}) for number in (0, 5, 6)]
        bench = Bench(FakeConntrack(*three))
        looks = [bench.look(after) for after in (5, 5, 0.5)]
        counted = [s.value for look in looks for s in look.samples if s.labels == ("clash_resolve",)]
        assert counted == [0, 5, 1]

    def test_queries(self) -> None:
        samples = decide(exchanges=(exchange([(OK, LOST)], [(OK, UNSENT)]),)).samples
        assert [each for each in samples if each.name == "dns_probe_seconds"] == [
            Sample("dns_probe_seconds", 0.002, ("parallel",)),
            Sample("dns_probe_seconds", 0.002, ("sequential",)),
        ]
        lost = {each.labels: each.value for each in samples if each.name == "dns_probe_lost_total"}
        assert lost == {("parallel",): 1, ("sequential",): 0}

    def test_every_sample_is_declared(self) -> None:
        declared = {metric.name: metric for metric in ConntrackDnsDetector.metrics}
        for each in decide(exchanges=(RACED,)).samples:
            assert len(each.labels) == len(declared[each.name].labels)


def test_every_reason_is_in_the_catalogue_and_explained() -> None:
    assert {name: set(reasons) for name, reasons in ConntrackDnsDetector.conditions.items()} == {
        RACE: {"DNSQueriesLost", "InsertFailed"},
        PRESSURE: {"TableFull", "TableNearlyFull", "EarlyDrop", "ChainTooLong"},
        UNAVAILABLE: {"ServerUnreachable", "ServerSlow"},
    }


def test_promised_defaults() -> None:
    settings = ConntrackDnsSettings()
    assert {item.name: getattr(settings, item.name) for item in fields(settings)} == {
        "enabled": True,
        "period_seconds": 5.0,
        "timeout_seconds": 20.0,
        "failure_threshold": 2,
        "success_threshold": 1,
        "window_seconds": 3.0,
        "nearly_full_ratio": 0.9,
        "min_lost_inserts": 3,
        "min_unreplied_flows": 3,
        "min_drops": 10,
        "min_early_drops": 1,
        "min_chain_toolong": 3,
        "attempt_seconds": 2.0,
        "slow_seconds": 1.0,
        "repeat_pairs": 4,
        "min_lost_pairs": 2,
    }
    assert all(rule_of(item.metadata).meaning for item in fields(settings))


def test_a_silent_server_is_named_within_10_s_at_the_defaults() -> None:
    settings = ConntrackDnsSettings()
    assert decide(exchanges=(SILENT,)).findings[0].sightings >= settings.failure_threshold  # one look is enough
    assert settings.period_seconds * (1 + JITTER) + 2 * settings.attempt_seconds < 10


def test_is_a_detector() -> None:
    detector: Detector = Bench(FakeConntrack(sample(ZERO))).detector
    assert detector.name == "conntrack_dns"
