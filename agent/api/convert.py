"""From the model to the protos. Texts that are not UTF-8 leave with those bytes escaped, as in the JSON report."""

from collections.abc import Mapping

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from agent import model
from agent.api.pb import diagnostics_service_pb2 as service_pb
from agent.api.pb import node_report_pb2 as pb
from agent.printable import encodable

NANOSECONDS = 1_000_000_000
INT64 = 2**63

STATUSES: Mapping[model.Status, pb.ConditionStatus] = {
    model.Status.TRUE: pb.CONDITION_STATUS_TRUE,
    model.Status.FALSE: pb.CONDITION_STATUS_FALSE,
    model.Status.UNKNOWN: pb.CONDITION_STATUS_UNKNOWN,
}
STATES: Mapping[model.DetectorState, pb.DetectorState] = {
    model.DetectorState.STARTING: pb.DETECTOR_STATE_STARTING,
    model.DetectorState.OK: pb.DETECTOR_STATE_OK,
    model.DetectorState.NOT_APPLICABLE: pb.DETECTOR_STATE_NOT_APPLICABLE,
    model.DetectorState.FAILED: pb.DETECTOR_STATE_FAILED,
    model.DetectorState.OVERDUE: pb.DETECTOR_STATE_OVERDUE,
}
KINDS: Mapping[model.TargetKind, pb.TargetKind] = {
    model.TargetKind.SHIM: pb.TARGET_KIND_SHIM,
    model.TargetKind.PROCESS: pb.TARGET_KIND_PROCESS,
    model.TargetKind.CONTAINER: pb.TARGET_KIND_CONTAINER,
    model.TargetKind.KUBELET: pb.TARGET_KIND_KUBELET,
    model.TargetKind.CONTAINERD: pb.TARGET_KIND_CONTAINERD,
    model.TargetKind.CONNTRACK: pb.TARGET_KIND_CONNTRACK,
    model.TargetKind.DNS_SERVER: pb.TARGET_KIND_DNS_SERVER,
    model.TargetKind.NODE: pb.TARGET_KIND_NODE,
}


CAUSES: Mapping[model.DeploymentCause, pb.DeploymentCause] = {
    model.DeploymentCause.CAPABILITY: pb.DEPLOYMENT_CAUSE_CAPABILITY,
    model.DeploymentCause.USER: pb.DEPLOYMENT_CAUSE_USER,
    model.DeploymentCause.APPARMOR: pb.DEPLOYMENT_CAUSE_APPARMOR,
    model.DeploymentCause.SELINUX: pb.DEPLOYMENT_CAUSE_SELINUX,
    model.DeploymentCause.NAMESPACE: pb.DEPLOYMENT_CAUSE_NAMESPACE,
    model.DeploymentCause.MOUNT: pb.DEPLOYMENT_CAUSE_MOUNT,
    model.DeploymentCause.PERMISSION: pb.DEPLOYMENT_CAUSE_PERMISSION,
}


def report(seen: model.NodeReport) -> pb.NodeReport:
    """Translate a report."""
    return pb.NodeReport(
        node_name=encodable(seen.node_name),
        observed_at=timestamp(seen.observed_at),
        conditions=[condition(each) for each in seen.conditions],
        detectors=[detector(each) for each in seen.detectors],
        deployment_faults=[deployment_fault(each) for each in seen.deployment],
    )


def deployment_fault(seen: model.DeploymentFault) -> pb.DeploymentFault:
    """Translate a fault of the agent's own deployment."""
    return pb.DeploymentFault(
        cause=CAUSES[seen.cause],
        subject=encodable(seen.subject),
        message=encodable(seen.message),
        remedy=encodable(seen.remedy),
        hides=[encodable(kind) for kind in seen.hides],
        impairs=[encodable(kind) for kind in seen.impairs],
    )


def event(told: model.Event) -> service_pb.WatchConditionsResponse:
    """Translate one message of a watch."""
    match told:
        case model.Snapshot(conditions):
            snapshot = service_pb.Snapshot(conditions=[condition(each) for each in conditions])
            return service_pb.WatchConditionsResponse(snapshot=snapshot)
        case model.Changed(changed):
            return service_pb.WatchConditionsResponse(changed=condition(changed))
        case model.Removed(kind):
            return service_pb.WatchConditionsResponse(removed=service_pb.Removed(type=encodable(kind)))
        case model.Gap(missed):
            return service_pb.WatchConditionsResponse(gap=service_pb.Gap(missed=missed))


def condition(seen: model.Condition) -> pb.Condition:
    """Translate a condition."""
    return pb.Condition(
        type=encodable(seen.type),
        status=STATUSES[seen.status],
        reason=encodable(seen.reason),
        message=encodable(seen.message),
        last_transition_time=timestamp(seen.last_transition_time),
        findings=[finding(each) for each in seen.findings],
    )


def finding(active: model.ActiveFinding) -> pb.Finding:
    """Translate a finding; its condition is the one it stands in."""
    seen = active.finding
    return pb.Finding(
        reason=encodable(seen.reason),
        message=encodable(seen.message),
        recommended_action=seen.recommended_action.value,
        target=target(seen.target),
        pod=None if seen.pod is None else pod(seen.pod),
        values=[measurement(name, value) for name, value in seen.values.items()],
        since=timestamp(active.since),
    )


def target(seen: model.Target) -> pb.Target:
    """Translate an identity."""
    return pb.Target(
        kind=KINDS[seen.kind],
        pid=seen.pid,
        start_time=seen.start_time,
        boot_id=encodable(seen.boot_id),
        container_id=encodable(seen.container_id),
        containerd_namespace=encodable(seen.containerd_namespace),
        cgroup=encodable(seen.cgroup),
        address=encodable(seen.address),
    )


def pod(seen: model.PodRef) -> pb.PodRef:
    """Translate whose it is."""
    return pb.PodRef(
        namespace=encodable(seen.namespace),
        name=encodable(seen.name),
        uid=encodable(seen.uid),
        container=encodable(seen.container),
        owner=encodable(seen.owner),
        qos_class=encodable(seen.qos_class),
        node_critical=seen.node_critical,
        labels={encodable(name): encodable(value) for name, value in seen.labels},
    )


def measurement(name: str, value: model.Value) -> pb.Measurement:
    """Translate a measured value; a whole number too large for 64 bits goes as a number."""
    name = encodable(name)
    match value:
        case None:
            return pb.Measurement(name=name)
        case bool():
            return pb.Measurement(name=name, flag=value)
        case int() if -INT64 <= value < INT64:
            return pb.Measurement(name=name, integer=value)
        case int() | float():
            return pb.Measurement(name=name, number=value)
        case str():
            return pb.Measurement(name=name, text=encodable(value))
        case tuple():
            return pb.Measurement(name=name, texts=pb.TextList(texts=[encodable(text) for text in value]))


def detector(seen: model.DetectorStatus) -> pb.Detector:
    """Translate how a detector is doing."""
    return pb.Detector(
        name=encodable(seen.name),
        state=STATES[seen.state],
        message=encodable(seen.message),
        duration=None if seen.duration_seconds is None else duration(seen.duration_seconds),
        last_run_time=None if seen.last_run_time is None else timestamp(seen.last_run_time),
        discarded_looks=seen.discarded,
    )


def timestamp(seconds: float) -> Timestamp:
    """Translate a moment, to the nanosecond."""
    whole, nanos = _parts(seconds)
    return Timestamp(seconds=whole, nanos=nanos)


def duration(seconds: float) -> Duration:
    """Translate a span of time that is not negative, to the nanosecond."""
    whole, nanos = _parts(seconds)
    return Duration(seconds=whole, nanos=nanos)


def _parts(seconds: float) -> tuple[int, int]:
    whole = int(seconds // 1)
    return divmod(whole * NANOSECONDS + round((seconds - whole) * NANOSECONDS), NANOSECONDS)
