"""Are there defunct processes, and who does not reap them?

A defunct process (a zombie) has ended; it keeps its pid until its parent asks for its exit
status. So the parent is the one to name, with its pod, and the name most of its zombies have is
the pointer to what keeps making them: usually an exec probe that a shell or a pid 1 without
`wait()` runs. A zombie holds no memory to speak of; what it takes is a pid, and the harm
comes when the pod's `pids.max` or the node's `pid_max` is used up and nothing can be started.

When this is harmless: every process is defunct for the moment between its end and its reaping,
so only those first seen a while ago count. What it does not prove: that the parent is broken for
good. A parent that is stopped or frozen reaps once it goes on, and the finding says so.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from typing import ClassVar

from agent.clock import Clock
from agent.detectors.defunct_findings import (
    EXCESSIVE,
    EXHAUSTION,
    NOT_REAPING,
    TOO_MANY,
    Parent,
    comm_of,
    node_out_of_pids,
    not_reaping,
    pod_out_of_pids,
    too_many,
)
from agent.durations import measured_duration
from agent.host import cgroups
from agent.host.cgroups import CgroupOwner, Cgroups
from agent.host.procfs import Procfs, Zombie
from agent.model import CannotSeeError, CheckResult, DeploymentFault, Finding, Metric, MetricKind, PodRef, Sample
from agent.schema import DetectorSettings, setting

TOP_K = 10
TREND_LOOKS = 6
"""A trend is the median growth between this many looks, so that one burst is none."""
STATE_NAMES = {
    "R": "running",
    "S": "sleeping",
    "D": "disk_sleep",
    "Z": "zombie",
    "T": "stopped",
    "t": "traced",
    "I": "idle",
    "X": "dead",
}


@dataclass(frozen=True, slots=True)
class DefunctProcessesSettings(DetectorSettings):
    """Settings of the defunct_processes detector."""

    period_seconds: float = setting(8.0, "time between two looks; each is jittered by 10 %", minimum=1, maximum=3600)
    max_total: int = setting(
        1000, "more lasting zombies than this on the node are too many", minimum=1, maximum=4194304
    )
    max_per_parent: int = setting(
        30, "more lasting zombies than this under one parent: it does not reap", minimum=1, maximum=4194304
    )
    lasting_seconds: float = setting(
        4.0, "a zombie counts once it has been seen defunct for this long", minimum=0.5, maximum=3600
    )
    exhaustion_share: float = setting(
        0.85,
        "share of pid_max, or of the pids.max of a pod or container, in use at which exhaustion is near",
        minimum=0.1,
        maximum=1,
    )
    exhaustion_seconds: float = setting(
        3600.0,
        "exhaustion is near, too, if the zombies' trend leads to it within this time",
        minimum=60,
        maximum=604800,
    )


@dataclass(frozen=True, slots=True)
class Observation:
    """One scan. `growth_per_second` is the trend of lasting zombies, as for each parent; None until it is known."""

    states: Mapping[str, int]
    lasting: int
    young: int
    parents: tuple[Parent, ...]
    growth_per_second: float | None
    tasks: int | None
    pid_max: int | None
    boot_id: str


class DefunctProcessesDetector:
    """Watches the zombies of the whole node."""

    name: ClassVar[str] = "defunct_processes"
    conditions: ClassVar[Mapping[str, Mapping[str, str]]] = {
        EXCESSIVE: {
            EXHAUSTION: "Zombies are using up the pids of a pod or of the node; soon nothing can be started.",
            NOT_REAPING: "A process does not reap its ended children; each keeps a pid.",
            TOO_MANY: "The node has more zombies than any healthy one.",
        }
    }
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("defunct_processes", MetricKind.GAUGE, "Defunct processes on this node, short-lived ones included."),
        Metric(
            "defunct_processes_by_parent",
            MetricKind.GAUGE,
            f"Lasting defunct processes of the parents that have most; at most {TOP_K}.",
            ("pid", "comm", "namespace", "pod", "container"),
        ),
        Metric("processes", MetricKind.GAUGE, "Processes on this node by state.", ("state",)),
    )

    def __init__(
        self,
        settings: DefunctProcessesSettings,
        procfs: Procfs,
        cgroups: Cgroups,
        namespaces: tuple[str, ...],
        pod_of: Callable[[str], PodRef | None],
        pid_problem: Callable[[], DeploymentFault | None],
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._procfs = procfs
        self._cgroups = cgroups
        self._namespaces = namespaces
        self._pod_of = pod_of
        self._pid_problem = pid_problem
        self._clock = clock
        self._known: Mapping[bytes, Zombie] = {}
        self._first_seen: dict[bytes, float] = {}
        self._looks: deque[tuple[float, Counter[int]]] = deque(maxlen=TREND_LOOKS)

    def probe(self) -> Observation:
        """Scan /proc once.

        Raises CannotSeeError where the node's processes are not to be seen, OSError where /proc cannot be read.
        """
        problem = self._pid_problem()
        if problem:
            raise CannotSeeError(str(problem), problem)
        scan = self._procfs.scan(self._known)
        now = self._clock.awake()
        self._known = scan.zombies
        self._first_seen = {line: self._first_seen.get(line, now) for line in scan.zombies}
        lasting = {
            line: now - first
            for line, first in self._first_seen.items()
            if now - first >= self._settings.lasting_seconds
        }
        self._looks.append((now, Counter(scan.zombies[line].ppid for line in lasting)))
        return Observation(
            states=scan.states,
            lasting=len(lasting),
            young=len(scan.zombies) - len(lasting),
            parents=tuple(self._parents({scan.zombies[line]: age for line, age in lasting.items()})),
            growth_per_second=_trend([(at, by_parent.total()) for at, by_parent in self._looks]),
            tasks=self._procfs.tasks(),
            pid_max=self._procfs.pid_max(),
            boot_id=self._procfs.boot_id(),
        )

    def check(self, seen: Observation) -> CheckResult:
        """Decide from one observation."""
        return CheckResult(
            findings=tuple(self._exhaustion(seen)) + tuple(self._not_reaping(seen)) + tuple(self._too_many(seen)),
            healthy={EXCESSIVE: f"{seen.lasting + seen.young} defunct processes, {seen.lasting} of them lasting"},
            samples=tuple(_samples(seen)),
            deployment=_deployment(seen),
            recheck_seconds=self._settings.lasting_seconds + 0.1
            if seen.young > self._settings.max_per_parent
            else None,
        )

    def _parents(self, ages: Mapping[Zombie, float]) -> Iterator[Parent]:
        """The parents with most lasting zombies; only these few are looked at more closely."""
        top = dict(self._looks[-1][1].most_common(TOP_K))
        comms: dict[int, Counter[bytes]] = {pid: Counter() for pid in top}
        oldest = dict.fromkeys(top, 0.0)
        for zombie, age in ages.items():
            if zombie.ppid in top:
                comms[zombie.ppid][zombie.comm] += 1
                oldest[zombie.ppid] = max(oldest[zombie.ppid], age)
        for pid, count in top.items():
            comm, comm_count = comms[pid].most_common(1)[0]
            yield self._parent(pid, count, oldest[pid], comm.decode(errors="backslashreplace"), comm_count)

    def _parent(self, pid: int, count: int, oldest: float, comm: str, comm_count: int) -> Parent:
        lines = self._procfs.cgroups(pid)
        owner = cgroups.owner(lines, self._namespaces)
        frozen, hidden = self._cgroups.frozen(lines), self._cgroups.fault(lines)
        process = self._procfs.process(pid)  # read last: one that has ended meanwhile has no cgroup any more
        return Parent(
            pid=pid,
            process=process,
            zombies=count,
            oldest_seconds=oldest,
            comm=comm,
            comm_count=comm_count,
            pod=_pod(owner, self._pod_of),
            owner=owner,
            pids=self._cgroups.pids(lines),
            frozen_cgroup=frozen,
            thaw_file=self._cgroups.thaw_file(lines) if frozen else "",
            cgroups_hidden=hidden if process is not None else None,
            unit=cgroups.unit(lines),
            growth_per_second=_trend([(at, by_parent[pid]) for at, by_parent in self._looks]),
        )

    def _not_reaping(self, seen: Observation) -> Iterator[Finding]:
        for parent in seen.parents:
            if parent.zombies > self._settings.max_per_parent and parent.process is not None:
                yield not_reaping(parent, parent.process, seen.boot_id)

    def _too_many(self, seen: Observation) -> Iterator[Finding]:
        if seen.lasting > self._settings.max_total:
            worst = seen.parents[0] if seen.parents else None
            yield too_many(seen.lasting, self._settings.max_total, worst, seen.growth_per_second, seen.boot_id)

    def _exhaustion(self, seen: Observation) -> Iterator[Finding]:
        """Only with zombies to show: pids used up by living processes are another trouble."""
        if seen.lasting <= self._settings.max_per_parent:
            return
        if seen.tasks is not None and seen.pid_max:
            why = self._ahead(seen.tasks, seen.pid_max, seen.growth_per_second)
            if why and seen.lasting > seen.tasks / 4:
                pids = (seen.tasks, seen.pid_max)
                yield node_out_of_pids(pids, seen.lasting, why, seen.growth_per_second, seen.boot_id)
        for parent in seen.parents:
            if parent.pids is None or parent.zombies <= self._settings.max_per_parent or parent.owner is None:
                continue
            why = self._ahead(parent.pids.used, parent.pids.limit, parent.growth_per_second)
            if why:
                yield pod_out_of_pids(parent, parent.pids, why, seen.boot_id)

    def _ahead(self, used: int, limit: int, growth: float | None) -> str:
        """Say why exhaustion is near; empty if it is not."""
        if used >= limit * self._settings.exhaustion_share:
            return f"{used / max(1, limit):.0%} are gone"
        if growth is not None and growth > 0 and (limit - used) / growth <= self._settings.exhaustion_seconds:
            left = measured_duration((limit - used) / growth)
            return f"at {growth:.2g} more a second none is left in {left}"
        return ""


def _trend(totals: Sequence[tuple[float, int]]) -> float | None:
    """Median growth a second between looks; None before there are TREND_LOOKS of them."""
    if len(totals) < TREND_LOOKS:
        return None
    growths = ((after[1] - before[1]) / max(0.1, after[0] - before[0]) for before, after in pairwise(totals))
    return round(median(growths), 3)


def _pod(owner: CgroupOwner | None, pod_of: Callable[[str], PodRef | None]) -> PodRef | None:
    if owner is None:
        return None
    known = pod_of(owner.container_id)
    return known or (PodRef("", "", owner.pod_uid) if owner.pod_uid else None)


def _deployment(seen: Observation) -> tuple[DeploymentFault, ...]:
    """What hides the cgroups of a parent, by which the pod's limit of pids is read."""
    hidden = dict.fromkeys(parent.cgroups_hidden for parent in seen.parents if parent.cgroups_hidden)
    return tuple(replace(fault, impairs=(EXCESSIVE,)) for fault in hidden)


def _samples(seen: Observation) -> Iterator[Sample]:
    yield Sample("defunct_processes", seen.lasting + seen.young)
    counts: Counter[str] = Counter()
    for state, count in seen.states.items():
        counts[STATE_NAMES.get(state, "other")] += count
    for name in (*STATE_NAMES.values(), "other"):
        yield Sample("processes", counts[name], (name,))
    for parent in seen.parents:
        pod = parent.pod or PodRef("", "")
        labels = (str(parent.pid), comm_of(parent), pod.namespace, pod.name, pod.container)
        yield Sample("defunct_processes_by_parent", parent.zombies, labels)
