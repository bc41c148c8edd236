"""The processes of given containers: finds them by their cgroups, and ends them.

A process is a container's if its cgroup is the container's own or lies below it, as /proc/N/cgroup tells. Only cgroups
that are by their name one container's own are ever written to, never a pod's, a service's or the root; and a process is
signalled only while it is held by a pidfd and its cgroup says again whose it is.
"""

import os
import signal
import time
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass

from agent.acts import RefusedError
from agent.host import cgroups as cgroup_names
from agent.host.cgroups import CgroupOwner, Cgroups
from agent.host.procfs import Process, Procfs
from agent.model import ProcessId
from agent.remediation import cgroup_switch
from agent.remediation.hands import OWN_PIDS, held
from agent.remediation.remedy import ActError

MAX_NAMED = 10
"""Processes named in a message."""
ROUND_SECONDS = 0.5
"""How long the killed of one round have to end before it is looked again who is there."""
MAX_HELD = 256
"""Processes held at once, each by a file descriptor; the oldest come first, for the others often end with them."""
POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Member:
    """A living process of a container, and the paths of the container's own cgroup it was found in."""

    process: Process
    container_id: str
    paths: frozenset[str]


def configured_cgroup(spec_path: str) -> str:
    """Return the cgroup an OCI spec's `linux.cgroupsPath` stands for; empty if it is of neither form.

    A plain path is the cgroup itself; `a-b.slice:prefix:name` is systemd's `/a.slice/a-b.slice/prefix-name.scope`
    (runc, docs/systemd.md).
    """
    if spec_path.startswith("/"):
        return spec_path
    parts = spec_path.split(":")
    if len(parts) != 3 or not parts[0].endswith(".slice"):
        return ""
    steps = parts[0].removesuffix(".slice").split("-")
    slices = "".join(f"/{'-'.join(steps[: length + 1])}.slice" for length in range(len(steps)))
    return f"{slices}/{parts[1]}-{parts[2]}.scope"


class ContainerProcesses:
    """Finds and ends the processes of containers. `namespaces`: those of containerd, for its own cgroup layout."""

    def __init__(self, procfs: Procfs, cgroups: Cgroups, sysfs: str, namespaces: tuple[str, ...]) -> None:
        self._procfs = procfs
        self._cgroups = cgroups
        self._sysfs = sysfs
        self._namespaces = namespaces

    def containers_of(self, pid: int) -> frozenset[str]:
        """Return the containers whose own cgroup a process is in or below, over all hierarchies; one or none."""
        return frozenset(owner.container_id for owner in self._owners(self._procfs.cgroups(pid)))

    def is_own(self, path: str, containers: Collection[str]) -> bool:
        """Whether a cgroup is exactly the own one of one of these containers, so that it may be written to."""
        return any(cgroup_names.is_own(path, container, self._namespaces) for container in containers)

    def find(self, containers: Collection[str], paths: Collection[str] = ()) -> tuple[Member, ...]:
        """Return every living process of these containers, from one look at all processes.

        `paths` are cgroups known to be theirs. Raises OSError if /proc or a cgroup cannot be read, and if a process
        cannot be told from others: what is not seen is not none.
        """
        processes = self._procfs.processes()
        if all(process.pid != os.getpid() for process in processes):
            raise PermissionError("/proc does not even show this agent: it is another pid namespace's, or empty")
        found = tuple(member for process in processes if (member := self._member(process, containers)))
        self._require_all_seen(paths)
        return found

    def occupied(self, paths: Collection[str]) -> bool:
        """Whether any process is in these cgroups: a cheap look at their lists alone. Raises OSError."""
        return any(self._cgroups.members(path) for path in paths)

    def living(self, remembered: Collection[ProcessId]) -> tuple[Process, ...]:
        """Return those of these processes that have not ended."""
        now = (self._procfs.process(process.pid) for process in remembered)
        known = frozenset(remembered)
        return tuple(p for p in now if p is not None and p.id in known and not self._procfs.has_ended(p))

    def end(self, containers: Collection[str], paths: Collection[str], patience_seconds: float) -> tuple[Process, ...]:
        """Kill what is left of these containers, again and again until nothing is; return what was found.

        Raises ActError naming the processes that are still there after `patience_seconds`, OSError if it cannot be
        seen what is left.
        """
        deadline = time.monotonic() + patience_seconds
        ended: dict[ProcessId, Process] = {}
        while left := self.find(containers, paths):
            if time.monotonic() >= deadline:
                raise ActError(f"still alive {patience_seconds:g} s after SIGKILL: {self.describe(left)}")
            if any(member.process.pid in OWN_PIDS for member in left):
                raise ActError("nothing more was killed, for this agent itself runs in one of these containers")
            ended |= {member.process.id: member.process for member in left}
            self._kill_cgroups(containers, {path for member in left for path in member.paths} | {*paths})
            oldest = sorted(left, key=lambda member: member.process.start_time)[:MAX_HELD]
            self._kill(oldest, containers)
        return tuple(ended.values())

    def describe(self, members: Collection[Member]) -> str:
        """Name processes for a message, and what keeps each."""
        first = sorted(members, key=lambda member: member.process.start_time)[:MAX_NAMED]
        names = [self._describe(member.process) for member in first]
        more = len(members) - len(names)
        return "; ".join(names) + (f"; and {more} more" if more else "")

    def _describe(self, process: Process) -> str:
        frozen = self._cgroups.frozen(self._procfs.cgroups(process.pid))
        where = self._procfs.wchan(process.pid)
        why = (
            f"its cgroup {frozen} is frozen" if frozen else f"state {process.state}" + (f" in {where}" if where else "")
        )
        return f"process {process.pid} ({process.comm}): {why}"

    def _member(self, process: Process, containers: Collection[str]) -> Member | None:
        if self._procfs.has_ended(process):
            return None
        lines = self._procfs.cgroups(process.pid)
        if not lines and self.living([process.id]):
            raise PermissionError(f"the cgroups of process {process.pid} ({process.comm}) cannot be read")
        owners = self._owners(lines)
        names = {owner.container_id for owner in owners}
        if len(names) != 1 or not names <= set(containers):  # in two containers at once: nobody's to kill
            return None
        return Member(process, names.pop(), frozenset(owner.path for owner in owners))

    def _owners(self, lines: tuple[str, ...]) -> frozenset[CgroupOwner]:
        found = (cgroup_names.owner((line,), self._namespaces) for line in lines)
        return frozenset(owner for owner in found if owner is not None)

    def _require_all_seen(self, paths: Collection[str]) -> None:
        """What a cgroup lists must be a process we can see: pid 0 is one of another pid namespace."""
        unseen = self._unseen(paths)
        if unseen and unseen & self._unseen(paths):  # twice, since one may just have ended
            raise PermissionError(f"{len(unseen)} processes of its cgroups are not to be seen from this pid namespace")

    def _unseen(self, paths: Collection[str]) -> frozenset[int]:
        listed = (pid for path in paths for pid in self._cgroups.members(path))
        return frozenset(pid for pid in listed if pid == 0 or self._procfs.process(pid) is None)

    def _kill(self, members: Collection[Member], containers: Collection[str]) -> None:
        with ExitStack() as holding:
            grips = []
            for member in members:
                try:
                    grip = holding.enter_context(held(member.process.id, self._procfs))
                except RefusedError:  # it has ended, or may not be touched; the next look tells which
                    continue
                if self._member(member.process, containers) is not None and not grip.ended(0):
                    grip.signal(signal.SIGKILL)
                    grips.append(grip)
            for member in members:
                self._thaw(member)
            deadline = time.monotonic() + ROUND_SECONDS
            for grip in grips:
                grip.ended(max(0.0, deadline - time.monotonic()))
        time.sleep(POLL_SECONDS)

    def _kill_cgroups(self, containers: Collection[str], paths: Collection[str]) -> None:
        """Kill whole cgroups at once, where v2 can (Linux 5.14); where it cannot, the signals do."""
        for path in (path for path in paths if self.is_own(path, containers)):
            for mount in ("", "unified"):
                _turn(self._sysfs, f"{mount}{path}", "cgroup.kill", "1")

    def _thaw(self, member: Member) -> None:
        """Thaw what a killed process is frozen by, if that is its container's: on v1 a kill waits for it."""
        told = self._cgroups.freeze(self._procfs.cgroups(member.process.pid))
        own = [path for path in member.paths if self.is_own(path, {member.container_id})]
        if told is not None and any(told.path == path or told.path.startswith(f"{path}/") for path in own):
            _turn(self._sysfs, told.directory, told.switch, told.thawed)


def _turn(sysfs: str, directory: str, name: str, value: str) -> None:
    """Try it. What comes of it is seen by who is left, so a failure needs no word here."""
    try:
        with cgroup_switch.opened(sysfs, directory, name) as switch:
            switch.turn(value)
    except (OSError, ActError):
        return
