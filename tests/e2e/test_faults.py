"""Every fault is named within 15 s at default settings, clears within 15 s, and nothing else is accused."""

import time
from collections.abc import Callable
from statistics import median

import pytest

from tests.e2e.agent_process import Change
from tests.e2e.conftest import LabNode
from tests.e2e.faults import FAULTS, ZOMBIES, Fault, _zombies
from tests.lab import zombies
from tests.lab.waiting import wait_until

NAMED_SECONDS = 15.0
CLEARED_SECONDS = 15.0

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def named_after() -> dict[str, float]:
    """Seconds until each fault was named, gathered over the whole module."""
    return {}


def named(node: LabNode, fault: Fault, since: float) -> Callable[[], Change | None]:
    def look() -> Change | None:
        told = [c for c in node.agent.accusations(since) if c.type == fault.condition and c.reason == fault.reason]
        return told[0] if told else None

    return look


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_is_named_within_15_s_and_clears(lab_node: LabNode, named_after: dict[str, float], fault: Fault) -> None:
    wait_until(lab_node.agent.all_well, CLEARED_SECONDS, "the node is well before the fault")
    before = time.time()
    with fault.make(lab_node) as mentioned:
        began = time.time()
        change = wait_until(named(lab_node, fault, before), NAMED_SECONDS, f"{fault.reason} is told of")
        assert mentioned in change.message
        named_after[fault.name] = max(0.0, change.at - began)
        count = lab_node.agent.metric("nodediag_findings", type=fault.condition, reason=fault.reason)
        assert count is not None
        assert count >= 1
        told_of = {accused.type for accused in lab_node.agent.accusations(before)}
    wait_until(lab_node.agent.all_well, CLEARED_SECONDS, f"{fault.condition} clears")
    assert told_of | {accused.type for accused in lab_node.agent.accusations(before)} == {fault.condition}


def test_half_of_the_faults_are_named_within_10_s(
    named_after: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        print("\nseconds until each fault was named:")
        for name, seconds in sorted(named_after.items(), key=lambda item: item[1]):
            print(f"{seconds:5.1f}  {name}")
        print(f"median {median(named_after.values()):.1f}, slowest {max(named_after.values()):.1f}")
    assert set(named_after) == {fault.name for fault in FAULTS}
    assert median(named_after.values()) < 10


def test_metrics_answer_while_16018_zombies_are_scanned(lab_node: LabNode) -> None:
    fault = Fault("16,018 zombies", _zombies(16_018), ZOMBIES, "TooManyDefunctProcesses")
    before = time.time()
    with fault.make(lab_node) as parent:
        slowest = 0.0

        def told() -> bool:
            nonlocal slowest
            asked = time.monotonic()
            lab_node.agent.get("/metrics")
            slowest = max(slowest, time.monotonic() - asked)
            reasons = {a.reason for a in lab_node.agent.accusations(before)}
            return lab_node.agent.metric("nodediag_findings", type=ZOMBIES, reason=fault.reason) == 1 and bool(reasons)

        wait_until(told, NAMED_SECONDS, "too many zombies are told of")
        labels = {"pid": parent, "namespace": "shop", "pod": "zombie-maker"}
        assert lab_node.agent.metric("nodediag_defunct_processes_by_parent", **labels) == 16_018
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
