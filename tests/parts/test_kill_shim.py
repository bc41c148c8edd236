"""When KillShim refuses, what it does when the shim or its containers will not die, and what it says of it.

The shims here are real processes of that name with real sockets, which hang or answer as told; what only a real
containerd can show is in tests/parts/test_shim_actions.py.
"""

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.acts import Refusal, RefusalReason, RefusedError
from agent.host.bundles import Bundles
from agent.host.cgroups import Cgroups
from agent.host.inventory import InventorySense
from agent.host.pods import Pods
from agent.host.procfs import Procfs
from agent.model import Action, Finding, Target, TargetKind, Value
from agent.remediation.actions import kill_shim
from agent.remediation.actions.kill_shim import KillShim
from agent.remediation.container_processes import ContainerProcesses
from agent.remediation.hands import Grip
from agent.remediation.remedy import ActError
from tests.lab.cgroups import Hierarchy
from tests.lab.waiting import wait_until
from tests.unit.builders import (
    RUNNING,
    STOPPED,
    UNREAL_PID,
    WEB,
    FakeProc,
    RealClock,
    ShimServer,
    StateDir,
    container_id,
    kubepods,
)
from tests.unit.remediation.sleepers import TREES, V1_ALONE, Grove, freeze, grove

ID, SECOND, OTHER = (container_id(number) for number in (1, 2, 3))
INIT, CHILD = UNREAL_PID, UNREAL_PID + 1
SILENT: frozenset[str] = frozenset()
UNRESPONSIVE, STUCK, WITHOUT = "ShimUnresponsive", "ShimOperationStuck", "ShimWithoutContainers"


@dataclass
class Stage:
    """A state directory, a process called containerd-shim that stands in its bundle, and its socket."""

    folder: Path
    procfs: Procfs = field(default_factory=lambda: Procfs("/proc"))
    namespaces: tuple[str, ...] = ("k8s.io",)
    children: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.state = StateDir(self.folder / "state")
        self.address = self.folder / "s"
        self.state.add(ID, address=str(self.address), init_pid=INIT)
        self.shim = self.start("containerd-shim", self.state.path(ID))

    def start(self, name: str, cwd: Path) -> "subprocess.Popen[bytes]":
        """Start a sleeper of this name there."""
        binary = self.folder / name
        if not binary.exists():
            shutil.copy(str(shutil.which("sleep")), binary)
        child = subprocess.Popen([str(binary), "1000"], cwd=cwd)
        self.children.append(child)
        wait_until(lambda: _comm(child.pid) == name, 5, f"a process called {name}")
        return child

    def serve(self, answers: frozenset[str], **options: Any) -> ShimServer:
        """Listen where the bundle says."""
        return ShimServer(self.address, answers, **options)

    def remedy(self, probe_seconds: float = 0.2) -> KillShim:
        bundles = Bundles(str(self.state.root), self.namespaces)
        inventory = InventorySense(bundles, self.procfs, Pods(bundles, self.procfs), self.namespaces)
        return KillShim(
            inventory,
            self.procfs,
            Cgroups("/sys"),
            RealClock(),
            sysfs="/sys",
            probe_seconds=probe_seconds,
        )

    def finding(self, reason: str = UNRESPONSIVE, container: str = ID, **values: Value) -> Finding:
        process = self.procfs.process(self.shim.pid)
        assert process is not None
        target = Target(
            TargetKind.SHIM,
            pid=process.pid,
            start_time=process.start_time,
            container_id=container,
            containerd_namespace="k8s.io",
            address=str(self.address),
        )
        return Finding("ContainerdShimHung", reason, "", Action.KILL_SHIM, target, WEB, values)

    def refusal(self, finding: Finding | None = None) -> Refusal:
        finding = finding or self.finding()
        with pytest.raises(RefusedError) as raised, self.remedy().confirm(finding.target, finding):
            pass
        assert self.shim.poll() is None
        return raised.value.refusal

    def close(self) -> None:
        for child in self.children:
            child.kill()
            child.wait(10)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends is awaited as long as in the product; what does not end sets its own short limit."""
    for name in ("LAST_LOOK_SECONDS", "BUNDLE_SECONDS", "PROMPT_DEATH_SECONDS"):
        monkeypatch.setattr(kill_shim, name, 0.2)


def _comm(pid: int) -> str:
    process = Procfs("/proc").process(pid)
    return process.comm if process else ""


class TestWhatIsConfirmed:
    def test_a_silent_shim_is_killed_and_what_was_seen_is_told(self, stage: Stage) -> None:
        stage.serve(SILENT)
        finding = stage.finding()
        with stage.remedy().confirm(finding.target, finding) as case:
            assert case.message.startswith(f"shim {stage.shim.pid} (pod shop/web-0): it has not answered Connect for ")
            evidence = json.loads(json.dumps(dict(case.evidence())))
            assert case.perform() == f"shim {stage.shim.pid} was killed; no process of its containers was left"
            verification = case.verify()
        assert stage.shim.wait(5) == -signal.SIGKILL
        assert verification.helped is True
        assert "containerd has not removed 1 bundle(s) yet" in verification.message
        assert evidence["containers"] == [ID]
        assert evidence["bundles"][0]["address"] == str(stage.address)
        assert "(containerd-shim)" in evidence["shim"]["stat"]

    def test_a_stuck_operation_is_confirmed_by_the_stuck_container_alone(self, stage: Stage) -> None:
        stage.serve(frozenset({"Connect"}))
        finding = stage.finding(STUCK, stuckContainerIds=(ID,))
        with stage.remedy().confirm(finding.target, finding) as case:
            assert f"State of container {ID[:12]} not for " in case.message

    def test_a_shim_whose_containers_have_all_stopped_is_confirmed(self, stage: Stage) -> None:
        stage.serve(frozenset({"Connect", "State"}), statuses={ID: STOPPED})
        finding = stage.finding(WITHOUT)
        with stage.remedy().confirm(finding.target, finding) as case:
            assert "all its 1 container(s) have exited" in case.message

    def test_a_shim_whose_bundle_is_gone_is_confirmed_without_asking_it(self, stage: Stage) -> None:
        stage.state.remove(ID)
        finding = stage.finding(WITHOUT)
        with stage.remedy().confirm(finding.target, finding) as case:
            assert case.message.endswith("it runs on although its bundle is gone")


class TestWhatIsRefused:
    @pytest.mark.parametrize("reason", [UNRESPONSIVE, STUCK, WITHOUT])
    def test_a_shim_that_answers(self, stage: Stage, reason: str) -> None:
        stage.serve(frozenset({"Connect", "State"}), statuses={ID: RUNNING})
        refusal = stage.refusal(stage.finding(reason, stuckContainerIds=(ID,)))
        assert refusal.reason is RefusalReason.NOT_CONFIRMED

    def test_a_stuck_finding_whose_shim_is_silent_altogether(self, stage: Stage) -> None:
        stage.serve(SILENT)
        refusal = stage.refusal(stage.finding(STUCK, stuckContainerIds=(ID,)))
        assert (refusal.reason, "more is wrong" in refusal.message) == (RefusalReason.NOT_CONFIRMED, True)

    def test_a_container_that_was_not_stuck_does_not_stand_for_the_one_that_was(self, stage: Stage) -> None:
        stage.serve(frozenset({"Connect"}))
        assert stage.refusal(stage.finding(STUCK, stuckContainerIds=(OTHER,))).reason is RefusalReason.NOT_CONFIRMED
        assert stage.refusal(stage.finding(STUCK)).reason is RefusalReason.NOT_CONFIRMED

    def test_one_container_that_runs_keeps_a_shim(self, stage: Stage) -> None:
        stage.state.add(SECOND, address=str(stage.address), init_pid=INIT, sandbox_id=ID)
        stage.serve(frozenset({"Connect", "State"}), statuses={ID: STOPPED, SECOND: RUNNING})
        refusal = stage.refusal(stage.finding(WITHOUT))
        assert refusal.reason is RefusalReason.NOT_CONFIRMED
        assert f"container {SECOND[:12]} is RUNNING by the shim's own word" in refusal.message

    def test_a_silent_shim_does_not_say_that_its_containers_have_stopped(self, stage: Stage) -> None:
        stage.serve(SILENT)
        assert stage.refusal(stage.finding(WITHOUT)).reason is RefusalReason.NOT_CONFIRMED

    def test_a_refused_connection_is_no_ground_to_kill(self, stage: Stage) -> None:
        stage.serve(SILENT).close()
        assert stage.refusal().reason is RefusalReason.NOT_CONFIRMED
        stage.address.unlink()
        assert stage.refusal().reason is RefusalReason.NOT_CONFIRMED

    def test_an_answer_nobody_understands_proves_nothing(self, stage: Stage) -> None:
        stage.serve(SILENT, greeting=b"HTTP/1.1 400 Bad Request\r\n\r\n")
        assert stage.refusal().reason is RefusalReason.CANNOT_SEE

    def test_another_reason_than_those_it_mends(self, stage: Stage) -> None:
        stage.serve(SILENT)
        assert stage.refusal(stage.finding("ShimDead")).reason is RefusalReason.NOT_CONFIRMED

    def test_a_bundle_that_went_away_meanwhile_asks_for_a_new_report(self, stage: Stage) -> None:
        stage.state.remove(ID)
        refusal = stage.refusal()
        assert (refusal.reason, "is gone by now" in refusal.message) == (RefusalReason.NOT_CONFIRMED, True)

    def test_a_container_being_created_and_it_may_be_tried_again(self, stage: Stage) -> None:
        stage.serve(SILENT)
        stage.state.add(SECOND, address=str(stage.address), init_pid=None, sandbox_id=ID)
        refusal = stage.refusal()
        assert (refusal.reason, refusal.retry_seconds) == (RefusalReason.UNSAFE_NOW, 30)

    def test_a_container_of_the_pod_whose_shim_is_only_being_told_of_it(self, stage: Stage) -> None:
        stage.serve(SILENT)
        folder = stage.state.add(SECOND, init_pid=None, sandbox_id=ID)
        (folder / "address").unlink()
        assert stage.refusal().reason is RefusalReason.UNSAFE_NOW

    def test_an_inexact_target(self, stage: Stage) -> None:
        finding = stage.finding()
        for target in (
            replace(finding.target, pid=None),
            replace(finding.target, start_time=None),
            replace(finding.target, container_id=""),
        ):
            assert stage.refusal(replace(finding, target=target)).reason is RefusalReason.INEXACT_TARGET

    def test_a_process_of_another_name(self, stage: Stage) -> None:
        stage.serve(SILENT)
        stage.shim.kill()
        stage.shim.wait(5)
        stage.shim = stage.start("containerd-shym", stage.state.path(ID))
        refusal = stage.refusal()
        assert refusal.reason is RefusalReason.PROTECTED_PROCESS
        assert "its name is 'containerd-shym'" in refusal.message

    def test_a_shim_that_stands_in_another_bundle(self, stage: Stage) -> None:
        stage.serve(SILENT)
        stage.state.add(OTHER, address=str(stage.folder / "other"))
        stage.shim = stage.start("containerd-shim", stage.state.path(OTHER))
        refusal = stage.refusal()
        assert refusal.reason is RefusalReason.TARGET_CHANGED
        assert refusal.message.startswith(f"container {ID[:12]} is served by shim")

    def test_a_bundle_of_another_address(self, stage: Stage) -> None:
        finding = stage.finding()
        moved = replace(finding.target, address="/run/containerd/s/before")
        assert stage.refusal(replace(finding, target=moved)).reason is RefusalReason.TARGET_CHANGED

    def test_a_named_container_that_has_a_bundle_elsewhere(self, stage: Stage) -> None:
        stage.serve(SILENT)
        stage.state.add(OTHER, address="/elsewhere", namespace="moby")
        refusal = stage.refusal(stage.finding(containerIds=(ID, OTHER)))
        assert refusal.reason is RefusalReason.UNSAFE_NOW

    def test_an_unreadable_state_directory(self, stage: Stage) -> None:
        shutil.rmtree(stage.state.root)
        assert stage.refusal().reason is RefusalReason.CANNOT_SEE


class TestByTheLooksOfTheProcess:
    """With a /proc in which the shim looks as it is told to."""

    @pytest.fixture
    def proc(self, stage: Stage) -> FakeProc:
        proc = FakeProc(stage.folder / "proc")
        proc.add(os.getpid(), "nodediag")
        proc.add(stage.shim.pid, "containerd-shim", cwd=str(stage.state.path(ID)))
        stage.procfs = Procfs(str(proc.root))
        stage.serve(SILENT)
        return proc

    def test_the_shim_of_a_node_inside_this_one_is_protected(self, stage: Stage, proc: FakeProc) -> None:
        proc.write(f"{stage.shim.pid}/status", b"NSpid:\t100\t7\n")
        assert stage.refusal().reason is RefusalReason.PROTECTED_PROCESS

    def test_a_containers_process_that_calls_itself_a_shim_is_protected(self, stage: Stage, proc: FakeProc) -> None:
        proc.write(f"{stage.shim.pid}/cgroup", f"0::{kubepods(OTHER)}\n".encode())
        refusal = stage.refusal()
        assert refusal.reason is RefusalReason.PROTECTED_PROCESS
        assert "lives in a container's cgroup" in refusal.message

    def test_the_shim_of_this_agents_own_pod_is_protected(self, stage: Stage, proc: FakeProc) -> None:
        proc.add(os.getpid(), "nodediag", cgroup=kubepods(ID))
        refusal = stage.refusal()
        assert refusal.reason is RefusalReason.PROTECTED_PROCESS
        assert "this agent's own pod" in refusal.message

    def test_a_container_whose_cgroup_does_not_tell_it_is_refused(self, stage: Stage, proc: FakeProc) -> None:
        proc.add(INIT, "app", ppid=stage.shim.pid, cgroup="/custom/place")
        assert stage.refusal().reason is RefusalReason.CANNOT_SEE

    def test_a_cgroup_namespace_of_our_own_is_refused_before_anything_is_killed(
        self, stage: Stage, proc: FakeProc
    ) -> None:
        proc.add(INIT, "app", ppid=stage.shim.pid, cgroup=f"/../..{kubepods(ID)}")
        refusal = stage.refusal()
        assert refusal.reason is RefusalReason.CANNOT_SEE
        assert "outside of the cgroup namespace" in refusal.message

    def test_a_child_in_a_container_with_a_foreign_bundle_keeps_the_shim(self, stage: Stage, proc: FakeProc) -> None:
        stage.state.add(OTHER, address="/elsewhere")
        proc.add(CHILD, "app", ppid=stage.shim.pid, cgroup=kubepods(OTHER))
        assert stage.refusal().reason is RefusalReason.UNSAFE_NOW

    def test_a_child_in_a_container_nobody_knows_ends_with_the_shim(self, stage: Stage, proc: FakeProc) -> None:
        proc.add(CHILD, "app", ppid=stage.shim.pid, cgroup=kubepods(OTHER))
        finding = stage.finding()
        with stage.remedy().confirm(finding.target, finding) as case:
            assert case.evidence()["containers"] == [ID, OTHER]

    def test_survivors_that_do_not_die_are_named(
        self, stage: Stage, proc: FakeProc, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(kill_shim, "END_SECONDS", 0.2)
        survivor = stage.start("survivor", stage.folder)
        proc.add(survivor.pid, "survivor", state="D", cgroup=kubepods(ID))
        proc.write(f"{survivor.pid}/wchan", b"rpc_wait_bit_killable")
        finding = stage.finding()
        with (
            stage.remedy().confirm(finding.target, finding) as case,
            pytest.raises(ActError) as raised,
        ):
            case.perform()
        assert str(raised.value) == (
            f"shim {stage.shim.pid} was killed, but not all of its containers' processes: still alive 0.2 s after "
            f"SIGKILL: process {survivor.pid} (survivor): state D in rpc_wait_bit_killable"
        )


class TestWhatCameOfIt:
    def test_a_shim_that_answers_at_the_last_moment_is_spared(self, stage: Stage) -> None:
        server = stage.serve(SILENT)
        finding = stage.finding()
        with stage.remedy().confirm(finding.target, finding) as case:
            server.release()
            with pytest.raises(ActError, match="nothing was done: the shim answers again"):
                case.perform()
        assert stage.shim.poll() is None

    def test_a_shim_that_recovers_during_the_last_look_is_spared(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(kill_shim, "LAST_LOOK_SECONDS", 1.0)
        server = stage.serve(SILENT)
        finding = stage.finding()
        with stage.remedy(probe_seconds=1.0).confirm(finding.target, finding) as case:
            recovery = threading.Timer(0.3, server.release)
            recovery.start()
            with pytest.raises(ActError, match="nothing was done: the shim answers again"):
                case.perform()
            recovery.join()
        assert stage.shim.poll() is None

    def test_a_shim_that_does_not_die_is_told_and_its_containers_are_left(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(kill_shim, "DEATH_SECONDS", 0.2)
        stage.serve(SILENT)
        finding = stage.finding()
        monkeypatch.setattr(Grip, "signal", lambda *_: None)
        monkeypatch.setattr(ContainerProcesses, "end", lambda *_: pytest.fail("its containers were touched"))
        with stage.remedy().confirm(finding.target, finding) as case:
            with pytest.raises(ActError, match=r"has not ended within 0.2 s: state S .* containers were not touched"):
                case.perform()
            assert case.verify().helped is False

    def test_what_cannot_be_read_afterwards_is_not_called_mended(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def unreadable(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        stage.serve(SILENT)
        finding = stage.finding()
        with stage.remedy().confirm(finding.target, finding) as case:
            case.perform()
            monkeypatch.setattr(ContainerProcesses, "find", unreadable)
            verification = case.verify()
        assert verification.helped is None
        assert "cannot be seen" in verification.message

    def test_the_processes_of_its_containers_end_with_it_without_a_wait_for_containerd(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The kubelet may start a second copy 1.2 s after the kill (containerd#10727)."""
        with grove() as ours:
            stage.namespaces = ("k8s.io", ours.namespace)
            survivor = ours.sleeper(ours.make(ID))
            stage.serve(SILENT)
            finding = stage.finding()
            with stage.remedy().confirm(finding.target, finding) as case:
                sleepless = SimpleNamespace(sleep=lambda _: pytest.fail("it waited"), monotonic=time.monotonic)
                monkeypatch.setattr(kill_shim, "time", sleepless)
                done = case.perform()
        ended = f"1 process(es) of its containers: {survivor.pid} (sleep)"
        assert done == f"shim {stage.shim.pid} was killed, and then {ended}"

    def test_a_remembered_process_that_left_its_cgroup_is_still_one_of_it(self, stage: Stage) -> None:
        with grove() as ours:
            verification = _killed_while_one_escapes(stage, ours)
        assert verification.helped is False
        assert "its containers have not" in verification.message


def _killed_while_one_escapes(stage: Stage, ours: Grove) -> Any:
    """The container's process is moved out of its cgroup between being remembered and being ended."""
    stage.namespaces = ("k8s.io", ours.namespace)
    path = ours.make(ID)
    process = ours.sleeper(path)
    stage.serve(SILENT)
    finding = stage.finding()
    with stage.remedy().confirm(finding.target, finding) as case:
        end = ContainerProcesses.end

        def escape_first(self: ContainerProcesses, *args: Any) -> Any:
            for tree in TREES:
                (tree.mount / "cgroup.procs").write_text(str(process.pid))
            return end(self, *args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ContainerProcesses, "end", escape_first)
            case.perform()
        return case.verify()


@pytest.mark.parametrize("tree", V1_ALONE, ids=lambda tree: f"v{tree.version}")
def test_a_frozen_shim_is_thawed_only_once_the_kill_is_pending(stage: Stage, tree: Hierarchy) -> None:
    with grove() as ours:
        place = ours.make("service")
        (tree.at(place) / "cgroup.procs").write_text(str(stage.shim.pid))
        switch = freeze(tree, place)
        stage.serve(SILENT)
        finding = stage.finding()
        with stage.remedy().confirm(finding.target, finding) as case:
            case.perform()
        assert stage.shim.wait(5) == -signal.SIGKILL
        assert switch.read_text() == "THAWED\n"
