"""Units of a real systemd: frozen by it or behind its back, gone, removed, and beside a bus that is not there."""

import pytest

from tests.lab.waiting import wait_until
from tests.vm.machine import Done
from tests.vm.node import FOUND_SECONDS, Node

RUNTIME, KUBELET, HUNG, ZOMBIES = (
    "ContainerRuntimeUnresponsive",
    "KubeletHealthzFailing",
    "ContainerdShimHung",
    "ExcessiveDefunctProcesses",
)
SLICE = "/sys/fs/cgroup/system.slice"
REFUSED = 2


def freezer(node: Node, unit: str) -> tuple[str, bool]:
    """What systemd takes a unit for, and whether its cgroup is frozen."""
    cgroup = node.unit(unit, "ControlGroup")["ControlGroup"]
    events = node.output(f"cat /sys/fs/cgroup{cgroup}/cgroup.events")
    return node.unit(unit, "FreezerState")["FreezerState"], "frozen 1" in events.splitlines()


def flat(done: Done) -> str:
    """What was printed, without the line breaks at the terminal's width."""
    return " ".join(done.output.split())


def test_a_kubelet_frozen_by_systemd_is_thawed_by_systemd(node: Node) -> None:
    before = node.main_pid("kubelet")
    node.output("systemctl freeze kubelet")
    found = node.found(KUBELET)
    assert found["recommendedAction"] == "ThawCgroup"
    assert found["values"]["frozenCgroup"] == "/system.slice/kubelet.service"
    refused = node.remediate("RestartKubelet", "kubelet")
    assert (refused.code, "ThawCgroup --target kubelet" in flat(refused)) == (REFUSED, True), refused.output
    done = node.remediate("ThawCgroup", "kubelet")
    assert done.code == 0, done.output
    assert "systemd thawed kubelet.service" in flat(done)
    assert freezer(node, "kubelet") == ("running", False)
    assert node.main_pid("kubelet") == before
    node.wait_until_well()


def test_a_kubelet_frozen_behind_systemds_back_is_thawed_likewise(node: Node) -> None:
    node.output(f"echo 1 >{SLICE}/kubelet.service/cgroup.freeze")
    node.found(KUBELET)
    assert freezer(node, "kubelet") == ("running", True)
    done = node.remediate("ThawCgroup", "kubelet")
    assert done.code == 0, done.output
    assert "cgroup /system.slice/kubelet.service was thawed" in flat(done)
    assert freezer(node, "kubelet") == ("running", False)
    node.wait_until_well()


def test_the_shims_in_containerds_frozen_cgroup_are_to_be_thawed_and_not_killed(node: Node) -> None:
    node.output("systemctl freeze containerd")
    wait_until(lambda: len(node.findings(HUNG)) == len(node.pods), FOUND_SECONDS, "every shim is reported")
    assert {each["recommendedAction"] for each in node.findings(HUNG)} == {"ThawCgroup"}
    done = node.remediate("ThawCgroup", node.pods[0].shim)
    assert done.code == 0, done.output
    assert "systemd thawed containerd.service" in flat(done)
    assert freezer(node, "containerd") == ("running", False)
    node.wait_until_well()


NOT_REAPING = "'for n in $(seq 120); do sleep 1 & done; exec sleep 1000000'"


def test_a_pods_slice_that_systemd_froze_is_thawed_with_the_containers_scope(node: Node) -> None:
    maker = node.pod("maker", f"--argv /bin/sh -c {NOT_REAPING}")
    node.found(ZOMBIES, lambda finding: finding["target"].get("pid") == maker.pid)
    scope, slice_ = (node.output(f"basename {path}") for path in (maker.cgroup, f"$(dirname {maker.cgroup})"))
    node.output(f"systemctl freeze {slice_}")
    assert freezer(node, scope)[1], "the scope is frozen with its slice"
    frozen = node.found(ZOMBIES, lambda finding: finding["recommendedAction"] == "ThawCgroup")
    assert frozen["target"]["pid"] == maker.pid
    done = node.remediate("ThawCgroup", maker.pid)
    assert done.code == 0, done.output
    assert f"systemd thawed {slice_}" in flat(done)
    assert (freezer(node, slice_), freezer(node, scope)) == (("running", False), ("running", False))


def test_without_a_bus_the_thaw_says_what_stays_and_nothing_is_started(node: Node) -> None:
    node.output("systemctl freeze containerd")
    node.found(RUNTIME)
    node.output("mv /run/dbus/system_bus_socket /run/dbus/hidden")
    done = node.remediate("ThawCgroup", "containerd")
    assert done.code == 0, done.output
    assert "systemctl thaw containerd.service" in flat(done)
    assert "frozen 0" in node.output(f"cat {SLICE}/containerd.service/cgroup.events")
    node.wait_until_well()
    node.output("mv /run/dbus/hidden /run/dbus/system_bus_socket; systemctl stop kubelet")
    node.found(KUBELET)
    node.output("mv /run/dbus/system_bus_socket /run/dbus/hidden")
    refused = node.remediate("RestartKubelet", "kubelet")
    assert refused.code == REFUSED, refused.output
    assert "systemctl start kubelet.service" in flat(refused)


def test_containerd_whose_start_limit_is_used_up_is_restarted_and_its_shims_live(node: Node) -> None:
    node.drop_in("containerd", "[Unit]", "StartLimitIntervalSec=3600", "StartLimitBurst=1")
    node.output("systemctl reset-failed containerd; systemctl restart containerd")
    before = node.main_pid("containerd")
    node.output(f"kill -STOP {before}")
    assert node.found(RUNTIME)["values"]["processState"] == "T"
    done = node.remediate("RestartContainerd", "containerd")
    assert done.code == 0, done.output
    assert node.main_pid("containerd") not in {0, before}
    assert all(node.lives(pod.shim) for pod in node.pods)
    node.wait_until_well()


@pytest.mark.parametrize(("unit", "condition"), [("kubelet", KUBELET), ("containerd", RUNTIME)])
def test_what_was_there_and_is_gone_is_a_fault_until_it_is_removed(node: Node, unit: str, condition: str) -> None:
    for pod in node.pods:
        node.output(f"ctr -n k8s.io tasks kill -s KILL {pod.container}")
        node.output(f"until ctr -n k8s.io tasks rm {pod.container}; do :; done")
    node.output(f"systemctl stop {unit}")
    assert node.found(condition)["reason"] in {"HealthzRefused", "RuntimeRefused"}
    node.output(f"rm -f $(systemctl show -P FragmentPath {unit}) && systemctl daemon-reload")
    wait_until(lambda: condition not in node.statuses(), FOUND_SECONDS, f"{condition} is gone with its unit")


def test_a_restarted_agent_finds_the_kubelet_that_ended_by_what_it_left(node: Node) -> None:
    """It has not seen the unit, so it recommends nothing, and says how to find it."""
    node.output("mkdir -p /var/lib/kubelet/pki && echo x >/var/lib/kubelet/pki/kubelet.crt")
    node.output("systemctl stop kubelet && systemctl restart nodediag reports")
    found = node.found(KUBELET)
    assert found["recommendedAction"] == "None"
    assert "pid" not in found["target"]
    assert "systemctl list-unit-files '*kubelet*'" in found["message"]
    node.output("rm -r /var/lib/kubelet/pki && systemctl restart nodediag")
    wait_until(
        lambda: (seen := node.statuses()) and KUBELET not in seen, FOUND_SECONDS, "an empty folder is no kubelet"
    )


def test_a_unit_that_systemd_starts_again_by_itself_is_left_to_it(node: Node) -> None:
    node.drop_in("kubelet", "[Service]", "RestartSec=600")
    node.output(f"kill -KILL {node.main_pid('kubelet')}")
    node.found(KUBELET)
    done = node.remediate("RestartKubelet", "kubelet")
    assert (done.code, "SubState=auto-restart" in flat(done)) == (REFUSED, True), done.output
