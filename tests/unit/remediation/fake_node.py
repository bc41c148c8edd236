"""A node in a directory for the actions that restart services: processes, sockets, and children that really end."""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.acts import Refusal, RefusedError
from agent.host.listeners import Listeners
from agent.host.procfs import CLOCK_TICKS, Process, Procfs
from agent.model import ProcessId
from agent.remediation.services import NodeService, Patience
from tests.unit.builders import FakeProc

BOOT = "7c5d0e0e-0a4c-4f0e-9c55-6f4c3c1c9d11"
KUBELET_CGROUP = "/system.slice/kubelet.service"
HOUR = 3600.0
PATIENCE = Patience(
    deadline=1.0,
    hedge=0.1,
    restart_grace=20.0,
    recheck=0.01,
    term=0.2,
    job=0.2,
    kill=3.0,
    successor=3.0,
    answer=3.0,
)
TCP_HEADING = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
UNIX_HEADING = "Num       RefCount Protocol Flags    Type St Inode Path\n"


def started(age: float = HOUR) -> int:
    """The start time, in ticks since boot, of a process of this age."""
    return max(1, int((time.clock_gettime(time.CLOCK_BOOTTIME) - age) * CLOCK_TICKS))


@dataclass
class FakeNode:
    """A procfs root with pid 1, a boot id and the tables of sockets."""

    root: Path
    init: str = "systemd"

    def __post_init__(self) -> None:
        self.proc = FakeProc(self.root)
        self.procfs = Procfs(str(self.root))
        self.listeners = Listeners(str(self.root))
        self.proc.add(1, self.init, ppid=0, cgroup="/init.scope")
        self.proc.write("sys/kernel/random/boot_id", f"{BOOT}\n".encode())
        self.listen()

    def add(
        self,
        pid: int,
        comm: str = "kubelet",
        *,
        ppid: int = 1,
        cgroup: str = KUBELET_CGROUP,
        start_time: int | None = None,
        nested: bool = False,
        holds: tuple[int, ...] = (),
        state: str = "S",
    ) -> Process:
        """Start a process that holds these sockets."""
        at = started() if start_time is None else start_time
        process = self.proc.add(pid, comm, ppid=ppid, cgroup=cgroup, start_time=at, state=state)
        self.proc.write(f"{pid}/status", f"Name:\t{comm}\nNSpid:\t{pid}{'	7' if nested else ''}\n".encode())
        links = self.root / str(pid) / "fd"
        shutil.rmtree(links, ignore_errors=True)
        links.mkdir()
        (links / "0").symlink_to("/dev/null")
        for number, inode in enumerate(holds, start=3):
            (links / str(number)).symlink_to(f"socket:[{inode}]")
        return process

    def listen(self, tcp: dict[int, int] | None = None, unix: dict[int, str] | None = None) -> None:
        """Say who listens: inode to port on 127.0.0.1, and inode to path."""
        rows = [
            f"   {n}: 0100007F:{port:04X} 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 {inode} 1\n"
            for n, (inode, port) in enumerate((tcp or {}).items())
        ]
        self.proc.write("self/net/tcp", (TCP_HEADING + "".join(rows)).encode())
        paths = [f"0: 00000002 00000000 00010000 0001 01 {inode} {path}\n" for inode, path in (unix or {}).items()]
        self.proc.write("self/net/unix", (UNIX_HEADING + "".join(paths)).encode())

    def service(self, port: int = 10248, comm: str = "kubelet") -> NodeService:
        """The service named so, asked at a port."""
        look = lambda: self.listeners.tcp("127.0.0.1", port)  # noqa: E731 - as the action does
        url = f"http://127.0.0.1:{port}/healthz"
        return NodeService(comm, url, look, self.listeners, self.procfs, ("k8s.io",))


@contextmanager
def child(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of our own that does nothing, and whose end is its own; killed and reaped afterwards."""
    with subprocess.Popen(command or ("sleep", "1000"), stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def refusal(act: Callable[[], object]) -> Refusal:
    """The refusal that something ends in."""
    with pytest.raises(RefusedError) as error:
        act()
    assert error.value.refusal.message.isprintable()
    return error.value.refusal


def ids(*processes: Process) -> frozenset[ProcessId]:
    return frozenset(process.id for process in processes)
