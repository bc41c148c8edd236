import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from agent.api.pb import node_report_pb2 as _node_report_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    OUTCOME_RUNNING: _ClassVar[Outcome]
    OUTCOME_REFUSED: _ClassVar[Outcome]
    OUTCOME_DRY_RUN: _ClassVar[Outcome]
    OUTCOME_PERFORMED: _ClassVar[Outcome]
    OUTCOME_VERIFIED: _ClassVar[Outcome]
    OUTCOME_INEFFECTIVE: _ClassVar[Outcome]
    OUTCOME_FAILED: _ClassVar[Outcome]
    OUTCOME_INTERRUPTED: _ClassVar[Outcome]
OUTCOME_UNSPECIFIED: Outcome
OUTCOME_RUNNING: Outcome
OUTCOME_REFUSED: Outcome
OUTCOME_DRY_RUN: Outcome
OUTCOME_PERFORMED: Outcome
OUTCOME_VERIFIED: Outcome
OUTCOME_INEFFECTIVE: Outcome
OUTCOME_FAILED: Outcome
OUTCOME_INTERRUPTED: Outcome

class Refusal(_message.Message):
    __slots__ = ("reason", "message", "retry_delay")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_DELAY_FIELD_NUMBER: _ClassVar[int]
    reason: str
    message: str
    retry_delay: _duration_pb2.Duration
    def __init__(self, reason: _Optional[str] = ..., message: _Optional[str] = ..., retry_delay: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Remediation(_message.Message):
    __slots__ = ("request_id", "action", "target", "dry_run", "fencing_token", "reason", "caller", "outcome", "message", "received_at", "finished_at", "acted", "refusal", "evidence_id")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    FENCING_TOKEN_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_AT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_AT_FIELD_NUMBER: _ClassVar[int]
    ACTED_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    action: str
    target: _node_report_pb2.Target
    dry_run: bool
    fencing_token: int
    reason: str
    caller: str
    outcome: Outcome
    message: str
    received_at: _timestamp_pb2.Timestamp
    finished_at: _timestamp_pb2.Timestamp
    acted: bool
    refusal: Refusal
    evidence_id: str
    def __init__(self, request_id: _Optional[str] = ..., action: _Optional[str] = ..., target: _Optional[_Union[_node_report_pb2.Target, _Mapping]] = ..., dry_run: _Optional[bool] = ..., fencing_token: _Optional[int] = ..., reason: _Optional[str] = ..., caller: _Optional[str] = ..., outcome: _Optional[_Union[Outcome, str]] = ..., message: _Optional[str] = ..., received_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., finished_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., acted: _Optional[bool] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., evidence_id: _Optional[str] = ...) -> None: ...

class MendedCondition(_message.Message):
    __slots__ = ("type", "reasons")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    type: str
    reasons: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, type: _Optional[str] = ..., reasons: _Optional[_Iterable[str]] = ...) -> None: ...

class ActionStatus(_message.Message):
    __slots__ = ("action", "does", "requires", "risk", "target_kinds", "mends", "enabled", "allowed", "cooldown", "cooldown_left", "max_per_hour", "left_this_hour")
    ACTION_FIELD_NUMBER: _ClassVar[int]
    DOES_FIELD_NUMBER: _ClassVar[int]
    REQUIRES_FIELD_NUMBER: _ClassVar[int]
    RISK_FIELD_NUMBER: _ClassVar[int]
    TARGET_KINDS_FIELD_NUMBER: _ClassVar[int]
    MENDS_FIELD_NUMBER: _ClassVar[int]
    ENABLED_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_FIELD_NUMBER: _ClassVar[int]
    COOLDOWN_FIELD_NUMBER: _ClassVar[int]
    COOLDOWN_LEFT_FIELD_NUMBER: _ClassVar[int]
    MAX_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    LEFT_THIS_HOUR_FIELD_NUMBER: _ClassVar[int]
    action: str
    does: str
    requires: str
    risk: str
    target_kinds: _containers.RepeatedScalarFieldContainer[_node_report_pb2.TargetKind]
    mends: _containers.RepeatedCompositeFieldContainer[MendedCondition]
    enabled: bool
    allowed: bool
    cooldown: _duration_pb2.Duration
    cooldown_left: _duration_pb2.Duration
    max_per_hour: int
    left_this_hour: int
    def __init__(self, action: _Optional[str] = ..., does: _Optional[str] = ..., requires: _Optional[str] = ..., risk: _Optional[str] = ..., target_kinds: _Optional[_Iterable[_Union[_node_report_pb2.TargetKind, str]]] = ..., mends: _Optional[_Iterable[_Union[MendedCondition, _Mapping]]] = ..., enabled: _Optional[bool] = ..., allowed: _Optional[bool] = ..., cooldown: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., cooldown_left: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., max_per_hour: _Optional[int] = ..., left_this_hour: _Optional[int] = ...) -> None: ...

class ListActionsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListActionsResponse(_message.Message):
    __slots__ = ("actions", "enabled", "dry_run", "pause_reason", "ledger_trouble", "highest_fencing_token", "max_per_hour", "left_this_hour")
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    ENABLED_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    PAUSE_REASON_FIELD_NUMBER: _ClassVar[int]
    LEDGER_TROUBLE_FIELD_NUMBER: _ClassVar[int]
    HIGHEST_FENCING_TOKEN_FIELD_NUMBER: _ClassVar[int]
    MAX_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    LEFT_THIS_HOUR_FIELD_NUMBER: _ClassVar[int]
    actions: _containers.RepeatedCompositeFieldContainer[ActionStatus]
    enabled: bool
    dry_run: bool
    pause_reason: str
    ledger_trouble: str
    highest_fencing_token: int
    max_per_hour: int
    left_this_hour: int
    def __init__(self, actions: _Optional[_Iterable[_Union[ActionStatus, _Mapping]]] = ..., enabled: _Optional[bool] = ..., dry_run: _Optional[bool] = ..., pause_reason: _Optional[str] = ..., ledger_trouble: _Optional[str] = ..., highest_fencing_token: _Optional[int] = ..., max_per_hour: _Optional[int] = ..., left_this_hour: _Optional[int] = ...) -> None: ...

class RemediateRequest(_message.Message):
    __slots__ = ("request_id", "action", "target", "dry_run", "fencing_token", "reason")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    FENCING_TOKEN_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    action: str
    target: _node_report_pb2.Target
    dry_run: bool
    fencing_token: int
    reason: str
    def __init__(self, request_id: _Optional[str] = ..., action: _Optional[str] = ..., target: _Optional[_Union[_node_report_pb2.Target, _Mapping]] = ..., dry_run: _Optional[bool] = ..., fencing_token: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class RemediateResponse(_message.Message):
    __slots__ = ("remediation",)
    REMEDIATION_FIELD_NUMBER: _ClassVar[int]
    remediation: Remediation
    def __init__(self, remediation: _Optional[_Union[Remediation, _Mapping]] = ...) -> None: ...

class GetRemediationRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class GetRemediationResponse(_message.Message):
    __slots__ = ("remediation",)
    REMEDIATION_FIELD_NUMBER: _ClassVar[int]
    remediation: Remediation
    def __init__(self, remediation: _Optional[_Union[Remediation, _Mapping]] = ...) -> None: ...

class ListRemediationsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListRemediationsResponse(_message.Message):
    __slots__ = ("remediations", "next_page_token")
    REMEDIATIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    remediations: _containers.RepeatedCompositeFieldContainer[Remediation]
    next_page_token: str
    def __init__(self, remediations: _Optional[_Iterable[_Union[Remediation, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...
