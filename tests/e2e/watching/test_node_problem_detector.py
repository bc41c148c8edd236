"""As a custom plugin of node-problem-detector: its protocol, within its timeout, and a message that says something."""

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import LabNode, settings_for
from tests.e2e.custom_plugin import rules, run
from tests.lab import shim_faults
from tests.lab.kubelet_standin import KubeletMode

pytestmark = pytest.mark.lab


@pytest.fixture
def config(lab_node: LabNode, tmp_path: Path) -> Path:
    path = tmp_path / "nodediag.yaml"
    path.write_text(json.dumps(settings_for(lab_node.containerd, lab_node.kubelet, lab_node.dns)))
    return path


@pytest.mark.parametrize("detector", rules())
def test_every_rule_is_ok_on_a_healthy_node(detector: str, config: Path) -> None:
    result = run(rules()[detector], config)
    assert (result.status, result.printed.count("\n")) == ("OK", 1)


def test_a_hung_shim_and_its_pod_stand_in_the_bytes_that_are_kept(lab_node: LabNode, config: Path) -> None:
    pod = lab_node.pods[0]
    with shim_faults.stopped_shim(pod):
        result = run(rules()["containerd_shim"], config)
    name = f"{pod.pod_namespace}/{pod.pod_name}"
    assert result.status == "NonOK"
    assert result.message.startswith(f"ShimUnresponsive: shim {pod.shim_pid} of pod {name} has not answered")
    assert result.printed.count("\n") == 1


def test_a_silent_kubelet_is_named_before_the_plugin_is_killed(lab_node: LabNode, config: Path) -> None:
    lab_node.kubelet.set_mode(KubeletMode.NEVER)
    try:
        result = run(rules()["kubelet_healthz"], config)
    finally:
        lab_node.kubelet.set_mode(KubeletMode.HEALTHY)
    assert result.status == "NonOK"
    assert result.message.startswith("HealthzTimeout: the kubelet")


def test_what_cannot_be_seen_is_unknown_and_says_why(lab_node: LabNode, tmp_path: Path) -> None:
    assert lab_node.containerd.pid, "a containerd runs whose state directory is elsewhere"
    path = tmp_path / "nodediag.yaml"
    path.write_text(json.dumps({"containerd": {"state_dir": str(tmp_path / "nothing")}}))
    result = run(rules()["containerd_shim"], path)
    assert result.status == "Unknown"
    assert result.message.startswith("the agent's deployment is at fault: no containerd here")
