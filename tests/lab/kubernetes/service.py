"""One of the node's services: a process that can be ended, stopped, and started again with the same command line."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab.processes import Process, identify, send_signal, state_of
from tests.lab.waiting import wait_until

_LAST_WORDS = 3000


class Service:
    """A process with a log of its own, as a context manager. Nothing starts it again but `start`."""

    def __init__(self, name: str, argv: list[str], folder: Path) -> None:
        self.name = name
        self.log_file = folder / f"{name}.log"
        self._argv = argv
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def process(self) -> Process:
        """The identity of the running process."""
        if self._child is None:
            raise RuntimeError(f"{self.name} is not running")
        return identify(self._child.pid)

    def start(self) -> None:
        """Start it (again), without waiting until it serves."""
        if self._child is not None:
            raise RuntimeError(f"{self.name} is running already")
        with self.log_file.open("ab") as log:
            self._child = subprocess.Popen(self._argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/")

    def check(self) -> None:
        """Raise if it has ended by itself."""
        if self._child is not None and self._child.poll() is not None:
            raise RuntimeError(f"{self.name} ended: {self.log_file.read_text(errors='replace')[-_LAST_WORDS:]}")

    def stop(self, timeout: float = 15.0) -> None:
        """End it as a service manager does; by SIGKILL if it does not end in time."""
        self._end(signal.SIGTERM, timeout)

    def kill(self) -> None:
        """End it as the OOM killer does."""
        self._end(signal.SIGKILL, 15.0)

    def pause(self) -> None:
        """Stop it with SIGSTOP: the kernel still takes connections for it."""
        process = self.process
        send_signal(process, signal.SIGSTOP)
        wait_until(lambda: state_of(process) == "T", 5.0, f"{self.name} stopped")

    def resume(self) -> None:
        """Undo `pause`."""
        send_signal(self.process, signal.SIGCONT)

    def _end(self, number: signal.Signals, timeout: float) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.send_signal(signal.SIGCONT)
        child.send_signal(number)
        try:
            child.wait(timeout)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait(timeout)
