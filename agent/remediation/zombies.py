"""One parent and its lasting zombies, as SignalParent and KillParent need to know them.

Every process is a zombie for the moment between its end and its reaping, so those count that are there in two looks,
by pid and start time. A parent that is stopped or frozen reaps once it goes on, and is none of these actions' business.
Only `stat`, `status` and `cgroup` of /proc are read, which never block.
"""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from agent.acts import RefusalReason, RefusedError, refused
from agent.clock import Clock
from agent.host import cgroups
from agent.host.cgroups import CgroupOwner, Cgroups
from agent.host.inventory import SHIM_COMM
from agent.host.procfs import Process, Procfs, Zombie
from agent.model import Finding, ProcessId, Target
from agent.printable import printable
from agent.remediation.hands import Grip, held, same_process
from agent.remediation.process_evidence import process_evidence
from agent.remediation.waiting import pause

APART_SECONDS = 1.0
"""Awake time between the two looks."""
MAX_COMMS = 10
MAX_PIDS = 50
NEVER_TOUCHED = frozenset({SHIM_COMM, "containerd", "kubelet", "runc", "dockerd", "crio", "conmon"})
"""By name: the node's own runtime, wherever its processes have been put. A workload of such a name is spared too."""
STOPPED = frozenset({"T", "t"})


@dataclass(frozen=True, slots=True)
class Parent:
    """A process that does not reap, held. `shim_child`: a shim is its parent, so most likely it is pid 1 inside."""

    grip: Grip
    process: Process
    owner: CgroupOwner
    zombies: tuple[Zombie, ...]
    shim_child: bool
    whose: str

    @property
    def name(self) -> str:
        """`process 4711 (redis-server) of pod shop/web-0`."""
        return f"process {self.process.pid} ({printable(self.process.comm)}) of {self.whose}"

    @property
    def message(self) -> str:
        """What was seen, in a sentence."""
        comm, count = Counter(zombie.comm for zombie in self.zombies).most_common(1)[0]
        return (
            f"{self.name} does not reap: {len(self.zombies)} lasting zombies, {count} of them named {printable(comm)}"
        )


class Parents:
    """Looks at parents afresh; `min_zombies` lasting ones are too many."""

    def __init__(
        self,
        procfs: Procfs,
        cgroups: Cgroups,
        namespaces: tuple[str, ...],
        clock: Clock,
        min_zombies: int,
        apart_seconds: float = APART_SECONDS,
    ) -> None:
        self._procfs = procfs
        self._cgroups = cgroups
        self._namespaces = namespaces
        self._clock = clock
        self._min_zombies = min_zombies
        self._apart_seconds = apart_seconds

    @contextmanager
    def confirmed(self, target: Target, finding: Finding) -> Iterator[Parent]:
        """Hold the target if it does not reap now. Raises RefusedError, as `Remedy.confirm` does."""
        if target.pid is None or target.start_time is None:
            why = "the target has no pid and start time; take it from a report of this node as it stands"
            raise refused(RefusalReason.INEXACT_TARGET, why)
        identity = ProcessId(target.pid, target.start_time)
        with held(identity, self._procfs) as grip:
            owner = self._reapable(identity, target)
            zombies = self._lasting(identity)
            owner = self._reapable(identity, target)
            process = same_process(identity, self._procfs)
            above = self._procfs.process(process.ppid)
            whose = f"pod {finding.pod}" if finding.pod and finding.pod.name else f"container {owner.container_id[:12]}"
            yield Parent(grip, process, owner, zombies, above is not None and above.comm == SHIM_COMM, whose)

    def left(self, zombies: tuple[Zombie, ...]) -> tuple[Zombie, ...]:
        """Return which of these are zombies still, whoever is their parent by now. Raises OSError."""
        wanted = {(zombie.pid, zombie.start_time) for zombie in zombies}
        return tuple(each for each in self._scan() if (each.pid, each.start_time) in wanted)

    def named(self, pid: int) -> str:
        """Return `4711 (sh)`, or the pid alone if it is gone."""
        process = self._procfs.process(pid)
        return f"{pid} ({printable(process.comm)})" if process else str(pid)

    def state(self, identity: ProcessId) -> str:
        """Return the state letter of exactly this process; empty if it is gone."""
        process = self._procfs.process(identity.pid)
        return process.state if process is not None and process.id == identity else ""

    def evidence(self, parent: Parent) -> dict[str, Any]:
        """Return what is worth keeping of a parent and its zombies, in JSON's types. Raises nothing."""
        counted = Counter(zombie.comm for zombie in parent.zombies).most_common(MAX_COMMS)
        return {
            "parent": process_evidence(self._procfs, self._cgroups, parent.process.pid),
            "containerId": parent.owner.container_id,
            "cgroup": parent.owner.path,
            "zombies": len(parent.zombies),
            "zombieComms": [{"comm": printable(comm), "count": count} for comm, count in counted],
            "zombiePids": [zombie.pid for zombie in parent.zombies[:MAX_PIDS]],
        }

    def _reapable(self, identity: ProcessId, target: Target) -> CgroupOwner:
        """Return whose container it is, if it may be touched and could reap if it wanted."""
        process = same_process(identity, self._procfs)
        if process.comm in NEVER_TOUCHED or process.comm.startswith("runc:"):
            why = f"process {process.pid} is called {process.comm}: the node's own runtime is never touched"
            raise refused(RefusalReason.PROTECTED_PROCESS, why)
        lines = self._procfs.cgroups(process.pid)
        owner = self._owner(process, lines, target)
        if process.state in STOPPED:
            raise _not_confirmed(
                f"process {process.pid} is stopped (state {process.state}) and reaps once it is continued: find out "
                f"who stopped it (a debugger?), else `kill -CONT {process.pid}`"
            )
        frozen = self._cgroups.frozen(lines)
        if frozen:
            raise _not_confirmed(
                f"process {process.pid} is frozen with its cgroup {frozen} and reaps once that is thawed: ask for "
                "ThawCgroup"
            )
        return owner

    def _owner(self, process: Process, lines: tuple[str, ...], target: Target) -> CgroupOwner:
        if not lines:
            why = f"the cgroups of process {process.pid} cannot be read, so nobody knows whose it is"
            raise refused(RefusalReason.CANNOT_SEE, why)
        owner = cgroups.owner(lines, self._namespaces)
        if owner is None:
            why = f"process {process.pid} belongs to no container: restart the service it belongs to"
            raise refused(RefusalReason.PROTECTED_PROCESS, why)
        own = cgroups.owner(self._procfs.cgroups(os.getpid()), self._namespaces)
        if own is not None and own.container_id == owner.container_id:
            why = f"process {process.pid} is in this agent's own container"
            raise refused(RefusalReason.PROTECTED_PROCESS, why)
        if owner.container_id != target.container_id:
            asked = f"container {target.container_id[:12]}" if target.container_id else "no container"
            why = (
                f"process {process.pid} is in container {owner.container_id[:12]}, while the request says "
                f"{asked}. Ask for a new report"
            )
            raise refused(RefusalReason.TARGET_CHANGED, why)
        return owner

    def _lasting(self, identity: ProcessId) -> tuple[Zombie, ...]:
        """Return the zombies of a parent that are there in two looks."""
        try:
            first = self._of(identity.pid)
            pause(self._clock, self._apart_seconds)
            known = frozenset(first)
            lasting = tuple(zombie for zombie in self._of(identity.pid) if zombie in known)
        except OSError as error:
            why = f"the processes of this node cannot be listed: {error.strerror or error}"
            raise refused(RefusalReason.CANNOT_SEE, why) from None
        if len(lasting) < self._min_zombies:
            raise _not_confirmed(
                f"process {self.named(identity.pid)} has {len(lasting)} lasting zombies now ({len(first)} at a first "
                f"look {self._apart_seconds:g} s before), and {self._min_zombies} would be too many: it reaps, or "
                "has been mended already"
            )
        return lasting

    def _of(self, pid: int) -> tuple[Zombie, ...]:
        return tuple(zombie for zombie in self._scan() if zombie.ppid == pid)

    def _scan(self) -> tuple[Zombie, ...]:
        return tuple(self._procfs.scan({}).zombies.values())


def _not_confirmed(why: str) -> RefusedError:
    return refused(RefusalReason.NOT_CONFIRMED, why)
