"""SignalParent on real parents with real zombies; also what it shares with KillParent: when a parent may be touched."""

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.acts import RefusalReason, RefusedError
from agent.host.cgroups import Cgroups
from agent.host.procfs import Process, Scan, Zombie
from agent.model import Target, TargetKind
from agent.remediation.actions.signal_parent import SignalParent
from agent.remediation.remedy import Remedy
from agent.remediation.zombies import MAX_PIDS, Parents
from tests.lab.waiting import wait_until
from tests.unit.builders import ManualClock, RealClock, container_id, kubepods, open_files
from tests.unit.remediation.actions.families import APART_SECONDS, FINDING, ID, MIN_ZOMBIES, Family, family


@pytest.fixture(scope="module")
def idle() -> Iterator[Family]:
    """A parent that reaps nothing and that no test changes for good."""
    with family() as parent:
        yield parent


def remedy(parents: Parents, verify_seconds: float = 0.3) -> SignalParent:
    return SignalParent(parents, RealClock(), verify_seconds)


def refusal(parents: Parents, target: Target) -> tuple[RefusalReason, str]:
    with pytest.raises(RefusedError) as caught, remedy(parents).confirm(target, FINDING):
        pass
    return caught.value.refusal.reason, caught.value.refusal.message


def test_is_a_remedy(idle: Family) -> None:
    made: Remedy = remedy(idle.parents())
    assert made.targets == (TargetKind.PROCESS,)


@pytest.mark.parametrize(
    ("reaps", "helped", "numbers"),
    [
        (100, True, "40 of 40"),
        (20, True, "20 of 40"),
        (19, False, "19 of 40"),
        (1, False, "1 of 40"),
        (0, False, "0 of 40"),
    ],
)
def test_it_helped_if_at_least_half_of_the_zombies_were_reaped(reaps: int, helped: bool, numbers: str) -> None:
    with family(40, reaps_on_sigchld=reaps) as parent:
        with remedy(parent.parents()).confirm(parent.target, FINDING) as case:
            assert "pod shop/web-0 (container app) does not reap: 40 lasting zombies" in case.message
            assert case.perform().startswith(f"sent SIGCHLD to process {parent.parent.pid} (redis) of pod shop/web-0")
            outcome = case.verify()
        assert outcome.helped is helped
        assert outcome.message.startswith(f"{numbers} zombies of process {parent.parent.pid} (redis)")
        assert ("KillParent" in outcome.message) is not helped
        assert parent.lives()


def test_the_evidence_names_the_parent_and_what_its_zombies_are_called(idle: Family) -> None:
    with remedy(idle.parents()).confirm(idle.target, FINDING) as case:
        seen = json.loads(json.dumps(case.evidence()))
    assert seen["parent"]["pid"] == idle.parent.pid
    assert (seen["containerId"], seen["cgroup"], seen["zombies"]) == (ID, kubepods(ID), 40)
    assert len(seen["zombieComms"]) == 10
    assert seen["zombieComms"][0]["count"] == 4
    assert {comm["comm"] for comm in seen["zombieComms"]} <= {f"probe-{number}" for number in range(12)}
    assert len(seen["zombiePids"]) == 40 <= MAX_PIDS


def test_too_few_zombies_are_no_fault(idle: Family) -> None:
    reason, message = refusal(idle.parents(min_zombies=41), idle.target)
    assert reason is RefusalReason.NOT_CONFIRMED
    assert "has 40 lasting zombies now (40 at a first look 0.05 s before), and 41 would be too many" in message


def test_a_parent_that_reaps_has_no_lasting_zombies(idle: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look shows forty, but never the same."""
    looks = iter(range(1000))

    def scan(_known: object) -> Scan:
        first = 100000 + 40 * next(looks)
        zombies = [Zombie(pid, 7, idle.parent.pid, b"probe") for pid in range(first, first + 40)]
        return Scan({}, {str(zombie).encode(): zombie for zombie in zombies})

    monkeypatch.setattr(idle.procfs, "scan", scan)
    reason, message = refusal(idle.parents(), idle.target)
    assert reason is RefusalReason.NOT_CONFIRMED
    assert "has 0 lasting zombies now (40 at a first look" in message


def test_zombies_of_others_do_not_count(idle: Family) -> None:
    with family(5) as neighbour:
        reason, message = refusal(neighbour.parents(), neighbour.target)
    assert reason is RefusalReason.NOT_CONFIRMED
    assert "has 5 lasting zombies" in message


def test_pid_reused(idle: Family) -> None:
    before = replace(idle.target, start_time=idle.parent.start_time - 1)
    assert refusal(idle.parents(), before)[0] is RefusalReason.TARGET_CHANGED


def test_parent_gone() -> None:
    with family() as parent:
        pass
    assert refusal(parent.parents(), parent.target)[0] is RefusalReason.TARGET_GONE


def test_parent_that_becomes_another_between_the_looks(idle: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pidfd does not keep the number from being given to somebody else."""
    asked = iter(range(1000))
    real = idle.procfs.process

    def process(pid: int) -> Process | None:
        found = real(pid)
        return found._replace(start_time=1) if found and next(asked) >= 2 else found

    monkeypatch.setattr(idle.procfs, "process", process)
    assert refusal(idle.parents(), idle.target)[0] is RefusalReason.TARGET_CHANGED


def test_process_outside_of_any_container(idle: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle.procfs, "cgroup_of", {idle.parent.pid: "/system.slice/ssh.service"})
    reason, message = refusal(idle.parents(), replace(idle.target, container_id=""))
    assert reason is RefusalReason.PROTECTED_PROCESS
    assert "belongs to no container" in message


@pytest.mark.parametrize("asked", ["", container_id(2)])
def test_process_of_another_container(idle: Family, asked: str) -> None:
    reason, message = refusal(idle.parents(), replace(idle.target, container_id=asked))
    assert reason is RefusalReason.TARGET_CHANGED
    assert f"is in container {ID[:12]}" in message


def test_process_of_the_agents_own_container(idle: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle.procfs, "cgroup_of", {**idle.procfs.cgroup_of, os.getpid(): kubepods(ID)})
    reason, message = refusal(idle.parents(), idle.target)
    assert reason is RefusalReason.PROTECTED_PROCESS
    assert "own container" in message


def test_cgroups_that_cannot_be_read(idle: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle.procfs, "cgroups", lambda _pid: ())
    assert refusal(idle.parents(), idle.target)[0] is RefusalReason.CANNOT_SEE


@pytest.mark.parametrize("comm", ["containerd-shim", "containerd", "kubelet", "runc", "runc:[2:INIT]"])
def test_the_nodes_runtime_wherever_it_is(comm: str) -> None:
    with family(comm=comm) as parent:
        reason, message = refusal(parent.parents(), parent.target)
    assert reason is RefusalReason.PROTECTED_PROCESS
    assert comm in message


def test_pid_1(idle: Family) -> None:
    target = replace(idle.target, pid=1, start_time=0)
    assert refusal(idle.parents(), target)[0] is RefusalReason.PROTECTED_PROCESS


def test_target_without_pid(idle: Family) -> None:
    assert refusal(idle.parents(), Target(TargetKind.PROCESS, container_id=ID))[0] is RefusalReason.INEXACT_TARGET


def test_a_stopped_parent_reaps_once_it_is_continued() -> None:
    with family() as parent:
        os.kill(parent.parent.pid, signal.SIGSTOP)
        wait_until(lambda: parent.parents().state(parent.parent) == "T", 5, "it is stopped")
        reason, message = refusal(parent.parents(), parent.target)
    assert reason is RefusalReason.NOT_CONFIRMED
    assert f"kill -CONT {parent.parent.pid}" in message


def test_a_frozen_parent_reaps_once_it_is_thawed(idle: Family, tmp_path: Path) -> None:
    cgroup = tmp_path / "fs/cgroup" / kubepods(ID).lstrip("/")
    cgroup.mkdir(parents=True)
    (cgroup / "cgroup.freeze").write_text("1\n")
    parents = Parents(idle.procfs, Cgroups(str(tmp_path)), (), RealClock(), MIN_ZOMBIES, APART_SECONDS)
    reason, message = refusal(parents, idle.target)
    assert reason is RefusalReason.NOT_CONFIRMED
    assert f"{kubepods(ID)} and reaps once that is thawed: ask for ThawCgroup" in message


def test_processes_that_cannot_be_listed(idle: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    def scan(_known: object) -> Scan:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(idle.procfs, "scan", scan)
    assert refusal(idle.parents(), idle.target)[0] is RefusalReason.CANNOT_SEE


def test_verifying_blind_is_said(idle: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    def scan(_known: object) -> Scan:
        raise PermissionError(13, "Permission denied")

    with remedy(idle.parents()).confirm(idle.target, FINDING) as case:
        monkeypatch.setattr(idle.procfs, "scan", scan)
        outcome = case.verify()
    assert outcome.helped is None
    assert "Permission denied" in outcome.message


def test_an_agent_that_stands_still_does_not_look_twice(idle: Family) -> None:
    class Standing(ManualClock):
        def monotonic(self) -> float:
            self.stall += 1
            return super().monotonic()

    parents = Parents(idle.procfs, Cgroups("/sys"), (), Standing(), MIN_ZOMBIES, 1.0)
    assert refusal(parents, idle.target)[0] is RefusalReason.STALLED


def test_nothing_stays_open(idle: Family) -> None:
    before = open_files()
    for _ in range(3):
        with remedy(idle.parents()).confirm(idle.target, FINDING):
            pass
        refusal(idle.parents(min_zombies=41), idle.target)
    assert open_files() == before
