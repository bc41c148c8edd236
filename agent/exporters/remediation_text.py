"""The act flow for a person at a terminal: what can be done, what is about to be done, and what came of it. Pure.

Every function returns plain lines in a fixed order; every text from outside has been through `printable`.
"""

from collections.abc import Iterator, Mapping

from agent.acts import ActionStatus, Evidence, Outcome, Refusal, Remediation, RemediationStatus, Request
from agent.durations import duration, measured_duration, moment
from agent.exporters.layout import labelled, wrapped
from agent.exporters.wording import short_id
from agent.model import ActiveFinding, Target, TargetKind
from agent.printable import printable

MAX_TEXT = 1024
MAX_SUMMARY = 160
"""Characters of a message in a list."""
LABEL_WIDTH = 13
KINDS: Mapping[TargetKind, str] = {
    TargetKind.SHIM: "shim",
    TargetKind.PROCESS: "process",
    TargetKind.CONTAINER: "container",
    TargetKind.KUBELET: "kubelet",
    TargetKind.CONTAINERD: "containerd",
    TargetKind.CONNTRACK: "conntrack table",
    TargetKind.DNS_SERVER: "DNS server",
    TargetKind.NODE: "node",
}
_BY_NAME = "a pid, a container id or at least 4 characters of its beginning, or a pod's namespace/name"
_TYPED: Mapping[TargetKind, str] = {
    TargetKind.SHIM: _BY_NAME,
    TargetKind.PROCESS: _BY_NAME,
    TargetKind.CONTAINER: _BY_NAME,
    TargetKind.KUBELET: "the word kubelet",
    TargetKind.CONTAINERD: "the word containerd",
    TargetKind.CONNTRACK: "the word conntrack",
    TargetKind.DNS_SERVER: "a DNS server's address",
}
_OUTCOMES: Mapping[Outcome, str] = {
    Outcome.RUNNING: "It is under way.",
    Outcome.REFUSED: "Nothing was done.",
    Outcome.DRY_RUN: "Nothing was changed; a live run would have acted.",
    Outcome.PERFORMED: "It was done; whether it helped cannot be told.",
    Outcome.VERIFIED: "It was done, and it helped.",
    Outcome.INEFFECTIVE: "It was done, and it did not help.",
    Outcome.FAILED: "It could not be done, or not wholly.",
    Outcome.INTERRUPTED: "The agent ended in the middle; it is not repeated by itself.",
}


def status_lines(status: RemediationStatus) -> Iterator[str]:
    """Tell what can be done now: first what holds for all actions, then a block for each."""
    yield from wrapped(_switch(status), "")
    if status.paused:
        yield from labelled("PAUSED", _safe(status.paused), "", 9)
        yield from wrapped(
            "It goes on once the pause file is removed from the agent's state folder (setting host.state_dir).", " " * 9
        )
    if status.trouble:
        yield from labelled("TROUBLE", _safe(status.trouble), "", 9)
        yield from wrapped("Nothing can be recorded, so nothing is done until this is put right.", " " * 9)
    yield (
        f"Left this hour: {status.left_this_hour} of {status.max_per_hour} for all actions together. "
        f"Highest fencing token: {status.highest_token}."
    )
    for action in status.actions:
        yield ""
        yield from _action(action, status)


def _switch(status: RemediationStatus) -> str:
    if not status.enabled:
        return (
            "Remediation is OFF: nothing is done. To allow it, set remediation.enabled: true and start the agent anew."
        )
    if status.dry_run:
        return (
            "Remediation is on as a DRY RUN: everything but the last step. To let it act, set "
            "remediation.dry_run: false and start the agent anew."
        )
    return "Remediation is ON: what is asked for is done, if a fresh look confirms the fault."


def _action(action: ActionStatus, status: RemediationStatus) -> Iterator[str]:
    yield f"{action.action}: {_readiness(action, status)}"
    limits = f"rests {duration(action.cooldown_seconds)} after each time; "
    limits += f"{action.left_this_hour} of {action.max_per_hour} left this hour"
    rows = (
        ("does", _safe(action.does)),
        ("takes", ", ".join(KINDS[kind] for kind in action.targets) or "nothing"),
        ("--target", "; or ".join(dict.fromkeys(_TYPED[kind] for kind in action.targets if kind in _TYPED))),
        *(("permitted by", _permits(kind, reasons)) for kind, reasons in action.mends.items()),
        ("requires", _safe(action.requires)),
        ("risk", _safe(action.risk)),
        ("limits", limits),
    )
    for label, text in rows:
        if text:
            yield from labelled(label, text, "  ", LABEL_WIDTH)


def _readiness(action: ActionStatus, status: RemediationStatus) -> str:
    obstacles = (
        (not status.enabled, "off"),
        (not action.enabled, f"off (setting remediation.actions.{action.action}.enabled)"),
        (not action.allowed, "not allowed to you (setting grpc.callers)"),
        (bool(status.trouble), "nothing can be recorded, see above"),
        (bool(status.paused), "paused, see above"),
        (action.cooldown_left_seconds > 0, f"rests for {duration(action.cooldown_left_seconds)} more"),
        (not action.left_this_hour, "its budget of this hour is spent"),
        (status.dry_run, "ready, as a dry run"),
    )
    return next((text for there, text in obstacles if there), "ready")


def _permits(kind: str, reasons: tuple[str, ...]) -> str:
    return f"{_safe(kind)}: {', '.join(_safe(reason) for reason in reasons)}"


def plan_lines(
    action: ActionStatus, request: Request, found: tuple[ActiveFinding, ...], status: RemediationStatus
) -> Iterator[str]:
    """Tell what is about to be done to whom, and why; `found` are the findings about the target, at least one."""
    yield from wrapped(f"{action.action}: {_safe(action.does)}", "")
    yield from labelled("risk", _safe(action.risk), "  ", LABEL_WIDTH)
    for label, text in _identity(request.target):
        yield from labelled(label, text, "  ", LABEL_WIDTH)
    for pod in dict.fromkeys(each.finding.pod for each in found if each.finding.pod is not None):
        yield from labelled("pod", _safe(str(pod)), "  ", LABEL_WIDTH)
    for each in found:
        finding = each.finding
        told = f"{_safe(finding.condition)}: {_safe(finding.reason)} since {moment(each.since)}: "
        yield from labelled("found", told + _safe(finding.message), "  ", LABEL_WIDTH)
        if finding.recommended_action is not action.action:
            yield from labelled("recommended", f"{finding.recommended_action}, not {action.action}", "  ", LABEL_WIDTH)
    yield from labelled("dry run", _dryness(request, status), "  ", LABEL_WIDTH)
    yield from labelled("request id", _safe(request.request_id), "  ", LABEL_WIDTH)


def _dryness(request: Request, status: RemediationStatus) -> str:
    if request.dry_run:
        return "yes: everything but the last step"
    if status.dry_run:
        return "yes: the agent's setting remediation.dry_run stops everything before its last step"
    return "no: the node will be changed"


def remediation_lines(done: Remediation) -> Iterator[str]:
    """Tell what came of a request, in full."""
    asked = done.request
    if done.refusal is not None:
        yield from refusal_lines(done.refusal)
    else:
        yield from wrapped(f"{done.outcome}: {_safe(done.message) or 'no more is known'}", "")
    yield from wrapped(_meaning(done), "  ")
    rows = (
        ("request id", _safe(asked.request_id)),
        ("action", f"{asked.action}{', as a dry run' if asked.dry_run else ''}"),
        *_identity(asked.target),
        ("asked by", f"{_safe(asked.caller) or 'unknown'} with fencing token {asked.fencing_token}"),
        ("reason", _safe(asked.reason)),
        ("received", moment(done.received_at)),
        ("took", measured_duration(max(0.0, done.finished_at - done.received_at)) if done.finished_at else ""),
        ("evidence", _safe(done.evidence_id)),
    )
    for label, text in rows:
        if text:
            yield from labelled(label, text, "  ", LABEL_WIDTH)


def _meaning(done: Remediation) -> str:
    if done.outcome is Outcome.INTERRUPTED:
        may = "It may have been done: look at the node." if done.acted else "It was not begun."
        return f"{_OUTCOMES[done.outcome]} {may}"
    return _OUTCOMES[done.outcome]


def refusal_lines(refused: Refusal) -> Iterator[str]:
    """Tell a refusal: the reason in a word, the sentence, and when the same may be asked again."""
    yield from wrapped(f"refused: {refused.reason}: {_safe(refused.message)}", "")
    if refused.retry_seconds is None:
        yield "  Waiting alone does not help."
    else:
        when = f"in {duration(refused.retry_seconds)}" if refused.retry_seconds else "at once"
        yield f"  The very same request may be sent again {when}."


def remediation_line(done: Remediation) -> str:
    """Tell what came of a request, in one line."""
    asked = done.request
    what = f"{asked.action} (dry run)" if asked.dry_run and done.outcome is not Outcome.DRY_RUN else str(asked.action)
    when = moment(done.received_at)
    told = _safe(done.message, MAX_SUMMARY)
    return f"{when}  {done.outcome:11}  {what} {target_words(asked.target)}  {_safe(asked.request_id)}  {told}".rstrip()


def evidence_line(stored: Evidence) -> str:
    """Tell what one piece of evidence is, in one line."""
    size = f"{stored.size:,} bytes"
    rest = f"{_safe(stored.action)}  {size}  of request {_safe(stored.request_id)}"
    return f"{_safe(stored.id)}  {moment(stored.created_at)}  {rest}"


def target_words(target: Target) -> str:
    """Name a target in a few words: `shim 4242 (container 9c0e6f0d1a2b)`."""
    words = KINDS[target.kind]
    if target.pid is not None:
        words += f" {target.pid}"
    if target.container_id:
        words += f" (container {_safe(short_id(target.container_id))})"
    elif target.address:
        words += f" ({_safe(target.address)})"
    return words


def _identity(target: Target) -> Iterator[tuple[str, str]]:
    process = f", pid {target.pid}" if target.pid is not None else ""
    started = f", started at tick {target.start_time}" if target.start_time is not None else ""
    yield "target", f"{KINDS[target.kind]}{process}{started}"
    if target.container_id:
        namespace = f" in {_safe(target.containerd_namespace)}" if target.containerd_namespace else ""
        yield "container", f"{_safe(target.container_id)}{namespace}"
    if target.cgroup:
        yield "cgroup", _safe(target.cgroup)
    if target.address:
        yield "address", _safe(target.address)


def _safe(text: str, limit: int = MAX_TEXT) -> str:
    return printable(text, limit)
