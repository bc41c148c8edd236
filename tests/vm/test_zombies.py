"""Zombies below a pod's first process, and below a service."""

import time

from tests.detections import record, record_outcome
from tests.vm.node import Node

ZOMBIES = "ExcessiveDefunctProcesses"
COUNT = 120
NOT_REAPING = f"/bin/sh -c 'for n in $(seq {COUNT}); do sleep 1 & done; exec sleep 1000000'"
"""A shell starts children and becomes a program that does not wait for them."""


def test_the_parent_of_zombies_in_a_pod_is_killed_on_request(node: Node) -> None:
    began = time.monotonic()
    maker = node.pod("maker", f"--argv {NOT_REAPING}")
    found = node.found(ZOMBIES, lambda finding: finding["target"].get("pid") == maker.pid)
    record("zombies of a parent that does not reap", "VM", time.monotonic() - began, facts=node.facts)
    assert found["pod"]["name"] == "maker"
    done = node.remediate("KillParent", maker.pid)
    assert done.code == 0, done.output
    record_outcome("KillParent", "zombies of a parent that does not reap", "VM", "verified", facts=node.facts)
    assert not node.lives(maker.pid)
    assert all(node.lives(pod.pid) for pod in node.pods)
    node.wait_until_well()


def test_pids_of_a_service_are_compared_with_the_tasks_max_of_its_unit(node: Node) -> None:
    node.output(f"systemd-run --quiet --unit backup --property TasksMax={COUNT + 10} {NOT_REAPING}")
    found = node.found(ZOMBIES, lambda finding: finding["values"].get("unit") == "backup.service")
    assert found["pod"] is None
    assert found["values"]["unitTasksMax"] == COUNT + 10
    assert found["values"]["unitTasks"] == COUNT + 1
    assert "podPidsMax" not in found["values"]
    printed = node.nodediag("report").output
    assert "backup.service" in printed
    assert "pod pids" not in printed
