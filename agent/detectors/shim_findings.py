"""What is said of each fault a shim can have: wording, target, evidence and action of containerd_shim's findings."""

from dataclasses import dataclass

from agent.host.bundles import Bundle
from agent.host.inventory import Shim, StrayContainer, StrayShim
from agent.host.shims import Outcome, ShimAnswer
from agent.model import Action, Finding, Target, TargetKind, Value

HUNG = "ContainerdShimHung"
LEAKED = "ContainerdShimLeaked"


@dataclass(frozen=True, slots=True)
class SeenShim:
    """A shim, its answer, and what its process shows if something is wrong. `faulty_seconds`: how long it has been."""

    shim: Shim
    answer: ShimAnswer
    faulty_seconds: float = 0.0
    answered_seconds_ago: float | None = None
    wchan: str = ""
    frozen_cgroup: str = ""
    cgroups_hidden: str = ""


def _whose(bundle: Bundle) -> str:
    pod = bundle.identity.pod
    if pod is not None:
        return f"pod {pod.namespace}/{pod.name}"
    reason = f" ({bundle.identity.problem})" if bundle.identity.problem else ""
    return f"container {bundle.id[:12]}{reason}"


def _target(item: SeenShim, boot_id: str) -> Target:
    process, lead = item.shim.process, item.shim.lead
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
        "wchan": item.wchan or None,
        "frozenCgroup": item.frozen_cgroup or None,
        "lastAnsweredSecondsAgo": None if item.answered_seconds_ago is None else round(item.answered_seconds_ago, 1),
    }


def _name(item: SeenShim) -> str:
    process = item.shim.process
    return f"shim {process.pid}" if process else "the shim"


def _why_silent(item: SeenShim) -> tuple[str, Action]:
    """What the process shows, and what mends it."""
    why, action = _state_shown(item)
    if item.cgroups_hidden and action is Action.KILL_SHIM:
        why += f"; whether its cgroup is frozen cannot be seen ({item.cgroups_hidden})"
    return why, action


def _state_shown(item: SeenShim) -> tuple[str, Action]:
    process = item.shim.process
    if item.frozen_cgroup:
        return f"its cgroup {item.frozen_cgroup} is frozen", Action.THAW_CGROUP
    if process is None:
        return "its process is not to be found, so there is nothing to kill", Action.NONE
    if process.state in {"T", "t"}:
        return f"its process is stopped (state {process.state}): a signal or a debugger did it", Action.KILL_SHIM
    if process.state == "D":
        where = item.wchan or "the kernel"
        return f"its process is in uninterruptible sleep in {where}: a kill waits for its end", Action.KILL_SHIM
    return f"its process is alive (state {process.state}, in {item.wchan or 'user space'})", Action.KILL_SHIM


def hung(item: SeenShim, boot_id: str) -> Finding:
    """A shim that does not answer `Connect`, or cannot be reached although its process lives."""
    why, action = _why_silent(item)
    lead = item.shim.lead
    if item.answer.outcome is Outcome.WAITING:
        what = f"has not answered for {item.answer.waiting_seconds:.0f} s"
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
        {"unansweredSeconds": round(seconds, 1), **_values(item)},
        sightings=2,
        timed=True,
    )


def stuck(item: SeenShim, boot_id: str, limit: float) -> Finding:
    """A shim that answers `Connect` but not `State` of one container."""
    waiting = {cid: age for cid, age in item.answer.states_waiting.items() if age >= limit}
    stuck_id, age = max(waiting.items(), key=lambda pair: pair[1])
    bundle = next((b for b in item.shim.bundles if b.id == stuck_id), item.shim.lead)
    return Finding(
        HUNG,
        "ShimOperationStuck",
        f"{_name(item)} answers, but an operation on {_whose(bundle)}, container {stuck_id[:12]}, "
        f"has been stuck for {age:.0f} s: its State is not answered",
        Action.KILL_SHIM,
        _target(item, boot_id),
        bundle.identity.pod,
        {"unansweredSeconds": round(age, 1), "stuckContainerIds": tuple(waiting), **_values(item)},
        sightings=2,
        timed=True,
    )


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
        {"deadSeconds": round(item.faulty_seconds, 1), "bundle": lead.path, **_values(item)},
        sightings=2,
    )


def never_served(bundle: Bundle, seconds: float, boot_id: str) -> Finding:
    """A bundle for which no shim ever wrote where it listens: its creation was broken off."""
    return Finding(
        LEAKED,
        "ShimDead",
        f"{_whose(bundle)} has had a bundle for {seconds:.0f} s, but no shim has ever told where it listens: its "
        "creation hangs or was broken off; containerd cleans such bundles up when it starts",
        Action.NONE,
        Target(TargetKind.CONTAINER, boot_id=boot_id, container_id=bundle.id, containerd_namespace=bundle.namespace),
        bundle.identity.pod,
        {"deadSeconds": round(seconds, 1), "bundle": bundle.path},
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
        Action.KILL_SHIM,
        _target(item, boot_id),
        lead.identity.pod,
        {"emptySeconds": round(item.faulty_seconds, 1), **_values(item)},
        sightings=2,
    )


def stray_shim(stray: StrayShim, seconds: float, boot_id: str, wchan: str, frozen_cgroup: str) -> Finding:
    """A shim process whose bundle is gone."""
    process = stray.process
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
            "orphanedSeconds": round(seconds, 1),
            "containerIds": (stray.container_id,),
            "processState": process.state,
            "wchan": wchan or None,
            "frozenCgroup": frozen_cgroup or None,
        },
        sightings=2,
    )


def stray_container(stray: StrayContainer, seconds: float, boot_id: str) -> Finding:
    """Container processes without shim and bundle."""
    first, owner = stray.processes[0], stray.owner
    whose = f"pod {stray.pod.namespace}/{stray.pod.name}" if stray.pod else f"pod uid {owner.pod_uid or 'unknown'}"
    return Finding(
        LEAKED,
        "ProcessesWithoutShim",
        f"container {owner.container_id[:12]} of {whose} runs on without shim and bundle, from process {first.pid} "
        f"({first.comm}): Kubernetes counts it as gone and may have started a second copy",
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
        {"strandedSeconds": round(seconds, 1), "processes": len(stray.processes), "podUid": owner.pod_uid or None},
        sightings=2,
    )
