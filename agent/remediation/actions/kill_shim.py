"""KillShim: SIGKILL to a shim that hangs, and an end to whatever of its containers survives it.

A hung shim holds its pod: it can be neither deleted nor exec'd into until the shim dies. containerd notices the death,
ends the containers and removes their bundles; 1.6 does so within 3 s, but 2.x may call them exited while their
processes run on (containerd#10727), so that the kubelet starts a second copy beside the first. So it is looked
afterwards who is left in these containers' cgroups, and that is ended too.

What it does not do: it neither deletes the pod nor starts it again. That is the kubelet's, once containerd has told it.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL
from typing import Any, ClassVar

from agent.acts import Refusal, RefusalReason, RefusedError
from agent.clock import Clock
from agent.host.bundles import Bundle
from agent.host.cgroups import Cgroups
from agent.host.inventory import SHIM_COMM, Inventory, InventorySense, Shim, StrayShim
from agent.host.procfs import Process, Procfs
from agent.host.shims import STOPPED, Outcome, ShimAnswer
from agent.model import Action, Finding, NotApplicableError, ProcessId, Target, TargetKind
from agent.remediation import cgroup_switch
from agent.remediation.container_processes import ContainerProcesses, Member, configured_cgroup
from agent.remediation.hands import Grip, held, same_process
from agent.remediation.process_evidence import process_evidence
from agent.remediation.remedy import ActError, Case, Verification
from agent.remediation.shim_probe import STATUS_NAMES, ShimProbe

UNRESPONSIVE, STUCK, WITHOUT_CONTAINERS = "ShimUnresponsive", "ShimOperationStuck", "ShimWithoutContainers"
CREATING_RETRY_SECONDS = 30.0
LAST_LOOK_SECONDS = 1.0
PROMPT_DEATH_SECONDS = 1.0
"""A killed process ends within milliseconds, unless the kernel or a freezer keeps it."""
DEATH_SECONDS = 10.0
END_SECONDS = 10.0
"""How long the containers' processes may take to die once they are killed by us."""
BUNDLE_SECONDS = 5.0
POLL_SECONDS = 0.1
MAX_PROCESSES = 256
"""Container processes in the evidence."""


@dataclass(frozen=True, slots=True)
class _Served:
    """What a shim serves: its containers, their bundles (none if they are gone), and their cgroups by their specs."""

    containers: frozenset[str]
    bundles: tuple[Bundle, ...]
    paths: frozenset[str]


class KillShim:
    """Kills a shim that hangs, is stuck, or runs on without containers."""

    action: ClassVar[Action] = Action.KILL_SHIM
    targets: ClassVar[tuple[TargetKind, ...]] = (TargetKind.SHIM,)
    mends: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "ContainerdShimHung": (UNRESPONSIVE, STUCK),
        "ContainerdShimLeaked": (WITHOUT_CONTAINERS,),
    }
    does: ClassVar[str] = (
        "Sends SIGKILL to the shim and waits for containerd to clean up after it; then ends whatever process of the "
        "shim's containers is still alive, by cgroup.kill or by signals."
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
        cleanup_seconds: float = 4.0,
    ) -> None:
        self._inventory = inventory
        self._procfs = procfs
        self._cgroups = cgroups
        self._clock = clock
        self._sysfs = sysfs
        self._probe_seconds = probe_seconds
        self._cleanup_seconds = cleanup_seconds
        self._containers = ContainerProcesses(procfs, cgroups, sysfs, inventory.namespaces)

    @contextmanager
    def confirm(self, target: Target, finding: Finding) -> Iterator[Case]:
        """Look at this very shim now; see `Remedy.confirm`."""
        if target.pid is None or target.start_time is None or not target.container_id:
            raise _refused(RefusalReason.INEXACT_TARGET, "the shim's pid, start time and container id are all needed")
        with held(ProcessId(target.pid, target.start_time), self._procfs) as grip:
            process = self._require_shim(grip.process)
            found = self._found(target, process)
            served = self._served(found, finding, process)
            self._require_thawable(process)
            probe = ShimProbe(found.query, self._clock) if isinstance(found, Shim) else None
            with closing(probe) if probe else nullcontext():
                look = self._look(finding, found, probe)
                message = look(self._probe_seconds)
                yield _KilledShim(
                    message=f"shim {process.pid} ({_whose(finding)}): {message}",
                    grip=grip,
                    served=served,
                    look_again=lambda: look(LAST_LOOK_SECONDS),
                    procfs=self._procfs,
                    cgroups=self._cgroups,
                    containers=self._containers,
                    sysfs=self._sysfs,
                    cleanup_seconds=self._cleanup_seconds,
                )

    # -- is it this shim? ----------------------------------------------------------------

    def _require_shim(self, identity: ProcessId) -> Process:
        """The process by its own looks: a shim of this node, and in no container."""
        process = same_process(identity, self._procfs)
        if process.comm != SHIM_COMM:
            why = f"process {process.pid} is no shim: its name is {process.comm!r}"
        elif self._procfs.nested(process.pid):
            why = f"process {process.pid} lives in a pid namespace of its own: it is another node's shim, or no shim"
        elif self._containers.containers_of(process.pid):
            why = f"process {process.pid} is called {SHIM_COMM}, but lives in a container's cgroup: it is no shim"
        else:
            return process
        raise _refused(RefusalReason.PROTECTED_PROCESS, why)

    def _found(self, target: Target, process: Process) -> Shim | StrayShim:
        """The shim of the container, as a fresh look at bundles and processes has it; it must be this process."""
        try:
            seen = self._inventory.take()
        except (NotApplicableError, OSError) as error:
            raise _refused(RefusalReason.CANNOT_SEE, f"containerd's bundles cannot be read: {error}") from None
        short = target.container_id[:12]
        for shim in seen.shims:
            if any(_is_of(bundle, target) for bundle in shim.bundles):
                self._require_same(shim, target, process)
                _require_not_creating(shim, seen)
                return shim
        for stray in seen.stray_shims:
            if stray.process.id == process.id and stray.container_id == target.container_id:
                return stray
        if any(_is_of(bundle, target) for bundle in seen.unaddressed):
            raise _being_created(short)
        raise _refused(
            RefusalReason.TARGET_CHANGED,
            f"process {process.pid} is not seen to be the shim of container {short}: no bundle, child or working "
            "directory says so. Ask for a new report",
        )

    def _require_same(self, shim: Shim, target: Target, process: Process) -> None:
        short = target.container_id[:12]
        if shim.process is None:
            why = f"cannot tell whether process {process.pid} is the shim of container {short}: CAP_SYS_PTRACE helps"
            raise _refused(RefusalReason.CANNOT_SEE, why)
        if shim.process.id != process.id or (target.address and target.address != shim.address):
            why = f"container {short} is served by shim {shim.process.pid} at {shim.address} by now"
            raise _refused(RefusalReason.TARGET_CHANGED, f"{why}. Ask for a new report")

    def _served(self, found: Shim | StrayShim, finding: Finding, process: Process) -> _Served:
        """All containers of the shim: by its bundles, by its children's cgroups, and by what the finding has named."""
        bundles = found.bundles if isinstance(found, Shim) else ()
        own = {bundle.id for bundle in bundles} or {finding.target.container_id}
        named = finding.values.get("containerIds")
        containers = own | (set(named) if isinstance(named, tuple) else set())
        for child in self._procfs.processes():
            if child.ppid == process.pid:
                containers |= self._containers.containers_of(child.pid)
        for other in sorted(containers - {bundle.id for bundle in bundles}):
            if self._inventory.bundles.has(other):
                why = f"container {other[:12]} has a bundle that is not this shim's, so it may not be ended with it"
                raise _refused(RefusalReason.UNSAFE_NOW, why)
        if containers & self._containers.containers_of(os.getpid()):
            why = f"shim {process.pid} is that of this agent's own pod"
            raise _refused(RefusalReason.PROTECTED_PROCESS, why)
        self._require_told_apart(bundles, process)
        configured = (configured_cgroup(bundle.identity.cgroup) for bundle in bundles)
        paths = frozenset(p for p in configured if self._containers.is_own(p, containers))
        return _Served(frozenset(containers), bundles, paths)

    def _require_told_apart(self, bundles: tuple[Bundle, ...], process: Process) -> None:
        """Each container's process must be known by its cgroup; else nobody could say what survives."""
        for bundle in bundles:
            init = self._procfs.process(bundle.init_pid or 0)
            if init is None or init.ppid != process.pid or self._procfs.has_ended(init):
                continue
            if self._containers.containers_of(init.pid) != {bundle.id}:
                why = (
                    f"container {bundle.id[:12]} cannot be told by its cgroup, which is not laid out as Kubernetes "
                    "does, so what survives the shim could not be found"
                )
                raise _refused(RefusalReason.CANNOT_SEE, why)

    def _require_thawable(self, process: Process) -> None:
        """On cgroup v1 the kill of a frozen process waits for the thaw, so that must be in our power."""
        told = self._cgroups.freeze(self._procfs.cgroups(process.pid))
        if told is None or told.switch != "freezer.state":
            return
        try:
            with cgroup_switch.opened(self._sysfs, told.directory, told.switch):
                return
        except OSError as error:
            why = f"its cgroup {told.path} is frozen, and it cannot be killed before that is thawed"
            raise _refused(RefusalReason.CANNOT_SEE, f"{why}: {cgroup_switch.why_not(error)}") from None

    # -- is it at fault now? -------------------------------------------------------------

    def _look(self, finding: Finding, found: Shim | StrayShim, probe: ShimProbe | None) -> Callable[[float], str]:
        """Return the look that finds the fault of this reason, or raises RefusedError; it is given its patience."""
        if isinstance(found, StrayShim) or probe is None:
            if finding.reason != WITHOUT_CONTAINERS:
                why = f"the bundle of container {finding.target.container_id[:12]} is gone by now. Ask for a new report"
                raise _refused(RefusalReason.NOT_CONFIRMED, why)
            container = finding.target.container_id
            return lambda _: self._without_bundle(container)
        stuck = finding.values.get("stuckContainerIds")
        stuck_ids = tuple(stuck) if isinstance(stuck, tuple) else ()
        looks: Mapping[str, Callable[[ShimAnswer], str]] = {
            UNRESPONSIVE: self._unanswered,
            STUCK: lambda answer: self._stuck(answer, stuck_ids),
            WITHOUT_CONTAINERS: lambda answer: _all_stopped(answer, found),
        }
        if finding.reason not in looks:
            raise _refused(RefusalReason.NOT_CONFIRMED, f"{finding.reason} is not mended by killing the shim")
        return lambda patience: looks[finding.reason](probe.ask(patience))

    def _without_bundle(self, container: str) -> str:
        try:
            there = self._inventory.bundles.has(container)
        except OSError as error:
            raise _refused(RefusalReason.CANNOT_SEE, f"containerd's bundles cannot be read: {error}") from None
        if there:
            raise _refused(RefusalReason.NOT_CONFIRMED, f"container {container[:12]} has a bundle again")
        return "it runs on although its bundle is gone"

    def _unanswered(self, answer: ShimAnswer) -> str:
        if answer.outcome is Outcome.WAITING and answer.waiting_seconds >= self._probe_seconds:
            return f"it has not answered Connect for {answer.waiting_seconds:.1f} s, asked afresh"
        if answer.outcome is Outcome.ANSWERED:
            raise _refused(RefusalReason.NOT_CONFIRMED, "the shim answers again")
        raise _unclear(answer)

    def _stuck(self, answer: ShimAnswer, stuck: tuple[str, ...]) -> str:
        if answer.outcome is Outcome.WAITING:
            why = (
                "now the shim does not answer Connect either, so more is wrong than was reported. Ask for a new report"
            )
            raise _refused(RefusalReason.NOT_CONFIRMED, why)
        if answer.outcome is not Outcome.ANSWERED:
            raise _unclear(answer)
        waiting = {i: s for i, s in answer.states_waiting.items() if i in stuck and s >= self._probe_seconds}
        if not waiting:
            raise _refused(RefusalReason.NOT_CONFIRMED, "the shim answers State of the stuck container again")
        container, seconds = max(waiting.items(), key=lambda pair: pair[1])
        return f"it answers Connect, but State of container {container[:12]} not for {seconds:.1f} s, asked afresh"


@dataclass(slots=True)
class _KilledShim:
    """A shim that was found at fault just now, held until it is dead."""

    message: str
    grip: Grip
    served: _Served
    look_again: Callable[[], str]
    procfs: Procfs
    cgroups: Cgroups
    containers: ContainerProcesses
    sysfs: str
    cleanup_seconds: float
    remembered: tuple[Member, ...] = field(default=())

    def evidence(self) -> Mapping[str, Any]:
        """Return the shim's process, its containers with their processes, and the files of its bundles."""
        return {
            "shim": process_evidence(self.procfs, self.cgroups, self.grip.process.pid),
            "containers": sorted(self.served.containers),
            "processes": self._processes(),
            "bundles": [_bundle_evidence(bundle) for bundle in self.served.bundles],
        }

    def perform(self) -> str:
        """Kill the shim, and end what is left of its containers once containerd has had its time."""
        try:
            self.look_again()
            self.remembered = self.containers.find(self.served.containers, self.served.paths)
        except (RefusedError, OSError) as error:
            raise ActError(f"nothing was done: {error}") from None
        self._kill()
        done = f"shim {self.grip.process.pid} was killed"
        try:
            self._wait_for_containerd()
            ended = self.containers.end(self.served.containers, self._paths(), END_SECONDS)
        except (ActError, OSError) as error:
            raise ActError(f"{done}, but of its {len(self.served.containers)} container(s) {error}") from None
        if ended:
            names = ", ".join(f"{process.pid} ({process.comm})" for process in ended[:10])
            return f"{done}; containerd left {len(ended)} process(es) of its containers, which were killed too: {names}"
        return f"{done}; of its containers no process was left after it"

    def verify(self) -> Verification:
        """Look for the shim, for processes of its containers, and for their bundles."""
        pid = self.grip.process.pid
        if not self.grip.ended(0):
            return Verification(helped=False, message=f"shim {pid} still runs")
        gone = self._bundles_gone()
        try:
            left = self.containers.find(self.served.containers, self._paths())
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
        """Kill the shim and wait for its end; a freezer that keeps it is thawed, so that it dies at once."""
        pid = self.grip.process.pid
        self.grip.signal(SIGKILL)
        if self.grip.ended(PROMPT_DEATH_SECONDS):
            return
        told = self.cgroups.freeze(self.procfs.cgroups(pid))
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

    def _wait_for_containerd(self) -> None:
        deadline = time.monotonic() + self.cleanup_seconds
        while self.containers.occupied(self._paths()) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def _paths(self) -> frozenset[str]:
        return self.served.paths.union(*(member.paths for member in self.remembered))

    def _bundles_gone(self) -> str:
        """Wait a while for containerd to remove the bundles, and say whether it has."""
        deadline = time.monotonic() + BUNDLE_SECONDS
        left = _still_there(self.served.bundles)
        while left and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            left = _still_there(self.served.bundles)
        if not self.served.bundles:
            return "it had no bundle"
        if left:
            return f"containerd has not removed {len(left)} bundle(s) yet, the first is {left[0]}"
        return "containerd has removed its bundles"

    def _processes(self) -> object:
        try:
            members = self.containers.find(self.served.containers, self.served.paths)
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


def _all_stopped(answer: ShimAnswer, shim: Shim) -> str:
    if answer.outcome is Outcome.WAITING:
        why = "the shim does not answer, so its containers cannot be asked for. Ask for a new report"
        raise _refused(RefusalReason.NOT_CONFIRMED, why)
    if answer.outcome is not Outcome.ANSWERED:
        raise _unclear(answer)
    for bundle in shim.bundles:
        state = answer.states.get(bundle.id)
        if state is None or not state.found or state.status != STOPPED:
            word = STATUS_NAMES.get(state.status, "?") if state is not None and state.found else "not known"
            why = f"container {bundle.id[:12]} is {word} by the shim's own word, not STOPPED"
            raise _refused(RefusalReason.NOT_CONFIRMED, why)
    return f"all its {len(shim.bundles)} container(s) have exited, by its own word just now"


def _require_not_creating(shim: Shim, seen: Inventory) -> None:
    """Creating a container holds the shim's lock for as long as it takes, so its silence proves nothing then."""
    sandboxes = {bundle.identity.sandbox_id for bundle in shim.bundles} - {""}
    for bundle in (*shim.bundles, *seen.unaddressed):
        if bundle.init_pid is None and (bundle in shim.bundles or bundle.identity.sandbox_id in sandboxes):
            raise _being_created(bundle.id[:12])


def _being_created(container: str) -> RefusedError:
    return _refused(
        RefusalReason.UNSAFE_NOW,
        f"container {container} is being created, which keeps its shim busy: wait for its end",
        CREATING_RETRY_SECONDS,
    )


def _unclear(answer: ShimAnswer) -> RefusedError:
    """The refusal for a shim that neither answers nor is silent."""
    if answer.outcome in {Outcome.REFUSED, Outcome.NO_SOCKET}:
        why = f"{answer.message} although its process lives: that is no proof that it hangs"
        return _refused(RefusalReason.NOT_CONFIRMED, why)
    return _refused(RefusalReason.CANNOT_SEE, f"the shim cannot be asked: {answer.message}")


def _refused(reason: RefusalReason, message: str, retry_seconds: float | None = None) -> RefusedError:
    return RefusedError(Refusal(reason, message, retry_seconds))


def _is_of(bundle: Bundle, target: Target) -> bool:
    return bundle.id == target.container_id and target.containerd_namespace in {"", bundle.namespace}


def _whose(finding: Finding) -> str:
    if finding.pod is not None:
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
