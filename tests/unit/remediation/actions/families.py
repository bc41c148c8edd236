"""Real parents with real zombies, which the tests take for processes of a container."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from agent.host.cgroups import Cgroups
from agent.host.procfs import Procfs
from agent.model import Action, Finding, PodRef, ProcessId, Target, TargetKind
from agent.remediation.zombies import Parents
from tests.lab.waiting import wait_until
from tests.unit.builders import POD_UID, RealClock, container_id, kubepods

ID = container_id(1)
MIN_ZOMBIES = 31
APART_SECONDS = 0.05
FINDING = Finding(
    "ExcessiveDefunctProcesses",
    "ParentNotReaping",
    "does not reap",
    Action.SIGNAL_PARENT,
    Target(TargetKind.PROCESS),
    PodRef("shop", "web-0", POD_UID, "app"),
)

_PARENT = """
import ctypes, os, signal, sys
count, on_sigchld, on_sigterm, comm, reaper_comm, reaper_waits = sys.argv[1:]
prctl = ctypes.CDLL(None).prctl
def call(name):
    with open("/proc/self/comm", "wb") as file:
        file.write(os.fsencode(name))
def parent():
    prctl(1, signal.SIGKILL)                      # PR_SET_PDEATHSIG
    for number in range(int(count)):
        if os.fork() == 0:
            call(f"probe-{number % 12}")
            os._exit(0)
    def reap(*_):
        for _ in range(min(int(on_sigchld), len(children()))):
            os.waitpid(-1, os.WNOHANG)
    for pid in children():
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    signal.signal(signal.SIGCHLD, reap)
    if on_sigterm == "ignore":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    call(comm)
    os.write(1, b"%d\\n" % os.getpid())
    while True:
        signal.pause()
def children():
    with open("/proc/self/task/%d/children" % os.getpid()) as file:
        return [int(word) for word in file.read().split()]
prctl(36, 1)                                      # PR_SET_CHILD_SUBREAPER
call(reaper_comm)
first = os.fork()
if first == 0:
    parent()
if reaper_waits == "for all":
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            signal.pause()
if reaper_waits == "for its child":
    os.waitpid(first, 0)
while True:
    signal.pause()
"""


class ContainerProcfs(Procfs):
    """The real /proc, in which some processes are said to be in a container."""

    def __init__(self, cgroup_of: Mapping[int, str]) -> None:
        super().__init__("/proc")
        self.cgroup_of = cgroup_of

    def cgroups(self, pid: int) -> tuple[str, ...]:
        path = self.cgroup_of.get(pid)
        return (f"0::{path}",) if path else super().cgroups(pid)


@dataclass(frozen=True)
class Family:
    """A parent that has zombies; its own parent is the reaper of its orphans."""

    parent: ProcessId
    reaper_pid: int
    procfs: ContainerProcfs

    @property
    def target(self) -> Target:
        return Target(TargetKind.PROCESS, pid=self.parent.pid, start_time=self.parent.start_time, container_id=ID)

    def parents(self, min_zombies: int = MIN_ZOMBIES) -> Parents:
        return Parents(self.procfs, Cgroups("/sys"), ("k8s.io",), RealClock(), min_zombies, APART_SECONDS)

    def lives(self) -> bool:
        process = self.procfs.process(self.parent.pid)
        return process is not None and process.id == self.parent and process.state != "Z"


@contextmanager
def family(
    zombies: int = 40,
    *,
    reaps_on_sigchld: int = 0,
    on_sigterm: str = "default",
    comm: str = "redis",
    reaper_comm: str = "shell",
    reaper_waits: str = "for all",
) -> Iterator[Family]:
    """Run a parent whose zombies are all there; it reaps so many of them upon SIGCHLD."""
    words = [str(zombies), str(reaps_on_sigchld), on_sigterm, comm, reaper_comm, reaper_waits]
    command = [sys.executable, "-I", "-S", "-c", _PARENT, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as reaper:
        try:
            pid = _read_pid(reaper.stdout)
            procfs = ContainerProcfs({pid: kubepods(ID)})
            process = procfs.process(pid)
            assert process is not None
            made = Family(process.id, reaper.pid, procfs)
            yield made
        finally:
            reaper.kill()  # and the parent with it
    wait_until(lambda: not made.lives(), 30, "the parent has ended")


def _read_pid(stream: IO[bytes] | None) -> int:
    assert stream is not None
    return int(stream.readline())
