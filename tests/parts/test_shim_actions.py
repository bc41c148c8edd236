"""KillShim and ThawCgroup on a real containerd: what they mend, what they leave alone, and what they refuse."""

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from agent.acts import RefusalReason, RefusedError
from agent.detectors.containerd_shim import ContainerdShimDetector, ContainerdShimSettings
from agent.host.bundles import Bundles
from agent.host.cgroups import Cgroups
from agent.host.inventory import InventorySense
from agent.host.pods import Pods
from agent.host.procfs import Procfs
from agent.host.shims import ShimSense
from agent.model import Action, Finding, Target, TargetKind
from agent.remediation.actions.kill_shim import KillShim
from agent.remediation.actions.thaw_cgroup import ThawCgroup
from agent.remediation.remedy import Remedy, Verification
from agent.remediation.systemd import Systemd
from tests.detections import record_outcome
from tests.lab import cgroups as lab_cgroups
from tests.lab import shim_faults
from tests.lab.containerd import Containerd
from tests.lab.containers import run_container, run_pod
from tests.lab.cri_pods import cri_pod
from tests.lab.pods import Container
from tests.lab.processes import Process, has_ended, send_signal, stat_of
from tests.lab.shim_ping import connect_answers
from tests.lab.versions import is_at_least
from tests.lab.waiting import wait_until
from tests.unit.builders import RealClock
from tests.unit.remediation.sleepers import TREES, freeze

PROCFS, CGROUPS, CLOCK = Procfs("/proc"), Cgroups("/sys"), RealClock()
NAMESPACES = ("k8s.io",)
QUICK = ContainerdShimSettings(ping_seconds=0.3, hung_seconds=1, stuck_seconds=1, leak_seconds=1)


@dataclass
class Node:
    """A containerd with a pod nobody may touch, and the remedies as the agent would build them."""

    containerd: Containerd
    neighbour: Container

    def inventory(self) -> InventorySense:
        bundles = Bundles(str(self.containerd.state_dir), NAMESPACES)
        return InventorySense(bundles, PROCFS, Pods(bundles, PROCFS), NAMESPACES)

    def kill_shim(self) -> KillShim:
        return KillShim(self.inventory(), PROCFS, CGROUPS, CLOCK, sysfs="/sys", probe_seconds=1)

    def thaw_cgroup(self, sysfs: str = "/sys") -> ThawCgroup:
        bundles = Bundles(str(self.containerd.state_dir), NAMESPACES)
        systemd = Systemd("/nonexistent/bus", CLOCK)
        return ThawCgroup(PROCFS, CGROUPS, bundles, CLOCK, sysfs=sysfs, systemd=systemd, namespaces=NAMESPACES)

    def finding(self, reason: str, container: Container) -> Finding:
        """What the detector itself says of the container's shim, once it says so."""
        detector = ContainerdShimDetector(
            QUICK, self.inventory(), ShimSense(CLOCK), PROCFS, CGROUPS, lambda: None, CLOCK, expected=True
        )

        def named() -> Finding | None:
            found = detector.check(detector.probe()).findings
            return next((f for f in found if f.reason == reason and f.target.pid == container.shim_pid), None)

        return wait_until(named, 15, f"{reason} of shim {container.shim_pid}")


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Containerd(cri=True) as containerd:
        yield Node(containerd, run_container(containerd, name="neighbour"))


@pytest.fixture(autouse=True)
def _the_neighbour_is_left_alone(node: Node) -> Iterator[None]:
    yield
    neighbour = node.neighbour
    assert stat_of(neighbour.shim) is not None
    assert stat_of(neighbour.init) is not None
    assert connect_answers(neighbour.shim_socket, neighbour.id)


@contextmanager
def pod(node: Node, *argv: str) -> Iterator[Container]:
    """A pod of one container; whatever a test leaves of it is removed."""
    container = run_container(node.containerd, argv=argv or ("/bin/sleep", "1000"))
    try:
        yield container
    finally:
        shim_faults.bury(node.containerd, container)


def mend(remedy: Remedy, finding: Finding) -> tuple[str, Verification, dict[str, Any]]:
    """Do what the engine does with a finding, and return what was done, what came of it, and the evidence."""
    with remedy.confirm(finding.target, finding) as case:
        evidence = json.loads(json.dumps(dict(case.evidence())))
        done = case.perform()
        return done, case.verify(), evidence


def refusal(remedy: Remedy, finding: Finding) -> tuple[RefusalReason, str]:
    with pytest.raises(RefusedError) as raised, remedy.confirm(finding.target, finding):
        pass
    return raised.value.refusal.reason, raised.value.refusal.message


def by_hand(container: Container, reason: str, **values: Any) -> Finding:
    """A finding as if the detector had made it."""
    target = Target(
        TargetKind.SHIM,
        pid=container.shim_pid,
        start_time=container.shim.start_time,
        container_id=container.id,
        containerd_namespace=container.namespace,
        address=str(container.shim_socket),
    )
    condition = "ContainerdShimLeaked" if reason == "ShimWithoutContainers" else "ContainerdShimHung"
    return Finding(condition, reason, "", Action.KILL_SHIM, target, values={"containerIds": (container.id,), **values})


def assert_gone(*processes: Process) -> None:
    assert [process.pid for process in processes if not has_ended(process)] == []


class TestKillShim:
    def test_a_stopped_shim_dies_with_its_pod_and_containerd_cleans_up(self, node: Node) -> None:
        with pod(node, "/bin/sh", "-c", "sleep 1000 & sleep 1000 & wait") as web, shim_faults.stopped_shim(web):
            inside = wait_until(lambda: _members(web, 3), 5, "three processes in the container")
            finding = node.finding("ShimUnresponsive", web)
            assert finding.recommended_action is Action.KILL_SHIM
            done, verification, evidence = mend(node.kill_shim(), finding)
            assert_gone(web.shim, *inside)
            assert done.startswith(f"shim {web.shim_pid} was killed")
            assert verification.helped is True
            assert verification.message.endswith(
                "3 process(es) of its containers have ended; containerd has removed its bundles"
            )
            assert not web.bundle.exists()
            assert evidence["shim"]["stat"].startswith(f"{web.shim_pid} (containerd-shim) T")
            assert {process["pid"] for process in evidence["processes"]} == {process.pid for process in inside}
            assert evidence["bundles"][0]["initPid"] == web.init_pid

    def test_a_stuck_shim_dies_with_its_pod(self, node: Node) -> None:
        with shim_faults.stuck_state(node.containerd) as stuck:
            finding = node.finding("ShimOperationStuck", stuck)
            _, verification, _ = mend(node.kill_shim(), finding)
            assert_gone(stuck.shim, stuck.init)
            assert verification.helped is True

    @pytest.mark.parametrize("version", [tree.version for tree in TREES])
    def test_a_frozen_shim_dies_although_a_kill_waits_for_the_thaw(self, node: Node, version: int) -> None:
        with pod(node) as cold, shim_faults.frozen_shim(cold, version):
            finding = node.finding("ShimUnresponsive", cold)
            _, verification, evidence = mend(node.kill_shim(), finding)
            assert_gone(cold.shim, cold.init)
            assert verification.helped is True
            assert evidence["shim"]["frozenCgroup"] == finding.values["frozenCgroup"] != ""

    def test_what_containerd_leaves_running_is_ended_by_us(self, node: Node) -> None:
        argv = ("/bin/sh", "-c", "trap '' TERM; sleep 1000 & while true; do sleep 0.05; done")
        with pod(node, *argv) as web, shim_faults.stopped_shim(web):
            inside = wait_until(lambda: _members(web, 2), 5, "the container's processes")
            finding = node.finding("ShimUnresponsive", web)
            node.containerd.pause()
            try:
                done, verification, _ = mend(node.kill_shim(), finding)
            finally:
                node.containerd.resume()
            assert done.startswith(f"shim {web.shim_pid} was killed, and then ")
            assert str(web.init_pid) in done
            assert_gone(web.shim, web.init, *inside)
            assert verification.helped is True
            assert "containerd has not removed 1 bundle(s) yet" in verification.message

    def test_no_container_of_a_cri_pod_outlives_its_shim(self, node: Node) -> None:
        """On 2.x they do unless they are ended (containerd#10727, see `tests.lab.survivors`)."""
        with cri_pod(node.containerd, ("app", "side")) as containers, shim_faults.stopped_shim(containers[0]):
            finding = node.finding("ShimUnresponsive", containers[0])
            _, verification, evidence = mend(node.kill_shim(), finding)
            assert_gone(containers[0].shim, *(container.init for container in containers))
            assert verification.helped is True
            assert {container.id for container in containers} < set(evidence["containers"])
        if is_at_least(2):
            record_outcome("KillShim", "shim killed, containers live on", "lab", "verified")

    def test_what_is_left_frozen_is_ended_too(self, node: Node) -> None:
        with pod(node) as web, shim_faults.stopped_shim(web):
            finding = node.finding("ShimUnresponsive", web)
            freeze(TREES[0], web.cgroup)
            node.containerd.pause()
            try:
                _, verification, _ = mend(node.kill_shim(), finding)
            finally:
                node.containerd.resume()
            assert_gone(web.shim, web.init)
            assert verification.helped is True

    def test_all_containers_of_a_pod_end_with_their_common_shim(self, node: Node) -> None:
        containers = run_pod(node.containerd)
        try:
            with shim_faults.stopped_shim(containers[0]):
                finding = node.finding("ShimUnresponsive", containers[0])
                node.containerd.pause()
                try:
                    _, verification, evidence = mend(node.kill_shim(), finding)
                finally:
                    node.containerd.resume()
                assert_gone(*(container.init for container in containers), containers[0].shim)
                assert set(evidence["containers"]) == {container.id for container in containers}
                assert verification.helped is True
        finally:
            for container in containers:
                shim_faults.bury(node.containerd, container)

    def test_an_orphaned_shim_ends_with_the_processes_nobody_knows_any_more(self, node: Node) -> None:
        container = run_container(node.containerd)
        with shim_faults.orphaned_shim(node.containerd, container, keep_processes=True):
            finding = node.finding("ShimWithoutContainers", container)
            _, verification, _ = mend(node.kill_shim(), finding)
            assert_gone(container.shim, container.init)
            assert verification.helped is True
            assert verification.message.endswith("it had no bundle")

    def test_a_shim_whose_containers_have_exited_is_ended(self, node: Node) -> None:
        container = run_container(node.containerd)
        with shim_faults.shim_without_live_container(node.containerd, container):
            finding = node.finding("ShimWithoutContainers", container)
            _, verification, _ = mend(node.kill_shim(), finding)
            assert_gone(container.shim)
            assert verification.helped is True

    @pytest.mark.parametrize("reason", ["ShimUnresponsive", "ShimOperationStuck", "ShimWithoutContainers"])
    def test_a_healthy_shim_is_never_killed_whatever_was_found(self, node: Node, reason: str) -> None:
        finding = by_hand(node.neighbour, reason, stuckContainerIds=(node.neighbour.id,))
        assert refusal(node.kill_shim(), finding)[0] is RefusalReason.NOT_CONFIRMED

    def test_a_shim_that_recovers_after_it_was_confirmed_is_not_killed(self, node: Node) -> None:
        with pod(node) as web:
            send_signal(web.shim, signal.SIGSTOP)
            remedy, finding = node.kill_shim(), by_hand(web, "ShimUnresponsive")
            with remedy.confirm(finding.target, finding) as case:
                send_signal(web.shim, signal.SIGCONT)
                wait_until(lambda: connect_answers(web.shim_socket, web.id), 5, "the continued shim's answer")
                with pytest.raises(Exception, match="nothing was done: the shim answers again"):
                    case.perform()
            assert stat_of(web.shim) is not None
            assert stat_of(web.init) is not None

    def test_a_pid_that_was_reused_is_refused(self, node: Node) -> None:
        finding = by_hand(node.neighbour, "ShimUnresponsive")
        other = replace(finding.target, start_time=node.neighbour.shim.start_time - 1)
        assert refusal(node.kill_shim(), replace(finding, target=other))[0] is RefusalReason.TARGET_CHANGED

    def test_the_shim_of_another_container_is_refused(self, node: Node) -> None:
        with pod(node) as other:
            finding = by_hand(other, "ShimUnresponsive")
            mixed = replace(finding.target, pid=node.neighbour.shim_pid, start_time=node.neighbour.shim.start_time)
            reason, message = refusal(node.kill_shim(), replace(finding, target=mixed))
            assert reason is RefusalReason.TARGET_CHANGED
            assert f"is served by shim {other.shim_pid}" in message

    def test_a_process_that_is_no_shim_is_refused(self, node: Node) -> None:
        finding = by_hand(node.neighbour, "ShimUnresponsive")
        init = node.neighbour.init
        reason, _ = refusal(
            node.kill_shim(),
            replace(finding, target=replace(finding.target, pid=init.pid, start_time=init.start_time)),
        )
        assert reason is RefusalReason.PROTECTED_PROCESS

    def test_a_shim_that_creates_a_container_is_left_in_peace(self, node: Node) -> None:
        with pod(node) as web, shim_faults.stopped_shim(web):
            finding = node.finding("ShimUnresponsive", web)
            (web.bundle / "init.pid").unlink()
            reason, message = refusal(node.kill_shim(), finding)
            assert reason is RefusalReason.UNSAFE_NOW
            assert "is being created" in message

    def test_a_container_of_another_shim_is_not_ended_with_this_one(self, node: Node) -> None:
        with pod(node) as web, shim_faults.stopped_shim(web):
            finding = by_hand(web, "ShimUnresponsive", containerIds=(web.id, node.neighbour.id))
            reason, message = refusal(node.kill_shim(), finding)
            assert reason is RefusalReason.UNSAFE_NOW
            assert f"container {node.neighbour.id[:12]} has a bundle that is not this shim's" in message


class TestThawCgroup:
    @pytest.mark.parametrize("version", [tree.version for tree in TREES])
    def test_a_frozen_shim_goes_on_with_its_pod_untouched(self, node: Node, version: int) -> None:
        with pod(node) as cold, shim_faults.frozen_shim(cold, version):
            finding = node.finding("ShimUnresponsive", cold)
            assert finding.recommended_action is Action.THAW_CGROUP
            done, verification, evidence = mend(node.thaw_cgroup(), finding)
            assert done == f"cgroup {finding.values['frozenCgroup']} was thawed"
            assert verification == Verification(True, f"shim {cold.shim_pid} is thawed and answers Connect")
            assert connect_answers(cold.shim_socket, cold.id)
            assert stat_of(cold.init) is not None
            assert evidence["frozenProcesses"] == 1

    def test_a_frozen_orphan_is_thawed_without_a_bundle_to_ask_it_by(self, node: Node) -> None:
        container = run_container(node.containerd)
        with (
            shim_faults.orphaned_shim(node.containerd, container),
            shim_faults.frozen_shim(container),
        ):
            finding = node.finding("ShimWithoutContainers", container)
            assert finding.recommended_action is Action.THAW_CGROUP
            assert mend(node.thaw_cgroup(), finding)[1].helped is True

    def test_a_process_frozen_by_its_pods_cgroup_is_thawed_there(self, node: Node) -> None:
        with pod(node) as web:
            freeze(TREES[0], web.pod.cgroup)
            wait_until(lambda: CGROUPS.frozen(PROCFS.cgroups(web.init_pid)), 5, "the pod frozen")
            done, verification, _ = mend(node.thaw_cgroup(), _process_finding(web, frozenCgroup=web.pod.cgroup))
            assert done == f"cgroup {web.pod.cgroup} was thawed"
            assert verification.helped is True
            assert CGROUPS.frozen(PROCFS.cgroups(web.init_pid)) == ""

    def test_a_container_that_containerd_paused_is_left_paused(self, node: Node) -> None:
        with pod(node) as web:
            node.containerd.ctr("tasks", "pause", web.id)
            try:
                reason, message = refusal(node.thaw_cgroup(), _process_finding(web))
                assert reason is RefusalReason.UNSAFE_NOW
                assert "its shim says it is PAUSED" in message
                assert CGROUPS.frozen(PROCFS.cgroups(web.init_pid)) == web.cgroup
            finally:
                node.containerd.ctr("tasks", "resume", web.id)

    def test_what_is_not_frozen_is_refused(self, node: Node) -> None:
        assert refusal(node.thaw_cgroup(), _process_finding(node.neighbour))[0] is RefusalReason.NOT_CONFIRMED
        shim = by_hand(node.neighbour, "ShimUnresponsive")
        assert refusal(node.thaw_cgroup(), shim)[0] is RefusalReason.NOT_CONFIRMED

    def test_another_cgroup_than_the_finding_names_is_refused(self, node: Node) -> None:
        with pod(node) as cold, shim_faults.frozen_shim(cold):
            finding = by_hand(cold, "ShimUnresponsive", frozenCgroup="/elsewhere")
            assert refusal(node.thaw_cgroup(), finding)[0] is RefusalReason.TARGET_CHANGED
            assert CGROUPS.frozen(PROCFS.cgroups(cold.shim_pid))

    def test_a_sysfs_that_is_mounted_read_only_is_told_before_the_act(self, node: Node, tmp_path: Path) -> None:
        tree = TREES[0]
        with pod(node) as cold, shim_faults.frozen_shim(cold, tree.version), _read_only_sysfs(tmp_path) as sysfs:
            finding = by_hand(cold, "ShimUnresponsive")
            reason, message = refusal(node.thaw_cgroup(sysfs), finding)
            assert reason is RefusalReason.CANNOT_SEE
            assert "mount /sys/fs/cgroup writable" in message
            if tree.version == 1:  # there a kill waits for the thaw
                killer = KillShim(node.inventory(), PROCFS, CGROUPS, CLOCK, sysfs=sysfs, probe_seconds=1)
                reason, message = refusal(killer, finding)
                assert reason is RefusalReason.CANNOT_SEE
                assert "mount /sys/fs/cgroup writable" in message


def _process_finding(container: Container, **values: Any) -> Finding:
    target = Target(TargetKind.PROCESS, pid=container.init_pid, start_time=container.init.start_time)
    return Finding("ExcessiveDefunctProcesses", "ParentNotReaping", "", Action.THAW_CGROUP, target, values=values)


def _members(container: Container, count: int) -> list[Process] | None:
    members = lab_cgroups.member_processes(container.cgroup)
    return members if len(members) >= count else None


@contextmanager
def _read_only_sysfs(folder: Path) -> Iterator[str]:
    with ExitStack() as mounts:
        for tree in TREES:
            target = folder / str(tree.mount).lstrip("/")
            target.mkdir(parents=True)
            subprocess.run(["mount", "--bind", str(tree.mount), str(target)], check=True)
            mounts.callback(subprocess.run, ["umount", str(target)], check=True)
            subprocess.run(["mount", "-o", "remount,ro,bind", str(target)], check=True)
        yield str(folder / "sys")
