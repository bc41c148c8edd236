"""A kubelet or containerd that has ended is started by systemd: when, when not, and what is reported of it."""

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from agent.acts import Refusal, RefusalReason
from agent.host.bundles import Bundles
from agent.host.cgroups import Cgroups
from agent.host.exchange import Attempt, Ending, Phase
from agent.host.inventory import InventorySense
from agent.host.pods import Pods
from agent.host.shims import ShimSense
from agent.model import Action, CannotSeeError, Finding, Target, TargetKind
from agent.remediation.actions.restart_containerd import RestartContainerd
from agent.remediation.actions.restart_kubelet import RestartKubelet
from agent.remediation.remedy import ActError
from agent.remediation.restart_case import StartCase
from agent.remediation.systemd import Systemd
from tests.lab.systemd_standin import JOBS, PrivateBus, SystemdStandin, UnitStandin
from tests.unit.builders import UNREAL_PID, RealClock, StateDir
from tests.unit.remediation.fake_node import BOOT, PATIENCE, FakeNode, child, refusal

URL = "http://127.0.0.1:10248/healthz"
REFUSED: Attempt[Any] = Attempt(Ending.REFUSED, Phase.CONNECT, 0.0001, detail="ECONNREFUSED")
SILENT: Attempt[Any] = Attempt(Ending.TIMEOUT, Phase.FIRST_BYTE, 0.3)
DEAD = {"active_state": "inactive", "sub_state": "dead"}
FAILED: dict[str, Any] = {"active_state": "failed", "sub_state": "failed", "result": "start-limit-hit"}


@pytest.fixture(scope="module")
def bus() -> Iterator[PrivateBus]:
    with PrivateBus() as running:
        yield running


@dataclass
class Bench:
    """A node whose service has ended, and the unit that ran it. `attempts` is how its address answers."""

    node: FakeNode
    kind: TargetKind
    bus: PrivateBus
    socket: Path | None = None
    attempts: tuple[Attempt[Any], ...] = (REFUSED,)
    hung: Counter[Action] = field(default_factory=Counter)

    @property
    def comm(self) -> str:
        return str(self.kind)

    @property
    def cgroup(self) -> str:
        return f"/system.slice/{self.comm}.service"

    @property
    def address(self) -> str:
        return URL if self.kind is TargetKind.KUBELET else str(self.node.root / "c.sock")

    def unit(self, **states: Any) -> UnitStandin:
        return UnitStandin(f"{self.comm}.service", 0, **(DEAD | states))

    def systemd(self, unit: UnitStandin | None = None, **more: Any) -> SystemdStandin:
        units = (unit or self.unit(),)
        return SystemdStandin(self.bus, lambda _: None, units=units, **more)

    def remedy(self) -> Any:
        wiring: dict[str, Any] = {
            "procfs": self.node.procfs,
            "cgroups": Cgroups(str(self.node.root / "sys")),
            "listeners": self.node.listeners,
            "namespaces": ("k8s.io",),
            "systemd": Systemd(str(self.socket or self.bus.socket), RealClock()),
            "clock": RealClock(),
            "patience": PATIENCE,
        }
        remedy: Any
        if self.kind is TargetKind.KUBELET:
            remedy = RestartKubelet(URL, **wiring)
        else:
            bundles = Bundles(str(StateDir(self.node.root / "state").root), ("k8s.io",))
            bundles_of = InventorySense(bundles, self.node.procfs, Pods(bundles, self.node.procfs), ("k8s.io",))
            more: dict[str, Any] = {
                "inventory": bundles_of,
                "shims": ShimSense(RealClock()),
                "hung_shims": lambda: self.hung,
            }
            remedy = RestartContainerd(self.address, **wiring, **more)
        remedy._ask = lambda *_: self.attempts
        return remedy

    def target(self, **changed: Any) -> Target:
        words = {"boot_id": BOOT, "cgroup": self.cgroup, "address": self.address}
        return Target(self.kind, **(words | changed))

    def confirm(self, remedy: Any = None, **changed: Any) -> AbstractContextManager[StartCase]:
        target = self.target(**changed)
        remedy = remedy or self.remedy()
        (kind, reasons) = next(iter(remedy.mends.items()))
        reason = next(each for each in reasons if each.endswith("Refused"))
        case: AbstractContextManager[StartCase] = remedy.confirm(
            target, Finding(kind, reason, "", remedy.action, target)
        )
        return case

    def refused(self, **changed: Any) -> Refusal:
        def open_case() -> None:
            with self.confirm(**changed):
                pass

        return refusal(open_case)


@pytest.fixture(params=[TargetKind.KUBELET, TargetKind.CONTAINERD], ids=["kubelet", "containerd"])
def bench(tmp_path: Path, request: pytest.FixtureRequest, bus: PrivateBus) -> Bench:
    (tmp_path / "state/io.containerd.runtime.v2.task").mkdir(parents=True)
    return Bench(FakeNode(tmp_path), request.param, bus)


WELL: Attempt[Any] = Attempt(Ending.ANSWERED, Phase.TOTAL, 0.001)


@pytest.mark.parametrize("states", [DEAD, FAILED], ids=["stopped", "start limit hit"])
def test_one_that_has_ended_is_started_and_verified(bench: Bench, states: dict[str, str]) -> None:
    def begin(_: str) -> None:
        bench.node.add(UNREAL_PID, bench.comm)

    remedy = bench.remedy()
    manager = bench.systemd(bench.unit(**states), start=begin, limited={f"{bench.comm}.service"})
    with manager, bench.confirm(remedy) as case:
        assert f"no {bench.comm} runs, and nothing listens at {bench.address}" in case.message
        assert f"ActiveState={states['active_state']}" in case.message
        assert case.evidence()["unit"]["name"] == f"{bench.comm}.service"
        assert case.perform() == f"systemd was called to start {bench.comm}.service"
        case.known = replace(case.known, problem=lambda: "")
        seen = case.verify()
    assert seen.helped is True
    assert f"runs anew as process {UNREAL_PID}" in seen.message
    assert [method for method, _ in manager.calls[-2:]] == ["ResetFailedUnit", "StartUnit"]


@pytest.mark.parametrize(
    ("states", "reason", "text"),
    [
        ({"load_state": "masked", "unit_file_state": "masked"}, RefusalReason.UNSAFE_NOW, "systemctl unmask"),
        (
            {"load_state": "masked", "unit_file_state": "masked-runtime"},
            RefusalReason.UNSAFE_NOW,
            "UnitFileState=masked-runtime",
        ),
        ({"unit_file_state": "disabled"}, RefusalReason.UNSAFE_NOW, "is disabled (UnitFileState=disabled)"),
        ({"load_state": "not-found"}, RefusalReason.TARGET_GONE, "LoadState=not-found"),
        ({"load_state": "bad-setting"}, RefusalReason.UNSAFE_NOW, "LoadState=bad-setting"),
        ({"active_state": "activating", "sub_state": "auto-restart"}, RefusalReason.NOT_CONFIRMED, "auto-restart"),
        ({"active_state": "deactivating", "sub_state": "stop-sigterm"}, RefusalReason.NOT_CONFIRMED, "stop-sigterm"),
        ({"active_state": "active", "sub_state": "running"}, RefusalReason.TARGET_CHANGED, "runs by now"),
    ],
)
def test_what_systemd_reports_of_the_unit_decides(
    bench: Bench, states: dict[str, str], reason: RefusalReason, text: str
) -> None:
    with bench.systemd(bench.unit(**states)) as manager:
        seen = bench.refused()
    assert seen.reason is reason
    assert text in seen.message
    assert f"{bench.comm}.service" in seen.message
    assert not {"StartUnit", "RestartUnit", "ResetFailedUnit"} & {method for method, _ in manager.calls}


@pytest.mark.parametrize("enabled", ["enabled", "static", "generated", "indirect", "enabled-runtime", ""])
def test_a_unit_that_nobody_switched_off_is_started(bench: Bench, enabled: str) -> None:
    with bench.systemd(bench.unit(unit_file_state=enabled)), bench.confirm() as case:
        assert "To be started by systemd" in case.message


def test_one_that_was_started_meanwhile_is_left_alone(bench: Bench) -> None:
    bench.node.add(900, bench.comm, cgroup="/user.slice/session-1.scope")
    with bench.systemd():
        seen = bench.refused()
    assert seen.reason is RefusalReason.TARGET_CHANGED
    assert "pid 900" in seen.message


@pytest.mark.parametrize("attempt", [SILENT, WELL])
def test_something_that_takes_connections_is_not_one_that_has_ended(bench: Bench, attempt: Attempt[Any]) -> None:
    bench.attempts = (attempt,)
    with bench.systemd():
        assert bench.refused().reason is RefusalReason.NOT_CONFIRMED


def test_without_a_bus_nothing_starts_it(bench: Bench, tmp_path: Path) -> None:
    bench.socket = tmp_path / "no-bus"
    seen = bench.refused()
    assert seen.reason is RefusalReason.UNSAFE_NOW
    assert f"systemctl start {bench.comm}.service" in seen.message


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"cgroup": "/system.slice/session-1.scope"}, RefusalReason.INEXACT_TARGET),
        ({"cgroup": "/system.slice/a b.service"}, RefusalReason.INEXACT_TARGET),
        ({"boot_id": "another"}, RefusalReason.OTHER_BOOT),
        ({"address": "/elsewhere"}, RefusalReason.TARGET_CHANGED),
        ({"cgroup": ""}, RefusalReason.TARGET_GONE),
    ],
)
def test_only_a_service_of_this_boot_at_this_address_is_meant(
    bench: Bench, changed: dict[str, Any], reason: RefusalReason
) -> None:
    with bench.systemd():
        assert bench.refused(**changed).reason is reason


def test_a_start_that_systemd_declines_did_nothing(bench: Bench) -> None:
    manager = bench.systemd(declines="org.freedesktop.systemd1.UnitMasked")
    with manager, bench.confirm() as case, pytest.raises(ActError, match=r"UnitMasked.*nothing was done"):
        case.perform()


@pytest.mark.parametrize(
    ("result", "restart", "reported", "gave_up"),
    [
        ("start-limit-hit", "no", "Result=start-limit-hit", True),
        ("exit-code", "always", "Result=exit-code, although Restart=always", True),
        ("signal", "on-failure", "Result=signal, although Restart=on-failure", True),
        ("exit-code", "no", "Result=exit-code", False),
    ],
)
def test_one_that_ends_again_is_reported_with_its_result(
    bench: Bench, result: str, restart: str, reported: str, gave_up: bool
) -> None:
    """It ends so often that systemd gives up: the start limit is hit although it was reset before.

    A real systemd keeps the result of a failure then (measured: systemd 252).
    """
    manager = bench.systemd()

    def begin(name: str) -> None:
        manager.limited.add(name)
        manager._put(bench.unit(**{**FAILED, "result": result, "restart": restart}))

    manager.start = begin
    with manager, bench.confirm() as case:
        case.perform()
        seen = case.verify()
    assert seen.helped is False
    assert reported in seen.message
    assert ("it was started too often" in seen.message) is gave_up
    started_by_hand = f"systemctl reset-failed {bench.comm}.service && systemctl start {bench.comm}.service"
    assert (started_by_hand in seen.message) is gave_up


def test_a_unit_that_refuses_a_start_on_request_is_not_started(bench: Bench) -> None:
    with bench.systemd(bench.unit(refuse_manual_start=True)) as manager:
        seen = bench.refused()
    assert seen.reason is RefusalReason.UNSAFE_NOW
    assert f"{bench.comm}.service has RefuseManualStart=yes: systemd does not start it on request" in seen.message
    assert not {method for method, _ in manager.calls} & JOBS


def test_a_unit_that_refuses_only_a_stop_is_started(bench: Bench) -> None:
    started: list[str] = []
    with bench.systemd(bench.unit(refuse_manual_stop=True), start=started.append), bench.confirm() as case:
        case.perform()
    assert started == [f"{bench.comm}.service"]


@pytest.mark.parametrize(
    ("refuses", "named"),
    [
        ({"refuse_manual_stop": True}, "RefuseManualStop=yes"),
        ({"refuse_manual_start": True}, "RefuseManualStart=yes"),
        ({"refuse_manual_start": True, "refuse_manual_stop": True}, "RefuseManualStop=yes and RefuseManualStart=yes"),
    ],
)
def test_a_unit_that_refuses_a_restart_on_request_is_left_alone(
    tmp_path: Path, bus: PrivateBus, refuses: dict[str, Any], named: str
) -> None:
    bench = Bench(FakeNode(tmp_path), TargetKind.KUBELET, bus, attempts=(SILENT, SILENT))
    with child() as process:
        kubelet = bench.node.add(process.pid, "kubelet", holds=(77,))
        bench.node.listen(tcp={77: 10248})
        unit = replace(UnitStandin("kubelet.service", process.pid), **refuses)
        target = Target(TargetKind.KUBELET, kubelet.pid, kubelet.start_time, BOOT, address=URL)
        finding = Finding("KubeletHealthzFailing", "HealthzTimeout", "", Action.RESTART_KUBELET, target)

        def open_case() -> None:
            with bench.remedy().confirm(target, finding):
                pass

        with SystemdStandin(bus, lambda pid: unit if pid == process.pid else None) as manager:
            seen = refusal(open_case)
        assert process.poll() is None
    assert seen.reason is RefusalReason.UNSAFE_NOW
    assert f"kubelet.service has {named}: systemd does not restart it on request" in seen.message
    assert not {method for method, _ in manager.calls} & JOBS


def test_a_restart_whose_start_limit_is_hit_all_the_same_says_so(tmp_path: Path, bus: PrivateBus) -> None:
    """The sick one has ended, and its successor ends again and again."""
    bench = Bench(FakeNode(tmp_path), TargetKind.KUBELET, bus, attempts=(SILENT, SILENT))
    with child() as process:
        kubelet = bench.node.add(process.pid, "kubelet", holds=(77,))
        bench.node.listen(tcp={77: 10248})
        unit = UnitStandin("kubelet.service", process.pid)
        manager = SystemdStandin(bus, lambda pid: unit if pid == process.pid else None)

        def again(_: str) -> None:
            manager._put(replace(unit, main_pid=0, **FAILED))
            process.terminate()

        manager.restart = again
        target = Target(TargetKind.KUBELET, kubelet.pid, kubelet.start_time, BOOT, address=URL)
        finding = Finding("KubeletHealthzFailing", "HealthzTimeout", "", Action.RESTART_KUBELET, target)
        with manager, bench.remedy().confirm(target, finding) as case:
            case.perform()
            bench.node.proc.remove(process.pid)
            seen = case.verify()
    assert seen.helped is False
    assert "no new process of kubelet was seen" in seen.message
    assert "Result=start-limit-hit" in seen.message


def test_a_containerd_is_not_started_while_a_shim_hangs(tmp_path: Path, bus: PrivateBus) -> None:
    """It loads every shim at its start, and cleans up the pod of one that does not answer."""
    (tmp_path / "state/io.containerd.runtime.v2.task").mkdir(parents=True)
    bench = Bench(FakeNode(tmp_path), TargetKind.CONTAINERD, bus)
    bench.hung[Action.THAW_CGROUP] = 2
    with bench.systemd():
        seen = bench.refused()
    assert seen.reason is RefusalReason.UNSAFE_NOW
    assert "2 shims are hung (ContainerdShimHung)" in seen.message
    assert "Deal with them first (ThawCgroup)" in seen.message


def test_a_containerd_is_not_started_where_its_shims_may_not_be_listed(
    tmp_path: Path, bus: PrivateBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state/io.containerd.runtime.v2.task").mkdir(parents=True)
    bench = Bench(FakeNode(tmp_path), TargetKind.CONTAINERD, bus)

    def deny(_: Bundles) -> NoReturn:
        raise CannotSeeError("its bundles may not be read: Permission denied")

    monkeypatch.setattr(Bundles, "list", deny)
    with bench.systemd():
        seen = bench.refused()
    assert seen.reason is RefusalReason.CANNOT_SEE
    assert "Permission denied" in seen.message


# --- frozen, not sick


@pytest.mark.parametrize("cgroup", ["/system.slice/{}.service", "/system.slice"])
def test_a_frozen_one_is_not_restarted_but_to_be_thawed(bench: Bench, cgroup: str) -> None:
    path = cgroup.format(bench.comm)
    switch = bench.node.root / f"sys/fs/cgroup{path}/cgroup.freeze"
    switch.parent.mkdir(parents=True)
    switch.write_text("1\n")
    bench.attempts = (SILENT, SILENT)
    with child() as process:
        service = bench.node.add(process.pid, bench.comm, cgroup=bench.cgroup)
        seen = bench.refused(pid=service.pid, start_time=service.start_time, cgroup="")
    assert seen.reason is RefusalReason.UNSAFE_NOW
    assert f"held by the frozen cgroup {path}" in seen.message
    assert f"nodediag remediate ThawCgroup --target {bench.comm}" in seen.message
    assert "KillShim" not in seen.message
