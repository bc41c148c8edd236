"""What a security module denies is tried once a minute, since it records each attempt; all else at every look."""

import os
from pathlib import Path

import pytest

from agent.host.backoff import RETRY_SECONDS, Backoff
from agent.host.listeners import Listeners
from agent.host.procfs import Procfs, PtraceGuard
from agent.host.rights import Capability
from agent.model import CannotSeeError, DeploymentCause
from tests.unit.builders import FakeProc
from tests.unit.doubles import FakeClock, HeldRights, rights_without

PROFILE = "cri-containerd.apparmor.d (enforce)"
CONFINED = rights_without(apparmor=PROFILE)


@pytest.mark.parametrize(
    ("rights", "held_off"),
    [
        (CONFINED, True),
        (rights_without(selinux="u:r:container_t:s0"), True),
        (rights_without(), True),
        (rights_without(Capability.SYS_PTRACE, apparmor=PROFILE), False),
    ],
)
def test_only_what_is_recorded_is_held_off(rights: HeldRights, *, held_off: bool) -> None:
    clock = FakeClock()
    backoff = Backoff(clock.monotonic)
    fault = backoff.note("key", rights.process("/proc/7/cwd"))
    assert (backoff.held_off("key") == fault) is held_off
    assert backoff.held_off("other") is None
    clock.pass_time(RETRY_SECONDS + 1)
    assert backoff.held_off("key") is None


class Node:
    """A procfs whose `cwd` links are denied, and what was tried of it."""

    def __init__(self, root: Path, rights: HeldRights, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock, self.proc = FakeClock(), FakeProc(root)
        self.tried: list[str] = []
        self.denied = True
        self.procfs = Procfs(str(root), guard=PtraceGuard(rights, self.clock.monotonic))
        for pid in (7, 8):
            self.proc.add(pid, cwd="/bundle")
            self.proc.write(f"{pid}/wchan", b"do_wait")
        readlink = os.readlink

        def guarded(path: str, *arguments: int) -> str:
            if not path.endswith("/cwd"):
                return readlink(path, *arguments)
            self.tried.append(path)
            if self.denied:
                raise PermissionError(13, "Permission denied", path)
            return readlink(path)

        monkeypatch.setattr(os, "readlink", guarded)


def test_a_confined_agent_reads_one_process_a_minute_and_repeats_what_came_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(tmp_path, CONFINED, monkeypatch)
    for _ in range(20):
        assert [node.procfs.cwd(7), node.procfs.cwd(8), node.procfs.wchan(7)] == [None, None, ""]
        node.clock.pass_time(1.0)
    assert len(node.tried) == 1
    fault = node.procfs.ptrace_denied()
    assert fault is not None
    assert (fault.cause, fault.subject) == (DeploymentCause.APPARMOR, PROFILE)
    assert "although the agent holds CAP_SYS_PTRACE" in fault.message
    node.clock.pass_time(RETRY_SECONDS)
    assert node.procfs.cwd(7) is None
    assert len(node.tried) == 2


def test_what_is_permitted_again_is_read_again_and_no_longer_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(tmp_path, CONFINED, monkeypatch)
    node.procfs.cwd(7)
    node.denied = False
    node.clock.pass_time(RETRY_SECONDS + 1)
    assert [node.procfs.cwd(7), node.procfs.wchan(8)] == ["/bundle", "do_wait"]
    assert node.procfs.ptrace_denied() is None


def test_without_the_capability_every_process_is_tried_since_some_may_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(tmp_path, rights_without(Capability.SYS_PTRACE), monkeypatch)
    node.procfs.cwd(7)
    node.procfs.cwd(8)
    assert len(node.tried) == 2
    fault = node.procfs.ptrace_denied()
    assert fault is not None
    assert fault.subject == "CAP_SYS_PTRACE"


def test_sockets_that_are_denied_are_tried_once_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def denied(path: str) -> None:
        tried.append(path)
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", denied)
    listeners = Listeners(str(tmp_path), CONFINED)
    for _ in range(3):
        with pytest.raises(CannotSeeError, match="AppArmor profile cri-containerd") as seen:
            listeners.held_by(7)
        assert seen.value.fault is not None
    assert len(tried) == 1
