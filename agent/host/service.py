"""Follows the process behind a service (the kubelet, containerd) without scanning /proc at every look."""

from collections.abc import Callable
from dataclasses import dataclass

from agent.clock import Clock
from agent.host.cgroups import Cgroups
from agent.host.procfs import INIT_PID, Procfs
from agent.host.units import service_cgroup, unit_of
from agent.model import ProcessId

RESCAN_SECONDS = 10.0
"""A scan of /proc costs 5 ms at 600 processes; without need it is not repeated sooner."""
STOPPED = frozenset({"T", "t"})
"""States of a process that was stopped by a signal, or that a debugger holds (proc(5))."""


@dataclass(frozen=True, slots=True)
class Lifetime:
    """The process of a service: the one there is and its age in seconds, or the one that has ended.

    `cgroup` is the cgroup of the systemd service that runs it, or ran the one that has ended; empty if it is not
    known.
    """

    process: ProcessId | None = None
    age_seconds: float | None = None
    ended: ProcessId | None = None
    cgroup: str = ""

    @property
    def unit(self) -> str:
        """The systemd service that runs it, or ran the one that has ended; empty if it is not known."""
        return unit_of(self.cgroup)


@dataclass(frozen=True, slots=True)
class Halt:
    """What keeps a process from running: its state in /proc/N/stat if it is stopped, the frozen cgroup that holds it.

    Both are empty for a process that runs, or may.
    """

    state: str = ""
    frozen_cgroup: str = ""


RUNS = Halt()
"""Nothing keeps it from running."""


class ServiceSense:
    """Reads of a service's process what its detector needs beside its answers."""

    def __init__(self, procfs: Procfs, cgroups: Cgroups) -> None:
        self._procfs = procfs
        self._cgroups = cgroups

    def cgroup(self, process: ProcessId) -> str:
        """Return the cgroup of the service that a process is the main process of, as far as /proc shows it.

        A service's main process is a child of pid 1; anything else in its cgroup may have been started by hand.
        """
        now = self._procfs.process(process.pid)
        if now is None or now.id != process or now.ppid != INIT_PID:
            return ""
        return service_cgroup(self._procfs.cgroups(process.pid))

    def halt(self, process: ProcessId) -> Halt:
        """Return what keeps a process from running now."""
        now = self._procfs.process(process.pid)
        if now is None or now.id != process:
            return RUNS
        frozen = self._cgroups.frozen(self._procfs.cgroups(process.pid))
        return Halt(now.state if now.state in STOPPED else "", frozen)


class ServiceProcess:
    """Follows the process of a service from look to look, and scans /proc only if it must.

    `find` looks for the process, `age` gives its age in seconds or None once it is gone, `cgroup_of` the cgroup of the
    service that runs it, empty if none is known.
    """

    def __init__(
        self,
        find: Callable[[], ProcessId | None],
        age: Callable[[ProcessId], float | None],
        clock: Clock,
        cgroup_of: Callable[[ProcessId], str] = lambda _: "",
    ) -> None:
        self._find = find
        self._age = age
        self._clock = clock
        self._cgroup_of = cgroup_of
        self._process: ProcessId | None = None
        self._ended: ProcessId | None = None
        self._cgroup = ""
        self._scanned: float | None = None

    def look(self, *, urgent: bool) -> Lifetime:
        """Return the process as it is now; `urgent` scans for it even if that was done just now."""
        if self._process is not None:
            age = self._age(self._process)
            if age is not None:
                return Lifetime(self._process, age, cgroup=self._cgroup)
            self._ended, self._process, urgent = self._process, None, True
        now = self._clock.monotonic()
        if urgent or self._scanned is None or now - self._scanned >= RESCAN_SECONDS:
            self._scanned = now
            self._process = self._find()
            if self._process is not None:
                cgroup = self._cgroup_of(self._process)
                # One that is just ending may be found once more, and is in no cgroup any longer.
                if cgroup or self._process != self._ended:
                    self._cgroup = cgroup
        if self._process is None:
            return Lifetime(ended=self._ended, cgroup=self._cgroup)
        self._ended = None
        return Lifetime(self._process, self._age(self._process), cgroup=self._cgroup)
