"""What container_runtime decides from plain values, and that it looks at the right things."""

import errno
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from agent.clock import StallMeter
from agent.detectors.container_runtime import (
    REFUSED,
    TIMEOUT,
    UNRESPONSIVE,
    ContainerRuntimeDetector,
    ContainerRuntimeSettings,
    Observation,
)
from agent.host.bundles import TASKS
from agent.host.containerd import RuntimeAnswer
from agent.host.exchange import Attempt, Ending, Phase
from agent.host.rights import Capability
from agent.host.service import Halt, Lifetime
from agent.model import (
    Action,
    CannotSeeError,
    CheckResult,
    DeploymentCause,
    Finding,
    NotApplicableError,
    ProcessId,
    Target,
    TargetKind,
)
from agent.schema import rule_of
from tests.unit.doubles import rights_without

ADDRESS = "/run/containerd/containerd.sock"
CONTAINERD = ProcessId(701, 3000)
OLD = Lifetime(CONTAINERD, 3600.0)
BOOT = "7c5d0e0e-0a4c-4f0e-9c55-6f4c3c1c9d11"
SETTINGS = ContainerRuntimeSettings()
QUICK = ContainerRuntimeSettings(deadline_seconds=0.1)


def detector(address: str = ADDRESS, **more: Any) -> ContainerRuntimeDetector:
    wiring: dict[str, Any] = {
        "explicit": False,
        "clock": StallMeter(),
        "state_dir": Path("/nonexistent"),
        "containerd_process": lambda: None,
        "process_age": lambda _: None,
        "boot_id": lambda: BOOT,
        "settings": QUICK,
    }
    return ContainerRuntimeDetector(address=address, **(wiring | more))


def check(*attempts: Attempt[RuntimeAnswer], life: Lifetime = OLD, refused_seconds: float = 0.0) -> CheckResult:
    return detector(settings=SETTINGS).check(Observation(ADDRESS, attempts, life, refused_seconds, BOOT))


def answered(answer: RuntimeAnswer) -> Attempt[RuntimeAnswer]:
    return Attempt(Ending.ANSWERED, Phase.TOTAL, 0.0012, 0.0001, 0.001, answer=answer)


def ended(ending: Ending, phase: Phase = Phase.FIRST_BYTE, seconds: float = 5.0) -> Attempt[RuntimeAnswer]:
    return Attempt(ending, phase, seconds, detail="ECONNREFUSED: connection refused")


def only(result: CheckResult) -> Finding:
    (finding,) = result.findings
    assert finding.condition == UNRESPONSIVE
    assert finding.reason in ContainerRuntimeDetector.conditions[UNRESPONSIVE]
    assert finding.message.isprintable()
    return finding


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            RuntimeAnswer(0, "", "containerd", "1.6.20~ds1"),
            "containerd (pid 701) answered in 1.2 ms (containerd 1.6.20~ds1)",
        ),
        (RuntimeAnswer(0), "containerd (pid 701) answered in 1.2 ms"),
        (
            RuntimeAnswer(12, "unknown service"),
            "containerd (pid 701) answered in 1.2 ms; its CRI is switched off, so it serves no kubelet",
        ),
        (
            RuntimeAnswer(2, "server is not initialized yet"),
            "containerd (pid 701) answered in 1.2 ms, with gRPC status 2: server is not initialized yet",
        ),
    ],
)
def test_any_answer_is_life(answer: RuntimeAnswer, message: str) -> None:
    result = check(answered(answer))
    assert not result.findings
    assert result.healthy == {UNRESPONSIVE: message}


def test_two_unanswered_connections_are_two_sightings() -> None:
    finding = only(check(ended(Ending.TIMEOUT), ended(Ending.TIMEOUT, seconds=4.0)))
    assert (finding.reason, finding.sightings, finding.timed) == (TIMEOUT, 2, True)
    assert finding.recommended_action is Action.RESTART_CONTAINERD
    assert finding.target == Target(TargetKind.CONTAINERD, pid=701, start_time=3000, boot_id=BOOT, address=ADDRESS)
    assert "within 5.0 s, nor on a second connection" in finding.message
    assert "ContainerdShimHung" in finding.message, "a restart is not always safe"
    assert "running containers go on" in finding.message


def test_a_lost_connection_alone_is_a_suspicion() -> None:
    finding = only(check(ended(Ending.TIMEOUT), answered(RuntimeAnswer(0))))
    assert (finding.reason, finding.sightings) == (TIMEOUT, 1)
    assert "A second connection beside it: answered after 1.2 ms." in finding.message


UNIT = "/system.slice/containerd.service"


def test_a_containerd_that_has_ended_is_started_where_its_unit_is_known() -> None:
    known = only(check(ended(Ending.REFUSED), life=Lifetime(ended=CONTAINERD, cgroup=UNIT), refused_seconds=60))
    assert known.recommended_action is Action.RESTART_CONTAINERD
    assert known.target == Target(TargetKind.CONTAINERD, boot_id=BOOT, cgroup=UNIT, address=ADDRESS)
    assert known.values["unit"] == "containerd.service"
    unknown = only(check(ended(Ending.REFUSED), life=Lifetime(ended=CONTAINERD), refused_seconds=60))
    assert unknown.recommended_action is Action.NONE
    assert "systemctl list-unit-files '*containerd*'" in unknown.message


def test_one_without_a_process_that_takes_connections_is_not_started() -> None:
    """A socket unit may hold them; what has ended is not what is asked."""
    timeout = ended(Ending.TIMEOUT)
    finding = only(check(timeout, timeout, life=Lifetime(ended=CONTAINERD, cgroup=UNIT)))
    assert finding.recommended_action is Action.NONE


def halt_of(halt: Halt, life: Lifetime = OLD) -> Finding:
    attempts = (ended(Ending.TIMEOUT), ended(Ending.TIMEOUT, seconds=4.0))
    return only(detector().check(Observation(ADDRESS, attempts, life, 0.0, BOOT, halt)))


@pytest.mark.parametrize(
    ("cgroup", "text"),
    [
        (UNIT, "Process 701 is frozen with its cgroup /system.slice/containerd.service (unit containerd.service)."),
        ("/system.slice", "Process 701 is frozen with its cgroup /system.slice."),
    ],
)
def test_a_frozen_containerd_is_to_be_thawed(cgroup: str, text: str) -> None:
    finding = halt_of(Halt("", cgroup), Lifetime(CONTAINERD, 3600.0, cgroup=UNIT))
    assert (finding.reason, finding.recommended_action) == (TIMEOUT, Action.THAW_CGROUP)
    assert finding.values["frozen_cgroup"] == cgroup
    assert text in finding.message
    assert "hung shims" not in finding.message, "its shims are frozen with it, and no restart is due"


@pytest.mark.parametrize(("state", "text"), [("T", "`kill -CONT 701` lets it go on"), ("t", "a debugger holds it")])
def test_a_stopped_containerd_is_to_be_continued_first(state: str, text: str) -> None:
    finding = halt_of(Halt(state))
    assert (finding.values["process_state"], text in finding.message) == (state, True)
    assert finding.recommended_action is Action.RESTART_CONTAINERD


@pytest.mark.parametrize("ending", [Ending.REFUSED, Ending.CLOSED])
def test_refused(ending: Ending) -> None:
    running, gone = only(check(ended(ending))), only(check(ended(ending), life=Lifetime()))
    assert (running.reason, running.sightings, running.timed) == (REFUSED, 1, False)
    assert (running.recommended_action, gone.recommended_action) == (Action.RESTART_CONTAINERD, Action.NONE)
    assert "there is no single process named containerd" in gone.message
    assert gone.target.pid is None


@pytest.mark.parametrize(
    ("life", "refused_seconds", "excused"),
    [
        (Lifetime(CONTAINERD, 3.0), 2.0, True),
        (Lifetime(CONTAINERD, 20.1), 2.0, False),
        (Lifetime(CONTAINERD, 3.0), 20.1, False),
        (Lifetime(ended=CONTAINERD), 4.9, True),
        (Lifetime(ended=CONTAINERD), 5.1, False),
    ],
)
def test_a_restart_excuses_for_a_while(life: Lifetime, refused_seconds: float, excused: bool) -> None:
    result = check(ended(Ending.REFUSED), life=life, refused_seconds=refused_seconds)
    assert bool(result.findings) is not excused
    assert result.recheck_seconds == (1.0 if excused else None)


@pytest.mark.parametrize("ending", [Ending.MALFORMED, Ending.TOO_LARGE])
def test_something_else_at_the_address(ending: Ending) -> None:
    result = check(ended(ending))
    assert not result.findings
    assert "is not gRPC" in result.unknown[UNRESPONSIVE]


def test_the_defaults_name_a_hung_containerd_within_15_seconds() -> None:
    longest_pause = SETTINGS.period_seconds * 1.1
    assert longest_pause + SETTINGS.deadline_seconds < 14
    assert longest_pause + SETTINGS.ended_grace_seconds + 1.0 + 0.5 < 14
    assert (SETTINGS.period_seconds, SETTINGS.deadline_seconds) == (5.0, 5.0)
    for item in ContainerRuntimeSettings.__dataclass_fields__.values():
        assert rule_of(item.metadata).meaning


# --- probing


def test_absent_is_not_failed(tmp_path: Path) -> None:
    with pytest.raises(NotApplicableError, match="there is no containerd at"):
        detector(str(tmp_path / "c.sock"), state_dir=tmp_path).probe()
    with pytest.raises(CannotSeeError, match="a containerd runs as pid 701, but there is no socket at"):
        detector(str(tmp_path / "c.sock"), containerd_process=lambda: CONTAINERD).probe()


def test_a_missing_socket_is_refused_if_containerd_is_expected(tmp_path: Path) -> None:
    explicit = detector(str(tmp_path / "c.sock"), explicit=True)
    assert only(explicit.check(explicit.probe())).reason == REFUSED
    (tmp_path / TASKS / "k8s.io" / "abc").mkdir(parents=True)
    watch = detector(str(tmp_path / "c.sock"), state_dir=tmp_path)
    finding = only(watch.check(watch.probe()))
    assert finding.target.boot_id == BOOT
    assert finding.reason == REFUSED
    assert "ENOENT: no such file or directory" in finding.message


def test_a_containerd_that_was_seen_and_is_gone_is_a_fault_until_its_unit_is_removed(tmp_path: Path) -> None:
    """Also without a pod, whose bundle would show that it belongs to the node, and after its socket is gone."""
    path, there, removed = tmp_path / "c.sock", [CONTAINERD], set[str]()
    watch = detector(
        str(path),
        state_dir=tmp_path,
        containerd_process=lambda: there[0] if there else None,
        process_age=lambda process: 99.0 if process in there else None,
        process_cgroup=lambda _: "/system.slice/containerd.service",
        removed=lambda unit: unit in removed,
        settings=ContainerRuntimeSettings(deadline_seconds=0.1, ended_grace_seconds=0),
    )
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        watch.probe()
    path.unlink()
    there.clear()
    assert only(watch.check(watch.probe())).reason == REFUSED
    removed.add("containerd.service")
    with pytest.raises(NotApplicableError):
        watch.probe()


def test_a_process_of_that_name_that_systemd_did_not_run_is_no_containerd_of_this_node(tmp_path: Path) -> None:
    """Such as docker's own containerd, which is gone again."""
    there = [CONTAINERD]
    watch = detector(
        str(tmp_path / "c.sock"),
        state_dir=tmp_path,
        containerd_process=lambda: there[0] if there else None,
        process_age=lambda process: 99.0 if process in there else None,
        settings=ContainerRuntimeSettings(ended_grace_seconds=0),
    )
    with pytest.raises(CannotSeeError):
        watch.probe()
    there.clear()
    with pytest.raises(NotApplicableError):
        watch.probe()


def test_a_containerd_that_runs_where_its_folder_is_not_mounted_is_not_accused(tmp_path: Path) -> None:
    def running(folder: Path) -> ContainerRuntimeDetector:
        return detector(str(folder / "c.sock"), explicit=True, containerd_process=lambda: CONTAINERD)

    for folder in (tmp_path, tmp_path / "absent"):  # an image may have made the place to mount it
        with pytest.raises(CannotSeeError, match=f"mount {folder} here at the same path"):
            running(folder).probe()
    (tmp_path / "io.containerd.grpc.v1.cri").mkdir()
    lost = running(tmp_path)
    assert only(lost.check(lost.probe())).reason == REFUSED, "the folder is containerd's, and the socket is not there"


def test_a_dead_socket_is_refused_and_a_silent_one_times_out(tmp_path: Path) -> None:
    watch = detector(str(tmp_path / "c.sock"), containerd_process=lambda: CONTAINERD, process_age=lambda _: 99.0)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "c.sock"))
        listener.listen()
        finding = only(watch.check(watch.probe()))
        assert (finding.reason, finding.sightings) == (TIMEOUT, 2)
        assert finding.target.pid == 701
    assert only(watch.check(watch.probe())).reason == REFUSED


def test_no_permission_is_said_and_not_blamed_on_containerd(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 120)  # our own error as well, and one that root makes too
    path.touch()
    with pytest.raises(CannotSeeError, match="cannot be queried: AF_UNIX path too long"):
        detector(str(path)).probe()


def test_a_folder_that_cannot_be_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> os.stat_result:
        raise PermissionError(13, os.strerror(13), str(path))

    monkeypatch.setattr(Path, "stat", denied)
    with pytest.raises(CannotSeeError, match=r"c\.sock cannot be read: Permission denied") as seen:
        detector(str(tmp_path / "c.sock")).probe()
    assert seen.value.fault is not None


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_a_socket_that_may_not_be_connected_to_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = tmp_path / "c.sock"
    path.touch(mode=0o600)

    def denied(*_: object) -> int:
        return number

    monkeypatch.setattr(socket.socket, "connect_ex", denied)
    with pytest.raises(CannotSeeError, match="the agent runs as uid 1000") as seen:
        detector(str(path), denied=rights_without(Capability.DAC_OVERRIDE, uid=1000).path).probe()
    assert seen.value.fault is not None
    assert (seen.value.fault.cause, seen.value.fault.subject) == (DeploymentCause.USER, f"uid {path.stat().st_uid}")
