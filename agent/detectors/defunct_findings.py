"""What is said of defunct processes: wording, target, evidence and action of defunct_processes' findings."""

from dataclasses import dataclass

from agent.durations import measured_duration, rounded
from agent.host.cgroups import CgroupOwner, PidsLimit
from agent.host.inventory import SHIM_COMM
from agent.host.procfs import INIT_PID, Process
from agent.host.units import unit_of
from agent.model import Action, DeploymentFault, Finding, PodRef, Target, TargetKind, Value
from agent.printable import printable

EXCESSIVE = "ExcessiveDefunctProcesses"
EXHAUSTION = "PidExhaustionAhead"
NOT_REAPING = "ParentNotReaping"
TOO_MANY = "TooManyDefunctProcesses"


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
    pids: PidsLimit | None = None
    frozen_cgroup: str = ""
    thaw_file: str = ""
    cgroups_hidden: DeploymentFault | None = None
    unit: str = ""
    growth_per_second: float | None = None


def not_reaping(parent: Parent, process: Process, boot_id: str) -> Finding:
    """Return the finding about a parent with too many lasting zombies."""
    why, action = _why_not_reaping(parent, process)
    return Finding(
        EXCESSIVE,
        NOT_REAPING,
        f"{_whose(parent)}: process {parent.pid} ({process.comm}) does not reap: "
        f"{parent.zombies} zombies, {parent.comm_count} of them named {parent.comm}, "
        f"the oldest seen for {measured_duration(parent.oldest_seconds)}; {why}",
        action,
        _target(parent, boot_id),
        parent.pod,
        _values(parent),
    )


def too_many(lasting: int, limit: int, worst: Parent | None, growth: float | None, boot_id: str) -> Finding:
    """Return the finding about a node with more lasting zombies than its limit; `growth` is theirs a second."""
    most = f"; {worst.zombies} of them under process {worst.pid} ({comm_of(worst)})" if worst else ""
    return Finding(
        EXCESSIVE,
        TOO_MANY,
        f"{lasting} zombies on this node (limit {limit}){most}",
        Action.NONE,
        Target(TargetKind.NODE, boot_id=boot_id),
        None,
        {"zombies": lasting, "growthPerSecond": growth},
    )


def node_out_of_pids(pids: tuple[int, int], lasting: int, why: str, growth: float | None, boot_id: str) -> Finding:
    """Return the finding about a node whose pids run out; `pids` are those in use and pid_max."""
    used, limit = pids
    return Finding(
        EXCESSIVE,
        EXHAUSTION,
        f"the node's pids run out: {used} of {limit} in use, {lasting} by zombies; {why}",
        Action.NONE,
        Target(TargetKind.NODE, boot_id=boot_id),
        None,
        {"pids": used, "pidMax": limit, "growthPerSecond": growth},
    )


def pod_out_of_pids(parent: Parent, pids: PidsLimit, why: str, boot_id: str) -> Finding:
    """Return the finding about a container, or its pod, whose pids run out."""
    action = _why_not_reaping(parent, parent.process)[1] if parent.process else Action.NONE
    return Finding(
        EXCESSIVE,
        EXHAUSTION,
        f"{_whose(parent)} runs out of pids: {pids.used} of {pids.limit} in use ({_limit_of(pids)}), "
        f"{parent.zombies} by zombies of process {parent.pid} ({comm_of(parent)}); {why}",
        action,
        _target(parent, boot_id),
        parent.pod,
        _values(parent),
    )


def comm_of(parent: Parent) -> str:
    """Return the parent's name; `gone` if it went away while we looked."""
    return parent.process.comm if parent.process else "gone"


def _whose(parent: Parent) -> str:
    if parent.pod is not None and parent.pod.name:
        return f"pod {parent.pod}"
    if parent.pod is not None:
        return f"pod uid {parent.pod.uid}"
    if parent.owner is not None:
        return f"container {parent.owner.container_id[:12]}"
    return f"unit {printable(parent.unit)}" if parent.unit else "outside any container"


def _why_not_reaping(parent: Parent, process: Process) -> tuple[str, Action]:
    """What the parent shows, and what fixes it."""
    never, instead = _never_touched(parent, process)
    if parent.frozen_cgroup:
        why = f"its cgroup {parent.frozen_cgroup} is frozen"
        return (f"{why}; {never}, so it {_thawed_by_hand(parent)}", Action.NONE) if never else (why, Action.THAW_CGROUP)
    if process.state in {"T", "t"}:
        return f"it is stopped (state {process.state}) and reaps once it is continued", Action.NONE
    if never:
        return f"{never}{instead}", Action.NONE
    unseen = f"; its limit of pids cannot be seen ({parent.cgroups_hidden})" if parent.cgroups_hidden else ""
    return f"look for an exec probe or a script that runs {parent.comm}{unseen}", Action.SIGNAL_PARENT


def _never_touched(parent: Parent, process: Process) -> tuple[str, str]:
    """Why no remediation touches the parent, as the gate refuses it, and what helps instead; empty if one may."""
    if parent.pid == INIT_PID:
        return "it is the node's init, which no remediation touches", ""
    if process.comm == SHIM_COMM and parent.owner is None:
        return "a shim does not reap what an exec left behind", "; restarting the pod ends both"
    if process.comm == SHIM_COMM:
        return "it is named as a shim, which no remediation touches for zombies", "; restarting the pod ends both"
    if parent.owner is None:
        return "it is no container's process", f": restart {_service(parent)}"
    return "", ""


def _thawed_by_hand(parent: Parent) -> str:
    unit = unit_of(parent.frozen_cgroup)
    first = f"systemctl show -p FreezerState {printable(unit)}" if unit else f"cat {printable(parent.thaw_file)}"
    return f"is thawed by hand (first: {first})"


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
        "comm": comm_of(parent),
        "parentState": parent.process.state if parent.process else None,
        "zombieComm": parent.comm,
        "zombieCommCount": parent.comm_count,
        "oldestSeconds": rounded(parent.oldest_seconds),
        "unit": parent.unit or None,
        **_pids_values(parent.pids),
        "growthPerSecond": parent.growth_per_second,
        "frozenCgroup": parent.frozen_cgroup or None,
        "thawFile": parent.thaw_file or None,
    }


def _limit_of(pids: PidsLimit) -> str:
    """Whose limit it is: a pod's, a unit's TasksMax, or that of any other cgroup, such as a container's."""
    if pids.of_pod:
        return "the pod's limit"
    return f"TasksMax of {printable(pids.unit)}" if pids.unit else f"limit of cgroup {printable(pids.cgroup)}"


def _pids_values(pids: PidsLimit | None) -> dict[str, Value]:
    """The limit under the name of whose it is; what is no pod's is not called one."""
    if pids is None:
        return {}
    if pids.of_pod:
        return {"podPids": pids.used, "podPidsMax": pids.limit}
    if pids.unit:
        return {"unit": pids.unit, "unitTasks": pids.used, "unitTasksMax": pids.limit}
    return {"pidsCgroup": pids.cgroup, "cgroupPids": pids.used, "cgroupPidsMax": pids.limit}


def _service(parent: Parent) -> str:
    """What to restart: a service; a scope, such as a login session, cannot be, but the program in it can."""
    if parent.unit.endswith(".service"):
        return f"its unit, {printable(parent.unit)}"
    return "the program itself" if parent.unit else "the service it belongs to"
