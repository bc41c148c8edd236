"""From the protos back to the model, for clients.

An agent newer than its client may use words the client does not know. They are read as the nearest word
that claims nothing: a status as Unknown, a state as failed, a target as the node, an action as None.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from agent import model
from agent.api import convert
from agent.api.pb import diagnostics_service_pb2 as service_pb
from agent.api.pb import node_report_pb2 as pb

Word = TypeVar("Word")
Number = TypeVar("Number")


def _turned(words: Mapping[Word, Number]) -> Mapping[Number, Word]:
    return MappingProxyType({number: word for word, number in words.items()})


STATUSES = _turned(convert.STATUSES)
STATES = _turned(convert.STATES)
KINDS = _turned(convert.KINDS)
CAUSES = _turned(convert.CAUSES)


def report(sent: pb.NodeReport) -> model.NodeReport:
    """Read a report."""
    return model.NodeReport(
        node_name=sent.node_name,
        observed_at=seconds(sent.observed_at),
        conditions=tuple(condition(each) for each in sent.conditions),
        detectors=tuple(detector(each) for each in sent.detectors),
        deployment=tuple(deployment_fault(each) for each in sent.deployment_faults),
    )


def deployment_fault(sent: pb.DeploymentFault) -> model.DeploymentFault:
    """Read a fault of the agent's own deployment."""
    return model.DeploymentFault(
        cause=CAUSES.get(sent.cause, model.DeploymentCause.PERMISSION),
        subject=sent.subject,
        message=sent.message,
        remedy=sent.remedy,
        hides=tuple(sent.hides),
        impairs=tuple(sent.impairs),
    )


def event(sent: service_pb.WatchConditionsResponse) -> model.Event | None:
    """Read one message of a watch; None if it is of a kind unknown here."""
    match sent.WhichOneof("event"):
        case "snapshot":
            return model.Snapshot(tuple(condition(each) for each in sent.snapshot.conditions))
        case "changed":
            return model.Changed(condition(sent.changed))
        case "removed":
            return model.Removed(sent.removed.type)
        case "gap":
            return model.Gap(sent.gap.missed)
        case _:
            return None


def condition(sent: pb.Condition) -> model.Condition:
    """Read a condition."""
    return model.Condition(
        type=sent.type,
        status=STATUSES.get(sent.status, model.Status.UNKNOWN),
        reason=sent.reason,
        message=sent.message,
        last_transition_time=seconds(sent.last_transition_time),
        findings=tuple(finding(sent.type, each) for each in sent.findings),
    )


def finding(kind: str, sent: pb.Finding) -> model.ActiveFinding:
    """Read a finding of a condition of this type."""
    read = model.Finding(
        condition=kind,
        reason=sent.reason,
        message=sent.message,
        recommended_action=action(sent.recommended_action),
        target=target(sent.target),
        pod=pod(sent.pod) if sent.HasField("pod") else None,
        values={each.name: value(each) for each in sent.values},
    )
    return model.ActiveFinding(read, seconds(sent.since))


def action(sent: str) -> model.Action:
    """Read an action's name."""
    try:
        return model.Action(sent)
    except ValueError:
        return model.Action.NONE


def target(sent: pb.Target) -> model.Target:
    """Read an identity."""
    return model.Target(
        kind=KINDS.get(sent.kind, model.TargetKind.NODE),
        pid=sent.pid if sent.HasField("pid") else None,
        start_time=sent.start_time if sent.HasField("start_time") else None,
        boot_id=sent.boot_id,
        container_id=sent.container_id,
        containerd_namespace=sent.containerd_namespace,
        cgroup=sent.cgroup,
        address=sent.address,
    )


def pod(sent: pb.PodRef) -> model.PodRef:
    """Read whose it is."""
    return model.PodRef(
        namespace=sent.namespace,
        name=sent.name,
        uid=sent.uid,
        container=sent.container,
        owner=sent.owner,
        qos_class=sent.qos_class,
        node_critical=sent.node_critical if sent.HasField("node_critical") else None,
        labels=tuple(sorted(sent.labels.items())),
    )


def value(sent: pb.Measurement) -> model.Value:
    """Read a measured value."""
    match sent.WhichOneof("value"):
        case "text":
            return sent.text
        case "integer":
            return sent.integer
        case "number":
            return sent.number
        case "flag":
            return sent.flag
        case "texts":
            return tuple(sent.texts.texts)
        case _:
            return None


def detector(sent: pb.Detector) -> model.DetectorStatus:
    """Read how a detector is doing."""
    return model.DetectorStatus(
        name=sent.name,
        state=STATES.get(sent.state, model.DetectorState.FAILED),
        message=sent.message,
        duration_seconds=seconds(sent.duration) if sent.HasField("duration") else None,
        last_run_time=seconds(sent.last_run_time) if sent.HasField("last_run_time") else None,
        discarded=sent.discarded_looks,
    )


def seconds(sent: Timestamp | Duration) -> float:
    """Read a moment or a span of time."""
    return sent.seconds + sent.nanos / convert.NANOSECONDS
