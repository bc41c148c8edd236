"""A node in a directory: its files are copies of `host/`, and whoever must be asked answers on a real socket.

The agent on it is put together by `agent.app`, as always; only its clock stands still between two looks, and
conntrack's netlink, which cannot be a file, is a stand-in.
"""

import errno
import shutil
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import StreamEnded

from agent import app
from agent.exporters.metrics import Metrics
from agent.host.conntrack import Conntrack, NetlinkReader
from agent.host.ctnetlink import EVENTS
from agent.host.inventory import SHIM_COMM
from agent.host.namespaces import INITIAL_PID_NAMESPACE
from agent.host.pb.cri_pb2 import VersionResponse
from agent.host.rights import Capability
from agent.model import PodRef
from agent.settings import Loaded, Settings
from tests.unit.builders import FakeProc, ManualClock, ShimServer, StateDir, container_id
from tests.unit.doubles import rights_without

HOST = Path(__file__).with_name("host")
BETWEEN_LOOKS_SECONDS = 9.0
"""Longer than every grace, so that the second look decides."""
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
NEW_PIDS = 100_000
"""Where the pids of the processes begin that are not in `host/`."""


@dataclass(frozen=True)
class PodOnDisk:
    """A pod of `host/`: its shim's pid, and its containers' inits by container id, the sandbox first."""

    name: PodRef
    shim_pid: int
    inits: Mapping[str, int]
    cgroup: str


CART = PodOnDisk(
    PodRef("shop", "cart-7d9f4c", "0b7c6f4e-52b1-4d0c-9a3e-6f1d2c8b7a90", "cart"),
    901,
    {
        "4f9d1c0b7a6e5d8c3b2a19087f6e5d4c3b2a190807f6e5d4c3b2a1908f7e6d5c": 921,
        "8a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9": 958,
    },
    "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0b7c6f4e_52b1_4d0c_9a3e_6f1d2c8b7a90.slice",
)
WEB = PodOnDisk(
    PodRef("shop", "web-0", "9e41d2a7-1c38-4f6b-8d25-3a7b5c9e0f14", "nginx"),
    1201,
    {
        "c3d2e1f0a9b8c7d6e5f4a3b2c1d0e9f8a7b6c5d4e3f2a1b0c9d8e7f6a5b4c3d2": 1222,
        "e7f6a5b4c3d2e1f0a9b8c7d6e5f4a3b2c1d0e9f8a7b6c5d4e3f2a1b0c9d8e7f6": 1260,
    },
    "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod9e41d2a7_1c38_4f6b_8d25_3a7b5c9e0f14.slice",
)


class NoNetlink:
    """What the kernel answers without CAP_NET_ADMIN."""

    def totals(self) -> Any:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    def unreplied(self, family: int, limit: int) -> Any:
        raise PermissionError(errno.EPERM, "Operation not permitted")


class BusyNetlink:
    """256 CPUs, races lost on each of them, and as many flows without an answer as anybody wants to read."""

    def __init__(self) -> None:
        self.reads = 0

    def totals(self) -> tuple[dict[int, dict[str, int]], int, int]:
        self.reads += 1
        rising = {"found", "insert_failed", "drop", "clash_resolve"}
        counters = {event: 10 * self.reads * (event in rising) for event in EVENTS}
        return dict.fromkeys(range(256), counters), 200_000, 262_144

    def unreplied(self, family: int, limit: int) -> tuple[list[Any], bool]:
        return [(f"10.1.{n // 250}.{n % 250}", 1024 + n, "10.96.0.10", 1) for n in range(limit)], False


@dataclass
class Node:
    """The node, well as it is made. `stack` ends its servers."""

    root: Path
    stack: ExitStack
    hung: frozenset[str] = frozenset()
    clock: ManualClock = field(default_factory=lambda: ManualClock(stall=1.5))
    pids: int = NEW_PIDS

    def __post_init__(self) -> None:
        shutil.copytree(HOST / "proc", self.root / "proc")
        shutil.copytree(HOST / "sys", self.root / "sys")
        self.sockets = self.root / "s"
        self.sockets.mkdir()
        self.proc, self.state = FakeProc(self.root / "proc"), StateDir(self.root / "containerd")
        for process, namespace, inode in (
            ("self", "pid", INITIAL_PID_NAMESPACE),
            ("self", "net", "net:[4026531840]"),
            ("1", "net", "net:[4026531840]"),
        ):
            link = self.root / "proc" / process / "ns" / namespace
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(inode)
        for pod in (CART, WEB):
            self.add_bundles(pod.name, pod.shim_pid, pod.inits, hung=pod.name.name in self.hung)
            (self.root / "proc" / str(pod.shim_pid) / "cwd").symlink_to(self.state.path(next(iter(pod.inits))))

    def add_bundles(self, pod: PodRef, shim_pid: int, inits: Mapping[str, int], *, hung: bool) -> None:
        """Write a pod's bundles and let its shim answer, or accept nothing."""
        address = self.sockets / str(shim_pid)
        sandbox = next(iter(inits))
        for name, init_pid in inits.items():
            whose = replace(pod, container="") if name == sandbox else pod
            self.state.add(name, address=str(address), init_pid=init_pid, pod=whose, sandbox_id=sandbox)
        if hung:
            self._never_accept(address)
        else:
            self.stack.callback(ShimServer(address, pid=shim_pid).close)

    def add_pod(self, number: int, *, hung: bool, zombies: int) -> None:
        """Start a pod that is not in `host/`: shim, sandbox, and an application with zombies."""
        pod = PodRef("grown", f"pod-{number}", f"00000000-0000-4000-8000-{number:012d}", "app")
        sandbox, application = container_id(2 * number), container_id(2 * number + 1)
        shim = self._start(SHIM_COMM, ppid=1, cwd=str(self.state.path(sandbox)))
        slice_ = f"/kubepods/burstable/pod{pod.uid}"
        inits = {
            sandbox: self._start("pause", ppid=shim, cgroup=f"{slice_}/{sandbox}"),
            application: self._start(f"app{number}", ppid=shim, cgroup=f"{slice_}/{application}"),
        }
        self.add_bundles(pod, shim, inits, hung=hung)
        self.add_zombies(inits[application], zombies)

    def add_zombies(self, parent: int, count: int) -> None:
        """Leave a process so many children that it does not reap."""
        for _ in range(count):
            self._start("readiness", ppid=parent, state="Z")

    def use_up_pids(self, pod: PodOnDisk, used: int) -> None:
        """Let a pod hold so many pids."""
        (self.root / "sys/fs/cgroup" / pod.cgroup / "pids.current").write_text(f"{used}\n")

    def scrape(self, monkeypatch: pytest.MonkeyPatch, netlink: NetlinkReader) -> str:
        """Look twice with every detector, once more where that left a doubt, and return what Prometheus then gets."""
        rights = rights_without(Capability.NET_ADMIN)  # whatever those who run the tests may do
        monkeypatch.setattr(app, "Conntrack", lambda proc, **_: Conntrack(proc, netlink, rights))
        self._show_cgroups()
        agent = app.build(self.settings(), self.clock)
        metrics = Metrics(agent.board, self.clock, agent.detectors, "1.2.3")
        for runner in agent.runners:
            runner.look()
        self.clock.advance(BETWEEN_LOOKS_SECONDS)
        shutil.copytree(HOST / "later", self.root / "proc", dirs_exist_ok=True)
        for runner in agent.runners:
            runner.look()
            if runner.unsettled:
                runner.look()
        return metrics.expose()[0].decode()

    def settings(self) -> Loaded:
        """Let kubelet, containerd and a DNS server answer, and return the settings by which they are found."""
        kubelet = self._answer(socket.create_server(("127.0.0.1", 0)), _healthz)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.sockets / "containerd"))
        listener.listen()
        made = Settings()
        settings = replace(
            made,
            node_name="worker-3",
            host=replace(made.host, proc=str(self.root / "proc"), sys=str(self.root / "sys")),
            containerd=replace(
                made.containerd, address=self._answer(listener, _version), state_dir=str(self.state.root)
            ),
            kubelet=replace(made.kubelet, healthz_url=f"http://127.0.0.1:{kubelet[1]}/healthz"),
            dns=replace(made.dns, servers=(f"127.0.0.1:{self._answer_dns()}",)),
        )
        return Loaded(settings, frozenset({"containerd.address", "containerd.state_dir", "kubelet.healthz_url"}))

    def _show_cgroups(self) -> None:
        """Make the cgroup of every process, as the kernel does."""
        for file in (self.root / "proc").glob("*/cgroup"):
            for line in file.read_text().splitlines():
                (self.root / "sys/fs/cgroup" / line.rpartition(":")[2].lstrip("/")).mkdir(parents=True, exist_ok=True)

    def _start(self, comm: str, **how: Any) -> int:
        self.pids += 1
        self.proc.add(self.pids, comm, start_time=self.pids, **how)
        return self.pids

    def _never_accept(self, address: Path) -> None:
        """Fill the queue of a socket: its shim hangs without a clock having to run."""
        listener, first = (self.stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2))
        listener.bind(str(address))
        listener.listen(0)
        first.connect(str(address))

    def _answer(self, listener: socket.socket, reply: Callable[[bytes], bytes]) -> Any:
        """Answer every connection, once the question is whole, and close it; return the address."""

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    question, answer = b"", b""
                    while not answer and (heard := connection.recv(4096)):
                        question += heard
                        answer = reply(question)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        self.stack.enter_context(listener)
        self.stack.callback(thread.join)
        self.stack.callback(listener.shutdown, socket.SHUT_RDWR)
        return listener.getsockname()

    def _answer_dns(self) -> int:
        """Answer every query that the name has no address; return the port."""
        server = self.stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        server.bind(("127.0.0.1", 0))

        def serve() -> None:
            while (asked := server.recvfrom(512))[0]:
                server.sendto(asked[0][:2] + b"\x81\x80" + asked[0][4:], asked[1])

        thread = threading.Thread(target=serve)
        thread.start()
        self.stack.callback(thread.join)
        self.stack.callback(server.sendto, b"", server.getsockname())
        return int(server.getsockname()[1])


def _healthz(question: bytes) -> bytes:
    return OK if question.endswith(b"\r\n\r\n") else b""


def _version(question: bytes) -> bytes:
    """Answer CRI's Version over HTTP/2, once it is asked."""
    server = H2Connection(H2Configuration(client_side=False))
    server.initiate_connection()
    if not any(isinstance(event, StreamEnded) for event in server.receive_data(question)):
        return b""
    version = VersionResponse(runtime_name="containerd", runtime_version="2.4.0").SerializeToString()
    server.send_headers(1, [(":status", "200"), ("content-type", "application/grpc")])
    server.send_data(1, b"\0" + len(version).to_bytes(4, "big") + version)
    server.send_headers(1, [("grpc-status", "0")], end_stream=True)
    return server.data_to_send()
