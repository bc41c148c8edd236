"""What is said of each fault a shim can have: wording, target, evidence and action of containerd_shim's findings."""

from dataclasses import dataclass

from agent.durations import duration, rounded
from agent.host.bundles import Bundle
from agent.host.inventory import Shim, StrayContainer, StrayShim
from agent.host.procfs import Process, state_and_place
from agent.host.shims import Outcome, ShimAnswer
from agent.model import Action, Finding, PodRef, Target, TargetKind, Value
from agent.printable import printable

HUNG = "ContainerdShimHung"
LEAKED = "ContainerdShimLeaked"
CLOCKS_APART = 1.0
"""Between the clock by which a process was started and the one by which an answer is awaited."""


@dataclass(frozen=True, slots=True)
class SeenProcess:
    """What a process shows; `thaw_file` is the file that would thaw the frozen cgroup which holds it."""

    wchan: str = ""
    frozen_cgroup: str = ""
    thaw_file: str = ""


NOTHING_SHOWN = SeenProcess()


@dataclass(frozen=True, slots=True)
class SeenRuntime:
    """An OCI runtime that a shim runs, where it sleeps, and for how long it has run, if that is known."""

    process: Process
    wchan: str = ""
    age_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class SeenShim:
    """A shim, its answer, and what its process shows if something is wrong. `faulty_seconds`: how long it has been."""

    shim: Shim
    answer: ShimAnswer
    faulty_seconds: float = 0.0
    answered_seconds_ago: float | None = None
    shows: SeenProcess = NOTHING_SHOWN
    cgroups_hidden: str = ""
    runtimes: tuple[SeenRuntime, ...] = ()


def _whose(bundle: Bundle) -> str:
    pod = bundle.identity.pod
    if pod is not None:
        return f"pod {pod.namespace}/{pod.name}"
    reason = f" ({bundle.identity.problem})" if bundle.identity.problem else ""
    return f"container {bundle.id[:12]}{reason}"


def _target(item: SeenShim, boot_id: str, bundle: Bundle | None = None) -> Target:
    """The shim, with the id of the container that the finding is about: by default the pod's sandbox."""
    process, lead = item.shim.process, bundle or item.shim.lead
    return Target(
        TargetKind.SHIM,
        pid=process.pid if process else None,
        start_time=process.start_time if process else None,
        boot_id=boot_id,
        container_id=lead.id,
        containerd_namespace=lead.namespace,
        address=item.shim.address,
    )


def _values(item: SeenShim) -> dict[str, Value]:
    process = item.shim.process
    return {
        "containerIds": tuple(b.id for b in item.shim.bundles),
        "containers": len(item.shim.bundles),
        "processState": process.state if process else None,
        **_shown(item.shows),
        "lastAnsweredSecondsAgo": None if item.answered_seconds_ago is None else rounded(item.answered_seconds_ago),
    }


def _shown(shows: SeenProcess) -> dict[str, Value]:
    return {
        "wchan": shows.wchan or None,
        "frozenCgroup": shows.frozen_cgroup or None,
        "thawFile": shows.thaw_file or None,
    }


def _name(item: SeenShim) -> str:
    process = item.shim.process
    return f"shim {process.pid}" if process else "the shim"


def _kill(item: SeenShim) -> Action:
    """KillShim where there is a process to kill; which one answers at a socket cannot always be seen."""
    return Action.KILL_SHIM if item.shim.process is not None else Action.NONE


def _why_silent(item: SeenShim) -> tuple[str, Action]:
    """What the process shows, and what mends it."""
    why, action = _state_shown(item)
    if item.cgroups_hidden and action is Action.KILL_SHIM:
        why += f"; whether its cgroup is frozen cannot be seen ({item.cgroups_hidden})"
    return why, action


def _state_shown(item: SeenShim) -> tuple[str, Action]:
    process = item.shim.process
    if item.shows.frozen_cgroup:
        return f"its cgroup {item.shows.frozen_cgroup} is frozen", Action.THAW_CGROUP
    if process is None:
        return "its process is not to be found, so there is nothing to kill", Action.NONE
    if process.state in {"T", "t"}:
        return f"its process is stopped (state {process.state}): a signal or a debugger did it", Action.KILL_SHIM
    if process.state == "D":
        where = item.shows.wchan or "the kernel"
        return (
            f"its process is in uninterruptible sleep in {where}: a kill takes effect only after that",
            Action.KILL_SHIM,
        )
    return f"its process is alive ({state_and_place(process.state, item.shows.wchan)})", Action.KILL_SHIM


def hung(item: SeenShim, boot_id: str) -> Finding:
    """A shim that does not answer `Connect`, or cannot be reached although its process lives."""
    why, action = _why_silent(item)
    lead = item.shim.lead
    if item.answer.outcome is Outcome.WAITING:
        what = f"has not answered for {duration(item.answer.waiting_seconds)}"
        seconds = item.answer.waiting_seconds
    else:
        what = f"cannot be reached: {item.answer.message}"
        seconds, action = item.faulty_seconds, Action.NONE
    return Finding(
        HUNG,
        "ShimUnresponsive",
        f"{_name(item)} of {_whose(lead)} {what}; {why}",
        action,
        _target(item, boot_id),
        lead.identity.pod,
        {"unansweredSeconds": rounded(seconds), **_values(item)},
        sightings=2,
        timed=True,
    )


def stuck(item: SeenShim, boot_id: str, limit: float) -> Finding:
    """A shim that answers `Connect` but not `State` of one container."""
    waiting = {cid: age for cid, age in item.answer.states_waiting.items() if age >= limit}
    stuck_id, age = max(waiting.items(), key=lambda pair: pair[1])
    bundle = next((b for b in item.shim.bundles if b.id == stuck_id), item.shim.lead)
    holders = _holders(item, age)
    return Finding(
        HUNG,
        "ShimOperationStuck",
        f"{_name(item)} answers, but an operation on {_whose_container(bundle)} has been stuck for "
        f"{duration(age)}: its State is not answered; {_held_by(holders)}",
        _kill(item),
        _target(item, boot_id, bundle),
        bundle.identity.pod,
        {
            "unansweredSeconds": rounded(age),
            "stuckContainerIds": tuple(waiting),
            **_values(item),
            **_runtime_values(holders),
        },
        sightings=2,
        timed=True,
    )


def _whose_container(bundle: Bundle) -> str:
    """The pod, and the container by its name, if that is known, and the id that belongs to it."""
    pod = bundle.identity.pod
    return _whose(bundle) if pod is None else f"{_whose(bundle)}, {_named(pod, bundle.id)}"


def _named(pod: PodRef | None, container_id: str) -> str:
    name = pod.container if pod is not None else ""
    return f"container {name} ({container_id[:12]})" if name else f"container {container_id[:12]}"


def _holders(item: SeenShim, stuck_seconds: float) -> tuple[SeenRuntime, ...]:
    """The runtimes that may hold the lock: those that ran already when State was left unanswered."""
    return tuple(r for r in item.runtimes if r.age_seconds is None or r.age_seconds >= stuck_seconds - CLOCKS_APART)


def _held_by(holders: tuple[SeenRuntime, ...]) -> str:
    if not holders:
        return "no runc is among the shim's children"
    first = holders[0]
    ran = f"for {duration(first.age_seconds)} " if first.age_seconds is not None else ""
    more = f"; {len(holders) - 1} more runc among its children" if len(holders) > 1 else ""
    name = f"{printable(first.process.comm)} {first.process.pid}"
    shows = state_and_place(first.process.state, first.wchan)
    return f"its child {name}, running {ran}({shows}), probably holds the lock{more}"


def _runtime_values(holders: tuple[SeenRuntime, ...]) -> dict[str, Value]:
    if not holders:
        return {}
    first = holders[0]
    return {
        "runcPid": first.process.pid,
        "runcState": first.process.state,
        "runcWchan": first.wchan or None,
        "runcAgeSeconds": None if first.age_seconds is None else rounded(first.age_seconds),
        "runcProcesses": len(holders),
    }


def dead(item: SeenShim, boot_id: str) -> Finding:
    """A bundle whose shim is gone."""
    lead = item.shim.lead
    return Finding(
        LEAKED,
        "ShimDead",
        f"{_whose(lead)} has a bundle but no shim: {item.answer.message} and no shim process of it is alive; "
        "containerd cleans such bundles up when it starts",
        Action.RESTART_CONTAINERD,
        _target(item, boot_id),
        lead.identity.pod,
        {"deadSeconds": rounded(item.faulty_seconds), "bundle": lead.path, **_values(item)},
        sightings=2,
    )


def never_served(bundle: Bundle, seconds: float, boot_id: str) -> Finding:
    """A bundle for which no shim ever wrote where it listens: its creation was broken off."""
    return Finding(
        LEAKED,
        "ShimDead",
        f"{_whose(bundle)} has had a bundle for {duration(seconds)}, but no shim has ever told where it listens: its "
        "creation hangs or was broken off; containerd cleans such bundles up when it starts",
        Action.NONE,
        Target(TargetKind.CONTAINER, boot_id=boot_id, container_id=bundle.id, containerd_namespace=bundle.namespace),
        bundle.identity.pod,
        {"deadSeconds": rounded(seconds), "bundle": bundle.path},
        sightings=2,
    )


def without_containers(item: SeenShim, boot_id: str) -> Finding:
    """A shim whose containers have all exited."""
    lead = item.shim.lead
    return Finding(
        LEAKED,
        "ShimWithoutContainers",
        f"{_name(item)} of {_whose(lead)} runs on although its containers have exited: containerd has not deleted "
        "them, it may have missed the exit",
        _kill(item),
        _target(item, boot_id),
        lead.identity.pod,
        {"emptySeconds": rounded(item.faulty_seconds), **_values(item)},
        sightings=2,
    )


def stray_shim(stray: StrayShim, seconds: float, boot_id: str, shows: SeenProcess) -> Finding:
    """A shim process whose bundle is gone."""
    process, frozen_cgroup = stray.process, shows.frozen_cgroup
    whose = f"pod {stray.pod.namespace}/{stray.pod.name}" if stray.pod else f"container {stray.container_id[:12]}"
    return Finding(
        LEAKED,
        "ShimWithoutContainers",
        f"shim {process.pid} of {whose} runs on although its bundle is gone: containerd no longer knows it"
        + (f"; its cgroup {frozen_cgroup} is frozen" if frozen_cgroup else ""),
        Action.THAW_CGROUP if frozen_cgroup else Action.KILL_SHIM,
        Target(
            TargetKind.SHIM,
            pid=process.pid,
            start_time=process.start_time,
            boot_id=boot_id,
            container_id=stray.container_id,
            containerd_namespace=stray.containerd_namespace,
        ),
        stray.pod,
        {
            "orphanedSeconds": rounded(seconds),
            "containerIds": (stray.container_id,),
            "processState": process.state,
            **_shown(shows),
        },
        sightings=2,
    )


def stray_container(stray: StrayContainer, seconds: float, boot_id: str) -> Finding:
    """Container processes without shim and bundle."""
    first, owner = stray.processes[0], stray.owner
    name = _named(stray.pod, owner.container_id)
    whose = f"pod {stray.pod.namespace}/{stray.pod.name}" if stray.pod else f"pod uid {owner.pod_uid or 'unknown'}"
    return Finding(
        LEAKED,
        "ProcessesWithoutShim",
        f"{name} of {whose} runs on without shim and bundle: {_processes(stray)}. "
        "Kubernetes counts it as gone and may have started a second copy of it: two writers on one volume",
        Action.NONE,
        Target(
            TargetKind.CONTAINER,
            pid=first.pid,
            start_time=first.start_time,
            boot_id=boot_id,
            container_id=owner.container_id,
            cgroup=owner.path,
        ),
        stray.pod,
        {"strandedSeconds": rounded(seconds), "processes": len(stray.processes), "podUid": owner.pod_uid or None},
        sightings=2,
    )


def _processes(stray: StrayContainer) -> str:
    first, number = stray.processes[0], len(stray.processes)
    one = f"process {first.pid} ({printable(first.comm)})"
    return one if number == 1 else f"{number} processes, the first is {one}"
