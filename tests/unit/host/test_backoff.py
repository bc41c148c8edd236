"""What a security module denies is tried once a minute, since it records each attempt; all else at every look."""

import os
from pathlib import Path

import pytest

from agent.host.backoff import RETRY_SECONDS, Backoff
from agent.host.listeners import Listeners
from agent.host.procfs import Procfs, PtraceGuard
from agent.host.quiet_stat import QuietStat
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


def test_what_nothing_accounts_for_is_held_off_for_that_process_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(tmp_path, rights_without(), monkeypatch)
    node.procfs.cwd(7)
    node.denied = False
    assert [node.procfs.cwd(7), node.procfs.cwd(8)] == [None, "/bundle"]


def test_an_agent_that_nothing_confines_probes_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(tmp_path, rights_without(), monkeypatch)
    node.procfs.processes()
    assert node.tried == []
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


class TestQuietStat:
    """While ptrace rights are denied, `stat` of a process is read once, since the kernel checks them each time."""

    @staticmethod
    def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rights: HeldRights = CONFINED) -> Node:
        node = Node(tmp_path, rights, monkeypatch)
        node.proc.add(1, "systemd", ppid=0, start_time=2)
        node.proc.add(7, "containerd-shim", ppid=1, start_time=700)
        node.proc.add(8, "a) b (c", ppid=7, state="Z", start_time=800)
        for pid, name, state, ppid in ((1, "systemd", "S", 0), (7, "containerd-shim", "S", 1), (8, "a) b (c", "Z", 7)):
            text = f"Name:\t{name}\nUmask:\t0022\nState:\t{state} (x)\nTgid:\t{pid}\nPPid:\t{ppid}\n"
            node.proc.write(f"{pid}/status", text.encode())
        return node

    def test_what_is_read_is_the_same(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        node = self.node(tmp_path, monkeypatch)
        exact = Procfs(str(tmp_path), exact=True)
        for _ in range(2):
            assert set(node.procfs.processes()) == set(exact.processes())
            assert node.procfs.living() == tuple(p for p in node.procfs.processes() if p.pid != 8)
            assert node.procfs.named("a) b (c") == exact.named("a) b (c")
            assert node.procfs.process(7) == exact.process(7)
            mine, theirs = node.procfs.scan({}), exact.scan({})
            assert (mine.states, set(mine.zombies.values())) == (theirs.states, set(theirs.zombies.values()))

    def test_stat_is_read_once_for_each_process(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        node = self.node(tmp_path, monkeypatch)
        first = node.procfs.processes()
        for pid in (1, 7, 8):
            (tmp_path / f"{pid}/stat").unlink()
        assert node.procfs.processes() == first
        node.clock.pass_time(RETRY_SECONDS + 1)
        assert node.procfs.processes() == first
        assert len(node.tried) == 2, "one probe a minute"

    def test_another_process_of_the_same_pid_is_told_by_its_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        node = self.node(tmp_path, monkeypatch)
        node.procfs.processes()
        node.proc.add(7, "runc", start_time=900)
        node.proc.write("7/status", b"Name:\trunc\nState:\tR (running)\nPPid:\t1\n")
        now = node.procfs.process(7)
        assert now is not None
        assert (now.comm, now.start_time, now.state) == ("runc", 900, "R")

    def test_another_thread_may_see_a_new_process_while_the_ended_ones_are_forgotten(self) -> None:
        status = b"Name:\tcat\nState:\tS (sleeping)\nPPid:\t1\n"
        quiet = QuietStat(lambda *_: status, lambda _: 5)

        class Pids(set[int]):
            def __contains__(self, pid: object) -> bool:
                quiet.line(1000 + int(str(pid)))
                return True

        for pid in (1, 2, 3):
            quiet.line(pid)
        quiet.keep(Pids())
        assert quiet.line(1).startswith(b"1 (cat) S 1 ")

    def test_who_acts_reads_stat_itself(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        node = self.node(tmp_path, monkeypatch)
        exact = Procfs(str(tmp_path), guard=PtraceGuard(CONFINED, node.clock.monotonic), exact=True)
        exact.processes()
        node.proc.add(7, "containerd-shim", ppid=1, start_time=999)
        now = exact.process(7)
        assert now is not None
        assert now.start_time == 999

    def test_without_the_capability_alone_stat_is_read_as_ever(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        node = self.node(tmp_path, monkeypatch, rights_without(Capability.SYS_PTRACE))
        node.procfs.processes()
        node.proc.add(7, "containerd-shim", ppid=1, start_time=999)
        now = node.procfs.process(7)
        assert now is not None
        assert now.start_time == 999

    @pytest.mark.parametrize("status", [b"", b"Name:\tx\n", b"Name:\tx\nState:\tS\nPPid:\tmany\n"])
    def test_a_broken_status_is_passed_over(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: bytes
    ) -> None:
        node = self.node(tmp_path, monkeypatch)
        node.proc.write("7/status", status)
        assert {process.pid for process in node.procfs.processes()} == {1, 8}
        assert node.procfs.process(7) is None


def test_on_this_machine_the_quiet_lines_are_those_of_stat(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = PtraceGuard(CONFINED)
    quiet, exact = Procfs("/proc", guard=guard), Procfs("/proc", exact=True)
    guard.denied(1, "/proc/1/cwd")
    assert quiet.process(os.getpid()) == exact.process(os.getpid())
    assert quiet.process(1) == exact.process(1)
