"""Which process is a service of the node, how patient one is with it, and why it is left alone.

A name proves nothing, since any container may call itself kubelet; so the process must live outside of every container
and hold the very socket the service is asked at.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from agent.acts import RefusalReason, RefusedError, refused
from agent.host import cgroups
from agent.host.listeners import Listeners
from agent.host.procfs import Process, Procfs
from agent.host.units import unit_of
from agent.model import CannotSeeError, ProcessId, Target
from agent.printable import printable
from agent.remediation.hands import same_process
from agent.remediation.systemd import SERVICE_NAME


@dataclass(frozen=True, slots=True)
class Patience:
    """How long things may take, in seconds. The first three are the detector's, so that both judge alike.

    `term`: from SIGTERM to SIGKILL; `job`: the same where systemd ends the process, instead of its TimeoutStopSec of
    90; `kill`: from SIGKILL to the end; `recheck`: between two looks at a fault that must not be a moment's.
    """

    deadline: float
    hedge: float
    restart_grace: float
    recheck: float = 1.0
    term: float = 5.0
    job: float = 10.0
    kill: float = 5.0
    successor: float = 30.0
    answer: float = 30.0


def exact(target: Target, name: str, address: str, procfs: Procfs) -> ProcessId:
    """Return the process a target names, of this boot. Raises RefusedError."""
    if target.pid is None or target.start_time is None:
        where = f"where it has ended, see systemctl show -p ActiveState,Result {name}"
        raise refused(RefusalReason.TARGET_GONE, f"no process of {name} is named: {where}; there is none to end")
    _of_this_service(target, name, address, procfs)
    return ProcessId(target.pid, target.start_time)


def exact_unit(target: Target, name: str, address: str, procfs: Procfs) -> str:
    """Return the systemd service that ran the process which has ended, by its cgroup. Raises RefusedError."""
    unit = unit_of(target.cgroup)
    if not SERVICE_NAME.fullmatch(unit):
        why = f"no process of {name} runs, and {printable(target.cgroup, 120)} is not the cgroup of a systemd service"
        raise refused(RefusalReason.INEXACT_TARGET, why)
    _of_this_service(target, name, address, procfs)
    return unit


def is_ended(target: Target) -> bool:
    """Whether a target is a service whose process has ended, named by the cgroup of the unit that ran it."""
    return target.pid is None and target.start_time is None and bool(target.cgroup)


def _of_this_service(target: Target, name: str, address: str, procfs: Procfs) -> None:
    """Make sure that a target is of this boot and of the service at this address. Raises RefusedError."""
    this_boot(target, procfs)
    if target.address not in {"", address}:
        why = f"{name} is asked at {address}, not at {printable(target.address, 120)}. Ask for a new report"
        raise refused(RefusalReason.TARGET_CHANGED, why)


def this_boot(target: Target, procfs: Procfs) -> None:
    """Make sure that a target is of this boot. Raises RefusedError."""
    boot_id = procfs.boot_id()
    if not boot_id:
        raise refused(RefusalReason.CANNOT_SEE, "this boot's id cannot be read, nor whether the target is of it")
    if target.boot_id != boot_id:
        why = f"the target is of boot {printable(target.boot_id, 40) or '(none)'}, and this is {boot_id}"
        raise refused(RefusalReason.OTHER_BOOT, f"{why}. Ask for a new report")


@dataclass(frozen=True, slots=True)
class Identified:
    """The process of a service, and the listening sockets at its address, all its own; none if nobody listens."""

    process: Process
    sockets: frozenset[int]


class NodeService:
    """A service of the node by the name of its process and the address it listens at.

    `listening` returns the inodes of the sockets at that address. `namespaces` are containerd's, to tell containers.
    """

    def __init__(
        self,
        comm: str,
        address: str,
        listening: Callable[[], frozenset[int]],
        listeners: Listeners,
        procfs: Procfs,
        namespaces: tuple[str, ...],
    ) -> None:
        self.comm = comm
        self.address = address
        self._listening = listening
        self._listeners = listeners
        self._procfs = procfs
        self._namespaces = namespaces

    def identify(self, process: ProcessId) -> Identified:
        """Make sure that a process is the service. Raises RefusedError."""
        now = same_process(process, self._procfs)
        if now.comm != self.comm:
            what = f"process {now.pid} is named {printable(now.comm, 60)}, not {self.comm}"
            raise refused(RefusalReason.TARGET_CHANGED, f"{what}. Ask for a new report")
        if not self._procfs.cgroups(now.pid):
            why = f"the cgroup of process {now.pid} cannot be read, so it cannot be told whether it is in a container"
            raise refused(RefusalReason.CANNOT_SEE, why)
        if elsewhere := self._elsewhere(now):
            what = f"process {now.pid} is named {self.comm} but lives in {elsewhere}: it is not this node's"
            raise refused(RefusalReason.PROTECTED_PROCESS, what)
        sockets = self._seen(self._listening)
        if sockets:
            self._owns(now, sockets)
        elif others := [p.pid for p in self._candidates() if p.id != now.id]:
            raise refused(RefusalReason.UNSAFE_NOW, self._ambiguous([now.pid, *others]))
        return Identified(now, sockets)

    def find(self) -> Identified:
        """Find the one process that is the service. Raises RefusedError if there is none, or none that can be told."""
        candidates = self._candidates()
        sockets = self._seen(self._listening)
        if sockets:
            held = [p for p in candidates if sockets & self._seen(partial(self._listeners.held_by, p.pid))]
            candidates = tuple(held)
            if not candidates:
                why = f"who listens at {self.address} is no process named {self.comm} outside of containers"
                raise refused(RefusalReason.UNSAFE_NOW, why)
        if not candidates:
            raise refused(RefusalReason.TARGET_GONE, f"there is no process named {self.comm} outside of containers")
        if len(candidates) > 1:
            raise refused(RefusalReason.UNSAFE_NOW, self._ambiguous([p.pid for p in candidates]))
        return self.identify(candidates[0].id)

    def successor(self, before: frozenset[ProcessId]) -> Identified | None:
        """Return the service's process if it is none of those there were before; None for as long as it is not."""
        try:
            found = self.find()
        except RefusedError:
            return None
        return None if found.process.id in before else found

    def none_lives(self) -> None:
        """Make sure that no process is the service, or might be. Raises RefusedError."""
        if living := [str(process.pid) for process in self._candidates()[:8]]:
            why = f"a process named {self.comm} runs by now: pid {', '.join(living)}. Request a new report"
            raise refused(RefusalReason.TARGET_CHANGED, why)

    def everybody(self) -> frozenset[ProcessId]:
        """Return all processes of this name, wherever they live. Raises RefusedError."""
        return frozenset(process.id for process in self._named())

    def _named(self) -> tuple[Process, ...]:
        try:
            return self._procfs.named(self.comm)
        except OSError as error:
            raise refused(RefusalReason.CANNOT_SEE, f"the processes cannot be listed: {error.strerror}") from None

    def _candidates(self) -> tuple[Process, ...]:
        return tuple(p for p in self._named() if p.state != "Z" and not self._elsewhere(p))

    def _elsewhere(self, process: Process) -> str:
        if self._procfs.nested(process.pid):
            return "a pid namespace of its own"
        owner = cgroups.owner(self._procfs.cgroups(process.pid), self._namespaces)
        return "" if owner is None else f"container {owner.container_id[:12]}"

    def _owns(self, process: Process, sockets: frozenset[int]) -> None:
        held = self._seen(partial(self._listeners.held_by, process.pid))
        if sockets <= held:
            return
        whose = "share that address" if sockets & held else "listen there"
        why = f"process {process.pid} is not (alone) what listens at {self.address}: others {whose}. Find them: ss -lpn"
        raise refused(RefusalReason.UNSAFE_NOW, why)

    def _ambiguous(self, pids: list[int]) -> str:
        listed = ", ".join(str(pid) for pid in sorted(pids)[:8])
        return (
            f"nobody listens at {self.address}, and {len(pids)} processes are named {self.comm} (pids {listed}): "
            "it cannot be told which is the node's. End the wrong one by hand"
        )

    def _seen(self, look: Callable[[], frozenset[int]]) -> frozenset[int]:
        try:
            return look()
        except CannotSeeError as error:
            raise refused(RefusalReason.CANNOT_SEE, str(error)) from None
