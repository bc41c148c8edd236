"""containerd and the kubelet as units of a real systemd."""

import time

import pytest

from tests.detections import record, record_outcome
from tests.vm.node import Node

RUNTIME, KUBELET = "ContainerRuntimeUnresponsive", "KubeletHealthzFailing"


@pytest.mark.parametrize(
    ("unit", "condition", "action"),
    [("containerd", RUNTIME, "RestartContainerd"), ("kubelet", KUBELET, "RestartKubelet")],
)
def test_a_stopped_service_is_restarted_by_systemd_on_request(
    node: Node, unit: str, condition: str, action: str
) -> None:
    before = node.main_pid(unit)
    node.output(f"kill -STOP {before}")
    began = time.monotonic()
    assert node.found(condition)["recommendedAction"] == action
    record(f"{unit} stopped", "VM", time.monotonic() - began, facts=node.facts)
    done = node.remediate(action, unit)
    assert done.code == 0, done.output
    record_outcome(action, f"{unit} stopped", "VM", "verified", facts=node.facts)
    assert node.main_pid(unit) not in {0, before}
    assert not node.lives(before)
    assert all(node.lives(pid) for pod in node.pods for pid in (pod.shim, pod.pid))
    node.wait_until_well()


def test_a_kubelet_ended_by_systemctl_is_reported_and_started_on_request(node: Node) -> None:
    node.output("systemctl stop kubelet")
    began = time.monotonic()
    found = node.found(KUBELET)
    record("kubelet killed", "VM", time.monotonic() - began, facts=node.facts)
    assert (found["reason"], found["recommendedAction"]) == ("HealthzRefused", "RestartKubelet")
    assert "kubelet.service" in found["message"]
    done = node.remediate("RestartKubelet", "kubelet")
    assert done.code == 0, done.output
    record_outcome("RestartKubelet", "kubelet killed", "VM", "verified", facts=node.facts)
    assert node.main_pid("kubelet") > 0
    node.wait_until_well()


@pytest.mark.parametrize(("forbid", "word"), [("mask", "masked"), ("disable", "disabled")])
def test_an_ended_kubelet_that_an_administrator_forbids_is_not_started(node: Node, forbid: str, word: str) -> None:
    node.output(f"systemctl stop kubelet && systemctl {forbid} kubelet")
    node.found(KUBELET)
    done = node.remediate("RestartKubelet", "kubelet")
    assert done.code == 2, done.output
    assert word in done.output
    assert node.main_pid("kubelet") == 0


def test_containerd_ended_by_systemctl_is_reported_and_started_on_request(node: Node) -> None:
    node.output("systemctl stop containerd")
    began = time.monotonic()
    found = node.found(RUNTIME)
    record("containerd killed", "VM", time.monotonic() - began, facts=node.facts)
    assert (found["reason"], found["recommendedAction"]) == ("RuntimeRefused", "RestartContainerd")
    done = node.remediate("RestartContainerd", "containerd")
    assert done.code == 0, done.output
    record_outcome("RestartContainerd", "containerd killed", "VM", "verified", facts=node.facts)
    assert all(node.lives(pid) for pod in node.pods for pid in (pod.shim, pod.pid))
    node.wait_until_well()


def test_a_used_up_start_limit_does_not_leave_the_node_without_a_kubelet(node: Node) -> None:
    node.drop_in("kubelet", "[Unit]", "StartLimitIntervalSec=3600", "StartLimitBurst=1")
    node.output("systemctl reset-failed kubelet; systemctl restart kubelet")
    node.output("until (exec 3<>/dev/tcp/127.0.0.1/10248) 2>/dev/null; do sleep 0.2; done")
    before = node.main_pid("kubelet")
    node.output(f"kill -STOP {before}")
    node.found(KUBELET, lambda finding: finding["target"].get("pid") == before)
    done = node.remediate("RestartKubelet", "kubelet")
    assert done.code == 0, done.output
    assert node.main_pid("kubelet") not in {0, before}
    node.wait_until_well()


@pytest.mark.parametrize(
    ("lines", "result"),
    [
        (
            ["ExecStart=", 'ExecStart=/bin/sh -c "test -e /run/broken || exec python3 /opt/guest/kubelet.py"'],
            "start-limit-hit",
        ),
        (["ExecStartPre=/usr/bin/test ! -e /run/broken"], "exit-code, although Restart=always"),
    ],
    ids=["well", "with an error"],
)
def test_a_kubelet_that_ends_again_and_again_is_reported_with_its_start_limit(
    node: Node, lines: list[str], result: str
) -> None:
    limits = ["[Unit]", "StartLimitIntervalSec=3600", "StartLimitBurst=2", "[Service]", "RestartSec=0"]
    node.drop_in("kubelet", *limits, *lines)
    node.output(f"touch /run/broken; kill -STOP {node.main_pid('kubelet')}")
    node.found(KUBELET)
    done = node.remediate("RestartKubelet", "kubelet")
    assert done.code == 1, done.output
    message = " ".join(done.output.split())
    assert f"Result={result}: it was started too often" in message
    assert "systemctl reset-failed kubelet.service" in message


def test_a_unit_that_may_not_be_stopped_is_left_alone(node: Node) -> None:
    node.drop_in("kubelet", "[Unit]", "RefuseManualStop=yes")
    before = node.main_pid("kubelet")
    node.output(f"kill -STOP {before}")
    node.found(KUBELET)
    done = node.remediate("RestartKubelet", "kubelet")
    assert done.code == 2, done.output
    assert "kubelet.service has RefuseManualStop=yes" in " ".join(done.output.split())
    assert node.main_pid("kubelet") == before
    assert node.lives(before)


def test_containerd_whose_unit_does_not_spare_the_shims_is_not_restarted(node: Node) -> None:
    node.drop_in("containerd", "[Service]", "KillMode=mixed")
    before = node.main_pid("containerd")
    node.output(f"kill -STOP {before}")
    node.found(RUNTIME)
    done = node.remediate("RestartContainerd", "containerd")
    assert done.code == 2, done.output
    assert "KillMode" in done.output
    assert node.main_pid("containerd") == before
    assert all(node.lives(pod.shim) for pod in node.pods)


def test_a_frozen_containerd_is_thawed_by_systemd_and_not_restarted(node: Node) -> None:
    before = node.main_pid("containerd")
    node.output("systemctl freeze containerd")
    began = time.monotonic()
    found = node.found(RUNTIME)
    record("containerd frozen", "VM", time.monotonic() - began, facts=node.facts)
    assert found["recommendedAction"] == "ThawCgroup"
    assert "/system.slice/containerd.service" in found["message"]
    refused = node.remediate("RestartContainerd", "containerd")
    assert refused.code == 2, refused.output
    assert "ThawCgroup" in refused.output
    assert "KillShim" not in refused.output
    done = node.remediate("ThawCgroup", "containerd")
    assert done.code == 0, done.output
    record_outcome("ThawCgroup", "containerd frozen", "VM", "verified", facts=node.facts)
    assert node.unit("containerd", "FreezerState") == {"FreezerState": "running"}
    assert node.main_pid("containerd") == before
    assert all(node.lives(pid) for pod in node.pods for pid in (pod.shim, pod.pid))
    node.wait_until_well()
