"""Zombies that use up the pids of their pod are reported before nothing can be started in it."""

import time

import pytest

from tests.detections import record
from tests.e2e.conftest import LabNode
from tests.e2e.faults import ZOMBIES
from tests.lab import zombies
from tests.lab.pods import Pod
from tests.lab.waiting import wait_until

LIMIT, BRED = 100, 90
NAMED_SECONDS, CLEARED_SECONDS = 15.0, 15.0

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]


def test_a_pod_whose_pids_are_used_up_by_zombies_is_named(lab_node: LabNode) -> None:
    before = time.time()
    pod = Pod(name="zombie-maker", namespace="shop", pids_limit=LIMIT)
    with zombies.zombies_under_container(lab_node.containerd, BRED, pod=pod):
        made = time.time()

        def told() -> float:
            reported = (each for each in lab_node.agent.accusations(before) if each.reason == "PidExhaustionAhead")
            return next((each.at for each in reported if "shop/zombie-maker" in each.message), 0.0)

        at = wait_until(told, NAMED_SECONDS, "the pod is reported")
        record("zombies use up the pids of a pod", "lab", max(0.0, at - made))
    wait_until(lab_node.agent.all_well, CLEARED_SECONDS, "the zombies are gone")
    assert {each.type for each in lab_node.agent.accusations(before)} == {ZOMBIES}
