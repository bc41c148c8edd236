import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ConditionStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONDITION_STATUS_UNSPECIFIED: _ClassVar[ConditionStatus]
    CONDITION_STATUS_TRUE: _ClassVar[ConditionStatus]
    CONDITION_STATUS_FALSE: _ClassVar[ConditionStatus]
    CONDITION_STATUS_UNKNOWN: _ClassVar[ConditionStatus]

class DetectorState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DETECTOR_STATE_UNSPECIFIED: _ClassVar[DetectorState]
    DETECTOR_STATE_STARTING: _ClassVar[DetectorState]
    DETECTOR_STATE_OK: _ClassVar[DetectorState]
    DETECTOR_STATE_NOT_APPLICABLE: _ClassVar[DetectorState]
    DETECTOR_STATE_FAILED: _ClassVar[DetectorState]
    DETECTOR_STATE_OVERDUE: _ClassVar[DetectorState]

class TargetKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TARGET_KIND_UNSPECIFIED: _ClassVar[TargetKind]
    TARGET_KIND_SHIM: _ClassVar[TargetKind]
    TARGET_KIND_PROCESS: _ClassVar[TargetKind]
    TARGET_KIND_CONTAINER: _ClassVar[TargetKind]
    TARGET_KIND_KUBELET: _ClassVar[TargetKind]
    TARGET_KIND_CONTAINERD: _ClassVar[TargetKind]
    TARGET_KIND_CONNTRACK: _ClassVar[TargetKind]
    TARGET_KIND_DNS_SERVER: _ClassVar[TargetKind]
    TARGET_KIND_NODE: _ClassVar[TargetKind]

class DeploymentCause(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DEPLOYMENT_CAUSE_UNSPECIFIED: _ClassVar[DeploymentCause]
    DEPLOYMENT_CAUSE_CAPABILITY: _ClassVar[DeploymentCause]
    DEPLOYMENT_CAUSE_USER: _ClassVar[DeploymentCause]
    DEPLOYMENT_CAUSE_APPARMOR: _ClassVar[DeploymentCause]
    DEPLOYMENT_CAUSE_SELINUX: _ClassVar[DeploymentCause]
    DEPLOYMENT_CAUSE_NAMESPACE: _ClassVar[DeploymentCause]
    DEPLOYMENT_CAUSE_MOUNT: _ClassVar[DeploymentCause]
    DEPLOYMENT_CAUSE_PERMISSION: _ClassVar[DeploymentCause]
CONDITION_STATUS_UNSPECIFIED: ConditionStatus
CONDITION_STATUS_TRUE: ConditionStatus
CONDITION_STATUS_FALSE: ConditionStatus
CONDITION_STATUS_UNKNOWN: ConditionStatus
DETECTOR_STATE_UNSPECIFIED: DetectorState
DETECTOR_STATE_STARTING: DetectorState
DETECTOR_STATE_OK: DetectorState
DETECTOR_STATE_NOT_APPLICABLE: DetectorState
DETECTOR_STATE_FAILED: DetectorState
DETECTOR_STATE_OVERDUE: DetectorState
TARGET_KIND_UNSPECIFIED: TargetKind
TARGET_KIND_SHIM: TargetKind
TARGET_KIND_PROCESS: TargetKind
TARGET_KIND_CONTAINER: TargetKind
TARGET_KIND_KUBELET: TargetKind
TARGET_KIND_CONTAINERD: TargetKind
TARGET_KIND_CONNTRACK: TargetKind
TARGET_KIND_DNS_SERVER: TargetKind
TARGET_KIND_NODE: TargetKind
DEPLOYMENT_CAUSE_UNSPECIFIED: DeploymentCause
DEPLOYMENT_CAUSE_CAPABILITY: DeploymentCause
DEPLOYMENT_CAUSE_USER: DeploymentCause
DEPLOYMENT_CAUSE_APPARMOR: DeploymentCause
DEPLOYMENT_CAUSE_SELINUX: DeploymentCause
DEPLOYMENT_CAUSE_NAMESPACE: DeploymentCause
DEPLOYMENT_CAUSE_MOUNT: DeploymentCause
DEPLOYMENT_CAUSE_PERMISSION: DeploymentCause

class Target(_message.Message):
    __slots__ = ("kind", "pid", "start_time", "boot_id", "container_id", "containerd_namespace", "cgroup", "address")
    KIND_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    CONTAINERD_NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    CGROUP_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    kind: TargetKind
    pid: int
    start_time: int
    boot_id: str
    container_id: str
    containerd_namespace: str
    cgroup: str
    address: str
    def __init__(self, kind: _Optional[_Union[TargetKind, str]] = ..., pid: _Optional[int] = ..., start_time: _Optional[int] = ..., boot_id: _Optional[str] = ..., container_id: _Optional[str] = ..., containerd_namespace: _Optional[str] = ..., cgroup: _Optional[str] = ..., address: _Optional[str] = ...) -> None: ...

class PodRef(_message.Message):
    __slots__ = ("namespace", "name", "uid", "container", "owner", "qos_class", "node_critical", "labels")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    QOS_CLASS_FIELD_NUMBER: _ClassVar[int]
    NODE_CRITICAL_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    name: str
    uid: str
    container: str
    owner: str
    qos_class: str
    node_critical: bool
    labels: _containers.ScalarMap[str, str]
    def __init__(self, namespace: _Optional[str] = ..., name: _Optional[str] = ..., uid: _Optional[str] = ..., container: _Optional[str] = ..., owner: _Optional[str] = ..., qos_class: _Optional[str] = ..., node_critical: _Optional[bool] = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Measurement(_message.Message):
    __slots__ = ("name", "text", "integer", "number", "flag", "texts")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    INTEGER_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    FLAG_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    text: str
    integer: int
    number: float
    flag: bool
    texts: TextList
    def __init__(self, name: _Optional[str] = ..., text: _Optional[str] = ..., integer: _Optional[int] = ..., number: _Optional[float] = ..., flag: _Optional[bool] = ..., texts: _Optional[_Union[TextList, _Mapping]] = ...) -> None: ...

class TextList(_message.Message):
    __slots__ = ("texts",)
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    texts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, texts: _Optional[_Iterable[str]] = ...) -> None: ...

class Finding(_message.Message):
    __slots__ = ("reason", "message", "recommended_action", "target", "pod", "values", "since")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RECOMMENDED_ACTION_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    POD_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    reason: str
    message: str
    recommended_action: str
    target: Target
    pod: PodRef
    values: _containers.RepeatedCompositeFieldContainer[Measurement]
    since: _timestamp_pb2.Timestamp
    def __init__(self, reason: _Optional[str] = ..., message: _Optional[str] = ..., recommended_action: _Optional[str] = ..., target: _Optional[_Union[Target, _Mapping]] = ..., pod: _Optional[_Union[PodRef, _Mapping]] = ..., values: _Optional[_Iterable[_Union[Measurement, _Mapping]]] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Condition(_message.Message):
    __slots__ = ("type", "status", "reason", "message", "last_transition_time", "findings")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    LAST_TRANSITION_TIME_FIELD_NUMBER: _ClassVar[int]
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    type: str
    status: ConditionStatus
    reason: str
    message: str
    last_transition_time: _timestamp_pb2.Timestamp
    findings: _containers.RepeatedCompositeFieldContainer[Finding]
    def __init__(self, type: _Optional[str] = ..., status: _Optional[_Union[ConditionStatus, str]] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., last_transition_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., findings: _Optional[_Iterable[_Union[Finding, _Mapping]]] = ...) -> None: ...

class Detector(_message.Message):
    __slots__ = ("name", "state", "message", "duration", "last_run_time", "discarded_looks")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DURATION_FIELD_NUMBER: _ClassVar[int]
    LAST_RUN_TIME_FIELD_NUMBER: _ClassVar[int]
    DISCARDED_LOOKS_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: DetectorState
    message: str
    duration: _duration_pb2.Duration
    last_run_time: _timestamp_pb2.Timestamp
    discarded_looks: int
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[DetectorState, str]] = ..., message: _Optional[str] = ..., duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., last_run_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., discarded_looks: _Optional[int] = ...) -> None: ...

class NodeReport(_message.Message):
    __slots__ = ("node_name", "observed_at", "conditions", "detectors", "deployment_faults")
    NODE_NAME_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_AT_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    DETECTORS_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENT_FAULTS_FIELD_NUMBER: _ClassVar[int]
    node_name: str
    observed_at: _timestamp_pb2.Timestamp
    conditions: _containers.RepeatedCompositeFieldContainer[Condition]
    detectors: _containers.RepeatedCompositeFieldContainer[Detector]
    deployment_faults: _containers.RepeatedCompositeFieldContainer[DeploymentFault]
    def __init__(self, node_name: _Optional[str] = ..., observed_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., conditions: _Optional[_Iterable[_Union[Condition, _Mapping]]] = ..., detectors: _Optional[_Iterable[_Union[Detector, _Mapping]]] = ..., deployment_faults: _Optional[_Iterable[_Union[DeploymentFault, _Mapping]]] = ...) -> None: ...

class DeploymentFault(_message.Message):
    __slots__ = ("cause", "subject", "message", "remedy", "hides", "impairs")
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REMEDY_FIELD_NUMBER: _ClassVar[int]
    HIDES_FIELD_NUMBER: _ClassVar[int]
    IMPAIRS_FIELD_NUMBER: _ClassVar[int]
    cause: DeploymentCause
    subject: str
    message: str
    remedy: str
    hides: _containers.RepeatedScalarFieldContainer[str]
    impairs: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, cause: _Optional[_Union[DeploymentCause, str]] = ..., subject: _Optional[str] = ..., message: _Optional[str] = ..., remedy: _Optional[str] = ..., hides: _Optional[_Iterable[str]] = ..., impairs: _Optional[_Iterable[str]] = ...) -> None: ...
