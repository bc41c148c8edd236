"""The report as JSON, for machines. docs/report.schema.json describes it field by field."""

import json
import math
from datetime import UTC, datetime
from typing import Any

from agent.exporters.advice import advise
from agent.exporters.advice_steps import Step
from agent.model import (
    ActiveFinding,
    Condition,
    DeploymentFault,
    DetectorStatus,
    NodeReport,
    PodRef,
    Target,
    Value,
)
from agent.printable import encodable


def dumps(report: NodeReport) -> str:
    """Return the report as one JSON document in ASCII, indented; ends with a newline."""
    return json.dumps(to_json(report), indent=2, allow_nan=False) + "\n"


def to_json(report: NodeReport) -> dict[str, Any]:
    """Return the report as what `json.dumps` takes. Pure."""
    return {
        "nodeName": encodable(report.node_name),
        "observedAt": rfc3339(report.observed_at),
        "deploymentFaults": [_deployment_fault(fault) for fault in report.deployment],
        "conditions": [condition_json(condition) for condition in report.conditions],
        "detectors": [_detector(detector) for detector in report.detectors],
    }


def condition_json(condition: Condition) -> dict[str, Any]:
    """Return one condition as what `json.dumps` takes. Pure."""
    return {
        "type": encodable(condition.type),
        "status": condition.status.value,
        "reason": encodable(condition.reason),
        "message": encodable(condition.message),
        "lastTransitionTime": rfc3339(condition.last_transition_time),
        "findings": [_finding(active) for active in condition.findings],
    }


def _deployment_fault(fault: DeploymentFault) -> dict[str, Any]:
    return {
        "cause": fault.cause.value,
        "subject": encodable(fault.subject),
        "message": encodable(fault.message),
        "remedy": encodable(fault.remedy),
        "hides": [encodable(kind) for kind in fault.hides],
        "impairs": [encodable(kind) for kind in fault.impairs],
    }


def _finding(active: ActiveFinding) -> dict[str, Any]:
    finding = active.finding
    return {
        "reason": encodable(finding.reason),
        "message": encodable(finding.message),
        "recommendedAction": finding.recommended_action.value,
        "since": rfc3339(active.since),
        "target": target_json(finding.target),
        "pod": _pod(finding.pod),
        "values": {_camel(key): _value(value) for key, value in finding.values.items()},
        "advice": [_step(step) for step in advise(finding).steps],
    }


def _step(step: Step) -> dict[str, Any]:
    return {"when": step.when, "do": step.do, "commands": list(step.commands)}


def target_json(target: Target) -> dict[str, Any]:
    """Only the fields that apply to this kind of target."""
    fields: dict[str, Any] = {
        "kind": target.kind.value,
        "pid": target.pid,
        "startTime": target.start_time,
        "bootId": encodable(target.boot_id),
        "containerId": encodable(target.container_id),
        "containerdNamespace": encodable(target.containerd_namespace),
        "cgroup": encodable(target.cgroup),
        "address": encodable(target.address),
    }
    return {key: value for key, value in fields.items() if value not in {None, ""}}


def _pod(pod: PodRef | None) -> dict[str, Any] | None:
    """What only the kubelet's API tells is left out where it was not learnt."""
    if pod is None:
        return None
    told: dict[str, Any] = {"owner": encodable(pod.owner), "qosClass": encodable(pod.qos_class)}
    told["nodeCritical"] = pod.node_critical
    told["labels"] = {encodable(name): encodable(value) for name, value in pod.labels}
    return {
        "namespace": encodable(pod.namespace),
        "name": encodable(pod.name),
        "uid": encodable(pod.uid),
        "container": encodable(pod.container),
        **{key: value for key, value in told.items() if value not in (None, "", {})},
    }


def _detector(detector: DetectorStatus) -> dict[str, Any]:
    return {
        "name": encodable(detector.name),
        "state": detector.state.value,
        "message": encodable(detector.message),
        "durationSeconds": None if detector.duration_seconds is None else _value(detector.duration_seconds),
    }


def _value(value: Value) -> Any:  # noqa: ANN401 - JSON
    """JSON knows no infinity: what has no finite value is null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, tuple):
        return [encodable(item) for item in value]
    return encodable(value) if isinstance(value, str) else value


def _camel(key: str) -> str:
    """All keys of the report are camelCase, whatever the detector calls its values."""
    first, *others = encodable(key).split("_")
    return first + "".join(word[:1].upper() + word[1:] for word in others)


def rfc3339(seconds: float) -> str:
    """RFC 3339 in UTC with milliseconds: `2026-08-01T03:12:45.250Z`."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
