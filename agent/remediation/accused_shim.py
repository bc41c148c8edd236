"""Which shim is accused, what it serves, and whether it is at fault now.

Nothing of the finding is believed but the reason and the names in it: process, bundles and children are looked at
afresh, and the shim is asked on a connection of our own.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass

from agent.acts import RefusalReason, RefusedError, refused
from agent.clock import Clock
from agent.durations import measured_duration
from agent.host.bundles import Bundle
from agent.host.inventory import SHIM_COMM, Inventory, InventorySense, Shim
from agent.host.procfs import Process, Procfs
from agent.host.shims import STOPPED, Outcome, ShimAnswer
from agent.model import CannotSeeError, DeploymentFault, Finding, NotApplicableError, ProcessId, Target
from agent.remediation.container_processes import ContainerProcesses, configured_cgroup
from agent.remediation.hands import same_process
from agent.remediation.shim_probe import STATUS_NAMES, ShimProbe

UNRESPONSIVE, STUCK, WITHOUT_CONTAINERS = "ShimUnresponsive", "ShimOperationStuck", "ShimWithoutContainers"
CREATING_RETRY_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class AccusedShim:
    """A shim process, and what it serves: its containers, their bundles if there are any, and their own cgroups."""

    process: Process
    shim: Shim | None
    containers: frozenset[str]
    paths: frozenset[str]

    @property
    def bundles(self) -> tuple[Bundle, ...]:
        """The bundles it serves; none if they are gone."""
        return self.shim.bundles if self.shim is not None else ()


class ShimCheck:
    """Looks at one accused shim. Raises RefusedError wherever it is not as the finding says."""

    def __init__(
        self,
        inventory: InventorySense,
        procfs: Procfs,
        containers: ContainerProcesses,
        clock: Clock,
        probe_seconds: float,
    ) -> None:
        self._inventory = inventory
        self._procfs = procfs
        self._containers = containers
        self._clock = clock
        self._probe_seconds = probe_seconds

    def identify(self, identity: ProcessId, target: Target, finding: Finding) -> AccusedShim:
        """Return the shim of the target's container, which must be this process, and all that ends with it."""
        process = self._require_shim(identity)
        shim = self._served_by(process, target)
        bundles = shim.bundles if shim is not None else ()
        containers = self._all_containers(process, bundles, target, finding)
        self._require_told_apart(process, bundles)
        configured = (configured_cgroup(bundle.identity.cgroup) for bundle in bundles)
        paths = {path for path in configured if self._containers.is_own(path, containers)}
        try:
            members = self._containers.find(containers, paths)
            paths.update(path for member in members for path in member.paths)
            self._containers.occupied(paths)
        except OSError as error:
            why = f"what would survive the shim cannot be seen: {error}"
            raise refused(RefusalReason.CANNOT_SEE, why) from None
        return AccusedShim(process, shim, containers, frozenset(paths))

    @contextmanager
    def fault(self, accused: AccusedShim, finding: Finding) -> Iterator[Callable[[float], str]]:
        """Hold a look that tells the fault in a sentence, or raises RefusedError; it is given its patience in seconds.

        Called again, it goes on listening to what is still unanswered.
        """
        shim, container = accused.shim, finding.target.container_id
        if shim is None:
            if finding.reason != WITHOUT_CONTAINERS:
                why = f"the bundle of container {container[:12]} is gone by now. Ask for a new report"
                raise refused(RefusalReason.NOT_CONFIRMED, why)
            yield lambda _: self._without_bundle(container)
            return
        judges: Mapping[str, Callable[[ShimAnswer], str]] = {
            UNRESPONSIVE: self._unanswered,
            STUCK: lambda answer: self._stuck(answer, _texts(finding, "stuckContainerIds")),
            WITHOUT_CONTAINERS: lambda answer: _all_stopped(answer, shim),
        }
        judge = judges.get(finding.reason)
        if judge is None:
            raise refused(RefusalReason.NOT_CONFIRMED, f"{finding.reason} is not mended by killing the shim")
        with closing(ShimProbe(shim.query, self._clock)) as probe:
            yield lambda patience_seconds: judge(probe.ask(patience_seconds))

    # -- is it this shim? ------------------------------------------------------------------

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
        raise refused(RefusalReason.PROTECTED_PROCESS, why)

    def _served_by(self, process: Process, target: Target) -> Shim | None:
        """The shim of the container as a fresh look has it, which must be this process; None if its bundle is gone."""
        try:
            seen = self._inventory.take()
        except (NotApplicableError, CannotSeeError, OSError) as error:
            raise _unreadable(error) from None
        for shim in seen.shims:
            if any(_is_of(bundle, target) for bundle in shim.bundles):
                _require_same(shim, target, process, self._procfs.ptrace_denied())
                _require_not_creating(shim, seen)
                return shim
        if any(_is_of(bundle, target) for bundle in seen.unaddressed):
            raise _being_created(target.container_id)
        if any(s.process.id == process.id and s.container_id == target.container_id for s in seen.stray_shims):
            return None
        raise refused(
            RefusalReason.TARGET_CHANGED,
            f"process {process.pid} is not seen to be the shim of container {target.container_id[:12]}: no bundle, "
            "child or working directory says so. Ask for a new report",
        )

    def _all_containers(
        self, process: Process, bundles: tuple[Bundle, ...], target: Target, finding: Finding
    ) -> frozenset[str]:
        """The containers of the shim: by its bundles, by its children's cgroups, and by what the finding has named."""
        served = {bundle.id for bundle in bundles}
        containers = {target.container_id, *served, *_texts(finding, "containerIds")}
        for child in self._procfs.processes():
            if child.ppid == process.pid:
                containers |= self._containers.containers_of(child.pid)
        for other in sorted(containers - served):
            if self._has_bundle(other):
                why = f"container {other[:12]} has a bundle that is not this shim's, so it may not be ended with it"
                raise refused(RefusalReason.UNSAFE_NOW, why)
        if containers & self._containers.containers_of(os.getpid()):
            raise refused(RefusalReason.PROTECTED_PROCESS, f"shim {process.pid} is that of this agent's own pod")
        return frozenset(containers)

    def _require_told_apart(self, process: Process, bundles: tuple[Bundle, ...]) -> None:
        """Each container's process must be known by its cgroup; else nobody could say what survives."""
        for bundle in bundles:
            init = self._procfs.process(bundle.init_pid or 0)
            if init is None or init.ppid != process.pid or self._procfs.has_ended(init):
                continue
            if self._containers.containers_of(init.pid) != {bundle.id}:
                why = f"the cgroup of container {bundle.id[:12]} does not tell it as Kubernetes' and containerd's do"
                raise refused(RefusalReason.CANNOT_SEE, f"{why}, so what survives the shim could not be found")

    def _has_bundle(self, container: str) -> bool:
        try:
            return self._inventory.bundles.has(container)
        except OSError as error:
            raise _unreadable(error) from None

    # -- is it at fault now? ---------------------------------------------------------------

    def _without_bundle(self, container: str) -> str:
        if self._has_bundle(container):
            raise refused(RefusalReason.NOT_CONFIRMED, f"container {container[:12]} has a bundle again")
        return "it runs on although its bundle is gone"

    def _unanswered(self, answer: ShimAnswer) -> str:
        if answer.outcome is Outcome.WAITING and answer.waiting_seconds >= self._probe_seconds:
            return f"it has not answered Connect for {measured_duration(answer.waiting_seconds)}, asked afresh"
        if answer.outcome is Outcome.ANSWERED:
            raise refused(RefusalReason.NOT_CONFIRMED, "the shim answers again")
        raise _unclear(answer)

    def _stuck(self, answer: ShimAnswer, stuck: tuple[str, ...]) -> str:
        if answer.outcome is Outcome.WAITING:
            why = "now the shim does not answer Connect either, so more is wrong than was reported"
            raise refused(RefusalReason.NOT_CONFIRMED, f"{why}. Ask for a new report")
        if answer.outcome is not Outcome.ANSWERED:
            raise _unclear(answer)
        waiting = {i: s for i, s in answer.states_waiting.items() if i in stuck and s >= self._probe_seconds}
        if not waiting:
            raise refused(RefusalReason.NOT_CONFIRMED, "the shim answers State of the stuck container again")
        container, seconds = max(waiting.items(), key=lambda pair: pair[1])
        silent = measured_duration(seconds)
        return f"it answers Connect, but State of container {container[:12]} not for {silent}, asked afresh"


def _all_stopped(answer: ShimAnswer, shim: Shim) -> str:
    if answer.outcome is Outcome.WAITING:
        why = "the shim does not answer, so its containers cannot be asked for. Ask for a new report"
        raise refused(RefusalReason.NOT_CONFIRMED, why)
    if answer.outcome is not Outcome.ANSWERED:
        raise _unclear(answer)
    for bundle in shim.bundles:
        state = answer.states.get(bundle.id)
        if state is None or not state.found or state.status != STOPPED:
            word = STATUS_NAMES.get(state.status, "?") if state is not None and state.found else "not known"
            why = f"container {bundle.id[:12]} is {word} by the shim's own word, not STOPPED"
            raise refused(RefusalReason.NOT_CONFIRMED, why)
    return f"all its {len(shim.bundles)} container(s) have exited, by its own word just now"


def _require_same(shim: Shim, target: Target, process: Process, denied: DeploymentFault | None) -> None:
    short = target.container_id[:12]
    if shim.process is None:
        because = str(denied) if denied else "neither its bundle nor its working directory names the shim's process"
        why = f"cannot tell whether process {process.pid} is the shim of container {short}: {because}"
        raise refused(RefusalReason.CANNOT_SEE, why)
    if shim.process.id != process.id or target.address not in {"", shim.address}:
        why = f"container {short} is served by shim {shim.process.pid} at {shim.address} by now"
        raise refused(RefusalReason.TARGET_CHANGED, f"{why}. Ask for a new report")


def _require_not_creating(shim: Shim, seen: Inventory) -> None:
    """Creating a container holds the shim's lock for as long as it takes, so its silence proves nothing then."""
    sandboxes = {bundle.identity.sandbox_id for bundle in shim.bundles} - {""}
    coming = (bundle for bundle in seen.unaddressed if bundle.identity.sandbox_id in sandboxes)
    for bundle in (*shim.bundles, *coming):
        if bundle.init_pid is None:
            raise _being_created(bundle.id)


def _being_created(container: str) -> RefusedError:
    why = f"container {container[:12]} is being created, which keeps its shim busy: wait for its end"
    return refused(RefusalReason.UNSAFE_NOW, why, CREATING_RETRY_SECONDS)


def _unclear(answer: ShimAnswer) -> RefusedError:
    """The refusal for a shim that neither answers nor is silent."""
    if answer.outcome in {Outcome.REFUSED, Outcome.NO_SOCKET}:
        why = f"{answer.message} although its process lives: that is no proof that it hangs"
        return refused(RefusalReason.NOT_CONFIRMED, why)
    return refused(RefusalReason.CANNOT_SEE, f"the shim cannot be asked: {answer.message or 'its answer is late'}")


def _unreadable(error: Exception) -> RefusedError:
    return refused(RefusalReason.CANNOT_SEE, f"containerd's bundles cannot be read: {error}")


def _is_of(bundle: Bundle, target: Target) -> bool:
    return bundle.id == target.container_id and target.containerd_namespace in {"", bundle.namespace}


def _texts(finding: Finding, name: str) -> tuple[str, ...]:
    value = finding.values.get(name)
    return value if isinstance(value, tuple) else ()
