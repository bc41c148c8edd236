"""Allow or refuse; pure.

The checks stand in one list and are asked in that order; the first that objects is the answer. The last one looks at
the kinds of all values the others went by, so that nothing is ever allowed on a value that is not what it should be. A
gate that errs has refused.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from agent.acts import MAX_TOKEN, Refusal, RefusalReason, Request
from agent.model import Action, Target, TargetKind
from agent.printable import printable
from agent.remediation.gate_facts import ProcessFacts, Standing
from agent.remediation.gate_values import unusable
from agent.remediation.past import HOUR_SECONDS, ages_this_hour, cooldown_left

SHIM_COMM = "containerd-shim"
"""What is left of containerd-shim-runc-v2 in the 15 bytes of comm."""

_NODE_COMMS = {TargetKind.SHIM: SHIM_COMM, TargetKind.KUBELET: "kubelet", TargetKind.CONTAINERD: "containerd"}
"""The processes of the node itself that may be a target, and what each is named."""
_SERVICES = {TargetKind.KUBELET: Action.RESTART_KUBELET, TargetKind.CONTAINERD: Action.RESTART_CONTAINERD}
"""The services of the node that systemd may start again, and by which action."""
_IDENTITY = ("pid", "start_time", "boot_id", "container_id", "containerd_namespace", "cgroup", "address")
"""The fields of a target beside its kind."""
_IN_CONTAINERS = frozenset({TargetKind.PROCESS, TargetKind.CONTAINER})
"""Targets that must be processes of a container. Such a process has a pid namespace of its own as a rule, so being
nested says nothing against it."""
_ENDED = frozenset({"Z", "X", "x"})


def decide(request: Request, standing: Standing) -> Refusal | None:
    """Return why nothing may be done, or None if it may. Never raises."""
    for check in _CHECKS:
        try:
            refusal = check(request, standing)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong in a gate, it stays shut
            step = check.__name__.strip("_")
            text = f"the gate failed (step {step}: {type(error).__name__}), so nothing is done. Report this as a bug"
            return Refusal(RefusalReason.GATE_FAILED, text)
        if refusal is not None:
            return refusal
    return None


# --- the checks, in their order ----------------------------------------------------------------


def _enabled(_: Request, standing: Standing) -> Refusal | None:
    if standing.enabled is True:
        return None
    text = "remediation is disabled on this node: set remediation.enabled in the agent's settings"
    return Refusal(RefusalReason.DISABLED, text)


def _action_enabled(request: Request, standing: Standing) -> Refusal | None:
    if request.action is Action.NONE:
        return Refusal(RefusalReason.UNKNOWN_ACTION, "None is no action: there is nothing to do")
    limits = standing.limits.get(request.action)
    if limits is not None and limits.enabled is True:
        return None
    text = f"{request.action} is disabled on this node: see remediation.actions.{request.action} in its settings"
    return Refusal(RefusalReason.ACTION_DISABLED, text)


def _caller_allowed(request: Request, standing: Standing) -> Refusal | None:
    caller = standing.caller
    if request.caller == caller.identity and request.action in caller.actions:
        return None
    allowed = ", ".join(sorted(caller.actions)) or "nothing"
    text = f"{request.caller} may not ask for {request.action} (allowed: {allowed}): see grpc.callers in the settings"
    return Refusal(RefusalReason.CALLER_NOT_ALLOWED, text)


def _target_kind(request: Request, standing: Standing) -> Refusal | None:
    if request.target.kind in standing.targets:
        return None
    takes = " or ".join(standing.targets) or "nothing"
    text = f"{request.action} takes {takes}, not {request.target.kind}"
    return Refusal(RefusalReason.WRONG_TARGET_KIND, text)


def _target_exact(request: Request, _: Standing) -> Refusal | None:
    missing = ", ".join(_missing(request))
    if not missing:
        return None
    text = f"the target is not exact, it lacks: {missing}; it has: {_what_it_has(request.target)}. "
    return Refusal(RefusalReason.INEXACT_TARGET, text + _how_to_be_exact(request.target))


def _what_it_has(target: Target) -> str:
    has = {"kind": target.kind, **{name: getattr(target, name) for name in _IDENTITY}}
    known = {name: str(value) for name, value in has.items() if value is not None and value != ""}
    return ", ".join(f"{name} {printable(value, 120)}" for name, value in known.items())


def _how_to_be_exact(target: Target) -> str:
    """Say where a whole target is to be had; a service without a process and without a known unit has none."""
    if target.kind in _SERVICES and target.pid is None:
        return (
            f"No process of {target.kind} runs, and this agent has not seen which systemd unit ran it, so it cannot "
            f"start it. Find the unit with `systemctl list-unit-files '*{target.kind}*'` and start it with `systemctl "
            "start UNIT`"
        )
    return "Send it as the latest report names it"


def _missing(request: Request) -> Iterator[str]:
    target = request.target
    match target.kind:
        case TargetKind.CONNTRACK:
            return
        case TargetKind.SHIM if _names_a_dead_shim(request):
            needed: Mapping[str, Any] = {"container_id": target.container_id or None, "boot_id": target.boot_id or None}
        case kind if kind in _SERVICES and _names_an_ended_service(request):
            needed = {"boot_id": target.boot_id or None}
        case TargetKind.DNS_SERVER:
            needed = {"address": target.address or None}
        case _ if target.kind in _NODE_COMMS or target.kind in _IN_CONTAINERS:
            needed = {"pid": target.pid, "start_time": target.start_time, "boot_id": target.boot_id or None}
        case _:
            needed = {f"anything narrower than a {target.kind}": None}
    yield from (name for name, value in needed.items() if value is None)


def _names_a_dead_shim(request: Request) -> bool:
    """Whether it is the bundle of a shim that is gone: there is no process to name, and containerd is restarted."""
    target = request.target
    return request.action is Action.RESTART_CONTAINERD and target.kind is TargetKind.SHIM and target.pid is None


def _names_an_ended_service(request: Request) -> bool:
    """Whether it is a service whose process has ended: its unit, which has a cgroup of its own, is started again."""
    target = request.target
    restarts = _SERVICES.get(target.kind) is request.action
    return restarts and target.pid is None and target.start_time is None and bool(target.cgroup)


def _fencing_token(request: Request, standing: Standing) -> Refusal | None:
    token = request.fencing_token
    if not 0 <= token <= MAX_TOKEN:
        text = f"fencing token {token} is out of range: 0 to {MAX_TOKEN}"
    elif token < standing.highest_token:
        text = (
            f"fencing token {token} is stale: {standing.highest_token} was seen on this node, so another holder has "
            "taken over. Take the lease again and send its number"
        )
    else:
        return None
    return Refusal(RefusalReason.STALE_FENCING_TOKEN, text)


def _request_new(request: Request, standing: Standing) -> Refusal | None:
    known = standing.known
    if known is None:
        return None
    if known.asks_the_same_as == request.asks_the_same_as:
        text = f"request_id {request.request_id} was used before, for the same: GetRemediation tells what came of it"
    else:
        text = f"request_id {request.request_id} was used before, for another request ({known.action}): take a new UUID"
    return Refusal(RefusalReason.REQUEST_ID_REUSED, text)


def _cooled_down(request: Request, standing: Standing) -> Refusal | None:
    rest = standing.limits[request.action].cooldown_seconds
    left = cooldown_left(request.action, rest, standing.history, standing.boot_id, standing.boot_seconds)
    if left <= 0.0:
        return None
    text = (
        f"{request.action} was done less than {rest:g} s ago on this node and rests for another {_rounded_up(left)} s"
    )
    return Refusal(RefusalReason.COOLING_DOWN, text, left)


def _budget_of_action(request: Request, standing: Standing) -> Refusal | None:
    return _budget(standing, standing.limits[request.action].max_per_hour, request.action)


def _budget_of_node(_: Request, standing: Standing) -> Refusal | None:
    return _budget(standing, standing.max_per_hour, None)


def _budget(standing: Standing, limit: int, action: Action | None) -> Refusal | None:
    setting = f"remediation.actions.{action}.max_per_hour" if action else "remediation.max_per_hour"
    if limit <= 0:
        return Refusal(RefusalReason.BUDGET_SPENT, f"{setting} is {limit}, so this is never done on this node")
    ages = ages_this_hour(standing.history, standing.boot_id, standing.boot_seconds, action)
    if len(ages) < limit:
        return None
    wait = HOUR_SECONDS - ages[len(ages) - limit]
    what = f"{action} was done" if action else "remediations were done"
    text = f"{what} {len(ages)} times in the last hour, and {setting} is {limit}: wait {_rounded_up(wait)} s"
    return Refusal(RefusalReason.BUDGET_SPENT, text, wait)


def _not_paused(_: Request, standing: Standing) -> Refusal | None:
    if standing.paused == "":
        return None
    text = (
        f"remediation is paused on this node: {standing.paused}. Removing the file `paused` from the state folder "
        "ends the pause"
    )
    return Refusal(RefusalReason.PAUSED, text)


def _ledger_usable(_: Request, standing: Standing) -> Refusal | None:
    if standing.trouble == "":
        return None
    return Refusal(RefusalReason.LEDGER_UNUSABLE, f"nothing can be recorded, so nothing is done: {standing.trouble}")


def _same_boot(request: Request, standing: Standing) -> Refusal | None:
    target = request.target
    if (target.pid is None and not target.boot_id) or target.boot_id == standing.boot_id:
        return None
    text = (
        f"the target was seen under boot {target.boot_id or 'unknown'}, and this is boot "
        f"{standing.boot_id or 'unknown'}: ask for a new report"
    )
    return Refusal(RefusalReason.OTHER_BOOT, text)


def _same_process(request: Request, standing: Standing) -> Refusal | None:
    pid, process = request.target.pid, standing.process
    if pid is None:
        return None
    if process is None or process.state in _ENDED:
        if _never_touched(pid, standing):
            return _protected(pid, standing)
        return Refusal(RefusalReason.TARGET_GONE, f"process {pid} is gone: ask for a new report")
    if process.pid != pid or process.start_time != request.target.start_time:
        text = (
            f"pid {pid} is another process by now: it was started at tick {process.start_time}, not "
            f"{request.target.start_time}. Ask for a new report"
        )
        return Refusal(RefusalReason.TARGET_CHANGED, text)
    return _protected(pid, standing) if _never_touched(pid, standing) else None


def _never_touched(pid: int, standing: Standing) -> bool:
    return pid <= 1 or pid == standing.own_pid


def _protected(pid: int, standing: Standing) -> Refusal:
    whose = "this agent" if pid == standing.own_pid else "the node's first process"
    return Refusal(RefusalReason.PROTECTED_PROCESS, f"process {pid} is {whose} and is never touched")


def _of_its_kind(request: Request, standing: Standing) -> Refusal | None:
    kind, process = request.target.kind, standing.process
    if _names_a_dead_shim(request) or _names_an_ended_service(request):
        return None
    if kind in _NODE_COMMS:
        return _of_the_node(kind, process)
    if kind in _IN_CONTAINERS:
        return _of_a_container(process)
    return None


def _of_the_node(kind: TargetKind, process: ProcessFacts | None) -> Refusal | None:
    if process is None:
        return Refusal(RefusalReason.TARGET_GONE, f"the {kind}'s process is gone: ask for a new report")
    if process.nested is not False:
        why = f"process {process.pid} lives in a pid namespace below this node's: it belongs to another node"
    elif process.in_container is not False:
        why = f"process {process.pid} ({process.comm!r}) runs in a container, so it is not this node's {kind}"
    elif process.comm != _NODE_COMMS[kind]:
        text = (
            f"process {process.pid} is named {process.comm!r}, not {_NODE_COMMS[kind]}, so it is no {kind} (any more)"
        )
        return Refusal(RefusalReason.TARGET_CHANGED, text)
    else:
        return None
    return Refusal(RefusalReason.PROTECTED_PROCESS, why)


def _of_a_container(process: ProcessFacts | None) -> Refusal | None:
    if process is None:
        return Refusal(RefusalReason.TARGET_GONE, "the target's process is gone: ask for a new report")
    if process.in_container is not True:
        why = f"process {process.pid} ({process.comm!r}) is in no container, and what belongs to the node is left alone"
    elif process.comm == SHIM_COMM:
        why = f"process {process.pid} is named {SHIM_COMM}: a shim is only ever touched as a shim"
    else:
        return None
    return Refusal(RefusalReason.PROTECTED_PROCESS, why)


def _rounded_up(seconds: float) -> int:
    return math.ceil(seconds)


def _sound(request: Request, standing: Standing) -> Refusal | None:
    """Refuse what came this far only because None, a text or a NaN compares as nothing should."""
    odd = unusable(request, standing)
    if not odd:
        return None
    text = f"the gate was given an unusable value for {odd}, so nothing is done. Report this as a bug"
    return Refusal(RefusalReason.GATE_FAILED, text)


_CHECKS: tuple[Callable[[Request, Standing], Refusal | None], ...] = (
    _enabled,
    _action_enabled,
    _caller_allowed,
    _target_kind,
    _target_exact,
    _fencing_token,
    _request_new,
    _cooled_down,
    _budget_of_action,
    _budget_of_node,
    _not_paused,
    _ledger_usable,
    _same_boot,
    _same_process,
    _of_its_kind,
    _sound,
)
