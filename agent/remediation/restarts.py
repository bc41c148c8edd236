"""Ends a service in such a way that somebody starts it again: by systemd, else by signals.

A service that nobody starts again is not ended at all: a sick kubelet is better than none. From systemd to signals one
falls back only while systemd has not been asked to do anything.
"""

import os
import signal
from dataclasses import dataclass

from agent.acts import RefusalReason, RefusedError, refused
from agent.host.procfs import INIT_PID, Process, Procfs
from agent.host.units import service_cgroup, unit_of
from agent.printable import printable
from agent.remediation.hands import Grip, same_process
from agent.remediation.remedy import ActError
from agent.remediation.services import Patience
from agent.remediation.systemd import BusError, DeclinedError, NoServiceError, Systemd, Unit


@dataclass(frozen=True, slots=True)
class Way:
    """How a service will be restarted: by systemd with its unit, else by signals; `text` says which and why."""

    text: str
    unit: Unit | None = None


class Restarter:
    """Ends a service's process in such a way that somebody starts it again."""

    def __init__(self, procfs: Procfs, systemd: Systemd, patience: Patience) -> None:
        self._procfs = procfs
        self._systemd = systemd
        self._patience = patience

    def way(self, process: Process) -> Way:
        """Find out who starts a process again. Raises RefusedError UNSAFE_NOW if nobody is seen who would."""
        own = service_unit(self._procfs.cgroups(os.getpid()))
        if own and own == service_unit(self._procfs.cgroups(process.pid)):
            raise _not_ourselves(process.pid, own)
        try:
            unit = self._systemd.service_of(process.pid)
            if self._systemd.unit_path(os.getpid()) == unit.path:
                raise _not_ourselves(process.pid, unit.name)
        except NoServiceError as error:
            why = f"{error}, so nobody is known to start it again. Restart it by hand, as it was started"
            raise refused(RefusalReason.UNSAFE_NOW, why) from None
        except BusError as error:
            return self._by_signals(process, str(error))
        return Way(f"systemd, unit {unit.name}", unit)

    def restart(self, grip: Grip, way: Way) -> str:
        """End the process and return what was done. Raises ActError."""
        pid = grip.process.pid
        if grip.ended(0):
            raise ActError(f"process {pid} ended by itself before it was touched; nothing was done")
        if way.unit is None:
            return self._signal(grip, way.text)
        try:
            self._systemd.restart(way.unit)
        except DeclinedError as error:
            raise ActError(
                f"{error}; nothing was done. See systemctl show -p LoadState,ActiveState,Result {way.unit.name}"
            ) from None
        except BusError as error:
            if not error.asked:
                return self._signal_instead(grip, str(error))
            return self._unanswered(grip, way.unit, str(error))
        if grip.ended(self._patience.job):
            return f"systemd restarted {way.unit.name}; its process {pid} ended"
        self._kill(grip, f"systemd was asked to restart {way.unit.name}")
        return (
            f"systemd restarts {way.unit.name}; its process {pid} had not ended after {self._patience.job:g} s and was "
            "killed"
        )

    def _by_signals(self, process: Process, why: str) -> Way:
        supervisor = self._supervisor(process)
        if not supervisor:
            init = self._procfs.process(INIT_PID)
            raise refused(
                RefusalReason.UNSAFE_NOW,
                f"nobody is seen who would start process {process.pid} again: its parent is pid {process.ppid} "
                f"({printable(init.comm, 60) if init else 'not to be seen'}) and its cgroup is no service of systemd; "
                f"and {why}. Restart it by hand, as it was started",
            )
        return Way(f"signals, since {why}; {supervisor} is to start it again")

    def _supervisor(self, process: Process) -> str:
        """Who is to start a process again; empty if nobody is known. Parent 0 lies outside of what can be seen."""
        parent = self._procfs.process(process.ppid) if process.ppid >= INIT_PID else None
        if parent is None or parent.state == "Z":
            return ""
        if parent.pid != INIT_PID:
            return f"its parent, process {parent.pid} ({printable(parent.comm, 60)}),"
        unit = service_unit(self._procfs.cgroups(process.pid))
        return f"systemd (unit {printable(unit, 120)})" if parent.comm == "systemd" and unit else ""

    def _signal_instead(self, grip: Grip, why: str) -> str:
        now = same_process(grip.process, self._procfs)
        try:
            way = self._by_signals(now, why)
        except RefusedError as error:
            raise ActError(f"nothing was done: {error}") from None
        return self._signal(grip, way.text)

    def _signal(self, grip: Grip, way: str) -> str:
        pid = grip.process.pid
        grip.signal(signal.SIGTERM)
        grip.signal(signal.SIGCONT)  # a stopped process acts on nothing but SIGKILL before it is continued
        if grip.ended(self._patience.term):
            return f"process {pid} was ended with SIGTERM (by {way})"
        self._kill(grip, f"SIGTERM was sent (by {way})")
        return f"process {pid} did not end within {self._patience.term:g} s of SIGTERM and was killed (by {way})"

    def _kill(self, grip: Grip, before: str) -> None:
        grip.signal(signal.SIGKILL)
        if grip.ended(self._patience.kill):
            return
        now = self._procfs.process(grip.process.pid)
        state = f" (state {now.state}, in {self._procfs.wchan(now.pid) or 'user space'})" if now else ""
        raise ActError(
            f"{before} and SIGKILL sent, but process {grip.process.pid} has not ended after "
            f"{self._patience.kill:g} s{state}: the kernel holds it. It ends once it is let go; if it is not, the node "
            "needs a reboot"
        )

    def _unanswered(self, grip: Grip, unit: Unit, why: str) -> str:
        """Wait for the end: systemd may be at it or not, so nothing else is tried beside it."""
        if grip.ended(self._patience.job):
            return f"{why}; but process {grip.process.pid} of {unit.name} has ended since"
        raise ActError(
            f"systemd was asked to restart {unit.name}, but {why}; process {grip.process.pid} goes on. "
            "See systemctl list-jobs"
        )


def service_unit(lines: tuple[str, ...]) -> str:
    """Return the service unit a process's cgroup is or lies in, from its /proc/N/cgroup lines; empty if in none."""
    return unit_of(service_cgroup(lines))


def _not_ourselves(pid: int, unit: str) -> RefusedError:
    why = f"process {pid} and this agent are both of unit {unit}: a restart would end the agent in the middle of it"
    return refused(RefusalReason.PROTECTED_PROCESS, why)
