"""The processes sense: hostile names, lines cut off, real zombies, and the network files."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.host.procfs import Process, Procfs, Zombie, parse_stat, state_and_place
from tests.lab.waiting import wait_until
from tests.unit.builders import FakeProc, stat_line

HOSTILE = [b"two words", b"a) Z 1 (b", b"))))", b"(((", b"a\nb", b'"quo\'ted"', b"\xff\xfe", b"", b"12345678901234 "]
RECORDED_ZOMBIE = (
    b"9450 (sleep) Z 9328 9441 9441 0 -1 4227084 61 0 0 0 0 0 0 0 20 0 1 0 304296 0 0 18446744073709551615"
    b" 0 0 0 0 0 0 0 6 0 1 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n"
)

FIB_TRIE = """\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 10.88.0.0
        /16 link UNICAST
Local:
  +-- 0.0.0.0/0 3 0 5
     +-- 10.88.0.0/16 2 0 2
        |-- 10.88.0.7
           /32 host LOCAL
        |-- 10.88.255.255
           /32 link BROADCAST
     +-- 127.0.0.0/8 2 0 2
        |-- 127.0.0.1
           /32 host LOCAL
"""
IF_INET6 = """\
00000000000000000000000000000001 01 80 10 80       lo
fe80000000000000a42f1cfffe3c0001 02 40 20 80     eth0
fd00000000000000000000000000000a 02 40 00 80     eth0

garbage
"""


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path)


@pytest.fixture
def procfs(proc: FakeProc) -> Procfs:
    return Procfs(str(proc.root))


@pytest.mark.parametrize("comm", HOSTILE)
def test_a_name_cannot_shift_the_fields(comm: bytes) -> None:
    process = parse_stat(stat_line(7, comm, "D", 3, 99))
    assert process == Process(7, comm.decode(errors="backslashreplace"), "D", 3, 99)


@given(
    st.integers(1, 1 << 22),
    st.binary(max_size=64),
    st.sampled_from("RSDZTtIXPW"),
    st.integers(0, 1 << 22),
    st.integers(0, 1 << 63),
)
def test_any_name_is_parsed(pid: int, comm: bytes, state: str, ppid: int, start_time: int) -> None:
    process = parse_stat(stat_line(pid, comm, state, ppid, start_time))
    assert (process.pid, process.state, process.ppid, process.start_time) == (pid, state, ppid, start_time)
    assert process.id.pid == pid


@given(st.binary(max_size=200))
def test_what_is_no_stat_line_is_a_value_error_and_nothing_else(line: bytes) -> None:
    with suppress(ValueError):
        parse_stat(line)


@pytest.mark.parametrize("length", [0, 1, 5, 12, 14, 20, 60])
def test_a_line_cut_off_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="not a line"):
        parse_stat(RECORDED_ZOMBIE[:length])


def test_a_recorded_zombie_is_understood(proc: FakeProc, procfs: Procfs) -> None:
    proc.write("9450/stat", RECORDED_ZOMBIE)
    assert procfs.process(9450) == Process(9450, "sleep", "Z", 9328, 304296)
    assert procfs.scan({}).zombies == {RECORDED_ZOMBIE: Zombie(9450, 304296, 9328, b"sleep")}


def test_processes_with_unreadable_or_cut_off_stat_are_passed_over(proc: FakeProc, procfs: Procfs) -> None:
    sane = proc.add(10)
    proc.write("11/stat", b"")
    proc.write("12/stat", b"12 (foo) Z 1")
    proc.write("13/stat", b"13 (foo")
    proc.write("14/status", b"no stat file")
    proc.write("15/stat", b"15 (foo) ")
    (proc.root / "16" / "stat").mkdir(parents=True)
    proc.write("version", b"no process")
    assert procfs.processes() == procfs.living() == (sane,)
    assert procfs.scan({}).zombies == {}
    assert procfs.scan({}).states == {"S": 1, "Z": 1}
    assert procfs.process(12) is None


def test_a_missing_proc_is_an_error_and_not_an_idle_host(tmp_path: Path) -> None:
    procfs = Procfs(str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError):
        procfs.scan({})
    with pytest.raises(FileNotFoundError):
        procfs.processes()
    with pytest.raises(FileNotFoundError):
        procfs.living()


def test_one_thread_at_a_time_reads_all_of_proc_and_none_waits_for_ever(
    proc: FakeProc, procfs: Procfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    sane = proc.add(10)
    monkeypatch.setattr("agent.host.procfs.TURN_SECONDS", 0.2)
    with procfs._in_turn():
        began = time.monotonic()
        assert procfs.living() == (sane,), "it goes ahead, since the other one hangs"
        assert time.monotonic() - began >= 0.2
    monkeypatch.setattr("agent.host.procfs.TURN_SECONDS", 30.0)
    began = time.monotonic()
    assert (procfs.living(), procfs.scan({}).states, procfs.named(sane.comm)) == ((sane,), {"S": 1}, (sane,))
    assert time.monotonic() - began < 30, "every turn was given back"


def test_the_living_are_all_but_the_defunct_and_the_dead(proc: FakeProc, procfs: Procfs) -> None:
    living = [proc.add(pid, comm, state=state) for pid, comm, state in ((10, "a", "S"), (11, "b) Z 1", "D"))]
    defunct = [proc.add(pid, comm, state=state) for pid, comm, state in ((12, "c", "Z"), (13, "d) S 1", "X"))]
    assert set(procfs.living()) == set(living)
    assert set(procfs.processes()) == {*living, *defunct}


def test_a_scan_counts_states_and_keeps_raw_names(proc: FakeProc, procfs: Procfs) -> None:
    proc.add(1, "init", ppid=0)
    proc.add(2, "io", state="D")
    proc.write("3/stat", stat_line(3, b"a) Z\n\xff", "Z", 2, 50))
    scan = procfs.scan({})
    assert scan.states == {"S": 1, "D": 1, "Z": 1}
    assert list(scan.zombies.values()) == [Zombie(3, 50, 2, b"a) Z\n\xff")]


def test_a_known_zombie_is_not_parsed_again(proc: FakeProc, procfs: Procfs) -> None:
    proc.add(3, state="Z")
    first = procfs.scan({}).zombies
    proc.add(4, state="Z")
    second = procfs.scan(first).zombies
    ((line, old),) = first.items()
    assert second[line] is old
    assert len(second) == 2


def test_a_reused_pid_is_another_zombie(proc: FakeProc, procfs: Procfs) -> None:
    proc.add(3, state="Z", start_time=100)
    first = procfs.scan({}).zombies
    proc.add(3, state="Z", start_time=900)
    (zombie,) = procfs.scan(first).zombies.values()
    assert zombie.start_time == 900


@contextmanager
def real_zombies(count: int) -> Iterator[set[int]]:
    children = [subprocess.Popen(["/bin/true"]) for _ in range(count)]
    try:
        for child in children:
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        yield {child.pid for child in children}
    finally:
        for child in children:
            child.wait()


def test_real_zombies_are_found_under_their_parent() -> None:
    procfs = Procfs("/proc")
    with real_zombies(20) as pids:
        scan = procfs.scan({})
        ours = [zombie for zombie in scan.zombies.values() if zombie.ppid == os.getpid()]
        assert pids <= {zombie.pid for zombie in ours}
        assert scan.states["Z"] >= 20
        assert {zombie.comm for zombie in ours if zombie.pid in pids} == {b"true"}
    gone = procfs.scan(scan.zombies)
    assert not pids & {zombie.pid for zombie in gone.zombies.values()}


def test_a_real_process_with_a_hostile_name_is_seen_as_what_it_is() -> None:
    script = r"printf 'a) Z 1 (\377\n' > /proc/$$/comm; echo named; read line"
    with subprocess.Popen(["/bin/sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as shell:
        assert shell.stdout is not None
        assert shell.stdout.readline() == b"named\n"
        process = Procfs("/proc").process(shell.pid)
        shell.kill()
    assert process is not None
    assert process.comm.startswith(r"a) Z 1 (\xff")
    assert (process.pid, process.ppid) == (shell.pid, os.getpid())
    assert process.state in "RS"


def test_a_name_within_a_name_is_not_that_name(proc: FakeProc, procfs: Procfs) -> None:
    real = proc.add(10, "containerd")
    proc.add(11, "x(containerd)")
    proc.add(12, "containerd-shim")
    assert procfs.named("containerd") == (real,)


def test_our_own_directory_is_seen_and_that_of_a_gone_process_is_empty() -> None:
    procfs = Procfs("/proc")
    assert procfs.cwd(os.getpid()) == str(Path.cwd())
    with real_zombies(1) as (pid,):
        assert procfs.cwd(pid) == ""


def test_a_directory_we_may_not_see_is_not_taken_for_a_gone_process(
    proc: FakeProc, procfs: Procfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> str:
        raise PermissionError(13, "Permission denied", path)

    proc.add(10)
    monkeypatch.setattr(os, "readlink", refuse)
    assert procfs.cwd(10) is None


def test_cgroup_lines_end_at_newlines_alone(proc: FakeProc, procfs: Procfs) -> None:
    proc.write("10/cgroup", b"1:cpu:/a\x0c0::/forged\x1c\n0::/b\xff\n")
    assert procfs.cgroups(10) == ("1:cpu:/a\x0c0::/forged\x1c", "0::/b\\xff")
    assert procfs.cgroups(11) == ()


def test_wchan_names_where_a_process_sleeps_and_nothing_if_it_runs(proc: FakeProc, procfs: Procfs) -> None:
    for pid in (10, 11):
        proc.add(pid)
    proc.write("10/wchan", b"futex_do_wait")
    proc.write("11/wchan", b"0")
    assert [procfs.wchan(pid) for pid in (10, 11, 12)] == ["futex_do_wait", "", ""]


@pytest.mark.parametrize(
    ("state", "wchan", "text"),
    [
        ("S", "futex_do_wait", "state S, in futex_do_wait"),
        ("R", "", "state R, in user space"),
        ("D", "", "state D, in the kernel"),
        ("S", "", "state S"),
        ("T", "", "state T"),
    ],
)
def test_user_space_is_named_only_where_a_process_runs(state: str, wchan: str, text: str) -> None:
    """Without ptrace rights the wait channel is hidden."""
    assert state_and_place(state, wchan) == text


def test_numbers_of_the_node(proc: FakeProc, procfs: Procfs) -> None:
    assert (procfs.tasks(), procfs.pid_max(), procfs.boot_id()) == (None, None, "")
    proc.write("loadavg", b"0.21 0.21 0.17 3/412 20011\n")
    proc.write("sys/kernel/pid_max", b"32768\n")
    proc.write("sys/kernel/random/boot_id", b"8f0e\n")
    assert (procfs.tasks(), procfs.pid_max(), procfs.boot_id()) == (412, 32768, "8f0e")
    proc.write("loadavg", b"garbage")
    assert procfs.tasks() is None


def test_a_process_just_started_has_no_age_to_speak_of() -> None:
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as child:
        procfs = Procfs("/proc")
        process = procfs.process(child.pid)
        assert process is not None
        age = procfs.age_seconds(process.id)
        assert age is not None
        assert age < 60
        child.kill()
        wait_until(lambda: procfs.age_seconds(process.id) is None, 30, "a defunct process has no age")


def test_local_addresses_are_read_from_both_families(proc: FakeProc, procfs: Procfs) -> None:
    proc.write("10/net/fib_trie", FIB_TRIE.encode())
    proc.write("10/net/if_inet6", IF_INET6.encode())
    assert procfs.local_addresses(10) == {"10.88.0.7", "fd00::a"}
    assert procfs.local_addresses(11) == frozenset()


def test_a_file_the_kernel_gives_out_by_the_page_is_read_whole() -> None:
    """The kernel hands out /proc/N/net files at most a page a read; a TCP table makes one that is longer."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        clients = [socket.create_connection(server.getsockname()) for _ in range(40)]
        table = Procfs("/proc")._text("self/net/tcp", 1 << 18)
        for client in clients:
            port = client.getsockname()[1]
            assert f":{port:04X} " in table
            client.close()
    assert len(table) > 2 * 4096
