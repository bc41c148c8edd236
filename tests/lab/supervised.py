"""Services with a supervisor, as a node's kubelet and containerd have one: what ends is started again.

The supervisor is a thread of the test process, so the service's parent is this process and not pid 1. It can be told to
forsake its service, for the successor that never comes; and a kubelet can be let go to pid 1, where nobody has it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from .containerd import Containerd
from .kubelet_standin import KubeletMode
from .processes import Process, has_ended, identify, kill, read_stat, send_signal, state_of
from .waiting import wait_until

_ROOT = Path(__file__).resolve().parents[2]
_LONGEST_LIFE = 600.0
"""Seconds after which a kubelet ends by itself once nobody is there to tell it anything."""
_PROGRAM = """#!{python} -u
import sys
sys.path.insert(0, {root!r})
from tests.lab.supervised import serve_as_kubelet
serve_as_kubelet()
"""


def serve_as_kubelet() -> None:
    """Be the kubelet: the port and the mode as arguments, then a mode a line on stdin; each is answered with a line."""
    from .kubelet_standin import KubeletStandin  # noqa: PLC0415 - in the process of its own

    with KubeletStandin(KubeletMode[sys.argv[2]], port=int(sys.argv[1])) as kubelet:
        print(kubelet.port, flush=True)
        for line in sys.stdin:
            kubelet.set_mode(KubeletMode[line.strip()])
            print(line.strip(), flush=True)
        threading.Event().wait(_LONGEST_LIFE)


class KubeletProcess:
    """A kubelet stand-in as a process of that name (``comm``), as a context manager.

    ``supervised`` starts it again whenever it ends, healthy again and on the same port; else it is left to pid 1.
    ``name`` is the name of its program, of which the kernel keeps 15 bytes.
    """

    def __init__(self, *, name: str = "kubelet", supervised: bool = True, port: int = 0) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="ndlab-kubelet-"))
        self.port = port
        self.starts = 0
        self._program = self.base / name
        self._supervised = supervised
        self._child: subprocess.Popen[str] | None = None
        self._process: Process | None = None
        self._born: list[Process] = []
        self._supervisor: threading.Thread | None = None
        self._lock = threading.Lock()
        self._forsaken = threading.Event()

    def __enter__(self) -> Self:
        self._program.write_text(_PROGRAM.format(python=sys.executable, root=str(_ROOT)))
        self._program.chmod(0o755)
        try:
            self._start(KubeletMode.HEALTHY)
        except BaseException:
            self._clean_up()
            raise
        if self._supervised:
            self._supervisor = threading.Thread(target=self._supervise, name="lab-supervisor", daemon=True)
            self._supervisor.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clean_up()

    @property
    def url(self) -> str:
        """The URL of its healthz, the same for all its lives."""
        return f"http://127.0.0.1:{self.port}/healthz"

    @property
    def process(self) -> Process:
        """Who it is in its present life."""
        if self._process is None:
            raise RuntimeError("the kubelet has never been started")
        return self._process

    def set_mode(self, mode: KubeletMode) -> None:
        """Make it ill for the rest of this life."""
        child = self._child
        if child is None or child.stdin is None or child.stdout is None:
            raise RuntimeError("only a supervised kubelet can be told anything")
        child.stdin.write(f"{mode.name}\n")
        child.stdin.flush()
        if child.stdout.readline().strip() != mode.name:
            raise RuntimeError(f"the kubelet did not become {mode.name}")

    def hang(self) -> None:
        """Stop it with SIGSTOP: the kernel goes on taking connections for it."""
        process = self.process
        send_signal(process, signal.SIGSTOP)
        wait_until(lambda: state_of(process) == "T", 5.0, "the kubelet stopped")

    def forsake(self) -> None:
        """Never start it again."""
        with self._lock:
            self._forsaken.set()

    def wait_for_start(self, number: int, timeout: float = 10.0) -> Process:
        """Wait for its life of this number, the first being 1."""
        wait_until(lambda: self.starts >= number, timeout, f"start {number} of the kubelet")
        return self.process

    def _start(self, mode: KubeletMode) -> None:
        command = [str(self._program), str(self.port), mode.name]
        if self._supervised:
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        else:
            # The shell ends at once and leaves the kubelet to pid 1.
            orphaned = '"$0" "$@" & echo "pid $!"'
            child = subprocess.Popen(
                ["sh", "-c", orphaned, *command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
            )
        self._child = child if self._supervised else None
        try:
            self._process, self.port = self._read_birth(child)
        finally:
            self._born += [self._process] if self._process else []
        self.starts += 1

    def _read_birth(self, child: subprocess.Popen[str]) -> tuple[Process, int]:
        """Read what a kubelet says when it listens: its port; before it, for an orphan, its pid."""
        assert child.stdout is not None
        pid, port = child.pid, 0
        while not port:
            line = child.stdout.readline()
            if not line:
                raise RuntimeError("the kubelet ended before it listened")
            word, _, rest = line.strip().partition(" ")
            pid, port = (int(rest), 0) if word == "pid" else (pid, int(word))
        if not self._supervised:
            child.wait(5.0)
            child.stdout.close()
            wait_until(lambda: (stat := read_stat(pid)) and stat.ppid != os.getpid(), 5.0, "the kubelet orphaned")
        return identify(pid), port

    def _supervise(self) -> None:
        while self._child is not None:
            self._child.wait()
            with self._lock:
                if self._forsaken.is_set():
                    return
                _close(self._child)
                self._start(KubeletMode.HEALTHY)

    def _clean_up(self) -> None:
        self.forsake()
        kill([process for process in self._born if not has_ended(process)])
        if self._supervisor is not None:
            self._supervisor.join(10.0)
        if self._child is not None:
            _close(self._child)
            self._child.wait(10.0)
        shutil.rmtree(self.base, ignore_errors=True)


def _close(child: subprocess.Popen[str]) -> None:
    for stream in (child.stdin, child.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()


class SupervisedContainerd:
    """Starts a lab's containerd again whenever it ends; ``starts`` counts how often."""

    def __init__(self, containerd: Containerd) -> None:
        self.containerd = containerd
        self.starts = 0
        self._forsaken = threading.Event()
        self._thread = threading.Thread(target=self._supervise, name="lab-supervisor", daemon=True)

    def forsake(self) -> None:
        """Never start it again."""
        self._forsaken.set()

    def _supervise(self) -> None:
        while not self._forsaken.is_set():
            if self.containerd.has_ended(within=0.1) and not self._forsaken.is_set():
                self.containerd.start_again()
                self.starts += 1


@contextmanager
def supervised(containerd: Containerd) -> Iterator[SupervisedContainerd]:
    """Supervise a running containerd for the body; it runs and answers again on exit."""
    supervisor = SupervisedContainerd(containerd)
    supervisor._thread.start()
    try:
        yield supervisor
    finally:
        supervisor.forsake()
        supervisor._thread.join(30.0)
        if containerd.has_ended(within=0):
            containerd.start_again()
