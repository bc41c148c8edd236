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
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import ClassVar

from agent.clock import Clock
from agent.host import cgroups
from agent.host.cgroups import CgroupOwner, Cgroups
from agent.host.inventory import SHIM_COMM
from agent.host.procfs import INIT_PID, Process, Procfs, Zombie
from agent.model import (
    Action,
    CannotSeeError,
    CheckResult,
    Finding,
    Metric,
    MetricKind,
    PodRef,
    Sample,
    Target,
    TargetKind,
    Value,
)
from agent.schema import DetectorSettings, setting

EXCESSIVE = "ExcessiveDefunctProcesses"
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
        0.85, "share of pid_max or of a pod's pids.max in use at which exhaustion is near", minimum=0.1, maximum=1
    )
    exhaustion_seconds: float = setting(
        3600.0,
        "exhaustion is near, too, if the zombies' trend leads to it within this time",
        minimum=60,
        maximum=604800,
    )


@dataclass(frozen=True, slots=True)
class Parent:
    """A process with lasting zombies. `process` is None if it went away while we looked."""

    pid: int
    process: Process | None
    zombies: int
    oldest_seconds: float
    comm: str
    comm_count: int
    pod: PodRef | None = None
    owner: CgroupOwner | None = None
    pids: tuple[int, int] | None = None
    frozen_cgroup: str = ""
    cgroups_hidden: str = ""
    growth_per_second: float | None = None


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
            "PidExhaustionAhead": "Zombies are using up the pids of a pod or of the node; soon nothing can be started.",
            "ParentNotReaping": "A process does not reap its ended children; each keeps a pid.",
            "TooManyDefunctProcesses": "The node has more zombies than any healthy one.",
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
        pid_problem: Callable[[], str | None],
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
            raise CannotSeeError(problem)
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
        return Parent(
            pid=pid,
            process=self._procfs.process(pid),
            zombies=count,
            oldest_seconds=oldest,
            comm=comm,
            comm_count=comm_count,
            pod=_pod(owner, self._pod_of),
            owner=owner,
            pids=self._cgroups.pids(lines),
            frozen_cgroup=self._cgroups.frozen(lines),
            cgroups_hidden=self._cgroups.hidden(lines),
            growth_per_second=_trend([(at, by_parent[pid]) for at, by_parent in self._looks]),
        )

    def _not_reaping(self, seen: Observation) -> Iterator[Finding]:
        for parent in seen.parents:
            if parent.zombies <= self._settings.max_per_parent or parent.process is None:
                continue
            why, action = _why_not_reaping(parent, parent.process)
            yield Finding(
                EXCESSIVE,
                "ParentNotReaping",
                f"{_whose(parent)}: process {parent.pid} ({parent.process.comm}) does not reap: "
                f"{parent.zombies} zombies, {parent.comm_count} of them named {parent.comm}, "
                f"the oldest seen for {parent.oldest_seconds:.0f} s; {why}",
                action,
                _target(parent, seen.boot_id),
                parent.pod,
                _values(parent),
            )

    def _too_many(self, seen: Observation) -> Iterator[Finding]:
        if seen.lasting <= self._settings.max_total:
            return
        worst = seen.parents[0] if seen.parents else None
        most = f"; {worst.zombies} of them under process {worst.pid} ({_comm(worst)})" if worst else ""
        yield Finding(
            EXCESSIVE,
            "TooManyDefunctProcesses",
            f"{seen.lasting} zombies on this node (limit {self._settings.max_total}){most}",
            Action.NONE,
            Target(TargetKind.NODE, boot_id=seen.boot_id),
            None,
            {"zombies": seen.lasting, "growthPerSecond": seen.growth_per_second},
        )

    def _exhaustion(self, seen: Observation) -> Iterator[Finding]:
        """Only with zombies to show: pids used up by living processes are another trouble."""
        if seen.lasting <= self._settings.max_per_parent:
            return
        if seen.tasks is not None and seen.pid_max:
            text = self._ahead(seen.tasks, seen.pid_max, seen.growth_per_second)
            if text and seen.lasting > seen.tasks / 4:
                yield Finding(
                    EXCESSIVE,
                    "PidExhaustionAhead",
                    f"the node's pids run out: {seen.tasks} of {seen.pid_max} in use, "
                    f"{seen.lasting} by zombies; {text}",
                    Action.NONE,
                    Target(TargetKind.NODE, boot_id=seen.boot_id),
                    None,
                    {"pids": seen.tasks, "pidMax": seen.pid_max, "growthPerSecond": seen.growth_per_second},
                )
        for parent in seen.parents:
            if parent.pids is None or parent.zombies <= self._settings.max_per_parent or parent.owner is None:
                continue
            text = self._ahead(*parent.pids, parent.growth_per_second)
            if text:
                yield Finding(
                    EXCESSIVE,
                    "PidExhaustionAhead",
                    f"{_whose(parent)} runs out of pids: {parent.pids[0]} of {parent.pids[1]} in use, "
                    f"{parent.zombies} by zombies of process {parent.pid} ({_comm(parent)}); {text}",
                    Action.SIGNAL_PARENT,
                    _target(parent, seen.boot_id),
                    parent.pod,
                    _values(parent),
                )

    def _ahead(self, used: int, limit: int, growth: float | None) -> str:
        """Say why exhaustion is near; empty if it is not."""
        if used >= limit * self._settings.exhaustion_share:
            return f"{used / max(1, limit):.0%} are gone"
        if growth is not None and growth > 0 and (limit - used) / growth <= self._settings.exhaustion_seconds:
            return f"at {growth:.1f} more a second none is left in {(limit - used) / growth / 60:.0f} min"
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


def _comm(parent: Parent) -> str:
    return parent.process.comm if parent.process else "gone"


def _whose(parent: Parent) -> str:
    if parent.pod is not None and parent.pod.name:
        return f"pod {parent.pod}"
    if parent.pod is not None:
        return f"pod uid {parent.pod.uid}"
    return f"container {parent.owner.container_id[:12]}" if parent.owner else "outside any container"


def _why_not_reaping(parent: Parent, process: Process) -> tuple[str, Action]:
    """What the parent shows, and what mends it."""
    if parent.frozen_cgroup:
        return f"its cgroup {parent.frozen_cgroup} is frozen", Action.THAW_CGROUP
    if process.state in {"T", "t"}:
        return f"it is stopped (state {process.state}) and reaps once it is continued", Action.NONE
    if parent.pid == INIT_PID:
        return "it is the node's init, which no remediation touches", Action.NONE
    if process.comm == SHIM_COMM and parent.owner is None:
        return "a shim does not reap what an exec left behind; restarting the pod ends both", Action.NONE
    if parent.owner is None:
        return "it is no container's process: restart the service it belongs to", Action.NONE
    unseen = f"; its pod's limit of pids cannot be seen ({parent.cgroups_hidden})" if parent.cgroups_hidden else ""
    return f"look for an exec probe or a script that runs {parent.comm}{unseen}", Action.SIGNAL_PARENT


def _target(parent: Parent, boot_id: str) -> Target:
    return Target(
        TargetKind.PROCESS,
        pid=parent.pid,
        start_time=parent.process.start_time if parent.process else None,
        boot_id=boot_id,
        container_id=parent.owner.container_id if parent.owner else "",
        cgroup=parent.owner.path if parent.owner else "",
    )


def _values(parent: Parent) -> dict[str, Value]:
    return {
        "zombies": parent.zombies,
        "comm": _comm(parent),
        "parentState": parent.process.state if parent.process else None,
        "zombieComm": parent.comm,
        "zombieCommCount": parent.comm_count,
        "oldestSeconds": round(parent.oldest_seconds, 1),
        "podPids": parent.pids[0] if parent.pids else None,
        "podPidsMax": parent.pids[1] if parent.pids else None,
        "growthPerSecond": parent.growth_per_second,
    }


def _samples(seen: Observation) -> Iterator[Sample]:
    yield Sample("defunct_processes", seen.lasting + seen.young)
    counts: Counter[str] = Counter()
    for state, count in seen.states.items():
        counts[STATE_NAMES.get(state, "other")] += count
    for name in (*STATE_NAMES.values(), "other"):
        yield Sample("processes", counts[name], (name,))
    for parent in seen.parents:
        pod = parent.pod or PodRef("", "")
        labels = (str(parent.pid), _comm(parent), pod.namespace, pod.name, pod.container)
        yield Sample("defunct_processes_by_parent", parent.zombies, labels)
