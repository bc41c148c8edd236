"""When a detector looks, what becomes of its word, and what a detector that misbehaves cannot do."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from agent.model import (
    CannotSeeError,
    CheckResult,
    Condition,
    DeploymentCause,
    DeploymentFault,
    DetectorState,
    DetectorStatus,
    Finding,
    NotApplicableError,
    PodRef,
    Sample,
    Status,
)
from agent.pipeline.board import Board, Entry
from agent.pipeline.conditions import conclude
from agent.pipeline.runner import CONFIRM_SECONDS, MAX_DISCARDS, MIN_PAUSE_SECONDS, Runner
from agent.schema import DetectorSettings
from tests.lab.waiting import wait_until
from tests.unit.doubles import CLEAN, DIRTY, SICK, FakeClock, Script, Stuck, runner_of, sick

SECONDS = 30.0
"""For what happens at once, on a machine that does other things as well."""


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def board(clock: FakeClock) -> Board:
    return Board("worker-3", clock)


def look(runner: Runner, board: Board, times: int = 1) -> tuple[DetectorStatus, Condition | None]:
    for _ in range(times):
        runner.look()
    return told(board, runner.name)


def told(board: Board, name: str = "scripted") -> tuple[DetectorStatus, Condition | None]:
    entry = board.entry(name)
    assert entry is not None
    return entry.status, next((each for each in entry.conditions if each.type == SICK), None)


@contextmanager
def started(*runners: Runner, released: Stuck | None = None) -> Iterator[None]:
    """The runners in their threads; in the end the stuck one is released, and none looks any more.

    A look that outlasts its test would be in the log of the next one.
    """
    before = set(threading.enumerate())
    for runner in runners:
        runner.start()
    threads = [thread for thread in threading.enumerate() if thread not in before]
    try:
        if released:
            assert released.inside.wait(SECONDS)
        yield
    finally:
        for runner in runners:
            runner.stop()
        if released:
            released.release.set()
        for thread in threads:
            thread.join(SECONDS)
            assert not thread.is_alive()


# What is told


def test_before_the_first_look_all_is_unknown(board: Board, clock: FakeClock) -> None:
    runner_of(Script(CLEAN), board, clock)
    status, condition = told(board)
    assert status.state is DetectorState.STARTING
    assert condition is not None
    assert (condition.status, condition.reason) == (Status.UNKNOWN, "Starting")


def test_a_look_is_told_with_its_samples_and_its_duration(board: Board, clock: FakeClock) -> None:
    def slow() -> CheckResult:
        clock.pass_time(2)
        clock.stand_still(0.5)
        return CheckResult(samples=(Sample("looks", 1),))

    status, condition = look(runner_of(Script(slow), board, clock), board)
    assert (status.state, status.duration_seconds, status.last_run_time) == (DetectorState.OK, 2.0, 1002.5)
    assert condition is not None
    assert condition.status is Status.FALSE
    entry = board.entry("scripted")
    assert entry is not None
    assert entry.samples == (Sample("looks", 1),)


def test_a_suspicion_becomes_true_at_the_second_look_and_clears_at_the_next(board: Board, clock: FakeClock) -> None:
    runner = runner_of(Script(CLEAN, sick(), sick(), CLEAN), board, clock)
    statuses = []
    for _ in range(4):
        _, condition = look(runner, board)
        assert condition is not None
        statuses.append(condition.status.value)
    assert statuses == ["False", "False", "True", "False"]


def test_what_the_log_tells_stands_on_the_board_already(
    board: Board, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "nodediag.detectors")
    told: list[tuple[str, bool]] = []

    class Reader(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            entry, said = board.entry(Script.name), record.__dict__
            assert entry
            stands = {condition.type: condition.status.value for condition in entry.conditions}
            told.append((said["condition"], stands[said["condition"]] == said["status"]))

    runner = runner_of(Script(sick(sightings=2), CLEAN), board, clock)
    log, reader = logging.getLogger("nodediag.detectors"), Reader()
    log.addHandler(reader)
    try:
        look(runner, board, times=2)
    finally:
        log.removeHandler(reader)
    assert told == [(SICK, True), (DIRTY, True), (SICK, True)]


def test_absent_is_not_failed_and_has_no_conditions(board: Board, clock: FakeClock) -> None:
    status, condition = look(runner_of(Script(NotApplicableError("no kubelet here")), board, clock), board)
    assert (status.state, status.message) == (DetectorState.NOT_APPLICABLE, "no kubelet here")
    assert condition is None


def test_what_was_found_is_forgotten_when_what_is_watched_goes_away(board: Board, clock: FakeClock) -> None:
    runner = runner_of(Script(sick(sightings=2), NotApplicableError("gone"), sick()), board, clock)
    _, condition = look(runner, board, times=3)
    assert condition is not None
    assert condition.status is Status.UNKNOWN
    assert condition.reason == "Unconfirmed"


FAULT = DeploymentFault(DeploymentCause.MOUNT, "/run/containerd", "no mount", "mount it")


@pytest.mark.parametrize(
    ("error", "reason", "message"),
    [
        (CannotSeeError("needs CAP_NET_ADMIN"), "CannotSee", "needs CAP_NET_ADMIN"),
        (PermissionError(13, "Permission denied", "/proc/1"), "CannotSee", "Permission denied: '/proc/1'"),
        (CannotSeeError("no mount", FAULT), "AgentLacksMount", "no mount"),
        (ValueError("odd answer " + "x" * 9999), "ProbeFailed", "ValueError: odd answer xxx"),
    ],
)
def test_a_failed_look_makes_its_conditions_unknown_and_says_why(
    board: Board, clock: FakeClock, error: Exception, reason: str, message: str
) -> None:
    runner = runner_of(Script(sick(sightings=2), error), board, clock)
    status, condition = look(runner, board, times=2)
    assert status.state is DetectorState.FAILED
    assert condition is not None
    assert (condition.status, condition.reason) == (Status.UNKNOWN, reason)
    assert message in condition.message
    assert len(condition.message) <= 500


def test_what_hides_everything_stands_in_the_report_until_a_look_succeeds(board: Board, clock: FakeClock) -> None:
    runner = runner_of(Script(CannotSeeError("no mount", FAULT), CLEAN), board, clock)
    look(runner, board)
    assert board.report().deployment == (replace(FAULT, hides=(SICK, DIRTY)),)
    look(runner, board)
    assert board.report().deployment == ()


def test_a_denial_that_no_sense_expects_is_explained(board: Board, clock: FakeClock) -> None:
    script = Script(PermissionError(13, "Permission denied", "/proc/1"))
    runner = Runner(script, DetectorSettings(), board, clock, denied=lambda _: FAULT)
    look(runner, board)
    assert board.report().deployment == (replace(FAULT, hides=(SICK, DIRTY)),)
    assert {condition.reason for condition in board.report().conditions} == {"AgentLacksMount"}


def test_only_the_conditions_a_fault_hides_carry_its_reason(board: Board, clock: FakeClock) -> None:
    fault = replace(FAULT, hides=(SICK,), impairs=(DIRTY,))
    blind = CheckResult(unknown={SICK: "no mount", DIRTY: "one more look"}, deployment=(fault,))
    look(runner_of(Script(blind), board, clock), board)
    reasons = {condition.type: condition.reason for condition in board.report().conditions}
    assert reasons == {SICK: "AgentLacksMount", DIRTY: "NotObserved"}


def test_a_fault_whose_effect_is_not_named_impairs_every_condition_of_its_detector(
    board: Board, clock: FakeClock
) -> None:
    look(runner_of(Script(replace(CLEAN, deployment=(FAULT,))), board, clock), board)
    assert board.report().deployment == (replace(FAULT, impairs=(SICK, DIRTY)),)


def test_a_discarded_look_leaves_the_faults_of_the_deployment_as_they_were(board: Board, clock: FakeClock) -> None:
    fault = replace(FAULT, impairs=(DIRTY,))

    def stalled() -> CheckResult:
        clock.stand_still(5.0)
        return sick(timed=True)

    runner = runner_of(Script(replace(CLEAN, deployment=(fault,)), stalled), board, clock)
    look(runner, board, times=2)
    assert board.report().deployment == (fault,)


def test_a_failure_of_the_decision_is_isolated_as_well(board: Board, clock: FakeClock) -> None:
    detector = Script(CLEAN)
    detector.check = lambda _: 1 / 0  # type: ignore[assignment, method-assign, return-value]
    status, _ = look(runner_of(detector, board, clock), board)
    assert status.message == "ZeroDivisionError: division by zero"


def test_a_finding_under_an_undeclared_condition_is_a_failure_not_a_silence(board: Board, clock: FakeClock) -> None:
    status, _ = look(runner_of(Script(sick(condition="NodeSikc")), board, clock), board)
    assert status.state is DetectorState.FAILED
    assert "NodeSikc" in status.message


def test_a_finding_outlives_blindness_with_its_first_time(board: Board, clock: FakeClock) -> None:
    def later() -> CheckResult:
        clock.pass_time(60)
        return sick()

    runner = runner_of(Script(sick(sightings=2), CannotSeeError("dark"), later), board, clock)
    _, condition = look(runner, board, times=3)
    assert condition is not None
    assert condition.status is Status.TRUE
    assert condition.findings[0].since == 1000.0


def test_a_listener_that_raises_does_not_end_the_watch(board: Board, clock: FakeClock) -> None:
    runner = runner_of(Script(CLEAN), board, clock)
    board.subscribe(lambda _: 1 / 0)  # type: ignore[arg-type]
    status, _ = look(runner, board)
    assert status.state is DetectorState.OK


# When it looks


def test_a_finding_is_told_with_all_that_is_known_of_whose_it_is(board: Board, clock: FakeClock) -> None:
    pods = [
        PodRef("shop", "web-0"),
        PodRef("shop", "web-0", owner="StatefulSet/web"),
        PodRef("shop", "web-0", owner="x"),
    ]

    def identify(found: Finding) -> Finding:
        return replace(found, pod=pods.pop(0))

    runner = Runner(Script(sick()), DetectorSettings(failure_threshold=2), board, clock, identify)
    _, condition = look(runner, board, 2)
    assert condition
    assert condition.status is Status.TRUE, "to say more makes it no other finding"
    (active,) = condition.findings
    assert active.finding.pod == PodRef("shop", "web-0", owner="StatefulSet/web")
    clock.pass_time(5)
    _, later = look(runner, board)
    assert later
    assert (later.findings[0].since, later.last_transition_time) == (active.since, condition.last_transition_time)
    assert later.findings[0].finding.pod == PodRef("shop", "web-0", owner="x")


def test_whoever_fails_to_say_more_about_a_finding_hides_none(board: Board, clock: FakeClock) -> None:
    def identify(_: Finding) -> Finding:
        raise OSError("the book is burning")

    runner = Runner(Script(sick()), DetectorSettings(failure_threshold=1), board, clock, identify)
    status, condition = look(runner, board)
    assert status.state is DetectorState.OK
    assert condition
    assert condition.status is Status.TRUE


def test_the_period_is_jittered_by_a_tenth(board: Board, clock: FakeClock) -> None:
    runner = runner_of(Script(CLEAN), board, clock, period_seconds=100)
    runner.look()
    pauses = {runner.pause_seconds() for _ in range(200)}
    assert 90 <= min(pauses) < 92
    assert 108 < max(pauses) <= 110


@pytest.mark.parametrize(
    ("result", "pause", "unsettled"),
    [
        (sick(), CONFIRM_SECONDS, True),
        (CheckResult(recheck_seconds=3), 3, True),
        (CheckResult(recheck_seconds=0), MIN_PAUSE_SECONDS, True),
        (CheckResult(findings=sick().findings, recheck_seconds=3), CONFIRM_SECONDS, True),
        (CheckResult(findings=sick(sightings=2).findings, follow_seconds=3), 3, False),
    ],
)
def test_a_look_that_cannot_decide_is_followed_by_another_soon(
    board: Board, clock: FakeClock, result: CheckResult, pause: float, unsettled: bool
) -> None:
    runner = runner_of(Script(result), board, clock)
    runner.look()
    assert (runner.pause_seconds(), runner.unsettled) == (pause, unsettled)


@pytest.mark.parametrize(
    ("result", "pause"),
    [
        (CLEAN, 40),
        (CheckResult(findings=sick(sightings=2).findings, follow_seconds=3), 40),
        (CheckResult(recheck_seconds=3), 3),
        (sick(), CONFIRM_SECONDS),
    ],
    ids=["well", "followed", "undecided", "suspected"],
)
def test_a_look_that_takes_much_cpu_time_is_made_seldom_unless_something_is_undecided(
    board: Board, clock: FakeClock, result: CheckResult, pause: float
) -> None:
    times = iter([10.0, 12.0])
    settings = DetectorSettings(period_seconds=8)
    runner = Runner(Script(result), settings, board, clock, cpu_seconds=lambda: next(times))
    runner.look()
    assert runner.pause_seconds() == pause


@pytest.mark.parametrize("blind", [CannotSeeError("dark"), ValueError("odd"), CheckResult(unknown={SICK: "dark"})])
def test_a_suspicion_does_not_hurry_looks_that_cannot_see(
    board: Board, clock: FakeClock, blind: CheckResult | Exception
) -> None:
    runner = runner_of(Script(sick(), blind), board, clock)
    look(runner, board, times=2)
    assert runner.pause_seconds() >= 9
    assert not runner.unsettled


def test_it_looks_again_and_again_until_stopped(board: Board, clock: FakeClock) -> None:
    detector = Script(CheckResult(recheck_seconds=0))
    runner = runner_of(detector, board, clock)
    with started(runner):
        wait_until(lambda: detector.probes >= 3, SECONDS, "three looks")


# A probe that does not return


def test_a_fault_of_our_own_ends_no_watch(board: Board, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = [RuntimeError("a fault of our own")]

    def faulty(*given: Any) -> Condition:
        if faults:
            raise faults.pop()
        return conclude(*given)

    monkeypatch.setattr("agent.pipeline.runner.conclude", faulty)
    states: list[DetectorState] = []
    board.subscribe(lambda entry: states.append(entry.status.state))
    runner = runner_of(Script(CLEAN, CLEAN), board, clock, period_seconds=0.1)
    with started(runner):
        wait_until(lambda: DetectorState.OK in states, SECONDS, "it looks again")
    assert states[:2] == [DetectorState.STARTING, DetectorState.FAILED]


def test_a_stuck_probe_is_overdue_and_not_started_again_and_recovers(board: Board, clock: FakeClock) -> None:
    detector = Stuck()
    runner = runner_of(detector, board, clock, timeout_seconds=20)
    with started(runner, released=detector):
        clock.pass_time(19)
        assert not runner.check_overdue()
        clock.pass_time(2)
        assert runner.check_overdue()
        status, condition = told(board, "stuck")
        assert (status.state, status.duration_seconds, status.last_run_time) == (DetectorState.OVERDUE, 21.0, None)
        assert condition is not None
        assert (condition.status, condition.reason) == (Status.UNKNOWN, "ProbeOverdue")
        assert "21 s (limit 20 s)" in condition.message
        assert detector.probes == 1
        detector.release.set()
        wait_until(lambda: told(board, "stuck")[0].state is DetectorState.OK, SECONDS, "the look has returned")
        assert not runner.check_overdue()


def test_a_probe_that_returns_at_the_last_moment_has_the_last_word(clock: FakeClock) -> None:
    class LateBoard(Board):
        meanwhile: list[Callable[[], object]] = []  # noqa: RUF012 - of this one board

        def entry(self, detector: str) -> Entry | None:
            while self.meanwhile:
                self.meanwhile.pop()()
            return super().entry(detector)

    def returned() -> None:
        detector.release.set()
        wait_until(lambda: told(board, "stuck")[0].state is DetectorState.OK, SECONDS, "the look has returned")

    board, detector = LateBoard("worker-3", clock), Stuck()
    runner = runner_of(detector, board, clock, timeout_seconds=20)
    with started(runner, released=detector):
        clock.pass_time(21)
        board.meanwhile.append(returned)
        assert not runner.check_overdue()
        assert told(board, "stuck")[0].state is DetectorState.OK


def test_our_own_stall_makes_no_probe_overdue(board: Board, clock: FakeClock) -> None:
    detector = Stuck()
    runner = runner_of(detector, board, clock, timeout_seconds=20)
    with started(runner, released=detector):
        clock.stand_still(3600)
        assert not runner.check_overdue()


def test_one_stuck_detector_disturbs_no_other(board: Board, clock: FakeClock) -> None:
    stuck, lively = Stuck(), Script(CheckResult(recheck_seconds=0))
    with started(runner_of(stuck, board, clock), runner_of(lively, board, clock), released=stuck):
        wait_until(lambda: lively.probes >= 3, SECONDS, "the other looks on")
        assert stuck.probes == 1


# A process that stood still


def stalling(clock: FakeClock, result: CheckResult) -> Script:
    def stall() -> CheckResult:
        clock.stand_still(30)
        return result

    return Script(CLEAN, stall)


def test_a_look_across_our_own_stall_accuses_nobody_by_the_clock(board: Board, clock: FakeClock) -> None:
    runner = runner_of(stalling(clock, sick(sightings=2, timed=True)), board, clock)
    _, before = look(runner, board)
    status, condition = look(runner, board)
    assert condition == before
    assert (status.state, status.discarded) == (DetectorState.OK, 1)
    assert status.message == "the last look was thrown away: this process stood still for 30 s during it"
    assert (runner.pause_seconds(), runner.unsettled) == (CONFIRM_SECONDS, True)


def test_evidence_that_is_no_duration_survives_a_stall(board: Board, clock: FakeClock) -> None:
    status, condition = look(runner_of(stalling(clock, sick(sightings=2)), board, clock), board, times=2)
    assert condition is not None
    assert condition.status is Status.TRUE
    assert status.discarded == 0


def test_looks_that_all_stall_come_ever_later_and_end_unknown(board: Board, clock: FakeClock) -> None:
    runner = runner_of(stalling(clock, sick(sightings=2, timed=True)), board, clock)
    look(runner, board)
    statuses, pauses = [], []
    for _ in range(MAX_DISCARDS):
        _, condition = look(runner, board)
        assert condition is not None
        statuses.append(condition.status.value)
        pauses.append(runner.pause_seconds())
    assert statuses == ["False", "False", "False", "False", "Unknown"]
    assert pauses == [0.5, 1, 2, 4, 8]


def test_a_good_look_ends_the_row_of_stalls(board: Board, clock: FakeClock) -> None:
    stall = stalling(clock, sick(timed=True)).steps[1]
    runner = runner_of(Script(stall, stall, CLEAN, stall), board, clock)
    status, _ = look(runner, board, times=4)
    assert status.discarded == 3
    assert runner.pause_seconds() == CONFIRM_SECONDS


# What is logged


def changes(caplog: pytest.LogCaptureFixture, condition: str) -> list[tuple[str, str]]:
    """The (level, status) of each line about one condition."""
    about = [record.__dict__ for record in caplog.records if record.__dict__.get("condition") == condition]
    return [(values["levelname"], values["status"]) for values in about]


def test_each_change_of_a_condition_is_one_line(
    board: Board, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    bad = sick(sightings=2)
    runner = runner_of(Script(CLEAN, CLEAN, bad, bad, CannotSeeError("dark"), CLEAN), board, clock)
    with caplog.at_level(logging.INFO):
        look(runner, board, times=6)
    assert changes(caplog, SICK) == [("INFO", "False"), ("WARNING", "True"), ("INFO", "Unknown"), ("INFO", "False")]
    assert changes(caplog, DIRTY) == [("INFO", "False"), ("INFO", "Unknown"), ("INFO", "False")]


def test_a_failure_that_lasts_is_logged_once_with_its_traceback(
    board: Board, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    look(runner_of(Script(ValueError("odd")), board, clock), board, times=3)
    (record,) = [record for record in caplog.records if record.getMessage() == "a look failed"]
    assert record.exc_info is not None


def test_what_is_not_on_this_node_is_logged_once(
    board: Board, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        look(runner_of(Script(NotApplicableError("no kubelet")), board, clock), board, times=3)
    assert [record.getMessage() for record in caplog.records] == ["nothing to watch"]
