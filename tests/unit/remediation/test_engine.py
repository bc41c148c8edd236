"""One at a time, at most once, and never on thin evidence: the engine with its real gate, ledger and evidence store."""

import json
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.acts import Caller, Limits, Outcome, RefusalReason, Remediation, Request
from agent.model import Action, CannotSeeError
from agent.remediation.evidence import EvidenceError
from agent.remediation.ledger import LedgerError
from agent.remediation.remedy import ActError, Verification
from agent.remediation.standing import Rules
from agent.remediation.turnstile import Turnstile
from tests.lab.waiting import wait_until
from tests.unit.remediation.engines import (
    FIRST,
    OPERATOR,
    SECOND,
    TARGET,
    THIRD,
    Bench,
    held_up,
    not_confirmed,
)

ALL_STEPS = ["confirm", "evidence", "perform", "verify", "close"]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "state")


def refused_for(answer: Remediation) -> RefusalReason:
    assert answer.outcome is Outcome.REFUSED
    assert answer.refusal is not None
    assert answer.refusal.message == answer.message
    return answer.refusal.reason


def raising(error: Exception) -> Callable[[], None]:
    def raise_it() -> None:
        raise error

    return raise_it


# -- the course


def test_what_is_confirmed_is_mended_and_verified(bench: Bench) -> None:
    answer = bench.ask(reason="page 42")
    assert bench.remedy.calls == ALL_STEPS
    assert (answer.outcome, answer.acted) == (Outcome.VERIFIED, True)
    assert answer.message == "it was treated; it is well again"
    assert bench.engine.find(FIRST) == answer
    assert bench.engine.list(10, "")[0] == (answer,)


def test_evidence_is_stored_before_the_act(bench: Bench) -> None:
    def look() -> None:
        (stored,) = bench.evidence.list()
        content = json.loads(b"".join(bench.evidence.read(stored.id)))
        assert content["content"]["seen"] == {"pulse": 200}
        assert content["content"]["probe"] == "it is sick"
        bench.remedy.calls.append("evidence was there")

    bench.remedy.at_perform = look
    answer = bench.ask()
    assert "evidence was there" in bench.remedy.calls
    assert answer.evidence_id == bench.evidence.list()[0].id


@pytest.mark.parametrize(
    ("seen", "outcome"),
    [
        (Verification(True, "well"), Outcome.VERIFIED),
        (Verification(False, "ill"), Outcome.INEFFECTIVE),
        (Verification(None, "nobody knows"), Outcome.PERFORMED),
        (OSError("gone blind"), Outcome.PERFORMED),
    ],
)
def test_the_look_afterwards_decides_the_outcome(
    bench: Bench, seen: Verification | Exception, outcome: Outcome
) -> None:
    bench.remedy.seen_after = seen
    assert bench.ask().outcome is outcome


@pytest.mark.parametrize("error", [ActError("half of it"), OSError("no"), ZeroDivisionError("ours")])
def test_an_act_that_fails_is_told_and_counts_as_begun(bench: Bench, error: Exception) -> None:
    bench.remedy.at_perform = raising(error)
    answer = bench.ask()
    assert (answer.outcome, answer.acted) == (Outcome.FAILED, True)
    assert str(error) in answer.message


def test_a_healthy_target_is_left_alone(bench: Bench) -> None:
    bench.remedy.at_confirm = not_confirmed
    answer = bench.ask()
    assert refused_for(answer) is RefusalReason.NOT_CONFIRMED
    assert bench.remedy.calls == ["confirm"]
    assert not answer.acted


def test_a_condition_that_has_cleared_refuses_without_a_probe(bench: Bench) -> None:
    bench.say()
    assert refused_for(bench.ask()) is RefusalReason.CONDITION_NOT_TRUE
    assert bench.remedy.calls == []


def test_a_finding_about_another_target_or_with_another_reason_permits_nothing(bench: Bench) -> None:
    bench.say_sick(target=replace(TARGET, address="10.96.0.11:53"))
    assert refused_for(bench.ask(FIRST)) is RefusalReason.CONDITION_NOT_TRUE
    bench.say_sick(reason="SomethingElse")
    answer = bench.ask(SECOND)
    assert refused_for(answer) is RefusalReason.CONDITION_NOT_TRUE
    assert "SomethingElse" in answer.message


def test_a_probe_during_which_the_agent_stood_still_confirms_nothing(bench: Bench) -> None:
    bench.remedy.at_confirm = lambda: bench.clock.stand_still(2.0)
    answer = bench.ask()
    assert refused_for(answer) is RefusalReason.STALLED
    assert answer.refusal is not None
    assert answer.refusal.retry_seconds
    assert "perform" not in bench.remedy.calls
    bench.remedy.at_confirm = lambda: None
    assert bench.ask().outcome is Outcome.VERIFIED, "the same request may come again"


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), CannotSeeError("Permission denied")])
def test_a_probe_that_cannot_see_refuses(bench: Bench, error: Exception) -> None:
    bench.remedy.at_confirm = raising(error)
    answer = bench.ask()
    assert refused_for(answer) is RefusalReason.CANNOT_SEE
    assert "Permission denied" in answer.message


def test_a_fault_of_our_own_in_the_probe_does_nothing_and_is_told(bench: Bench) -> None:
    bench.remedy.at_confirm = raising(ZeroDivisionError("ours"))
    answer = bench.ask()
    assert (answer.outcome, answer.acted) == (Outcome.FAILED, False)
    assert "nothing was done" in answer.message
    assert bench.ask(SECOND, action=bench.remedy.action).outcome is Outcome.FAILED, "the engine goes on"


def test_without_evidence_nothing_is_done(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise EvidenceError("the disk is full")

    monkeypatch.setattr(bench.evidence, "store", full)
    assert refused_for(bench.ask()) is RefusalReason.EVIDENCE_NOT_STORED
    assert "perform" not in bench.remedy.calls


def test_what_cannot_be_written_down_before_is_not_done(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise LedgerError("the disk is full")

    monkeypatch.setattr(bench.ledger, "about_to_act", full)
    assert refused_for(bench.ask()) is RefusalReason.LEDGER_UNUSABLE
    assert "perform" not in bench.remedy.calls


def test_an_answer_that_cannot_be_written_down_afterwards_is_still_the_answer(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise LedgerError("the disk is full")

    monkeypatch.setattr(bench.ledger, "conclude", full)
    answer = bench.ask()
    assert answer.outcome is Outcome.VERIFIED
    assert bench.ask() == answer
    assert bench.remedy.calls.count("perform") == 1


def test_of_answers_that_could_not_be_written_down_only_so_many_are_kept(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise LedgerError("the disk is full")

    monkeypatch.setattr(bench.ledger, "conclude", full)
    monkeypatch.setattr("agent.remediation.engine.MAX_UNWRITTEN", 2)
    for each in (FIRST, SECOND, THIRD):
        bench.ask(each)
    outcomes = [found.outcome for each in (FIRST, SECOND, THIRD) if (found := bench.engine.find(each))]
    assert outcomes == [Outcome.RUNNING, Outcome.VERIFIED, Outcome.VERIFIED]


# -- dry runs


def test_a_dry_run_does_everything_but_the_act(bench: Bench) -> None:
    answer = bench.ask(dry_run=True)
    assert (answer.outcome, answer.acted) == (Outcome.DRY_RUN, False)
    assert "as was asked" in answer.message
    assert bench.remedy.calls == ["confirm", "evidence", "close"]


def test_a_dry_run_fails_where_a_live_run_would(bench: Bench) -> None:
    bench.remedy.at_confirm = not_confirmed
    assert refused_for(bench.ask(dry_run=True)) is RefusalReason.NOT_CONFIRMED


def test_the_setting_makes_every_run_a_dry_one(tmp_path: Path) -> None:
    bench = Bench(tmp_path, replace(Bench(tmp_path / "other").rules, dry_run=True))
    answer = bench.ask()
    assert answer.outcome is Outcome.DRY_RUN
    assert "remediation.dry_run" in answer.message
    assert "perform" not in bench.remedy.calls


def test_dry_runs_cost_neither_cool_down_nor_budget(tmp_path: Path) -> None:
    bench = Bench(tmp_path, limited(cooldown_seconds=60, max_per_hour=1))
    assert bench.ask(FIRST, dry_run=True).outcome is Outcome.DRY_RUN
    assert bench.ask(SECOND).outcome is Outcome.VERIFIED
    assert refused_for(bench.ask(THIRD, dry_run=True)) is RefusalReason.COOLING_DOWN


# -- the gate's refusals, through the engine


def limited(*, max_in_all: int = 100, **limits: float) -> Rules:
    each = Limits(cooldown_seconds=limits.get("cooldown_seconds", 0), max_per_hour=int(limits.get("max_per_hour", 100)))
    return Rules(enabled=True, dry_run=False, max_per_hour=max_in_all, limits=dict.fromkeys(Action, each))


def test_disabled_is_refused_and_touches_no_file(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "state", replace(limited(), enabled=False))
    assert refused_for(bench.ask()) is RefusalReason.DISABLED
    assert bench.engine.status(OPERATOR).enabled is False
    assert not (tmp_path / "state").exists()


def test_within_the_cool_down_it_is_refused_and_after_it_not(tmp_path: Path) -> None:
    bench = Bench(tmp_path, limited(cooldown_seconds=60))
    bench.ask(FIRST)
    bench.boot_seconds += 59
    answer = bench.ask(SECOND)
    assert refused_for(answer) is RefusalReason.COOLING_DOWN
    assert answer.refusal is not None
    assert answer.refusal.retry_seconds == pytest.approx(1, abs=0.1)
    bench.boot_seconds += 1.1
    assert bench.ask(SECOND).outcome is Outcome.VERIFIED, "the same request may come again"


def test_cool_down_and_budget_outlive_the_agent(tmp_path: Path) -> None:
    bench = Bench(tmp_path, limited(cooldown_seconds=60, max_per_hour=1))
    bench.ask(FIRST)
    bench = bench.restarted()
    assert refused_for(bench.ask(SECOND)) is RefusalReason.COOLING_DOWN
    bench.boot_seconds += 61
    assert refused_for(bench.ask(SECOND)) is RefusalReason.BUDGET_SPENT


def test_the_budget_of_the_node_is_refused_too(tmp_path: Path) -> None:
    bench = Bench(tmp_path, limited(max_in_all=2))
    bench.ask(FIRST)
    bench.ask(SECOND)
    assert refused_for(bench.ask(THIRD)) is RefusalReason.BUDGET_SPENT


def test_a_caller_without_this_action_is_refused_and_not_listed(bench: Bench) -> None:
    guest = Caller("guest", frozenset({Action.KILL_SHIM}))
    assert refused_for(bench.ask(caller=guest)) is RefusalReason.CALLER_NOT_ALLOWED
    assert bench.engine.list(10, "")[0] == ()


def test_a_paused_node_is_left_alone_until_the_file_is_gone(bench: Bench) -> None:
    bench.ask(FIRST)
    (bench.folder / "paused").write_text("maintenance, jane\n")
    answer = bench.ask(SECOND)
    assert refused_for(answer) is RefusalReason.PAUSED
    assert "maintenance, jane" in answer.message
    assert "maintenance, jane" in bench.engine.status(OPERATOR).paused
    (bench.folder / "paused").unlink()
    assert bench.ask(SECOND).outcome is Outcome.VERIFIED


def test_an_older_fencing_token_is_refused_also_after_a_restart(bench: Bench) -> None:
    bench.ask(FIRST, fencing_token=7)
    assert refused_for(bench.ask(SECOND, fencing_token=6)) is RefusalReason.STALE_FENCING_TOKEN
    bench = bench.restarted()
    assert refused_for(bench.ask(SECOND, fencing_token=6)) is RefusalReason.STALE_FENCING_TOKEN
    assert bench.ask(THIRD, fencing_token=7).outcome is Outcome.VERIFIED


def test_a_stranger_cannot_raise_the_token(bench: Bench) -> None:
    bench.ask(FIRST, caller=Caller("guest"), fencing_token=99)
    assert bench.engine.status(OPERATOR).highest_token == 0


def test_a_gate_that_errs_has_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def err(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("agent.remediation.gate._CHECKS", (err,))
    assert refused_for(bench.ask()) is RefusalReason.GATE_FAILED
    assert bench.remedy.calls == []


# -- the gate at the last moment


def test_a_newer_leader_that_calls_during_the_probe_stops_the_older(bench: Bench) -> None:
    with held_up(bench, "confirm"):
        assert refused_for(bench.ask(SECOND, fencing_token=1)) is RefusalReason.BUSY
    assert refused_for(bench.ask(FIRST)) is RefusalReason.STALE_FENCING_TOKEN
    assert "perform" not in bench.remedy.calls


def test_a_pause_during_the_probe_stops_the_act(bench: Bench) -> None:
    with held_up(bench, "confirm"):
        (bench.folder / "paused").write_text("stop\n")
    assert refused_for(bench.ask()) is RefusalReason.PAUSED
    assert "perform" not in bench.remedy.calls


def test_an_agent_that_is_told_to_stop_during_the_probe_does_not_act(bench: Bench) -> None:
    with held_up(bench, "confirm"):
        stopper = threading.Thread(target=bench.engine.stop)
        stopper.start()
        wait_until(lambda: refused_for(bench.ask(SECOND)) is RefusalReason.STOPPING, 30, "it takes nothing more")
    stopper.join(10)
    assert "perform" not in bench.remedy.calls
    assert Bench(bench.folder, remedy=bench.remedy).ask().outcome is Outcome.VERIFIED, "the same request may come again"


# -- at most once


def test_fifty_times_the_same_request_from_ten_callers_acts_once(bench: Bench) -> None:
    start = threading.Barrier(50)

    def ask(_: int) -> Remediation:
        start.wait(10)
        return bench.ask()

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(ask, range(50)))
    assert len(set(answers)) == 1
    assert answers[0].outcome is Outcome.VERIFIED
    assert bench.remedy.calls.count("perform") == 1


def test_a_repeat_gets_the_stored_answer_also_after_a_restart(bench: Bench) -> None:
    answer = bench.ask(fencing_token=3)
    assert bench.ask(fencing_token=1) == answer, "a repeat is answered whatever its token"
    bench = bench.restarted()
    bench.say()
    assert bench.ask(fencing_token=3) == answer
    assert bench.remedy.calls.count("perform") == 1


def test_what_a_probe_refused_is_the_answer_for_good(bench: Bench) -> None:
    bench.remedy.at_confirm = not_confirmed
    answer = bench.ask()
    bench.remedy.at_confirm = lambda: None
    assert bench.ask() == answer
    assert bench.ask(SECOND).outcome is Outcome.VERIFIED


@pytest.mark.parametrize(
    "other",
    [
        {"dry_run": True},
        {"caller": Caller("another", frozenset(Action))},
        {"target": replace(TARGET, address="10.1.1.1")},
    ],
)
def test_a_request_id_cannot_be_used_for_something_else(bench: Bench, other: dict[str, Any]) -> None:
    with held_up(bench, "perform"):
        assert refused_for(bench.ask(FIRST, **other)) is RefusalReason.REQUEST_ID_REUSED
    assert refused_for(bench.ask(FIRST, **other)) is RefusalReason.REQUEST_ID_REUSED
    assert bench.ask(FIRST).outcome is Outcome.VERIFIED, "the first answer stands"


def test_one_thing_at_a_time(bench: Bench) -> None:
    with held_up(bench, "perform"):
        answer = bench.ask(SECOND)
        assert refused_for(answer) is RefusalReason.BUSY
        assert FIRST in answer.message
        assert answer.refusal is not None
        assert answer.refusal.retry_seconds
    assert bench.ask(SECOND).outcome is Outcome.VERIFIED


def test_a_caller_that_does_not_wait_changes_nothing(bench: Bench) -> None:
    with held_up(bench, "perform"):
        request = Request(FIRST, bench.remedy.action, TARGET, OPERATOR.identity)
        with pytest.raises(TimeoutError, match="still under way"):
            bench.engine.remediate(request, OPERATOR, 0.01)
        running = bench.engine.find(FIRST)
        assert running is not None
        assert running.outcome is Outcome.RUNNING
    assert bench.ask().outcome is Outcome.VERIFIED
    assert bench.remedy.calls.count("perform") == 1


# -- broken off


def test_what_an_earlier_agent_left_in_the_middle_is_interrupted_and_never_repeated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = Bench(tmp_path)
    request = Request(FIRST, before.remedy.action, TARGET, OPERATOR.identity)
    before.ledger.begin(Remediation(request, Outcome.RUNNING, "it is under way", 1.0))
    before.ledger.about_to_act(FIRST, "")
    before.ledger.close()
    with caplog.at_level(logging.ERROR):
        bench = Bench(tmp_path)
    assert "a remediation was interrupted" in caplog.text
    answer = bench.ask()
    assert (answer.outcome, answer.acted) == (Outcome.INTERRUPTED, True)
    assert bench.remedy.calls == []
    assert bench.engine.tally() == {(bench.remedy.action, Outcome.INTERRUPTED): 1}


def test_it_is_found_later_too_if_the_ledger_could_not_be_read_at_the_start(tmp_path: Path) -> None:
    before = Bench(tmp_path)
    before.ledger.begin(Remediation(Request(FIRST, before.remedy.action, TARGET, "jane"), Outcome.RUNNING, "x", 1.0))
    before.ledger.close()
    good, aside = tmp_path / "ledger.sqlite", tmp_path / "aside"
    good.rename(aside)
    good.write_bytes(b"no database at all, " * 500)
    bench = Bench(tmp_path)
    aside.replace(good)
    bench.ask(SECOND)
    left = bench.engine.find(FIRST)
    assert left is not None
    assert left.outcome is Outcome.INTERRUPTED


def test_an_agent_that_stops_takes_nothing_more(bench: Bench) -> None:
    bench.engine.stop()
    assert refused_for(bench.ask()) is RefusalReason.STOPPING


def test_stopping_waits_for_the_one_under_way(bench: Bench) -> None:
    with held_up(bench, "perform"):
        stopper = threading.Thread(target=bench.engine.stop)
        stopper.start()
    stopper.join(10)
    assert Bench(bench.folder).ask().outcome is Outcome.VERIFIED, "its end was written down"


def test_a_ledger_whose_disk_hangs_does_not_hold_callers_for_ever(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.engine, "_admitting", Turnstile(places=1, seconds=0.05))
    there, go_on = threading.Event(), threading.Event()

    def hang(_: str) -> None:
        there.set()
        go_on.wait(10)

    monkeypatch.setattr(bench.ledger, "binding", hang)
    first = bench.in_background(FIRST)
    assert there.wait(10)
    answer = bench.ask(SECOND)
    go_on.set()
    first()
    assert refused_for(answer) is RefusalReason.BUSY
    assert "state_dir" in answer.message


@pytest.mark.parametrize("broken", ["ledger.sqlite"])
def test_a_ledger_that_cannot_be_used_refuses_and_says_why(tmp_path: Path, broken: str) -> None:
    (tmp_path / broken).write_bytes(b"no database at all, " * 500)
    bench = Bench(tmp_path)
    answer = bench.ask()
    assert refused_for(answer) is RefusalReason.LEDGER_UNUSABLE
    assert broken in answer.message
    assert broken in bench.engine.status(OPERATOR).trouble
    assert bench.remedy.calls == []
    (tmp_path / broken).unlink()
    assert bench.ask().outcome is Outcome.VERIFIED, "a repaired folder works without a restart"


# -- what is told


def test_every_outcome_is_counted(bench: Bench) -> None:
    bench.ask(FIRST)
    bench.ask(SECOND, fencing_token=5)
    bench.ask(THIRD, fencing_token=1)
    action = bench.remedy.action
    assert bench.engine.tally() == {(action, Outcome.VERIFIED): 2, (action, Outcome.REFUSED): 1}


def test_what_the_gate_refused_is_listed(bench: Bench) -> None:
    (bench.folder / "paused").write_text("maintenance\n")
    answer = bench.ask()
    assert bench.engine.list(10, "")[0] == (answer,)


def test_who_asked_for_what_and_what_came_of_it_is_logged(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        bench.ask(reason="page 42")
    begins, concluded = ({**vars(record)} for record in caplog.records)
    for record in (begins, concluded):
        assert (record["request_id"], record["caller"], record["reason"]) == (FIRST, OPERATOR.identity, "page 42")
        assert record["target"] == {"kind": TARGET.kind, "address": TARGET.address}
    assert (begins["message"], concluded["message"]) == ("remediation begins", "remediation concluded")
    assert concluded["outcome"] == "verified"


def test_the_status_tells_what_is_left(tmp_path: Path) -> None:
    bench = Bench(tmp_path, limited(max_in_all=5, cooldown_seconds=60, max_per_hour=3))
    bench.ask(FIRST, fencing_token=9)
    bench.boot_seconds += 10
    status = bench.engine.status(OPERATOR)
    (action,) = status.actions
    assert (status.enabled, status.dry_run, status.paused, status.trouble) == (True, False, "", "")
    assert (status.highest_token, status.left_this_hour, status.max_per_hour) == (9, 4, 5)
    assert (action.action, action.enabled, action.allowed) == (bench.remedy.action, True, True)
    assert action.cooldown_left_seconds == pytest.approx(50, abs=0.1)
    assert action.left_this_hour == 2
    (guest,) = bench.engine.status(Caller("guest")).actions
    assert not guest.allowed
