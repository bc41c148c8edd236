"""RestartKubelet and RestartContainerd on real processes: supervised ones, over signals and over a real bus."""

import json
import re
import signal
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agent.acts import Refusal, RefusalReason, RefusedError
from agent.clock import StallMeter
from agent.detectors.kubelet_healthz import KubeletHealthzDetector, KubeletHealthzSettings
from agent.host.bundles import Bundles
from agent.host.cgroups import Cgroups
from agent.host.inventory import InventorySense
from agent.host.listeners import Listeners
from agent.host.pods import Pods
from agent.host.procfs import Procfs
from agent.host.shims import ShimSense
from agent.model import Action, Finding, ProcessId, Target, TargetKind
from agent.remediation.actions.restart_containerd import RestartContainerd
from agent.remediation.actions.restart_kubelet import RestartKubelet
from agent.remediation.remedy import Remedy, Verification
from agent.remediation.services import Patience
from agent.remediation.systemd import Systemd
from tests.lab.containerd import Containerd
from tests.lab.containers import run_container, run_containers
from tests.lab.kubelet_standin import KubeletMode
from tests.lab.pods import Container
from tests.lab.processes import Process, has_ended, send_signal, stat_of, state_of
from tests.lab.shim_faults import dead_shim_with_bundle, stopped_shim
from tests.lab.shim_ping import connect_answers
from tests.lab.supervised import KubeletProcess, supervised
from tests.lab.systemd_standin import PrivateBus, SystemdStandin, UnitStandin
from tests.lab.waiting import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]

PROCFS = Procfs("/proc")
CGROUPS = Cgroups("/sys")
NAMESPACES = ("k8s.io",)
PATIENCE = Patience(deadline=2.0, hedge=0.5, restart_grace=0.0, term=2.0, job=2.0)
NO_BUS = "/nonexistent/bus"
FAILING, UNRESPONSIVE, LEAKED = "KubeletHealthzFailing", "ContainerRuntimeUnresponsive", "ContainerdShimLeaked"


@pytest.fixture(scope="module")
def clock() -> Iterator[StallMeter]:
    meter = StallMeter()
    meter.start()
    yield meter
    meter.stop()


def mend(remedy: Remedy, target: Target, condition: str, reason: str) -> tuple[str, Verification, dict[str, Any]]:
    """Go the way the engine goes: confirm, evidence, perform, verify."""
    with remedy.confirm(target, Finding(condition, reason, "", remedy.action, target)) as case:
        evidence = json.loads(json.dumps(case.evidence()))
        return case.perform(), case.verify(), evidence


def refused(remedy: Remedy, target: Target, condition: str, reason: str) -> Refusal:
    finding = Finding(condition, reason, "", remedy.action, target)
    with pytest.raises(RefusedError) as error, remedy.confirm(target, finding):
        pass
    return error.value.refusal


# --- the kubelet


def kubelet_remedy(kubelet: KubeletProcess, clock: StallMeter, bus: str = NO_BUS, **more: Any) -> RestartKubelet:
    return RestartKubelet(
        kubelet.url,
        procfs=PROCFS,
        cgroups=CGROUPS,
        listeners=Listeners("/proc"),
        namespaces=NAMESPACES,
        systemd=Systemd(bus, clock),
        clock=clock,
        patience=replace(PATIENCE, **more),
    )


def kubelet_target(kubelet: KubeletProcess, process: Process | None = None) -> Target:
    """What the detector accuses: taken from its own finding where it makes one."""
    who = process or kubelet.process
    return Target(TargetKind.KUBELET, who.pid, who.start_time, PROCFS.boot_id(), address=kubelet.url)


@pytest.fixture
def kubelet() -> Iterator[KubeletProcess]:
    with KubeletProcess() as running:
        yield running


def answers(kubelet: KubeletProcess) -> bool:
    with urllib.request.urlopen(kubelet.url, timeout=5) as answer:
        return bool(answer.status == 200)


def test_the_detectors_own_target_is_exact_enough(kubelet: KubeletProcess, clock: StallMeter) -> None:
    who = ProcessId(kubelet.process.pid, kubelet.process.start_time)
    detector = KubeletHealthzDetector(
        KubeletHealthzSettings(),
        kubelet.url,
        explicit=True,
        clock=clock,
        kubelet_dir=Path("/nonexistent"),
        kubelet_process=lambda: who,
        process_age=PROCFS.age_seconds,
        boot_id=PROCFS.boot_id,
    )
    kubelet.set_mode(KubeletMode.ERROR_500)
    (finding,) = detector.check(detector.probe()).findings
    assert finding.target == kubelet_target(kubelet)
    assert finding.recommended_action is Action.RESTART_KUBELET


def test_a_stopped_kubelet_is_started_anew(kubelet: KubeletProcess, clock: StallMeter) -> None:
    old = kubelet.process
    kubelet.hang()
    done, seen, evidence = mend(kubelet_remedy(kubelet, clock), kubelet_target(kubelet), FAILING, "HealthzTimeout")
    assert seen.helped is True, seen.message
    assert f"process {old.pid} was ended with SIGTERM (by signals, since there is no system bus" in done
    assert has_ended(old)
    assert kubelet.process != old
    assert f"process {kubelet.process.pid} (start time {kubelet.process.start_time})" in seen.message
    assert answers(kubelet)
    assert evidence["process"]["stat"].split(") ")[1].startswith("T")
    assert len(evidence["listening"]["inodes"]) == 1
    assert [attempt["ending"] for attempt in evidence["attempts"]] == ["timeout", "timeout"]


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        (KubeletMode.ERROR_500, "HealthzNotOK"),
        (KubeletMode.REFUSE, "HealthzRefused"),
        (KubeletMode.RESET, "HealthzRefused"),
        (KubeletMode.TRICKLE_HEADERS, "HealthzTimeout"),
    ],
)
def test_an_ill_kubelet_is_started_anew(
    kubelet: KubeletProcess, clock: StallMeter, mode: KubeletMode, reason: str
) -> None:
    old = kubelet.process
    kubelet.set_mode(mode)
    _, seen, _ = mend(kubelet_remedy(kubelet, clock), kubelet_target(kubelet), FAILING, reason)
    assert seen.helped is True, seen.message
    assert kubelet.process != old
    assert answers(kubelet)


@pytest.mark.parametrize("reason", ["HealthzTimeout", "HealthzRefused", "HealthzNotOK"])
def test_a_healthy_kubelet_is_left_alone(kubelet: KubeletProcess, clock: StallMeter, reason: str) -> None:
    seen = refused(kubelet_remedy(kubelet, clock), kubelet_target(kubelet), FAILING, reason)
    assert seen.reason is RefusalReason.NOT_CONFIRMED
    assert kubelet.starts == 1
    assert not has_ended(kubelet.process)


def test_a_kubelet_nobody_supervises_is_left_alive(clock: StallMeter) -> None:
    with KubeletProcess(supervised=False) as kubelet:
        kubelet.hang()
        seen = refused(kubelet_remedy(kubelet, clock), kubelet_target(kubelet), FAILING, "HealthzTimeout")
        assert seen.reason is RefusalReason.UNSAFE_NOW
        assert "nobody is seen who would start" in seen.message
        assert state_of(kubelet.process) == "T"


def test_another_process_named_kubelet_is_not_touched(kubelet: KubeletProcess, clock: StallMeter) -> None:
    with KubeletProcess() as other:
        kubelet.hang()
        remedy = kubelet_remedy(kubelet, clock)
        wrong = replace(kubelet_target(kubelet, other.process), address=kubelet.url)
        assert refused(remedy, wrong, FAILING, "HealthzTimeout").reason is RefusalReason.UNSAFE_NOW
        bystander = other.process
        _, seen, _ = mend(remedy, kubelet_target(kubelet), FAILING, "HealthzTimeout")
        assert seen.helped is True, seen.message
        assert other.process == bystander
        assert not has_ended(bystander)


def test_two_kubelets_of_which_neither_listens_are_not_told_apart(kubelet: KubeletProcess, clock: StallMeter) -> None:
    with KubeletProcess() as other:
        kubelet.set_mode(KubeletMode.REFUSE)
        seen = refused(kubelet_remedy(kubelet, clock), kubelet_target(kubelet), FAILING, "HealthzRefused")
        assert seen.reason is RefusalReason.UNSAFE_NOW
        assert str(other.process.pid) in seen.message
        assert kubelet.starts == 1


def test_a_kubelet_in_a_container_is_protected(clock: StallMeter, containerd: Containerd) -> None:
    """It has the name, and even the start time and boot that were asked for."""
    program = "#!/bin/sh\nwhile :; do sleep 99; done\n"
    make = f"echo '{program}' >/tmp/kubelet; chmod +x /tmp/kubelet; exec /tmp/kubelet"
    inner = run_container(containerd, argv=("/bin/sh", "-c", make))
    wait_until(lambda: (stat := stat_of(inner.init)) and stat.comm == b"kubelet", 5, "a container named kubelet")
    with KubeletProcess() as kubelet:
        kubelet.hang()
        target = kubelet_target(kubelet, inner.init)
        seen = refused(kubelet_remedy(kubelet, clock), target, FAILING, "HealthzTimeout")
        assert seen.reason is RefusalReason.PROTECTED_PROCESS
        assert not has_ended(inner.init)


def test_a_successor_that_never_comes_did_not_help(kubelet: KubeletProcess, clock: StallMeter) -> None:
    kubelet.hang()
    kubelet.forsake()
    old, target = kubelet.process, kubelet_target(kubelet)
    _, seen, _ = mend(kubelet_remedy(kubelet, clock, successor=1.0), target, FAILING, "HealthzTimeout")
    assert seen.helped is False
    assert "no new process of kubelet was seen within 1 s" in seen.message
    assert has_ended(old)


def test_the_same_process_is_not_ended_twice(kubelet: KubeletProcess, clock: StallMeter) -> None:
    kubelet.hang()
    remedy, target = kubelet_remedy(kubelet, clock), kubelet_target(kubelet)
    mend(remedy, target, FAILING, "HealthzTimeout")
    again = refused(remedy, target, FAILING, "HealthzTimeout").reason
    assert again in {RefusalReason.TARGET_GONE, RefusalReason.TARGET_CHANGED}
    assert kubelet.starts == 2


# --- by systemd


def unit_of(kubelet: KubeletProcess) -> Callable[[int], UnitStandin | None]:
    return lambda pid: UnitStandin("kubelet.service", pid) if pid == kubelet.process.pid else None


def stops(process: Process) -> Callable[[str], None]:
    def stop(_: str) -> None:
        send_signal(process, signal.SIGTERM)

    return stop


def test_systemd_restarts_the_kubelets_unit(kubelet: KubeletProcess, clock: StallMeter) -> None:
    old = kubelet.process
    kubelet.set_mode(KubeletMode.ERROR_500)
    with PrivateBus() as bus, SystemdStandin(bus, unit_of(kubelet), stops(old)) as manager:
        remedy = kubelet_remedy(kubelet, clock, str(bus.socket))
        done, seen, evidence = mend(remedy, kubelet_target(kubelet), FAILING, "HealthzNotOK")
    assert done == f"systemd restarted kubelet.service; its process {old.pid} ended"
    assert seen.helped is True, seen.message
    assert evidence["unit"] == {"name": "kubelet.service", "mainPid": old.pid, "killMode": "process"}
    assert [method for method, _ in manager.calls].count("RestartUnit") == 1


def test_a_stopped_kubelet_systemd_would_wait_for_is_killed(kubelet: KubeletProcess, clock: StallMeter) -> None:
    """The stand-in sends SIGTERM and, unlike systemd, no SIGCONT: so the process cannot act on it."""
    old = kubelet.process
    kubelet.hang()
    with PrivateBus() as bus, SystemdStandin(bus, unit_of(kubelet), stops(old)):
        remedy = kubelet_remedy(kubelet, clock, str(bus.socket))
        done, seen, _ = mend(remedy, kubelet_target(kubelet), FAILING, "HealthzTimeout")
    assert "had not ended after 2 s and was killed" in done
    assert seen.helped is True, seen.message


def test_a_bus_that_never_answers_leaves_the_signals(kubelet: KubeletProcess, clock: StallMeter) -> None:
    kubelet.hang()
    with PrivateBus() as bus, SystemdStandin(bus, unit_of(kubelet), silent=frozenset({"GetUnitByPID"})):
        remedy = kubelet_remedy(kubelet, clock, str(bus.socket))
        done, seen, _ = mend(remedy, kubelet_target(kubelet), FAILING, "HealthzTimeout")
    assert "by signals, since the system bus" in done
    assert re.search(r"has not answered within 3\.\d s", done)
    assert seen.helped is True, seen.message


# --- containerd


@pytest.fixture(scope="module")
def containerd() -> Iterator[Containerd]:
    with Containerd() as running:
        yield running


@pytest.fixture(scope="module")
def pods(containerd: Containerd) -> list[Container]:
    return run_containers(containerd, 10)


def containerd_remedy(
    containerd: Containerd, clock: StallMeter, hung: int = 0, bus: str = NO_BUS, **more: Any
) -> RestartContainerd:
    bundles = Bundles(str(containerd.state_dir), NAMESPACES)
    return RestartContainerd(
        str(containerd.address),
        procfs=PROCFS,
        cgroups=CGROUPS,
        listeners=Listeners("/proc"),
        namespaces=NAMESPACES,
        systemd=Systemd(bus, clock),
        inventory=InventorySense(bundles, PROCFS, Pods(bundles, PROCFS), NAMESPACES),
        shims=ShimSense(clock),
        hung_shims=lambda: Counter({Action.KILL_SHIM: hung} if hung else {}),
        clock=clock,
        patience=replace(PATIENCE, **more),
    )


def containerd_target(containerd: Containerd) -> Target:
    who = containerd.process
    address = str(containerd.address)
    return Target(TargetKind.CONTAINERD, who.pid, who.start_time, PROCFS.boot_id(), address=address)


def well(pods: list[Container]) -> bool:
    """Whether every container and shim is the process it was, and every shim answers."""
    return all(stat_of(p.init) and stat_of(p.shim) and connect_answers(p.shim_socket, p.id) for p in pods)


def test_ten_containers_keep_running_while_a_paused_containerd_is_restarted(
    containerd: Containerd, pods: list[Container], clock: StallMeter
) -> None:
    assert well(pods)
    containerd.pause()
    old, remedy = containerd.process, containerd_remedy(containerd, clock)
    with supervised(containerd):
        _, seen, evidence = mend(remedy, containerd_target(containerd), UNRESPONSIVE, "CRITimeout")
    assert seen.helped is True, seen.message
    assert has_ended(old)
    assert containerd.process != old
    assert well(pods)
    assert {p.shim_pid for p in pods} <= {shim["pid"] for shim in evidence["shims"]}
    assert all(containerd.task_status(p.id) == "RUNNING" for p in pods), "the new containerd knows them all"


def test_a_containerd_that_answers_is_left_alone(
    containerd: Containerd, pods: list[Container], clock: StallMeter
) -> None:
    old = containerd.process
    for reason in ("CRITimeout", "RuntimeRefused"):
        seen = refused(containerd_remedy(containerd, clock), containerd_target(containerd), UNRESPONSIVE, reason)
        assert seen.reason is RefusalReason.NOT_CONFIRMED
    assert containerd.process == old
    assert well(pods)


def test_while_a_shim_hangs_containerd_is_not_restarted(
    containerd: Containerd, pods: list[Container], clock: StallMeter
) -> None:
    containerd.pause()
    try:
        ask = partial(refused, target=containerd_target(containerd), condition=UNRESPONSIVE, reason="CRITimeout")
        told = ask(containerd_remedy(containerd, clock, hung=1))
        assert (told.reason, "KillShim" in told.message) == (RefusalReason.UNSAFE_NOW, True)
        with stopped_shim(pods[0]):
            found = ask(containerd_remedy(containerd, clock))
        assert found.reason is RefusalReason.UNSAFE_NOW
        assert f"{pods[0].pod_namespace}/{pods[0].pod_name}" in found.message
        assert state_of(containerd.process) == "T", "it was not touched"
    finally:
        containerd.resume()
    assert well(pods)


def test_the_bundle_of_a_dead_shim_is_cleaned_up(
    containerd: Containerd, pods: list[Container], clock: StallMeter
) -> None:
    """The finding names no process, so containerd is found by its socket."""
    lost = run_container(containerd)
    with dead_shim_with_bundle(containerd, lost), supervised(containerd):
        old = containerd.process
        target = Target(
            TargetKind.SHIM,
            boot_id=PROCFS.boot_id(),
            container_id=lost.id,
            containerd_namespace=lost.namespace,
            address=str(lost.shim_socket),
        )
        _, seen, _ = mend(containerd_remedy(containerd, clock), target, LEAKED, "ShimDead")
        assert seen.helped is True, seen.message
        assert not lost.bundle.exists()
        assert has_ended(old)
    assert well(pods)


def test_a_living_shim_is_no_ground_to_restart_containerd(
    containerd: Containerd, pods: list[Container], clock: StallMeter
) -> None:
    alive = pods[0]
    target = Target(
        TargetKind.SHIM, boot_id=PROCFS.boot_id(), container_id=alive.id, containerd_namespace=alive.namespace
    )
    seen = refused(containerd_remedy(containerd, clock), target, LEAKED, "ShimDead")
    assert seen.reason is RefusalReason.NOT_CONFIRMED


def test_a_containerd_that_does_not_come_back_did_not_help(
    containerd: Containerd, pods: list[Container], clock: StallMeter
) -> None:
    containerd.pause()
    remedy, target = containerd_remedy(containerd, clock, successor=1.0), containerd_target(containerd)
    with ExitStack() as stack:
        stack.callback(containerd.start_again)
        _, seen, _ = mend(remedy, target, UNRESPONSIVE, "CRITimeout")
        assert containerd.has_ended(within=0)
    assert seen.helped is False
    assert "no new process of containerd was seen" in seen.message
    assert well(pods), "they do not need it"


def test_a_case_that_is_only_opened_changes_nothing(kubelet: KubeletProcess, clock: StallMeter) -> None:
    """So far goes a dry run."""
    kubelet.set_mode(KubeletMode.ERROR_500)
    target = kubelet_target(kubelet)
    finding = Finding(FAILING, "HealthzNotOK", "", Action.RESTART_KUBELET, target)
    with kubelet_remedy(kubelet, clock).confirm(target, finding) as case:
        assert case.evidence()["process"]["pid"] == kubelet.process.pid
    assert kubelet.starts == 1
    assert not has_ended(kubelet.process)
