"""What kubelet_pleg decides from plain values, and that it compares the right looks."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agent.detectors.kubelet_pleg import (
    EVENTS_DISCARDED,
    RELIST_SLOW,
    UNHEALTHY,
    KubeletPlegDetector,
    KubeletPlegSettings,
    Observation,
)
from agent.exporters.wording import measured
from agent.host.kubelet import KubeletApiError
from agent.host.pleg import PlegMetrics, PlegSense, Relists
from agent.model import Action, CannotSeeError, CheckResult, NotApplicableError, Status, Target, TargetKind
from agent.pipeline.board import Board
from agent.pipeline.runner import Runner
from tests.unit.builders import ManualClock, only

FIXTURES = Path(__file__).parents[2] / "fixtures" / "kubelet"
URL = "https://10.0.0.7:10250"
BOOT = "7c5d0e0e-0a4c-4f0e-9c55-6f4c3c1c9d11"
SETTINGS = KubeletPlegSettings()
NOW = 1795331498.0
READ_AT = "2026-11-22 07:11:38 UTC"
WELL = PlegMetrics(NOW, 1000.0, NOW - 1, 0.0, Relists(198, 0.32), Relists(197, 200.0))
BEFORE = replace(WELL, wall=NOW - 30, monotonic=970.0, last_seen=NOW - 31, durations=Relists(168, 0.27))


def detector(sense: PlegSense | None = None) -> KubeletPlegDetector:
    return KubeletPlegDetector(SETTINGS, sense, URL, lambda: BOOT)


def check(
    latest: PlegMetrics | None = WELL, before: PlegMetrics | None = BEFORE, discarded: float = 0.0
) -> CheckResult:
    result = detector().check(Observation(latest, 0.0, before, discarded, BOOT))
    for finding in result.findings:
        assert finding.message.isprintable()
        assert (finding.sightings, finding.recommended_action) == (2, Action.NONE)
        assert finding.target == Target(TargetKind.KUBELET, boot_id=BOOT, address=URL)
    return result


def healthy(result: CheckResult) -> str:
    assert not result.findings
    assert not result.unknown
    return result.healthy[UNHEALTHY]


def stale(seconds: float, *, evented: bool = False) -> tuple[PlegMetrics, PlegMetrics]:
    """Two looks at a PLEG whose last list was so long ago at the second."""
    seen = NOW - seconds
    return replace(WELL, last_seen=seen, evented=evented), replace(BEFORE, last_seen=seen, evented=evented)


class TestDeciding:
    def test_a_kubelet_that_keeps_up(self) -> None:
        assert healthy(check()) == (
            f"the last list of containers was 1.0 s old at {READ_AT}, and lists took 1.67 ms in the mean since the "
            "reading before"
        )
        assert "known from the next reading on" in healthy(check(before=None))

    @pytest.mark.parametrize("seconds", [2.0, 60.0, 89.0])
    def test_a_list_that_is_somewhat_old_accuses_nobody(self, seconds: float) -> None:
        healthy(check(*stale(seconds)))

    def test_a_pleg_that_stands_still_is_told_before_the_kubelet_does(self) -> None:
        finding = only(check(*stale(95.0)))
        assert finding.reason == RELIST_SLOW
        begin = f"the kubelet had not listed its containers for 95 s when its metrics were read at {READ_AT}: "
        assert finding.message.startswith(begin)
        assert finding.values["last_relist_age_seconds"] == 95.0
        assert 'The kubelet has its own limit, of 3 min ("PLEG is not healthy")' in finding.message
        assert "past the kubelet's own limit of 3 min" in only(check(*stale(200.0))).message

    @pytest.mark.parametrize("seconds", [95.0, 200.0])
    def test_nothing_is_said_of_the_node_that_the_reading_does_not_show(self, seconds: float) -> None:
        message = only(check(*stale(seconds))).message
        assert "NotReady" not in message
        assert "whether the node is Ready is not known here" in message

    def test_the_report_says_how_old_the_reading_is(self) -> None:
        values = only(check(*stale(95.0))).values
        told = dict(measured(key, value, NOW + 25) for key, value in values.items())
        assert told["read"] == f"{READ_AT} (25 s ago)"
        assert told["last relist"].endswith("(2 min ago)"), "120 s before the report, not 95"

    def test_lists_too_short_to_round_do_not_take_0_s(self) -> None:
        quick = replace(WELL, durations=Relists(198, 0.27 + 30 * 0.0004))
        assert "lists took 0.4 ms in the mean" in healthy(check(quick))
        discarding = detector().check(Observation(quick, 0.0, BEFORE, 7, BOOT))
        assert measured("mean_relist_seconds", only(discarding).values["mean_relist_seconds"])[1] == "0.4 ms"

    def test_one_look_alone_may_be_a_step_of_the_clock(self) -> None:
        latest, before = stale(95.0)
        assert "the next reading shows whether it is still the last one" in check(latest, None).unknown[UNHEALTHY]
        assert not check(latest, replace(before, last_seen=NOW - 120)).findings, "it went on since the look before"

    def test_a_clock_set_back_makes_no_age(self) -> None:
        assert "was under 1 s old" in healthy(check(replace(WELL, last_seen=NOW + 3600)))

    def test_evented_pleg_lists_seldom_by_design(self) -> None:
        healthy(check(*stale(299.0, evented=True)))
        assert "past the kubelet's own limit of 10 min" in only(check(*stale(601.0, evented=True))).message

    def test_slow_lists_are_told_by_their_mean_between_two_looks(self) -> None:
        slow = replace(WELL, durations=Relists(170, 0.27 + 24.0), intervals=Relists(199, 227.0))
        finding = only(check(slow))
        assert finding.reason == RELIST_SLOW
        assert "took 12 s in the mean since the reading before (limit 10 s" in finding.message
        assert finding.values == {
            "read_timestamp_seconds": NOW,
            "last_relist_timestamp_seconds": NOW - 1,
            "last_relist_age_seconds": 1.0,
            "relists": 2,
            "mean_relist_seconds": 12.0,
            "mean_interval_seconds": 13.5,
        }

    def test_lists_that_were_slow_long_ago_do_not_count(self) -> None:
        early = Relists(168, 5000.0)
        healthy(check(replace(WELL, durations=Relists(198, 5000.3)), replace(BEFORE, durations=early)))

    def test_who_stands_still_is_not_called_slow_besides(self) -> None:
        latest, before = stale(95.0)
        assert len(check(replace(latest, durations=Relists(169, 60.0)), before).findings) == 1

    def test_discarded_events_are_told(self) -> None:
        finding = only(check(discarded=7))
        assert finding.reason == EVENTS_DISCARDED
        assert "threw 7 changes of containers away in the last 5 min" in finding.message
        assert finding.values["discarded_events"] == 7

    def test_no_answer_accuses_nobody_and_says_why(self) -> None:
        result = detector().check(Observation(None, 42.0, WELL))
        assert not result.findings
        assert f"not been answered for 42 s; the last reading is of {READ_AT}. That says" in result.unknown[UNHEALTHY]
        first = detector().check(Observation(None, 42.0))
        assert "there is no earlier reading" in first.unknown[UNHEALTHY]
        assert "ContainerdShimHung" in result.unknown[UNHEALTHY]

    def test_what_is_no_kubelet_says_nothing(self) -> None:
        assert "hardly a kubelet's /metrics" in check(replace(WELL, last_seen=None)).unknown[UNHEALTHY]


class Kubelet:
    """Answers with `body`, or fails."""

    def __init__(self) -> None:
        self.body = b""
        self.error: Exception | None = None
        self.asked = 0

    def get(self, path: str, take: Callable[[bytes], bool], *, seconds: float, max_bytes: int) -> None:
        self.asked += 1
        if self.error:
            raise self.error
        take(self.body)


def scrape(
    clock: ManualClock, *, age: float = 1.0, discards: int | None = 0, count: int = 100, total: float = 1.0
) -> bytes:
    lines = [
        f"kubelet_pleg_last_seen_seconds {clock.wall() - age}",
        *([] if discards is None else [f"kubelet_pleg_discard_events {discards}"]),
        f"kubelet_pleg_relist_duration_seconds_count {count}",
        f"kubelet_pleg_relist_duration_seconds_sum {total}",
    ]
    return ("\n".join(lines) + "\n").encode()


class Watch:
    """The detector over a sense that a kubelet in the same process answers."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.kubelet = Kubelet()
        self.detector = detector(PlegSense(self.kubelet, self.clock, 25.0))

    def look(self, *, after: float = 30.0, **told: float | None) -> CheckResult:
        self.clock.advance(after)
        self.kubelet.body = scrape(self.clock, **told)  # type: ignore[arg-type]
        return self.detector.check(self.detector.probe())


class TestLooking:
    def test_without_the_kubelets_api_there_is_nothing_to_watch(self) -> None:
        with pytest.raises(NotApplicableError, match=r"kubelet\.api_url is not set"):
            detector().probe()

    def test_whom_the_kubelet_does_not_let_in_cannot_see_and_says_why(self) -> None:
        watch = Watch()
        watch.kubelet.error = KubeletApiError("is answered 403 Forbidden: lacks nodes/metrics")
        with pytest.raises(CannotSeeError, match="lacks nodes/metrics"):
            watch.look()

    def test_events_that_were_discarded_are_told_for_a_while(self) -> None:
        watch = Watch()
        assert not watch.look(discards=40).findings, "nobody knows when that was"
        assert only(watch.look(discards=43)).values["discarded_events"] == 3
        assert only(watch.look(discards=44)).values["discarded_events"] == 4
        for _ in range(9):
            assert watch.look(discards=44).findings
        assert only(watch.look(discards=44)).values["discarded_events"] == 1
        assert not watch.look(discards=44).findings

    def test_the_same_look_twice_does_not_count_twice(self) -> None:
        watch = Watch()
        watch.look(discards=0)
        watch.look(discards=3)
        assert only(watch.look(after=1.0, discards=99)).values["discarded_events"] == 3

    def test_a_restarted_kubelet_is_compared_with_nothing(self) -> None:
        watch = Watch()
        watch.look(count=5000, total=100.0, discards=10)
        assert "known from the next reading on" in healthy(watch.look(count=3, total=60.0))
        assert only(watch.look(count=4, total=75.0)).reason == RELIST_SLOW

    def test_a_counter_that_only_appears_with_its_first_event_is_counted(self) -> None:
        watch = Watch()
        watch.look(discards=None)
        assert only(watch.look(discards=2)).values["discarded_events"] == 2

    def test_looks_far_apart_are_not_compared(self) -> None:
        watch = Watch()
        watch.look(count=100, total=1.0)
        assert "known from the next reading on" in healthy(watch.look(after=400.0, count=102, total=341.0))

    def test_no_wish_of_the_runner_makes_it_ask_more_than_once_a_period(self) -> None:
        watch = Watch()
        board = Board("worker-3", watch.clock)
        runner = Runner(watch.detector, replace(SETTINGS, failure_threshold=5, success_threshold=5), board, watch.clock)
        watch.kubelet.body = scrape(watch.clock)
        for _ in range(60):
            runner.look()
            watch.clock.advance(1.0)
        assert watch.kubelet.asked == 3

    def test_the_recorded_kubelet_whose_containerd_was_killed_is_named(self) -> None:
        watch = Watch()
        watch.kubelet.body = (FIXTURES / "containerd-killed-metrics.body").read_bytes()
        last_list = 1795333008.0
        board = Board("worker-3", watch.clock)
        runner = Runner(watch.detector, SETTINGS, board, watch.clock)
        statuses = []
        for age in (20, 50, 80, 110):
            watch.clock.now = last_list + age - 1.7e9
            runner.look()
            entry = board.entry("kubelet_pleg")
            assert entry
            statuses.append(entry.conditions[0].status)
        assert statuses == [Status.FALSE, Status.FALSE, Status.FALSE, Status.TRUE]
