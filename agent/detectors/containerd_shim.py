"""Do the containerd shims of this node still answer, and is anything left behind by those that died?

A shim that stops answering is invisible from above: containerd's and the kubelet's lists answer
from memory, the node stays Ready, and its pod can neither be deleted nor exec'd into. So each
shim is asked itself. `Connect` unanswered means the shim is wedged; `Connect` answered and `State`
not means that one lifecycle operation (a kill, a pause, a delete) is wedged inside it.

When this is harmless: while a container is being created the shim holds the same lock for as
long as runc takes, so a shim with a container in creation is given much longer. A frozen cgroup
or a SIGSTOP may be somebody's intention; the finding says which it is.

What it does not prove: a shim that answers may still have lost an exit event or a log pipe. And
a process without a shim may be doing useful work: it is a second copy only if Kubernetes has
started its replacement.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import ClassVar, TypeVar

from agent.clock import Clock
from agent.detectors import shim_findings
from agent.detectors.shim_findings import HUNG, LEAKED, NOTHING_SHOWN, SeenProcess, SeenRuntime, SeenShim
from agent.durations import measured_duration
from agent.host.bundles import NO_ADDRESS_YET, Bundle
from agent.host.cgroups import Cgroups
from agent.host.inventory import Inventory, InventorySense, StrayContainer, StrayShim
from agent.host.procfs import Process, Procfs
from agent.host.shims import STOPPED, Outcome, ShimAnswer, ShimSense
from agent.model import (
    CannotSeeError,
    CheckResult,
    DeploymentCause,
    DeploymentFault,
    Finding,
    Metric,
    MetricKind,
    NotApplicableError,
    ProcessId,
    Sample,
)
from agent.schema import DetectorSettings, setting

TOP_K = 20
STATES = ("serving", "stuck", "hung", "dead", "orphaned")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ContainerdShimSettings(DetectorSettings):
    """Settings of the containerd_shim detector."""

    period_seconds: float = setting(4.0, "time between two looks; each is jittered by 10 %", minimum=1, maximum=3600)
    ping_seconds: float = setting(
        2.0,
        "how long one look waits for answers; what is still open is listened to at the next",
        minimum=0.1,
        maximum=30,
    )
    hung_seconds: float = setting(5.0, "Connect unanswered for this long: the shim is hung", minimum=1, maximum=600)
    creating_seconds: float = setting(
        60.0, "the same while a container of it is being created, which holds the shim's lock", minimum=1, maximum=3600
    )
    stuck_seconds: float = setting(
        7.0, "State unanswered for this long while Connect answers: an operation is stuck", minimum=1, maximum=600
    )
    leak_seconds: float = setting(
        5.0,
        "a dead, orphaned or empty shim is passed over for this long: it may be on its way out",
        minimum=1,
        maximum=3600,
    )


@dataclass(frozen=True, slots=True)
class Aged:
    """A stray thing, for how long it has been seen to be one, and what its process shows if it is a shim."""

    thing: StrayShim | StrayContainer
    seconds: float
    shows: SeenProcess = NOTHING_SHOWN


@dataclass(frozen=True, slots=True)
class Observation:
    """One look at all shims."""

    shims: tuple[SeenShim, ...]
    strays: tuple[Aged, ...]
    unaddressed: tuple[tuple[Bundle, float], ...]
    unseen_shims: int
    boot_id: str
    ptrace_denied: DeploymentFault | None = None
    cgroups_hidden: DeploymentFault | None = None


class Since:
    """For how long each of some things has been seen without a break, in awake seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._first: dict[Hashable, float] = {}

    def seconds(self, things: list[T], key: Callable[[T], Hashable]) -> list[tuple[T, float]]:
        """Pair each thing with its age; what is not among them is forgotten."""
        now = self._clock.awake()
        self._first = {key(thing): self._first.get(key(thing), now) for thing in things}
        return [(thing, now - self._first[key(thing)]) for thing in things]


class ContainerdShimDetector:
    """Watches every shim of the configured containerd namespaces."""

    name: ClassVar[str] = "containerd_shim"
    conditions: ClassVar[Mapping[str, Mapping[str, str]]] = {
        HUNG: {
            "ShimUnresponsive": "A shim does not answer; its pod can be neither deleted nor exec'd into.",
            "ShimOperationStuck": "A shim answers, but an operation on one of its containers never ends.",
        },
        LEAKED: {
            "ShimDead": "A container's bundle is there but no shim serves it; containerd still believes in it.",
            "ShimWithoutContainers": "A shim runs on although it has no living container or its bundle is gone.",
            "ProcessesWithoutShim": "A container's processes run on without a shim; there may be a second copy of it.",
        },
    }
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("shims", MetricKind.GAUGE, "Shims on this node by state.", ("state",)),
        Metric(
            "shim_ping_seconds",
            MetricKind.HISTOGRAM,
            "Time a shim took to answer Connect.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0),
        ),
        Metric(
            "shim_hung_seconds",
            MetricKind.GAUGE,
            f"For how long a hung shim has not answered; hung ones only, at most {TOP_K}.",
            ("namespace", "pod", "container_id"),
        ),
    )

    def __init__(  # noqa: PLR0913 - each is injected
        self,
        settings: ContainerdShimSettings,
        inventory: InventorySense,
        shims: ShimSense,
        procfs: Procfs,
        cgroups: Cgroups,
        pid_problem: Callable[[], DeploymentFault | None],
        clock: Clock,
        *,
        expected: bool,
        containerd_process: Callable[[], ProcessId | None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._inventory = inventory
        self._shims = shims
        self._procfs = procfs
        self._cgroups = cgroups
        self._pid_problem = pid_problem
        self._clock = clock
        self._expected = expected
        self._containerd_process = containerd_process
        self._faulty = Since(clock)
        self._stray = Since(clock)
        self._unaddressed = Since(clock)
        self._answered_at: dict[str, float] = {}

    def probe(self) -> Observation:
        """Take inventory and ask every shim at once.

        Raises NotApplicableError where no containerd is, CannotSeeError where the node's own processes are
        not to be seen, OSError where /proc or containerd's state directory cannot be read.
        """
        inventory = self._take_inventory()
        problem = self._pid_problem()
        if problem:
            raise CannotSeeError(str(problem), problem)
        answers = self._shims.ask((shim.query for shim in inventory.shims), self._settings.ping_seconds)
        for answer in answers.values():
            if answer.shim_pid is not None:
                self._inventory.answered(answer.address, answer.shim_pid)
        strays: list[StrayShim | StrayContainer] = [*inventory.stray_shims, *inventory.stray_containers]
        return Observation(
            shims=tuple(self._seen(inventory, answers)),
            strays=tuple(
                Aged(thing, age, self._process_state(thing.process if isinstance(thing, StrayShim) else None))
                for thing, age in self._stray.seconds(strays, _stray_key)
            ),
            unaddressed=tuple(self._unaddressed.seconds(list(inventory.unaddressed), lambda b: b.path)),
            unseen_shims=len(inventory.unseen_shims),
            ptrace_denied=self._procfs.ptrace_denied(),
            boot_id=self._procfs.boot_id(),
            cgroups_hidden=self._cgroups_hidden(inventory),
        )

    def check(self, seen: Observation) -> CheckResult:
        """Decide from one observation."""
        findings = tuple(self._shim_findings(seen)) + tuple(self._stray_findings(seen))
        unknown = _unknown(seen, findings, self._settings.leak_seconds)
        return CheckResult(
            findings=findings,
            healthy={HUNG: _well(seen), LEAKED: "every shim has its containers and every container its shim"},
            unknown=unknown,
            deployment=tuple(_deployment(seen, unknown)),
            samples=tuple(self._samples(seen)),
            recheck_seconds=self._recheck(seen),
        )

    def _cgroups_hidden(self, inventory: Inventory) -> DeploymentFault | None:
        """Why the node's cgroups cannot be seen here, by the cgroup of one shim; None if they can."""
        process = next((shim.process for shim in inventory.shims if shim.process), None)
        fault = self._cgroups.fault(self._procfs.cgroups(process.pid)) if process else None
        if fault is None or process is None:
            return None
        now = self._procfs.process(process.pid)  # one that has ended meanwhile has no cgroup any more
        return fault if now is not None and now.id == process.id and not self._procfs.has_ended(now) else None

    def _take_inventory(self) -> Inventory:
        try:
            return self._inventory.take()
        except NotApplicableError as absent:
            process = self._containerd_process()
            if process is not None:
                fault = DeploymentFault(
                    DeploymentCause.MOUNT,
                    self._inventory.bundles.state_dir,
                    f"{absent}, although a containerd runs as pid {process.pid}",
                    "mount its state directory here at the same path, or set containerd.state_dir",
                )
                raise CannotSeeError(str(fault), fault) from None
            if self._expected:
                raise CannotSeeError(f"{absent}, although the settings name it; check containerd.state_dir") from None
            raise

    def _seen(self, inventory: Inventory, answers: Mapping[str, ShimAnswer]) -> Iterator[SeenShim]:
        pairs = [(shim, answers[shim.address]) for shim in inventory.shims]
        faulty = [pair for pair in pairs if _fault(pair[1]) is not None]
        aged = self._faulty.seconds(faulty, lambda pair: (pair[0].address, _fault(pair[1])))
        ages = {pair[0].address: age for pair, age in aged}
        now = self._clock.awake()
        known = {shim.address for shim in inventory.shims}
        self._answered_at = {a: at for a, at in self._answered_at.items() if a in known}
        for shim, answer in pairs:
            if answer.outcome is Outcome.ANSWERED:
                self._answered_at[shim.address] = now
            answered_at = self._answered_at.get(shim.address)
            ago = None if answered_at is None else now - answered_at
            suspect = shim.address in ages or answer.states_waiting
            shows = self._process_state(shim.process if suspect else None)
            runtimes = tuple(map(self._runtime, shim.runtimes if answer.states_waiting else ()))
            hidden = self._cgroups.hidden(self._procfs.cgroups(shim.process.pid)) if suspect and shim.process else ""
            yield SeenShim(shim, answer, ages.get(shim.address, 0.0), ago, shows, hidden, runtimes)

    def _process_state(self, process: Process | None) -> SeenProcess:
        """Where a process sleeps, the frozen cgroup that holds it, and what would thaw that."""
        if process is None:
            return SeenProcess()
        lines = self._procfs.cgroups(process.pid)
        frozen = self._cgroups.frozen(lines)
        return SeenProcess(self._procfs.wchan(process.pid), frozen, self._cgroups.thaw_file(lines) if frozen else "")

    def _runtime(self, process: Process) -> SeenRuntime:
        return SeenRuntime(process, self._procfs.wchan(process.pid), self._procfs.age_seconds(process.id))

    def _hung_after(self, item: SeenShim) -> float:
        return self._settings.creating_seconds if item.shim.creating else self._settings.hung_seconds

    def _stuck_after(self, item: SeenShim) -> float:
        return self._settings.creating_seconds if item.shim.creating else self._settings.stuck_seconds

    def _state(self, seen: SeenShim) -> str:
        """One of STATES, or `unseen`, which counts nowhere; a shim not yet late enough still counts as serving."""
        answer = seen.answer
        if answer.outcome is Outcome.WAITING and answer.waiting_seconds >= self._hung_after(seen):
            return "hung"
        if (
            answer.outcome in {Outcome.REFUSED, Outcome.NO_SOCKET}
            and seen.faulty_seconds >= self._settings.leak_seconds
        ):
            return "dead" if seen.shim.process is None else "hung"
        if max(answer.states_waiting.values(), default=0.0) >= self._stuck_after(seen):
            return "stuck"
        if _empty(answer) and seen.faulty_seconds >= self._settings.leak_seconds:
            return "orphaned"
        return "unseen" if answer.outcome in {Outcome.NOT_PERMITTED, Outcome.BROKEN} else "serving"

    def _shim_findings(self, seen: Observation) -> Iterator[Finding]:
        for item in seen.shims:
            state = self._state(item)
            if state == "hung":
                yield shim_findings.hung(item, seen.boot_id)
            elif state == "stuck":
                yield shim_findings.stuck(item, seen.boot_id, self._stuck_after(item))
            elif state == "dead":
                yield shim_findings.dead(item, seen.boot_id)
            elif state == "orphaned":
                yield shim_findings.without_containers(item, seen.boot_id)

    def _stray_findings(self, seen: Observation) -> Iterator[Finding]:
        for aged in seen.strays:
            if aged.seconds < self._settings.leak_seconds:
                continue
            if isinstance(aged.thing, StrayShim):
                yield shim_findings.stray_shim(aged.thing, aged.seconds, seen.boot_id, aged.shows)
            else:
                yield shim_findings.stray_container(aged.thing, aged.seconds, seen.boot_id)
        for bundle, age in seen.unaddressed:
            if bundle.problem == NO_ADDRESS_YET and age >= self._settings.creating_seconds:
                yield shim_findings.never_served(bundle, age, seen.boot_id)

    def _samples(self, seen: Observation) -> Iterator[Sample]:
        states = [self._state(item) for item in seen.shims]
        strays = [a for a in seen.strays if isinstance(a.thing, StrayShim) and a.seconds >= self._settings.leak_seconds]
        for state in STATES:
            count = states.count(state) + (len(strays) if state == "orphaned" else 0)
            yield Sample("shims", count, (state,))
        for item in seen.shims:
            if item.answer.connect_seconds is not None:
                yield Sample("shim_ping_seconds", item.answer.connect_seconds)
        hung = [
            (item.answer.waiting_seconds or item.faulty_seconds, item.shim.lead)
            for item, state in zip(seen.shims, states, strict=True)
            if state == "hung"
        ]
        for seconds, lead in sorted(hung, key=lambda pair: -pair[0])[:TOP_K]:
            pod = lead.identity.pod
            labels = (pod.namespace, pod.name) if pod else ("", "")
            yield Sample("shim_hung_seconds", seconds, (*labels, lead.id))

    def _recheck(self, seen: Observation) -> float | None:
        """When the first doubt that is still open will be old enough to decide."""
        left: list[float] = []
        for item in seen.shims:
            answer = item.answer
            if answer.outcome is Outcome.WAITING:
                left.append(self._hung_after(item) - answer.waiting_seconds)
            left += [self._stuck_after(item) - age for age in answer.states_waiting.values()]
            if _fault(answer) is not None and answer.outcome is not Outcome.WAITING:
                left.append(self._settings.leak_seconds - item.faulty_seconds)
        left += [self._settings.leak_seconds - aged.seconds for aged in seen.strays]
        open_doubts = [seconds for seconds in left if seconds > 0]
        return min(open_doubts) + 0.05 if open_doubts else None


def _stray_key(thing: StrayShim | StrayContainer) -> Hashable:
    return thing.process.id if isinstance(thing, StrayShim) else thing.owner.container_id


def _empty(answer: ShimAnswer) -> bool:
    """Whether every container of a shim has exited, by the shim's own word."""
    states = answer.states.values()
    return bool(states) and not answer.states_waiting and all(s.found and s.status == STOPPED for s in states)


def _fault(answer: ShimAnswer) -> Hashable | None:
    """What is wrong with an answer, as far as age decides about it; None if nothing is.

    A socket that refuses and one that is gone are the same fault: the one becomes the other.
    """
    if answer.outcome in {Outcome.REFUSED, Outcome.NO_SOCKET}:
        return "unreachable"
    if answer.outcome is not Outcome.ANSWERED:
        return answer.outcome
    return "empty" if _empty(answer) else None


def _well(seen: Observation) -> str:
    times = [s.answer.connect_seconds for s in seen.shims if s.answer.connect_seconds is not None]
    if not times:
        return "there are no shims to ask" if not seen.shims else "no shim is late enough to be called hung"
    if len(times) == 1:
        return f"1 shim answered in {measured_duration(times[0])}"
    middle, slowest = measured_duration(median(times)), measured_duration(max(times))
    return f"{len(times)} shims answered, median {middle}, slowest {slowest}"


def _unknown(seen: Observation, findings: tuple[Finding, ...], grace: float) -> dict[str, str]:
    """Conditions nothing can be said about, unless something already is wrong."""
    accused = {finding.condition for finding in findings}
    unknown: dict[str, str] = {}
    unreadable = [
        s
        for s in seen.shims
        if s.answer.outcome is Outcome.NOT_PERMITTED
        or (s.answer.outcome is Outcome.BROKEN and s.faulty_seconds >= grace)
    ]
    unreachable = [bundle for bundle, _ in seen.unaddressed if bundle.problem != NO_ADDRESS_YET]
    if HUNG not in accused and unreadable:
        first = unreadable[0]
        unknown[HUNG] = (
            f"{len(unreadable)} of {len(seen.shims)} shims could not be asked: "
            f"{first.answer.message} ({first.shim.address})"
        )
    elif HUNG not in accused and unreachable:
        bundle = unreachable[0]
        unknown[HUNG] = f"{len(unreachable)} bundles have no shim that can be asked: {bundle.problem} ({bundle.path})"
    if LEAKED not in accused and unreadable:
        unknown[LEAKED] = f"{len(unreadable)} of {len(seen.shims)} shims could not be asked about their containers"
    elif LEAKED not in accused and seen.unseen_shims:
        unknown[LEAKED] = (
            f"{seen.unseen_shims} shim processes cannot be matched with a bundle, because their working directory may "
            f"not be read: {seen.ptrace_denied or 'access was denied'}"
        )
    return unknown


def _deployment(seen: Observation, unknown: Mapping[str, str]) -> Iterator[DeploymentFault]:
    """What the agent was denied, with the conditions that are Unknown, or known in part only, because of it."""
    asked = [item.answer.fault for item in seen.shims if item.answer.fault]
    read = [bundle.fault for bundle, _ in seen.unaddressed if bundle.fault]
    for fault in dict.fromkeys([*asked, *read]):
        yield _concerning(fault, (HUNG, LEAKED), unknown)
    if seen.ptrace_denied is not None:
        hidden = {LEAKED: unknown[LEAKED]} if seen.unseen_shims and not asked and LEAKED in unknown else {}
        yield _concerning(seen.ptrace_denied, (HUNG, LEAKED), hidden)
    if seen.cgroups_hidden is not None:
        yield _concerning(seen.cgroups_hidden, (HUNG,), {})


def _concerning(fault: DeploymentFault, conditions: tuple[str, ...], unknown: Mapping[str, str]) -> DeploymentFault:
    hides = tuple(each for each in conditions if each in unknown)
    return replace(fault, hides=hides, impairs=tuple(each for each in conditions if each not in hides))
