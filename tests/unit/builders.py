"""Small things the unit tests are made of: a clock to turn, a /proc and a state directory to fill, plain values."""

import json
import shutil
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from agent.host import ttrpc
from agent.host.bundles import TASKS, Bundle, Identity
from agent.host.inventory import SHIM_COMM, Shim
from agent.host.pb import containerd_task_pb2, ttrpc_pb2
from agent.host.procfs import Process
from agent.host.shims import Outcome, ShimAnswer, ShimQuery, TaskState
from agent.model import CheckResult, Finding, PodRef

RUNNING, STOPPED = 2, 3
"""containerd.v1.types.Status"""
POD_UID = "2363cc13-5985-085b-b5ca-f8c2db60826d"
UNREAL_PID = 5_000_000
"""Above the kernel's highest pid (2**22): for invented processes beside real ones, none of which can have it."""
WEB = PodRef("shop", "web-0", POD_UID, "app")


def container_id(number: int) -> str:
    """A container id like containerd's: 64 hex digits."""
    return f"{number:064x}"


def kubepods(container: str, uid: str = POD_UID) -> str:
    """The path of a pod's container under the cgroupfs driver."""
    return f"/kubepods/burstable/pod{uid}/{container}"


# --- clocks -------------------------------------------------------------------------------


class RealClock:
    """This machine's time, and no stalls."""

    def wall(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def awake(self) -> float:
        return time.monotonic()

    def stalled(self) -> float:
        return 0.0


@dataclass
class ShiftedClock(RealClock):
    """This machine's time, set ahead as far as told."""

    ahead: float = 0.0

    def awake(self) -> float:
        return time.monotonic() + self.ahead


@dataclass
class ManualClock:
    """Time that passes when told to, and `step` seconds more each time somebody asks."""

    now: float = 1000.0
    step: float = 0.0
    stall: float = 0.0

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def wall(self) -> float:
        return 1.7e9 + self.now

    def monotonic(self) -> float:
        return self.now + self.stall

    def awake(self) -> float:
        if self.step:  # else it is only read, so that another thread may move it
            self.now += self.step
        return self.now

    def stalled(self) -> float:
        return self.stall


# --- a host on disk -----------------------------------------------------------------------


def stat_line(pid: int, comm: bytes = b"sleep", state: str = "S", ppid: int = 1, start_time: int = 100) -> bytes:
    """A line of /proc/N/stat."""
    before = "0 " * 17
    return f"{pid} (".encode() + comm + f") {state} {ppid} {before}{start_time} {'0 ' * 29}0\n".encode()


@dataclass
class FakeProc:
    """A procfs root in a directory."""

    root: Path

    def add(
        self,
        pid: int,
        comm: str = "sleep",
        *,
        ppid: int = 1,
        state: str = "S",
        start_time: int = 100,
        cgroup: str = "/",
        cwd: str = "/",
    ) -> Process:
        """Start a process, or replace the one that had this pid."""
        folder = self.root / str(pid)
        folder.mkdir(parents=True, exist_ok=True)
        self.write(f"{pid}/stat", stat_line(pid, comm.encode(), state, ppid, start_time))
        self.write(f"{pid}/cgroup", f"0::{cgroup}\n".encode())
        (folder / "cwd").unlink(missing_ok=True)
        (folder / "cwd").symlink_to(cwd)
        return Process(pid, comm, state, ppid, start_time)

    def write(self, name: str, content: bytes) -> None:
        """Write any file."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def remove(self, pid: int) -> None:
        """End a process."""
        shutil.rmtree(self.root / str(pid))


@dataclass
class StateDir:
    """Containerd's state directory."""

    root: Path

    def path(self, name: str, namespace: str = "k8s.io") -> Path:
        """Where a bundle is or would be."""
        return self.root / TASKS / namespace / name

    def add(
        self,
        name: str,
        *,
        namespace: str = "k8s.io",
        address: str = "/run/containerd/s/abc",
        init_pid: int | None = 500,
        pod: PodRef | None = WEB,
        sandbox_id: str = "",
    ) -> Path:
        """Make a bundle as containerd 1.6 does."""
        folder = self.path(name, namespace)
        folder.mkdir(parents=True)
        (folder / "address").write_text(f"unix://{address}")
        if init_pid is not None:
            (folder / "init.pid").write_text(str(init_pid))
        (folder / "config.json").write_text(json.dumps({"annotations": annotations(pod, name, sandbox_id)}))
        return folder

    def remove(self, name: str, namespace: str = "k8s.io") -> None:
        """Remove a bundle."""
        shutil.rmtree(self.path(name, namespace))


def annotations(pod: PodRef | None, name: str, sandbox_id: str = "") -> dict[str, str]:
    """What CRI writes about a container; a pod without container name is the sandbox itself."""
    if pod is None:
        return {}
    words = {
        "sandbox-namespace": pod.namespace,
        "sandbox-name": pod.name,
        "sandbox-uid": pod.uid,
        "sandbox-id": sandbox_id or name,
        "container-type": "container" if pod.container else "sandbox",
    }
    if pod.container:
        words["container-name"] = pod.container
    return {f"io.kubernetes.cri.{key}": value for key, value in words.items()}


# --- plain values -------------------------------------------------------------------------


def bundle(
    number: int = 1,
    *,
    pod: PodRef | None = WEB,
    init_pid: int | None = 500,
    age: float = 600.0,
    problem: str = "",
    sandbox: bool = False,
) -> Bundle:
    """A bundle as the sense reports it."""
    name = container_id(number)
    return Bundle(
        namespace="k8s.io",
        id=name,
        path=f"/run/containerd/{TASKS}/k8s.io/{name}",
        address="" if problem else "/run/containerd/s/abc",
        task_version=2,
        init_pid=init_pid,
        modified_at=-age,
        identity=Identity(pod=pod, is_sandbox=sandbox),
        problem=problem,
    )


def shim(number: int = 1, *, state: str | None = "S", creating: bool = False, pod: PodRef | None = WEB) -> Shim:
    """A shim with one bundle; `state` None: its process is not to be found."""
    process = None if state is None else Process(4000 + number, SHIM_COMM, state, 1, 77)
    item = bundle(number, pod=pod, init_pid=None if creating else 500)
    return Shim(f"/run/containerd/s/{number}", (item,), process)


def answered(address: str = "/s", seconds: float = 0.001, **states: int) -> ShimAnswer:
    """An answer in time; `states` by container, RUNNING if none are given."""
    by_container = {name: TaskState(True, status, 500) for name, status in (states or {"c": RUNNING}).items()}
    return ShimAnswer(address, Outcome.ANSWERED, connect_seconds=seconds, states=by_container)


def waiting(seconds: float) -> ShimAnswer:
    """No answer to Connect for so long."""
    return ShimAnswer("/s", Outcome.WAITING, waiting_seconds=seconds)


def only(result: CheckResult) -> Finding:
    """The one finding of a result."""
    (finding,) = result.findings
    return finding


def sample_values(result: CheckResult, name: str) -> dict[tuple[str, ...], float]:
    """The samples of one metric by their labels."""
    return {sample.labels: sample.value for sample in result.samples if sample.name == name}


# --- shims that talk ----------------------------------------------------------------------


def reply_frame(stream: int, payload: bytes = b"", code: int = 0, message: str = "") -> bytes:
    """A ttrpc response on the wire."""
    status = ttrpc_pb2.Status(code=code, message=message) if code else None
    return raw_frame(stream, ttrpc_pb2.Response(status=status, payload=payload).SerializeToString())


def raw_frame(stream: int, body: bytes, kind: int = ttrpc.TYPE_RESPONSE, length: int | None = None) -> bytes:
    """A ttrpc frame of any content, which may claim another length than it has."""
    return ttrpc.HEADER.pack(len(body) if length is None else length, stream, kind, 0) + body


@dataclass
class ShimServer:
    """A real server on a Unix socket that answers like a shim; what is not in `answers` it holds until `release`.

    With `greeting` it sends those bytes to whoever connects, and hangs up afterwards if `hang_up`.
    """

    path: Path
    answers: frozenset[str] = frozenset({"Connect", "State"})
    statuses: Mapping[str, int] = field(default_factory=dict)
    pid: int = 4711
    greeting: bytes | None = None
    hang_up: bool = False
    accepted: int = 0
    methods: list[str] = field(default_factory=list)
    services: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._changed = threading.Condition()
        self._held: list[tuple[socket.socket, int, str, str]] = []
        self._connections: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen(16)
        threading.Thread(target=self._accept, daemon=True).start()

    def query(self, *container_ids: str) -> ShimQuery:
        """How to ask it."""
        return ShimQuery(str(self.path), 2, container_ids or ("c",))

    def wait_for_held(self, count: int) -> None:
        """Return once so many questions are held back."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._held) >= count, 30)

    def release(self) -> None:
        """Answer everything held back, and from now on at once."""
        with self._changed:
            self.answers = frozenset({"Connect", "State"})
            for connection, stream, method, container in self._held:
                connection.sendall(self._reply(stream, method, container))
            self._held.clear()

    def close(self) -> None:
        """Die: nothing listens any more and every connection breaks."""
        for sock in (self._listener, *self._connections):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            self._connections.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            if self.greeting is not None:
                connection.sendall(self.greeting)
            while not self.hang_up and (header := connection.recv(ttrpc.HEADER.size, socket.MSG_WAITALL)):
                length, stream, _, _ = ttrpc.HEADER.unpack(header)
                body = connection.recv(length, socket.MSG_WAITALL)
                self._take(connection, stream, ttrpc_pb2.Request.FromString(body))
        except OSError:
            pass
        finally:
            connection.close()

    def _take(self, connection: socket.socket, stream: int, request: ttrpc_pb2.Request) -> None:
        container = containerd_task_pb2.StateRequest.FromString(request.payload).id
        with self._changed:
            self.methods.append(request.method)
            self.services.add(request.service)
            if request.method in self.answers:
                connection.sendall(self._reply(stream, request.method, container))
            else:
                self._held.append((connection, stream, request.method, container))
            self._changed.notify_all()

    def _reply(self, stream: int, method: str, container: str) -> bytes:
        if method == "Connect":
            return reply_frame(
                stream, containerd_task_pb2.ConnectResponse(shim_pid=self.pid, task_pid=500).SerializeToString()
            )
        status = self.statuses.get(container, RUNNING)
        state = containerd_task_pb2.StateResponse(id=container, pid=500, status=status)
        return reply_frame(stream, state.SerializeToString())


def drain(listener: socket.socket) -> int:
    """Count the connections that wait in a listener's queue, and close them."""
    listener.setblocking(False)
    count = 0
    while True:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return count
        connection.close()
        count += 1


def open_files() -> int:
    """How many files this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def split_at(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """Cut bytes at these places."""
    edges = [0, *sorted(cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]
