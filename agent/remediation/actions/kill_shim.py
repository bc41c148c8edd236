"""KillShim: SIGKILL to a shim that hangs, and to the processes of its containers right after it.

A hung shim holds its pod: it can be neither deleted nor exec'd into until the shim dies. containerd notices the death
and removes the bundles. Up to 1.7 it also ends the containers' processes; 2.x reports the containers of a pod as exited
while their processes run on (containerd#10727), and the kubelet starts a second copy of each 1.2 to 4 s later. So this
action does not wait for containerd: two copies of a workload must never run side by side.

What it does not do: it neither deletes the pod nor starts it again. That is the kubelet's, once containerd has told it.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL
from typing import Any, ClassVar

from agent.acts import Refusal, RefusalReason, RefusedError, refused
from agent.clock import Clock
from agent.host.bundles import Bundle
from agent.host.cgroups import Cgroups, Freeze
from agent.host.inventory import InventorySense, runtimes_of
from agent.host.procfs import Process, Procfs
from agent.model import Action, Finding, ProcessId, Target, TargetKind
from agent.remediation import cgroup_switch
from agent.remediation.accused_shim import STUCK, UNRESPONSIVE, WITHOUT_CONTAINERS, AccusedShim, ShimCheck
from agent.remediation.container_processes import ContainerProcesses, Member
from agent.remediation.hands import Grip, held
from agent.remediation.process_evidence import process_evidence
from agent.remediation.remedy import ActError, Case, Verification

LAST_LOOK_SECONDS = 1.0
PROMPT_DEATH_SECONDS = 1.0
"""A killed process ends within milliseconds, unless the kernel or a freezer keeps it."""
DEATH_SECONDS = 10.0
END_SECONDS = 10.0
"""How long the containers' processes may take to die once they are killed by us."""
BUNDLE_SECONDS = 5.0
POLL_SECONDS = 0.1
MAX_RUNTIMES = 4
"""OCI runtimes in the evidence: reading one that hangs may take as long as `process_evidence` allows."""
MAX_PROCESSES = 256
"""Container processes in the evidence."""


class KillShim:
    """Kills a shim that hangs, is stuck, or runs on without containers."""

    action: ClassVar[Action] = Action.KILL_SHIM
    targets: ClassVar[tuple[TargetKind, ...]] = (TargetKind.SHIM,)
    mends: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "ContainerdShimHung": (UNRESPONSIVE, STUCK),
        "ContainerdShimLeaked": (WITHOUT_CONTAINERS,),
    }
    does: ClassVar[str] = (
        "Sends SIGKILL to the shim and, as soon as it has ended, to the processes of its containers, by cgroup.kill "
        "or by signals. containerd 2.x would leave them running beside the copies that the kubelet starts."
    )
    requires: ClassVar[str] = (
        "The process is the shim of that container, and now, asked afresh, does not answer (Connect, or State of the "
        "stuck container, for 3 s), or its bundle is gone, or all its containers have exited by its own word. No "
        "container of it is being created."
    )
    verifies: ClassVar[str] = "The shim has ended, and no process of its containers is left."
    risk: ClassVar[str] = (
        "All containers of the pod end at once, without a grace period; the kubelet starts them again by the pod's "
        "restart policy."
    )

    def __init__(
        self,
        inventory: InventorySense,
        procfs: Procfs,
        cgroups: Cgroups,
        clock: Clock,
        *,
        sysfs: str,
        probe_seconds: float = 3.0,
    ) -> None:
        self._procfs = procfs
        self._cgroups = cgroups
        self._sysfs = sysfs
        self._probe_seconds = probe_seconds
        self._containers = ContainerProcesses(procfs, cgroups, sysfs, inventory.namespaces)
        self._check = ShimCheck(inventory, procfs, self._containers, clock, probe_seconds)

    @contextmanager
    def confirm(self, target: Target, finding: Finding) -> Iterator[Case]:
        """Look at this very shim now; see `Remedy.confirm`."""
        if target.pid is None or target.start_time is None or not target.container_id:
            why = "the shim's pid, start time and container id are all needed"
            raise refused(RefusalReason.INEXACT_TARGET, why)
        with held(ProcessId(target.pid, target.start_time), self._procfs) as grip:
            accused = self._check.identify(grip.process, target, finding)
            self._require_thawable(accused.process)
            with self._check.fault(accused, finding) as look:
                message = look(self._probe_seconds)
                yield _KilledShim(
                    message=f"shim {grip.process.pid} ({_whose(finding)}): {message}",
                    grip=grip,
                    accused=accused,
                    look_again=lambda: look(LAST_LOOK_SECONDS),
                    procfs=self._procfs,
                    cgroups=self._cgroups,
                    containers=self._containers,
                    sysfs=self._sysfs,
                )

    def _require_thawable(self, process: Process) -> None:
        """On cgroup v1 the kill of a frozen process waits for the thaw, so that must be in our power."""
        told = _holds_a_kill(self._cgroups.freeze(self._procfs.cgroups(process.pid)))
        if told is None:
            return
        try:
            with cgroup_switch.opened(self._sysfs, told.directory, told.switch):
                return
        except OSError as error:
            why = f"its cgroup {told.path} is frozen, and it cannot be killed before that is thawed"
            refusal = Refusal(RefusalReason.CANNOT_SEE, f"{why}: {cgroup_switch.why_not(error)}")
            raise RefusedError(refusal) from None


@dataclass(slots=True)
class _KilledShim:
    """A shim that was found at fault just now, held until it is dead."""

    message: str
    grip: Grip
    accused: AccusedShim
    look_again: Callable[[], str]
    procfs: Procfs
    cgroups: Cgroups
    containers: ContainerProcesses
    sysfs: str
    remembered: tuple[Member, ...] = field(default=())

    def evidence(self) -> Mapping[str, Any]:
        """Return the shim's process, the runc below it, its containers' processes, and the files of its bundles."""
        return {
            "shim": process_evidence(self.procfs, self.cgroups, self.grip.process.pid),
            "runtimes": self._runtimes(),
            "containers": sorted(self.accused.containers),
            "processes": self._processes(),
            "bundles": [_bundle_evidence(bundle) for bundle in self.accused.bundles],
        }

    def perform(self) -> str:
        """Kill the shim, and the processes of its containers before the kubelet can start others beside them."""
        try:
            self.look_again()
            self.remembered = self.containers.find(self.accused.containers, self.accused.paths)
        except (RefusedError, OSError) as error:
            raise ActError(f"nothing was done: {error}") from None
        self._kill()
        done = f"shim {self.grip.process.pid} was killed"
        try:
            ended = self.containers.end(self.accused.containers, self._paths(), END_SECONDS)
        except ActError as error:
            raise ActError(f"{done}, but not all of its containers' processes: {error}") from None
        except OSError as error:
            raise ActError(f"{done}, but what is left of its containers cannot be seen: {error}") from None
        if ended:
            names = ", ".join(f"{process.pid} ({process.comm})" for process in ended[:10])
            return f"{done}, and then {len(ended)} process(es) of its containers: {names}"
        return f"{done}; no process of its containers was left"

    def verify(self) -> Verification:
        """Look for the shim, for processes of its containers, and for their bundles."""
        pid = self.grip.process.pid
        if not self.grip.ended(0):
            return Verification(helped=False, message=f"shim {pid} still runs")
        gone = self._bundles_gone()
        try:
            left = self.containers.find(self.accused.containers, self._paths())
            alive = self.containers.living([member.process.id for member in self.remembered])
        except OSError as error:
            return Verification(
                helped=None, message=f"shim {pid} has ended; what is left of its containers cannot be seen: {error}"
            )
        if left or alive:
            who = self.containers.describe(left) or ", ".join(f"process {p.pid} ({p.comm})" for p in alive)
            return Verification(helped=False, message=f"shim {pid} has ended, but its containers have not: {who}")
        return Verification(
            helped=True,
            message=f"shim {pid} and all {len(self.remembered)} process(es) of its containers have ended; {gone}",
        )

    def _kill(self) -> None:
        """Kill the shim and wait for its end; a freezer that holds the kill is thawed, so that it dies at once."""
        pid = self.grip.process.pid
        self.grip.signal(SIGKILL)
        if self.grip.ended(PROMPT_DEATH_SECONDS):
            return
        told = _holds_a_kill(self.cgroups.freeze(self.procfs.cgroups(pid)))
        if told is not None:
            try:
                with cgroup_switch.opened(self.sysfs, told.directory, told.switch) as switch:
                    switch.turn(told.thawed)
            except OSError as error:
                why = f"shim {pid} was sent SIGKILL, but its cgroup {told.path} is frozen and could not be thawed"
                raise ActError(f"{why}: {cgroup_switch.why_not(error)}") from None
        if not self.grip.ended(DEATH_SECONDS):
            process = self.procfs.process(pid)
            where = f"state {process.state if process else '?'} in {self.procfs.wchan(pid) or 'the kernel'}"
            raise ActError(
                f"shim {pid} was sent SIGKILL but has not ended within {DEATH_SECONDS:g} s: {where}. It ends once the "
                "kernel lets it go; look at what it waits for, often a disk or a network mount. Its containers were "
                "not touched"
            )

    def _paths(self) -> frozenset[str]:
        return self.accused.paths.union(*(member.paths for member in self.remembered))

    def _bundles_gone(self) -> str:
        """Wait a while for containerd to remove the bundles, and say whether it has."""
        deadline = time.monotonic() + BUNDLE_SECONDS
        left = _still_there(self.accused.bundles)
        while left and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            left = _still_there(self.accused.bundles)
        if not self.accused.bundles:
            return "it had no bundle"
        if left:
            return f"containerd has not removed {len(left)} bundle(s) yet, the first is {left[0]}"
        return "containerd has removed its bundles"

    def _runtimes(self) -> object:
        """Each OCI runtime the shim runs: one that never ends holds the lock of the operation that is stuck."""
        try:
            runtimes = runtimes_of(self.grip.process.pid, self.procfs.processes())
        except OSError as error:
            return f"not readable: {error}"
        return [process_evidence(self.procfs, self.cgroups, runtime.pid) for runtime in runtimes[:MAX_RUNTIMES]]

    def _processes(self) -> object:
        try:
            members = self.containers.find(self.accused.containers, self.accused.paths)
        except OSError as error:
            return f"not readable: {error}"
        return [
            {
                "pid": member.process.pid,
                "startTime": member.process.start_time,
                "comm": member.process.comm,
                "state": member.process.state,
                "containerId": member.container_id,
                "cgroups": sorted(member.paths),
            }
            for member in members[:MAX_PROCESSES]
        ]


def _holds_a_kill(told: Freeze | None) -> Freeze | None:
    """Return a freeze if it holds a process that was sent SIGKILL: cgroup v1's does, v2's lets it end (cgroup-v2.rst).

    What need not be thawed stays frozen: a cgroup holds other processes, too.
    """
    return told if told is not None and told.switch == "freezer.state" else None


def _whose(finding: Finding) -> str:
    if finding.pod is not None and finding.pod.named:
        return f"pod {finding.pod.namespace}/{finding.pod.name}"
    return f"container {finding.target.container_id[:12]}"


def _still_there(bundles: tuple[Bundle, ...]) -> list[str]:
    return [bundle.path for bundle in bundles if Path(bundle.path).is_dir()]


def _bundle_evidence(bundle: Bundle) -> dict[str, Any]:
    """What its files said when the case was opened. `log` is a fifo and is never opened."""
    return {
        "path": bundle.path,
        "address": bundle.address,
        "taskVersion": bundle.task_version,
        "initPid": bundle.init_pid,
        "modifiedAt": bundle.modified_at,
        "cgroupsPath": bundle.identity.cgroup,
        "problem": bundle.problem or bundle.identity.problem,
    }
