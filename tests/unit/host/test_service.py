"""A service's process is followed from look to look, with the unit that runs it and what keeps it from running."""

from pathlib import Path

import pytest

from agent.clock import StallMeter
from agent.host.cgroups import Cgroups
from agent.host.procfs import Procfs
from agent.host.service import Halt, Lifetime, ServiceProcess, ServiceSense
from agent.model import ProcessId
from tests.unit.builders import FakeProc

KUBELET, NEXT = ProcessId(812, 4000), ProcessId(913, 9000)
UNIT = "/system.slice/kubelet.service"


def test_the_unit_of_a_process_that_has_ended_is_remembered() -> None:
    there: list[ProcessId] = [KUBELET]
    service = ServiceProcess(
        lambda: there[0] if there else None, lambda process: 9.0 if process in there else None, StallMeter(), cgroup
    )
    assert service.look(urgent=True) == Lifetime(KUBELET, 9.0, cgroup=UNIT)
    there.clear()
    ended = service.look(urgent=False)
    assert ended == Lifetime(ended=KUBELET, cgroup=UNIT)
    assert ended.unit == "kubelet.service"


def test_one_that_was_started_by_hand_afterwards_has_no_unit() -> None:
    there: list[ProcessId] = [KUBELET]
    service = ServiceProcess(
        lambda: there[0] if there else None, lambda process: 9.0 if process in there else None, StallMeter(), cgroup
    )
    service.look(urgent=True)
    there[0] = NEXT
    assert service.look(urgent=True).unit == ""
    there.clear()
    assert service.look(urgent=True) == Lifetime(ended=NEXT)


def test_one_that_is_found_again_while_it_ends_keeps_its_unit() -> None:
    """A process that is ending may have no age any more and no cgroup, and still be found by its name."""
    found, cgroups = iter([KUBELET, KUBELET, None]), iter([UNIT, ""])
    service = ServiceProcess(lambda: next(found), lambda _: None, StallMeter(), lambda _: next(cgroups))
    assert service.look(urgent=True).unit == "kubelet.service"
    assert service.look(urgent=True).unit == "kubelet.service"
    assert service.look(urgent=True) == Lifetime(ended=KUBELET, cgroup=UNIT)


def cgroup(process: ProcessId) -> str:
    return UNIT if process == KUBELET else ""


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path / "proc")


def sense(proc: FakeProc) -> ServiceSense:
    return ServiceSense(Procfs(str(proc.root)), Cgroups(str(proc.root.parent / "sys")))


@pytest.mark.parametrize(("ppid", "path", "found"), [(1, UNIT, UNIT), (700, UNIT, ""), (1, "/user.slice/x.scope", "")])
def test_the_unit_is_that_of_a_child_of_pid_1(proc: FakeProc, ppid: int, path: str, found: str) -> None:
    proc.add(812, "kubelet", ppid=ppid, start_time=4000, cgroup=path)
    assert sense(proc).cgroup(KUBELET) == found
    assert sense(proc).cgroup(ProcessId(812, 4001)) == "", "another process with its pid"


@pytest.mark.parametrize(("state", "told"), [("S", ""), ("T", "T"), ("t", "t"), ("D", "")])
def test_a_stopped_process_is_told(proc: FakeProc, state: str, told: str) -> None:
    proc.add(812, "kubelet", state=state, start_time=4000, cgroup=UNIT)
    assert sense(proc).halt(KUBELET) == Halt(told)
    assert sense(proc).halt(NEXT) == Halt()


def test_a_frozen_process_is_told_with_the_cgroup(proc: FakeProc) -> None:
    proc.add(812, "kubelet", start_time=4000, cgroup=UNIT)
    freeze = proc.root.parent / f"sys/fs/cgroup{UNIT}/cgroup.freeze"
    freeze.parent.mkdir(parents=True)
    freeze.write_text("1\n")
    assert sense(proc).halt(KUBELET) == Halt("", UNIT)
