"""Whether all values the gate goes by are what they should be; pure.

None, a text or a NaN compares as nothing should, and the types of a program bind nobody while it runs.
"""

import math
from collections.abc import Iterator

from agent.acts import Caller, Limits, Request
from agent.model import Action, Target, TargetKind
from agent.remediation.gate_facts import ProcessFacts, Standing
from agent.remediation.past import Act


def unusable(request: Request, standing: Standing) -> str:
    """Return the name of a value that is of another kind than it should be, empty if there is none."""
    return next((name for name, value, kinds in _values(request, standing) if not _is(value, kinds)), "")


def _is(value: object, kinds: tuple[type, ...]) -> bool:
    """Whether a value is of one of these very types (a bool is no int), and a number is finite."""
    return type(value) in kinds and not (isinstance(value, float) and not math.isfinite(value))


_TEXT, _INT, _BOOL, _SECONDS, _MAYBE_INT = (str,), (int,), (bool,), (int, float), (int, type(None))


def _values(request: Request, standing: Standing) -> Iterator[tuple[str, object, tuple[type, ...]]]:
    limits = standing.limits[request.action]
    yield "request", request, (Request,)
    yield "request_id", request.request_id or None, _TEXT
    yield "action", request.action, (Action,)
    yield "caller", request.caller, _TEXT
    yield "dry_run", request.dry_run, _BOOL
    yield "fencing_token", request.fencing_token, _INT
    yield "reason", request.reason, _TEXT
    yield from _values_of_target(request.target)
    yield "enabled", standing.enabled, _BOOL
    yield "limits", limits, (Limits,)
    yield "cooldown_seconds", limits.cooldown_seconds, _SECONDS
    yield "max_per_hour of the action", limits.max_per_hour, _INT
    yield "max_per_hour", standing.max_per_hour, _INT
    yield "the caller", standing.caller, (Caller,)
    yield "the caller's actions", standing.caller.actions, (frozenset,)
    yield "the action's targets", standing.targets, (tuple,)
    yield "the highest fencing token", standing.highest_token, _INT
    yield "the history", standing.history, (tuple,)
    for act in standing.history:
        yield "an act", act, (Act,)
        yield "an act's action", act.action, (Action,)
        yield "an act's boot", act.boot_id, _TEXT
        yield "an act's moment", act.boot_seconds, _SECONDS
    yield "paused", standing.paused, _TEXT
    yield "trouble", standing.trouble, _TEXT
    yield "the boot id", standing.boot_id or None, _TEXT
    yield "the time since boot", standing.boot_seconds, _SECONDS
    yield "the agent's own pid", standing.own_pid, _INT
    yield from _values_of_process(standing.process)


def _values_of_target(target: Target) -> Iterator[tuple[str, object, tuple[type, ...]]]:
    yield "the target", target, (Target,)
    yield "the target's kind", target.kind, (TargetKind,)
    yield "the target's pid", target.pid, _MAYBE_INT
    yield "the target's start time", target.start_time, _MAYBE_INT
    for text in (target.boot_id, target.container_id, target.containerd_namespace, target.cgroup, target.address):
        yield "a text of the target", text, _TEXT


def _values_of_process(process: ProcessFacts | None) -> Iterator[tuple[str, object, tuple[type, ...]]]:
    if process is None:
        return
    yield "the process", process, (ProcessFacts,)
    yield "the process's pid", process.pid, _INT
    yield "the process's start time", process.start_time, _INT
    yield "the process's name", process.comm, _TEXT
    yield "the process's state", process.state, _TEXT
    yield "whether the process is in a container", process.in_container, _BOOL
    yield "whether the process is nested", process.nested, _BOOL
