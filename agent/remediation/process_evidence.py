"""What is captured of a process before it is signalled: enough to find out later why it hung.

`stack` and `syscall` take a lock of the process that execve(2) holds too, so reading them may wait, on old kernels for
ever. All of it is therefore read by a thread that is left behind if it does not come back in time.
"""

import threading
from collections.abc import Callable
from typing import Any

from agent.host.cgroups import Cgroups
from agent.host.procfs import ProcessFile, Procfs

MAX_THREADS = 64
MAX_TEXT = 4096
"""Characters of any one file."""
PATIENCE_SECONDS = 2.0
"""For everything there is to read of one process; it takes milliseconds."""


def process_evidence(
    procfs: Procfs, cgroups: Cgroups, pid: int, patience_seconds: float = PATIENCE_SECONDS
) -> dict[str, Any]:
    """Return what /proc and the cgroups tell of a process, in JSON's types; raises nothing.

    `{"pid", "stat", "status", "cgroups": [line...], "frozenCgroup", "threads": [{"tid", "wchan", "stack", "syscall"}
    ...]}`; at most MAX_THREADS threads, with `moreThreads` true if there are others. What cannot be read is a text that
    says why. `incomplete` says that reading took longer than `patience_seconds`, and what it was at.
    """
    capture = _Capture(procfs, cgroups, pid)
    reader = threading.Thread(target=capture.run, name=f"evidence-{pid}", daemon=True)
    reader.start()
    reader.join(patience_seconds)
    return capture.so_far(patience_seconds)


class _Capture:
    """One process's evidence while it is being gathered."""

    def __init__(self, procfs: Procfs, cgroups: Cgroups, pid: int) -> None:
        self._procfs = procfs
        self._cgroups = cgroups
        self._pid = pid
        self._lock = threading.Lock()
        self._seen: dict[str, Any] = {"pid": pid}
        self._threads: list[dict[str, Any]] = []
        self._at = "its files"
        self._done = False

    def run(self) -> None:
        """Read everything, the files that never wait first."""
        for name in ("stat", "status"):
            self._keep(name, self._file(name))
        lines = self._procfs.cgroups(self._pid)
        self._keep("cgroups", [line[:MAX_TEXT] for line in lines])
        self._keep("frozenCgroup", _text(lambda: self._cgroups.frozen(lines)))
        try:
            threads = self._procfs.threads(self._pid, MAX_THREADS + 1)
        except OSError as error:
            self._keep("threads", _why(error))
        else:
            self._read_threads(threads[:MAX_THREADS])
            if len(threads) > MAX_THREADS:
                self._keep("moreThreads", value=True)
        with self._lock:
            self._done = True

    def so_far(self, waited_seconds: float) -> dict[str, Any]:
        """Return what has been read by now; the reader may still be at it."""
        with self._lock:
            seen = {**self._seen}
            seen.setdefault("threads", [dict(thread) for thread in self._threads])
            if not self._done:
                seen["incomplete"] = f"not all was read within {waited_seconds:g} s: the kernel kept us at {self._at}"
            return seen

    def _read_threads(self, threads: tuple[int, ...]) -> None:
        for thread in threads:
            wchan = self._file("wchan", thread)
            with self._lock:
                self._threads.append({"tid": thread, "wchan": "" if wchan == "0" else wchan})
        for index, thread in enumerate(threads):
            for name in ("stack", "syscall"):
                with self._lock:
                    self._at = f"the {name} of thread {thread}"
                text = self._file(name, thread)
                with self._lock:
                    self._threads[index][name] = text

    def _file(self, name: ProcessFile, thread: int | None = None) -> str:
        return _text(lambda: self._procfs.file(self._pid, name, thread))

    def _keep(self, name: str, value: Any) -> None:  # noqa: ANN401 - whatever JSON can hold
        with self._lock:
            self._seen[name] = value


def _text(read: Callable[[], str]) -> str:
    try:
        return read()[:MAX_TEXT]
    except OSError as error:
        return _why(error)


def _why(error: OSError) -> str:
    return f"not readable: {error.strerror or error}"
