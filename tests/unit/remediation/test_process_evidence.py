"""What is captured of a process before an act: complete, bounded, and never waiting for ever."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from agent.host.cgroups import Cgroups
from agent.host.procfs import Procfs
from agent.remediation.process_evidence import MAX_TEXT, MAX_THREADS, process_evidence
from tests.lab.waiting import wait_until
from tests.unit.builders import FakeProc

PROCFS, CGROUPS = Procfs("/proc"), Cgroups("/sys")


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path / "proc")


def add_thread(proc: FakeProc, pid: int, thread: int, *, wchan: str = "do_wait", stack: str = "[<0>] do_wait") -> None:
    for name, text in (("wchan", wchan), ("stack", stack), ("syscall", "61 0x1")):
        proc.write(f"{pid}/task/{thread}/{name}", text.encode())


def evidence_of(proc: FakeProc, pid: int) -> dict[str, object]:
    return process_evidence(Procfs(str(proc.root)), Cgroups(str(proc.root)), pid)


@contextmanager
def a_file_that_keeps_its_reader(path: Path) -> Iterator[None]:
    """A fifo nobody writes to, in place of a file of /proc; whoever waits in it is let go at the end."""
    path.unlink()
    os.mkfifo(path)
    try:
        yield
    finally:
        with suppress(OSError):  # nobody waits
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))


def test_a_real_process_shows_where_it_sleeps() -> None:
    with subprocess.Popen(["sleep", "100"]) as sleeper:
        try:
            wait_until(lambda: PROCFS.wchan(sleeper.pid).endswith("nanosleep"), 30, "sleep to sleep")
            seen = process_evidence(PROCFS, CGROUPS, sleeper.pid)
        finally:
            sleeper.kill()
    (thread,) = seen["threads"]
    assert seen["pid"] == thread["tid"] == sleeper.pid
    assert seen["stat"].startswith(f"{sleeper.pid} (sleep) S")
    assert "State:\tS" in seen["status"]
    assert "nanosleep" in thread["wchan"]
    assert "nanosleep" in thread["stack"]
    assert thread["syscall"].split()[0].isdigit()
    assert any(line.startswith("0::") for line in seen["cgroups"])
    assert seen["frozenCgroup"] == ""
    assert "incomplete" not in seen
    json.dumps(seen)


def test_every_thread_is_shown() -> None:
    program = """
import sys, threading
for _ in range(3):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
print("up", flush=True)
sys.stdin.read()
"""
    words = [sys.executable, "-c", program]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        seen = process_evidence(PROCFS, CGROUPS, process.pid)
        process.communicate("")
    assert len({thread["tid"] for thread in seen["threads"]}) == 4


def test_a_process_that_is_gone_says_so_everywhere() -> None:
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    seen = process_evidence(PROCFS, CGROUPS, ended.pid)
    for name in ("stat", "status", "threads"):
        assert seen[name] == "not readable: No such file or directory"


def test_threads_and_texts_are_bounded(proc: FakeProc) -> None:
    proc.add(7)
    for thread in range(100, 100 + MAX_THREADS + 5):
        add_thread(proc, 7, thread, stack="x" * (MAX_TEXT + 1))
    seen = evidence_of(proc, 7)
    threads = seen["threads"]
    assert isinstance(threads, list)
    assert len(threads) == MAX_THREADS
    assert seen["moreThreads"] is True
    assert {len(thread["stack"]) for thread in threads} == {MAX_TEXT}


def test_bytes_that_are_no_text_do_not_stop_it(proc: FakeProc) -> None:
    proc.add(7)
    proc.write("7/status", b"Name:\t\xff\xfe\n")
    add_thread(proc, 7, 7)
    seen = evidence_of(proc, 7)
    assert seen["status"] == "Name:\t\\xff\\xfe"
    json.dumps(seen).encode()


@pytest.mark.parametrize("name", ["stack", "syscall"])
def test_a_file_that_never_answers_is_left_and_what_was_read_is_kept(proc: FakeProc, name: str) -> None:
    proc.add(7, "runc")
    add_thread(proc, 7, 7, wchan="exec_wait")
    with a_file_that_keeps_its_reader(proc.root / f"7/task/7/{name}"):
        seen = process_evidence(Procfs(str(proc.root)), Cgroups(str(proc.root)), 7, patience_seconds=0.1)
        assert seen["incomplete"] == f"not all was read within 0.1 s: the kernel kept us at the {name} of thread 7"
        assert "(runc)" in seen["stat"]
        assert seen["threads"][0]["wchan"] == "exec_wait"
        assert name not in seen["threads"][0]


def test_the_frozen_cgroup_is_named(proc: FakeProc, tmp_path: Path) -> None:
    proc.add(7, cgroup="/cold")
    switch = tmp_path / "sys/fs/cgroup/cold/cgroup.freeze"
    switch.parent.mkdir(parents=True)
    switch.write_text("1")
    seen = process_evidence(Procfs(str(proc.root)), Cgroups(str(tmp_path / "sys")), 7)
    assert seen["frozenCgroup"] == "/cold"
