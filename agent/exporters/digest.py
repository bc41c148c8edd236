"""A report put in the order a tired person needs, as safe text; what the page and the terminal lay out.

First what is wrong with the agent's own deployment, then what is wrong on the node, what is well, what could not be
seen and why, and what is not on this node. Every text in a digest has been through `printable`, so no layout has to
think of it again.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from agent.durations import measured_duration, moment
from agent.exporters.advice import advise
from agent.exporters.advice_steps import Advice
from agent.exporters.wording import ago, measured, short_id
from agent.model import (
    ActiveFinding,
    Condition,
    DeploymentCause,
    DeploymentFault,
    DetectorState,
    DetectorStatus,
    Finding,
    NodeReport,
    PodRef,
    Status,
    Target,
    TargetKind,
)
from agent.printable import printable

MAX_MESSAGE = 1024
DETAILED = 10
"""Findings of one condition that are told in full; of the others only the message."""
_TITLES = {
    DeploymentCause.CAPABILITY: "{} is missing",
    DeploymentCause.USER: "the agent does not run as {}",
    DeploymentCause.APPARMOR: "AppArmor confines the agent: {}",
    DeploymentCause.SELINUX: "SELinux confines the agent: {}",
    DeploymentCause.NAMESPACE: "the pod's {} is not what the agent needs",
    DeploymentCause.MOUNT: "{} is not mounted",
    DeploymentCause.PERMISSION: "permission denied, for a reason that is {}",
}
_STATES = {
    DetectorState.STARTING: "has not looked yet",
    DetectorState.OK: "ok",
    DetectorState.NOT_APPLICABLE: "not on this node",
    DetectorState.FAILED: "failed",
    DetectorState.OVERDUE: "overdue",
}


@dataclass(frozen=True, slots=True)
class Accusation:
    """One finding: its message, (label, text) rows of whose it is and what was measured, and what to do."""

    message: str
    rows: tuple[tuple[str, str], ...]
    evidence: tuple[tuple[str, str], ...]
    advice: Advice


@dataclass(frozen=True, slots=True)
class Wrong:
    """A condition that is True: its findings, the longest standing in full, of `further` the messages."""

    type: str
    reason: str
    message: str
    since: str
    accusations: tuple[Accusation, ...]
    further: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unseen:
    """Conditions that are Unknown for the same reason."""

    types: tuple[str, ...]
    why: str


@dataclass(frozen=True, slots=True)
class Misdeployed:
    """A fault of the agent's own deployment; `rows` are (label, text) of what it hides and of what to do."""

    title: str
    message: str
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Digest:
    """The report in reading order; `well`, `notes`, `absent` and `looks` are (name, text)."""

    node: str
    at: str
    headline: str
    deployment: tuple[Misdeployed, ...]
    wrong: tuple[Wrong, ...]
    well: tuple[tuple[str, str], ...]
    unseen: tuple[Unseen, ...]
    notes: tuple[tuple[str, str], ...]
    absent: tuple[tuple[str, str], ...]
    looks: tuple[tuple[str, str], ...]


def digest(report: NodeReport) -> Digest:
    """Put a report in reading order. Pure."""
    now = report.observed_at
    by_status = {status: [c for c in report.conditions if c.status is status] for status in Status}
    unseen = _unseen(by_status[Status.UNKNOWN])
    return Digest(
        node=_safe(report.node_name),
        at=moment(now),
        headline=_headline(report, by_status),
        deployment=tuple(_misdeployed(fault) for fault in report.deployment),
        wrong=tuple(_wrong(condition, now) for condition in by_status[Status.TRUE]),
        well=tuple((_safe(c.type), _safe(c.message)) for c in by_status[Status.FALSE]),
        unseen=unseen,
        notes=tuple(_notes(report.detectors, {group.why for group in unseen})),
        absent=tuple(
            (_safe(d.name), _safe(d.message)) for d in report.detectors if d.state is DetectorState.NOT_APPLICABLE
        ),
        looks=tuple((_safe(d.name), _look(d, now)) for d in report.detectors),
    )


def _misdeployed(fault: DeploymentFault) -> Misdeployed:
    rows = (
        ("hides", ", ".join(map(_safe, fault.hides))),
        ("impairs", ", ".join(map(_safe, fault.impairs))),
        ("what to do", _safe(fault.remedy)),
    )
    title = _TITLES[fault.cause].format(_safe(fault.subject))
    return Misdeployed(title, _safe(fault.message), tuple(row for row in rows if row[1]))


def _headline(report: NodeReport, by_status: Mapping[Status, list[Condition]]) -> str:
    node = _headline_of_node(by_status[Status.TRUE], by_status[Status.UNKNOWN], by_status[Status.FALSE])
    if not report.deployment:
        return node
    faults = _counted(len(report.deployment), "fault")
    subjects = ", ".join(_safe(fault.subject) for fault in report.deployment)
    return f"The agent's own deployment has {faults} ({subjects}): it cannot see all of this node. {node}"


def _headline_of_node(wrong: list[Condition], unknown: list[Condition], well: list[Condition]) -> str:
    blind = f"{_counted(len(unknown), 'condition')} could not be seen" if unknown else ""
    if wrong:
        told = f"{_counted(len(wrong), 'thing')} wrong: {', '.join(_safe(c.type) for c in wrong)}"
        return f"{told}. {blind}." if blind else f"{told}."
    if not well:
        return f"Nothing can be said: {blind or 'no detector applies to this node'}."
    return f"Nothing wrong was seen, but {blind}." if blind else "Nothing wrong was seen."


def _counted(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _wrong(condition: Condition, now: float) -> Wrong:
    return Wrong(
        type=_safe(condition.type),
        reason=_safe(condition.reason),
        message=_safe(condition.message),
        since=_since(condition.last_transition_time, now),
        accusations=tuple(_accusation(active, condition.reason, now) for active in condition.findings[:DETAILED]),
        further=tuple(_safe(active.finding.message) for active in condition.findings[DETAILED:]),
    )


def _accusation(active: ActiveFinding, told: str, now: float) -> Accusation:
    finding = active.finding
    other_reason = (("reason", _safe(finding.reason)),) if finding.reason != told else ()
    rows = (*other_reason, *_whose(finding), ("since", _since(active.since, now)))
    evidence = tuple(measured(key, value, now) for key, value in finding.values.items() if value is not None)
    return Accusation(_safe(finding.message), rows, evidence, advise(finding))


def _whose(finding: Finding) -> Iterator[tuple[str, str]]:
    pod, target = finding.pod, finding.target
    if pod is not None:
        container = f", container {_safe(pod.container)}" if pod.container else ""
        name = f"{_safe(pod.namespace)}/{_safe(pod.name)}" if pod.named else f"uid {_safe(pod.uid)}, name unknown"
        yield "pod", f"{name}{container}"
        yield from _workload(pod)
    yield from _identity(target, "sandbox" if _is_sandbox(finding) else "container")


def _workload(pod: PodRef) -> Iterator[tuple[str, str]]:
    """What the kubelet's API told, and a person wants to know before anything is killed."""
    facts = [_safe(pod.owner), _safe(pod.qos_class), "node-critical" if pod.node_critical else ""]
    if any(facts):
        yield "workload", ", ".join(fact for fact in facts if fact)
    if pod.labels:
        yield "labels", ", ".join(f"{_safe(name)}={_safe(value)}" for name, value in pod.labels)


def _is_sandbox(finding: Finding) -> bool:
    """Whether a shim's container is its pod's sandbox, which has no name of its own beside the pod's."""
    return finding.target.kind is TargetKind.SHIM and finding.pod is not None and not finding.pod.container


def _identity(target: Target, container: str) -> Iterator[tuple[str, str]]:
    if target.container_id:
        namespace = f" in {_safe(target.containerd_namespace)}" if target.containerd_namespace else ""
        yield container, f"{_safe(short_id(target.container_id))}{namespace}"
    if target.pid is not None:
        yield "process", f"pid {target.pid}"
    if target.cgroup:
        yield "cgroup", _safe(target.cgroup)
    if target.address:
        yield "address", _safe(target.address)


def _unseen(conditions: list[Condition]) -> tuple[Unseen, ...]:
    groups: dict[str, list[str]] = {}
    for condition in conditions:
        groups.setdefault(_safe(condition.message) or _safe(condition.reason), []).append(_safe(condition.type))
    return tuple(Unseen(tuple(types), why) for why, types in groups.items())


def _notes(detectors: tuple[DetectorStatus, ...], told: set[str]) -> Iterator[tuple[str, str]]:
    """What a detector says of itself that no condition has said already."""
    for detector in detectors:
        message = _safe(detector.message)
        if message and message not in told and detector.state is not DetectorState.NOT_APPLICABLE:
            yield _safe(detector.name), message


def _look(detector: DetectorStatus, now: float) -> str:
    """When a detector last looked and how it went: `ok, 4 s ago, took 12 ms`."""
    parts = [_STATES[detector.state]]
    if detector.last_run_time is not None:
        parts.append(ago(detector.last_run_time, now))
    if detector.duration_seconds is not None:
        verb = "running for" if detector.state is DetectorState.OVERDUE else "took"
        parts.append(f"{verb} {measured_duration(detector.duration_seconds)}")
    return ", ".join(parts)


def _since(then: float, now: float) -> str:
    return f"{moment(then)} ({ago(then, now)})"


def _safe(text: str) -> str:
    return printable(text, MAX_MESSAGE)
