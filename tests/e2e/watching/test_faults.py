"""Every fault is named within 15 s at default settings, clears within 15 s, and nothing else is accused.

Faults that do not touch each other's conditions are made at the same time: those of containerd, its shims and its
containers one after the other, and beside them those of the kubelet and of DNS.
"""

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median

import pytest

from tests.detections import record
from tests.e2e.conftest import LabNode
from tests.e2e.faults import FAULTS, LANES, ZOMBIES, Fault, _zombies
from tests.lab import zombies
from tests.lab.waiting import wait_until

NAMED_SECONDS = 15.0
CLEARED_SECONDS = 15.0

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]


@dataclass
class Outcome:
    """What was told of a fault that was there from `began` until it had cleared at `over`."""

    began: float
    over: float = float("inf")
    named_seconds: float = float("inf")
    problem: str = ""


@pytest.fixture(scope="module")
def outcomes(lab_node: LabNode) -> dict[str, Outcome]:
    """Every fault made, named and cleared."""
    seen: dict[str, Outcome] = {}
    with ThreadPoolExecutor(len(LANES)) as pool:
        for done in [pool.submit(_one_after_the_other, lab_node, lane, seen) for lane in LANES]:
            done.result()
    return seen


def _one_after_the_other(node: LabNode, conditions: Iterable[str], seen: dict[str, Outcome]) -> None:
    def well() -> bool:
        statuses = node.agent.statuses()
        return all(statuses[each] == "False" for each in conditions)

    for fault in (fault for fault in FAULTS if fault.condition in conditions):
        wait_until(well, CLEARED_SECONDS, f"the node is well before {fault.name}")
        outcome = seen[fault.name] = Outcome(time.time())
        with fault.make(node) as mentioned:
            began = time.time()
            try:
                outcome.named_seconds = _named(node, fault, outcome.began, mentioned) - began
                record(fault.name, "lab", outcome.named_seconds, condition=fault.condition, reason=fault.reason)
            except AssertionError as error:
                outcome.problem = str(error)
        try:
            wait_until(well, CLEARED_SECONDS, f"{fault.condition} clears")
        except AssertionError as error:
            outcome.problem = f"{outcome.problem} {error}"
            wait_until(well, 2 * CLEARED_SECONDS, f"{fault.condition} clears at all")
        outcome.over = time.time()


def _named(node: LabNode, fault: Fault, since: float, mentioned: str) -> float:
    """Wait until the fault is told of, and return when it was."""

    def told() -> float:
        fits = (c for c in node.agent.accusations(since) if (c.type, c.reason) == (fault.condition, fault.reason))
        return next((change.at for change in fits if mentioned in change.message), 0.0)

    at = wait_until(told, NAMED_SECONDS, f"{fault.reason} is told of, and {mentioned}")
    assert (node.agent.metric("nodediag_findings", type=fault.condition, reason=fault.reason) or 0) >= 1
    return at


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_is_named_within_15_s_and_clears(outcomes: dict[str, Outcome], fault: Fault) -> None:
    outcome = outcomes[fault.name]
    assert not outcome.problem
    assert outcome.named_seconds < NAMED_SECONDS


def test_nothing_is_accused_but_while_its_own_fault_is_there(lab_node: LabNode, outcomes: dict[str, Outcome]) -> None:
    spans = [(fault.condition, outcomes[fault.name]) for fault in FAULTS]
    first = min(outcome.began for outcome in outcomes.values())
    for change in lab_node.agent.accusations(first):
        assert any(kind == change.type and span.began <= change.at <= span.over for kind, span in spans), change


def test_half_of_the_faults_are_named_within_10_s(
    outcomes: dict[str, Outcome], capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = {name: outcome.named_seconds for name, outcome in outcomes.items()}
    with capsys.disabled():
        print("\nseconds until each fault was named:")
        for name, took in sorted(seconds.items(), key=lambda item: item[1]):
            print(f"{took:5.1f}  {name}")
        print(f"median {median(seconds.values()):.1f}, slowest {max(seconds.values()):.1f}")
    assert set(seconds) == {fault.name for fault in FAULTS}
    assert median(seconds.values()) < 10


def test_metrics_answer_while_16018_zombies_are_scanned(lab_node: LabNode) -> None:
    fault = Fault("16,018 zombies", _zombies(16_018), ZOMBIES, "TooManyDefunctProcesses")
    before = time.time()
    with fault.make(lab_node) as parent:
        made, slowest = time.time(), 0.0

        def told() -> bool:
            nonlocal slowest
            asked = time.monotonic()
            lab_node.agent.get("/metrics")
            slowest = max(slowest, time.monotonic() - asked)
            reasons = {a.reason for a in lab_node.agent.accusations(before)}
            return lab_node.agent.metric("nodediag_findings", type=ZOMBIES, reason=fault.reason) == 1 and bool(reasons)

        wait_until(told, NAMED_SECONDS, "too many zombies are told of")
        record(fault.name, "lab", max(0.0, lab_node.agent.accusations(before)[0].at - made))
        labels = {"pid": parent, "namespace": "shop", "pod": "zombie-maker"}
        # The look that named them may have been taken while they were still being made: the next one counts them all.
        wait_until(
            lambda: lab_node.agent.metric("nodediag_defunct_processes_by_parent", **labels) == 16_018,
            NAMED_SECONDS,
            "all of them are counted",
        )
        assert slowest < 1.0
    wait_until(lab_node.agent.all_well, CLEARED_SECONDS, "the zombies are gone")
    assert {accused.type for accused in lab_node.agent.accusations(before)} == {ZOMBIES}


def test_a_slow_leak_is_named_once_its_parent_has_too_many(lab_node: LabNode) -> None:
    before = time.time()
    with zombies.breeder_container(lab_node.containerd) as breeder, zombies.slow_leak(breeder, per_second=3):
        wait_until(lambda: bool(lab_node.agent.accusations(before)), 40, "the leak is told of")
        assert "redis-cli" in lab_node.agent.accusations(before)[0].message
    wait_until(lab_node.agent.all_well, CLEARED_SECONDS, "the leak is over")
    assert {accused.type for accused in lab_node.agent.accusations(before)} == {ZOMBIES}
