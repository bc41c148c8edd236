"""Ends a service in such a way that somebody starts it again: by systemd, else by signals. Starts one that has ended.

A service that nobody starts again is not ended at all: a sick kubelet is better than none. Signals are the way only
where systemd cannot be reached or does not permit the call: a systemd that was called and did not answer may be busy,
and then it does not start anything again either.
"""

import os
import signal
from dataclasses import dataclass

from agent.acts import RefusalReason, RefusedError, refused
from agent.host.procfs import INIT_PID, Process, Procfs, state_and_place
from agent.host.units import service_cgroup, unit_of
from agent.printable import printable
from agent.remediation.hands import Grip, same_process
from agent.remediation.remedy import ActError
from agent.remediation.services import Patience
from agent.remediation.systemd import START_LIMIT_HIT, BusError, DeclinedError, NoServiceError, Systemd, Unit, UnitState

SILENT_RETRY_SECONDS = 30.0
"""A systemd that does not answer is busy, such as while it reloads its units."""


@dataclass(frozen=True, slots=True)
class Way:
    """How a service will be restarted: by systemd with its unit, else by signals; `text` says which and why.

    `unclean`: SIGKILL is the only signal, since systemd is the supervisor and cannot be reached: with
    Restart=on-failure it does not start again what a SIGTERM ended (systemd.service(5)).
    """

    text: str
    unit: Unit | None = None
    unclean: bool = False


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
            return self._by_signals(process, str(error), silent=error.asked)
        _may_be_requested(unit, "restart", RefuseManualStop=unit.refuses_stop, RefuseManualStart=unit.refuses_start)
        return Way(f"systemd, unit {unit.name}", unit)

    def way_to_start(self, name: str) -> Way:
        """Find out whether systemd may start a service again that has ended. Raises RefusedError."""
        try:
            state = self._systemd.state(name)
        except BusError as error:
            why = f"{error}, and nothing but systemd starts {name}. Start it by hand: systemctl start {name}"
            raise refused(RefusalReason.UNSAFE_NOW, why) from None
        _may_be_started(state)
        return Way(f"systemd, unit {state.unit.name} ({state})", state.unit)

    def start(self, way: Way) -> str:
        """Start a service that has ended, and return what was done. Raises ActError."""
        unit = way.unit
        if unit is None:
            raise ActError("nothing was done: no unit is known")
        try:
            self._reset_failed(unit)
            self._systemd.start(unit)
        except DeclinedError as error:
            raise ActError(f"{error}; nothing was done. {_see(unit)}") from None
        except BusError as error:
            if not error.asked:
                raise ActError(f"nothing was done: {error}") from None
            return f"systemd was called to start {unit.name}, but {error}"
        return f"systemd was called to start {unit.name}"

    def why_it_did_not_come_back(self, name: str, way: Way) -> str:
        """Return what systemd reports of a unit that does not run again, and what to do, in a sentence or two."""
        unit = way.unit.name if way.unit else f"{name}.service"
        journal = f"See journalctl -u {unit}"
        try:
            state = self._systemd.state(unit) if way.unit else None
        except BusError:
            state = None
        if state is None:
            return f"See systemctl show -p ActiveState,Result {unit} and journalctl -u {unit}"
        if state.gave_up:
            also = "" if state.result == START_LIMIT_HIT else f", although Restart={state.restart}"
            return (
                f"systemd reports {state}{also}: it was started too often (StartLimitBurst= of the unit) and systemd "
                f"does not start it again by itself. {journal} for why it ends, and once that is repaired run: "
                f"systemctl reset-failed {unit} && systemctl start {unit}"
            )
        return f"systemd reports {state}. {journal}"

    def restart(self, grip: Grip, way: Way) -> str:
        """End the process and return what was done. Raises ActError."""
        pid = grip.process.pid
        _require_running(grip)
        if way.unit is None:
            return self._signal(grip, way)
        try:
            self._reset_failed(way.unit)
            self._require_not_stopping(way.unit)
            _require_running(grip)  # the calls may have taken seconds, and RestartUnit starts a unit that was stopped
            self._systemd.restart(way.unit)
        except DeclinedError as error:
            raise ActError(f"{error}; nothing was done. {_see(way.unit)}") from None
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

    def _reset_failed(self, unit: Unit) -> None:
        """Reset the count of a unit's starts. Raises BusError if systemd cannot be reached, DeclinedError, ActError."""
        try:
            self._systemd.reset_failed(unit)
        except BusError as error:
            if error.asked:
                raise _silent(error) from None
            raise

    def _require_not_stopping(self, unit: Unit) -> None:
        """Make sure that systemd is not ending the unit already: a restart would undo an administrator's stop."""
        try:
            state = self._systemd.active_state(unit)
        except BusError as error:
            raise _silent(error) from None
        if state in {"deactivating", "inactive", "failed"}:
            why = f"{unit.name} has been stopped since (ActiveState={state}), and a restart would undo that"
            raise ActError(f"nothing was done: {why}. {_see(unit)}")

    def _by_signals(self, process: Process, why: str, *, silent: bool = False) -> Way:
        """Return the way without systemd. `silent`: systemd was reached and did not answer, so it may not act either.

        Raises RefusedError.
        """
        supervisor = self._supervisor(process)
        if not supervisor:
            init = self._procfs.process(INIT_PID)
            raise refused(
                RefusalReason.UNSAFE_NOW,
                f"nobody is seen who would start process {process.pid} again: its parent is pid {process.ppid} "
                f"({printable(init.comm, 60) if init else 'not to be seen'}) and its cgroup is no service of systemd; "
                f"and {why}. Restart it by hand, as it was started",
            )
        by_systemd = supervisor.startswith("systemd ")
        if by_systemd and silent:
            doubt = f"{supervisor} is to start process {process.pid} again, but {why}: it may not start anything now"
            raise refused(RefusalReason.UNSAFE_NOW, doubt, SILENT_RETRY_SECONDS)
        unread = "; its Restart= and start limit cannot be read" if by_systemd else ""
        return Way(f"signals, since {why}; {supervisor} is to start it again{unread}", unclean=by_systemd)

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
        return self._signal(grip, way)

    def _signal(self, grip: Grip, way: Way) -> str:
        pid = grip.process.pid
        if way.unclean:
            self._kill(grip, f"process {pid} was to be killed (by {way.text})")
            return f"process {pid} was killed (by {way.text})"
        grip.signal(signal.SIGTERM)
        grip.signal(signal.SIGCONT)  # a stopped process acts on nothing but SIGKILL before it is continued
        if grip.ended(self._patience.term):
            return f"process {pid} was ended with SIGTERM (by {way.text})"
        self._kill(grip, f"SIGTERM was sent (by {way.text})")
        return f"process {pid} did not end within {self._patience.term:g} s of SIGTERM and was killed (by {way.text})"

    def _kill(self, grip: Grip, before: str) -> None:
        grip.signal(signal.SIGKILL)
        if grip.ended(self._patience.kill):
            return
        now = self._procfs.process(grip.process.pid)
        state = f" ({state_and_place(now.state, self._procfs.wchan(now.pid))})" if now else ""
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


def _may_be_started(state: UnitState) -> None:
    """Make sure that a unit has ended and that no administrator forbids its start. Raises RefusedError."""
    name, load, enabled = state.unit.name, state.load_state, state.unit_file_state
    if load == "not-found":
        why = f"systemd has no unit {name} any more (LoadState=not-found): it was removed from this node"
        raise refused(RefusalReason.TARGET_GONE, why)
    if "masked" in {load, enabled.removesuffix("-runtime")}:
        why = f"{name} is masked (LoadState={load}, UnitFileState={enabled}): an administrator forbids its start"
        raise refused(RefusalReason.UNSAFE_NOW, f"{why}. If it is to run: systemctl unmask {name}, then start it")
    if load != "loaded":
        why = f"systemd could not load {name} (LoadState={load})"
        raise refused(RefusalReason.UNSAFE_NOW, f"{why}. See systemctl show -p LoadError {name}")
    if enabled == "disabled":
        why = (
            f"{name} is disabled (UnitFileState=disabled): it was switched off on purpose, or something else starts it"
        )
        raise refused(RefusalReason.UNSAFE_NOW, f"{why}. If it is to run: systemctl enable --now {name}")
    if state.active_state in {"inactive", "failed"}:
        _may_be_requested(state.unit, "start", RefuseManualStart=state.unit.refuses_start)
        return
    if state.active_state == "active":
        why = f"{name} runs by now (main process {state.unit.main_pid}). Request a new report"
        raise refused(RefusalReason.TARGET_CHANGED, why)
    why = f"systemd is at {name} already ({state}): it starts it by itself, or ends it"
    raise refused(RefusalReason.NOT_CONFIRMED, f"{why}. If it keeps ending, see journalctl -u {name}")


def _require_running(grip: Grip) -> None:
    if grip.ended(0):
        raise ActError(f"process {grip.process.pid} ended by itself before it was touched; nothing was done")


def _silent(error: BusError) -> ActError:
    return ActError(f"nothing was done: systemd does not answer: {error}")


def _may_be_requested(unit: Unit, what: str, **refuses: bool) -> None:
    """Make sure that no property of a unit has systemd refuse a request for it. Raises RefusedError UNSAFE_NOW."""
    reasons = [f"{name}=yes" for name, refused_by in refuses.items() if refused_by]
    if reasons:
        raise refused(
            RefusalReason.UNSAFE_NOW,
            f"{unit.name} has {' and '.join(reasons)}: systemd does not {what} it on request, but only together with a "
            f"unit that requires it. Find that with systemctl list-dependencies --reverse {unit.name}, or remove the "
            f"property with systemctl edit {unit.name}",
        )


def _see(unit: Unit) -> str:
    return f"See systemctl show -p LoadState,ActiveState,Result {unit.name}"


def service_unit(lines: tuple[str, ...]) -> str:
    """Return the service unit a process's cgroup is or lies in, from its /proc/N/cgroup lines; empty if in none."""
    return unit_of(service_cgroup(lines))


def _not_ourselves(pid: int, unit: str) -> RefusedError:
    why = f"process {pid} and this agent are both of unit {unit}: a restart would end the agent in the middle of it"
    return refused(RefusalReason.PROTECTED_PROCESS, why)
