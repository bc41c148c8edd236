"""When RestartContainerd acts, when it refuses, and what it then makes of what it sees."""

import json
import socket
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agent.acts import RefusalReason
from agent.detectors.container_runtime import ContainerRuntimeDetector
from agent.detectors.containerd_shim import ContainerdShimDetector
from agent.host.bundles import Bundles
from agent.host.cgroups import Cgroups
from agent.host.containerd import RuntimeAnswer
from agent.host.exchange import Attempt, Ending, Phase
from agent.host.inventory import SHIM_COMM, InventorySense
from agent.host.pods import Pods
from agent.host.procfs import Process
from agent.host.shims import ShimSense
from agent.model import Action, Finding, Target, TargetKind
from agent.remediation.actions import restart_containerd
from agent.remediation.actions.restart_containerd import RestartContainerd
from agent.remediation.remedy import Remedy
from agent.remediation.systemd import Systemd
from tests.lab.systemd_standin import PrivateBus, SystemdStandin, UnitStandin
from tests.unit.builders import UNREAL_PID, WEB, RealClock, ShimServer, StateDir, container_id, kubepods
from tests.unit.remediation.fake_node import BOOT, PATIENCE, FakeNode, child, refusal

SOCKET = 77
SHIMS, INITS, OTHER, NEXT = (UNREAL_PID + step for step in (100, 200, 300, 301))
CGROUP = "/system.slice/containerd.service"
WELL = Attempt(Ending.ANSWERED, Phase.TOTAL, 0.001, answer=RuntimeAnswer(12))
ILL: Attempt[RuntimeAnswer] = Attempt(Ending.TIMEOUT, Phase.FIRST_BYTE, 5.0)


@dataclass
class Bench:
    """A node whose containerd is a child of ours that listens and answers nothing, with a pod whose shim answers."""

    node: FakeNode
    state: StateDir
    stack: ExitStack
    process: subprocess.Popen[bytes]
    hung: int = 0
    bus: str = ""
    shims: list[Process] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.address = self.node.root / "c.sock"
        self.listener = self.stack.enter_context(socket.socket(socket.AF_UNIX))
        self.listener.bind(str(self.address))
        self.listener.listen()
        self.node.listen(unix={SOCKET: str(self.address)})
        self.containerd = self.node.add(self.process.pid, "containerd", cgroup=CGROUP, holds=(SOCKET,))
        self.namespaces = ("k8s.io",)
        self.bundles = Bundles(str(self.state.root), self.namespaces)
        self.shim = self.add_pod(1)

    def add_pod(self, number: int, *, answers: bool = True, lives: bool = True) -> ShimServer | None:
        """Start a pod; its shim's process may be dead, or live and not answer."""
        name, path = container_id(number), self.node.root / f"s{number}"
        bundle = self.state.add(name, address=str(path), init_pid=INITS + number, pod=WEB)
        if not lives:
            return None
        shim = self.node.proc.add(SHIMS + number, SHIM_COMM, cwd=str(bundle), cgroup=CGROUP)
        self.shims.append(shim)
        self.node.proc.add(INITS + number, "app", ppid=shim.pid, cgroup=kubepods(name))
        server = ShimServer(path, answers=frozenset({"Connect", "State"} if answers else ()), pid=shim.pid)
        self.stack.callback(server.close)
        return server

    def remedy(self) -> RestartContainerd:
        procfs = self.node.procfs
        return RestartContainerd(
            str(self.address),
            procfs=procfs,
            cgroups=Cgroups(str(self.node.root / "sys")),
            listeners=self.node.listeners,
            namespaces=self.namespaces,
            systemd=Systemd(self.bus or str(self.node.root / "no-bus"), RealClock()),
            inventory=InventorySense(self.bundles, procfs, Pods(self.bundles, procfs), self.namespaces),
            shims=ShimSense(RealClock()),
            hung_shims=lambda: Counter({Action.KILL_SHIM: self.hung} if self.hung else {}),
            clock=RealClock(),
            patience=PATIENCE,
        )

    def target(self, **changed: Any) -> Target:
        words: dict[str, Any] = {
            "pid": self.containerd.pid,
            "start_time": self.containerd.start_time,
            "boot_id": BOOT,
            "address": str(self.address),
        }
        return Target(TargetKind.CONTAINERD, **(words | changed))

    def confirm(self, reason: str = "CRITimeout", remedy: Any = None, target: Target | None = None) -> Any:
        target = target or self.target()
        condition = "ContainerdShimLeaked" if reason == "ShimDead" else "ContainerRuntimeUnresponsive"
        finding = Finding(condition, reason, "", Action.RESTART_CONTAINERD, target)
        return (remedy or self.remedy()).confirm(target, finding)

    def refused(self, reason: str = "CRITimeout", target: Target | None = None) -> tuple[RefusalReason, str]:
        def open_case() -> None:
            with self.confirm(reason, target=target):
                pass

        seen = refusal(open_case)
        assert self.process.poll() is None, "a refusal touches nothing"
        return seen.reason, seen.message

    def stop_listening(self) -> None:
        self.listener.close()
        self.node.listen()

    def succeed(self) -> Process:
        """Start another containerd in place of the one that has ended."""
        self.process.wait(5)
        self.node.proc.remove(self.containerd.pid)
        self.node.listen(unix={SOCKET + 1: str(self.address)})
        later = self.containerd.start_time + 5
        return self.node.add(NEXT, "containerd", holds=(SOCKET + 1,), start_time=later)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with ExitStack() as stack:
        process = stack.enter_context(child())
        yield Bench(FakeNode(tmp_path / "n"), StateDir(tmp_path / "state"), stack, process)


def dead(number: int, **changed: Any) -> Target:
    words = {"boot_id": BOOT, "container_id": container_id(number), "containerd_namespace": "k8s.io"}
    return Target(TargetKind.SHIM, **(words | changed))


# --- what it is


def test_it_mends_what_the_detectors_recommend_it_for() -> None:
    remedy: type[Remedy] = RestartContainerd
    known = {**ContainerRuntimeDetector.conditions, **ContainerdShimDetector.conditions}
    for kind, reasons in remedy.mends.items():
        assert set(reasons) <= set(known[kind])
    assert set(remedy.targets) == {TargetKind.CONTAINERD, TargetKind.SHIM}


# --- asked afresh


def test_a_containerd_that_still_does_not_answer_is_confirmed(bench: Bench) -> None:
    with bench.confirm() as case:
        assert "containerd still fails: timeout" in case.message
        assert "1 shims run" in case.message
        seen = json.loads(json.dumps(case.evidence()))
    assert seen["shims"] == [{"pid": SHIMS + 1, "startTime": 100}]
    assert [attempt["ending"] for attempt in seen["attempts"]] == ["timeout", "timeout"]
    assert seen["listening"]["inodes"] == [SOCKET]


def test_a_containerd_that_still_refuses_is_confirmed(bench: Bench) -> None:
    bench.stop_listening()
    with bench.confirm("RuntimeRefused") as case:
        assert "containerd still fails: refused" in case.message


@pytest.mark.parametrize("reason", ["CRITimeout", "RuntimeRefused", "Whatever"])
def test_a_containerd_that_answers_is_left_alone(bench: Bench, reason: str) -> None:
    remedy = bench.remedy()
    remedy._ask = lambda *_: (WELL,)  # type: ignore[method-assign]

    def open_case() -> None:
        with bench.confirm(reason, remedy):
            pass

    assert refusal(open_case).reason is RefusalReason.NOT_CONFIRMED


def test_another_fault_is_not_this_fault(bench: Bench) -> None:
    assert bench.refused("RuntimeRefused")[0] is RefusalReason.NOT_CONFIRMED
    bench.stop_listening()
    assert bench.refused("CRITimeout")[0] is RefusalReason.NOT_CONFIRMED


def test_a_listener_that_cannot_be_seen_is_not_guessed(bench: Bench) -> None:
    bench.node.listen()
    assert bench.refused()[0] is RefusalReason.CANNOT_SEE


def test_another_process_is_not_meant(bench: Bench) -> None:
    target = bench.target(start_time=bench.containerd.start_time + 1)
    assert bench.refused(target=target)[0] is RefusalReason.TARGET_CHANGED
    assert bench.refused(target=bench.target(boot_id=""))[0] is RefusalReason.OTHER_BOOT


# --- what a restart would cost


def test_while_a_shim_is_known_to_hang_nothing_is_restarted(bench: Bench) -> None:
    bench.hung = 1
    why, message = bench.refused()
    assert why is RefusalReason.UNSAFE_NOW
    assert "Deal with them first (KillShim)" in message


def test_while_a_shim_does_not_answer_now_nothing_is_restarted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The board does not know of it yet."""
    monkeypatch.setattr(restart_containerd, "SHIM_SECONDS", 0.3)
    bench.add_pod(2, answers=False)
    why, message = bench.refused()
    assert why is RefusalReason.UNSAFE_NOW
    assert "1 of 2 shims do not answer within 0.3 s: pod shop/web-0" in message


def main_process(bench: Bench, kill_mode: str = "process") -> Callable[[int], UnitStandin | None]:
    unit = UnitStandin("containerd.service", bench.containerd.pid, kill_mode)
    return lambda pid: unit if pid == unit.main_pid else None


def test_a_unit_that_would_take_the_shims_along_is_not_restarted(bench: Bench) -> None:
    for mode in ("control-group", "mixed", ""):
        with PrivateBus() as bus, SystemdStandin(bus, main_process(bench, mode)):
            bench.bus = str(bus.socket)
            why, message = bench.refused()
        assert why is RefusalReason.UNSAFE_NOW
        assert f"KillMode={mode}: its restart would end every shim" in message


def test_a_unit_that_spares_the_shims_is_restarted(bench: Bench) -> None:
    with PrivateBus() as bus, SystemdStandin(bus, main_process(bench), lambda _: bench.process.terminate()):
        bench.bus = str(bus.socket)
        with bench.confirm() as case:
            assert case.perform().startswith("systemd restarted containerd.service")
            assert case.evidence()["unit"]["killMode"] == "process"


def test_shims_that_cannot_be_listed_cannot_be_spared(bench: Bench) -> None:
    bench.bundles._state_dir = str(bench.node.root / "elsewhere")
    assert bench.refused()[0] is RefusalReason.CANNOT_SEE


# --- a dead shim


def test_a_bundle_without_shim_is_a_ground_and_containerd_is_found_by_its_socket(bench: Bench) -> None:
    bench.add_pod(2, lives=False)
    bench.node.add(OTHER, "containerd", cgroup="/user.slice", holds=(90,))
    with bench.confirm("ShimDead", target=dead(2)) as case:
        assert case.found.process == bench.containerd
        assert "the shim of pod shop/web-0 is still dead" in case.message
        assert case.attempts == ()


@pytest.mark.parametrize(("number", "reason"), [(1, RefusalReason.NOT_CONFIRMED), (9, RefusalReason.TARGET_GONE)])
def test_a_living_shim_or_a_bundle_that_is_gone_is_no_ground(bench: Bench, number: int, reason: RefusalReason) -> None:
    assert bench.refused("ShimDead", dead(number))[0] is reason


def test_a_dead_shim_of_another_namespace_or_boot_is_no_ground(bench: Bench) -> None:
    bench.add_pod(2, lives=False)
    assert bench.refused("ShimDead", dead(2, containerd_namespace="moby"))[0] is RefusalReason.TARGET_GONE
    assert bench.refused("ShimDead", dead(2, boot_id="another"))[0] is RefusalReason.OTHER_BOOT


def test_a_shim_whose_process_is_unknown_but_who_answers_is_not_dead(bench: Bench) -> None:
    bench.add_pod(2)
    for pid in (SHIMS + 2, INITS + 2):
        bench.node.proc.remove(pid)
    why, message = bench.refused("ShimDead", dead(2))
    assert why is RefusalReason.NOT_CONFIRMED
    assert "somebody listens" in message


def test_a_shim_that_lives_without_its_socket_is_not_dead(bench: Bench) -> None:
    shim = bench.add_pod(2)
    assert shim is not None
    shim.close()
    why, message = bench.refused("ShimDead", dead(2))
    assert why is RefusalReason.NOT_CONFIRMED
    assert f"lives: process {SHIMS + 2}" in message


def test_two_containerds_without_a_listener_are_not_told_apart(bench: Bench) -> None:
    bench.add_pod(2, lives=False)
    bench.node.add(OTHER, "containerd", cgroup="/user.slice")
    bench.stop_listening()
    assert bench.refused("ShimDead", dead(2))[0] is RefusalReason.UNSAFE_NOW


# --- the effect


def verified(bench: Bench, reason: str = "CRITimeout", target: Target | None = None, lost: int = 0) -> Any:
    remedy = bench.remedy()
    with bench.confirm(reason, remedy, target) as case:
        case.perform()
        new = bench.succeed()
        for shim in bench.shims[:lost]:
            bench.node.proc.remove(shim.pid)
        remedy._ask = lambda *_: (WELL,)  # type: ignore[method-assign]
        return case.verify(), new


def test_a_successor_that_answers_and_shims_that_live_are_a_mended_containerd(bench: Bench) -> None:
    seen, new = verified(bench)
    assert seen.helped is True
    assert f"containerd runs anew as process {new.pid}" in seen.message


def test_a_shim_that_did_not_outlive_it_is_named(bench: Bench) -> None:
    bench.add_pod(2)
    seen, _ = verified(bench, lost=1)
    assert seen.helped is False
    assert f"1 of 2 shims that ran before are gone: {SHIMS + 1} (pod shop/web-0)" in seen.message


def test_a_successor_that_does_not_answer_did_not_help(bench: Bench) -> None:
    remedy = bench.remedy()
    with bench.confirm(remedy=remedy) as case:
        case.perform()
        bench.succeed()
        remedy._ask = lambda *_: (ILL,)  # type: ignore[method-assign]
        seen = case.verify()
    assert seen.helped is False
    assert "CRI Version timeout" in seen.message


def test_a_bundle_that_stays_did_not_help_and_one_that_goes_did(bench: Bench) -> None:
    bench.add_pod(2, lives=False)
    seen, _ = verified(bench, "ShimDead", dead(2))
    assert seen.helped is False
    assert f"the bundle of container {container_id(2)[:12]} is still there" in seen.message


def test_a_bundle_that_is_cleaned_up_helped(bench: Bench) -> None:
    bench.add_pod(2, lives=False)
    remedy = bench.remedy()
    with bench.confirm("ShimDead", remedy, dead(2)) as case:
        case.perform()
        bench.succeed()
        bench.state.remove(container_id(2))
        remedy._ask = lambda *_: (WELL,)  # type: ignore[method-assign]
        assert case.verify().helped is True
