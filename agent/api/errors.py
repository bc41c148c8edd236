"""Refusals with google.rpc details, so that programs need not read sentences."""

from collections.abc import Iterable, Mapping

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, PreconditionFailure, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

DOMAIN = "nodediag.v1"


def refusal(code: grpc.StatusCode, message: str, details: Iterable[Message]) -> grpc.Status:
    """Return a status to abort a call with."""
    packed = []
    for detail in details:
        packed.append(Any())
        packed[-1].Pack(detail)
    number: int = code.value[0]
    return rpc_status.to_status(Status(code=number, message=message, details=packed))


def told(
    code: grpc.StatusCode,
    message: str,
    reason: str,
    metadata: Mapping[str, str],
    retry_seconds: float | None = None,
) -> grpc.Status:
    """Any code, with its reason in a word; and after how long the very same request may be sent again, if it may."""
    details: list[Message] = [ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata)]
    if retry_seconds is not None:
        details.append(RetryInfo(retry_delay=_duration(retry_seconds)))
    return refusal(code, message, details)


def exhausted(
    message: str, reason: str, metadata: Mapping[str, str], retry_seconds: float | None = None
) -> grpc.Status:
    """RESOURCE_EXHAUSTED: a limit is reached."""
    return told(grpc.StatusCode.RESOURCE_EXHAUSTED, message, reason, metadata, retry_seconds)


def unavailable(
    message: str, reason: str, metadata: Mapping[str, str], retry_seconds: float | None = None
) -> grpc.Status:
    """UNAVAILABLE: not now; the same may succeed a little later."""
    return told(grpc.StatusCode.UNAVAILABLE, message, reason, metadata, retry_seconds)


def denied(message: str, reason: str, metadata: Mapping[str, str]) -> grpc.Status:
    """PERMISSION_DENIED: this caller may not do that."""
    return told(grpc.StatusCode.PERMISSION_DENIED, message, reason, metadata)


def not_found(message: str, reason: str, metadata: Mapping[str, str]) -> grpc.Status:
    """NOT_FOUND: there is no such thing, or no more."""
    return told(grpc.StatusCode.NOT_FOUND, message, reason, metadata)


def precondition(
    message: str, reason: str, metadata: Mapping[str, str], subject: str, retry_seconds: float | None = None
) -> grpc.Status:
    """FAILED_PRECONDITION: things are not as they must be; `subject` is what is not."""
    violation = PreconditionFailure.Violation(type=reason, subject=subject, description=message)
    details: list[Message] = [
        ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata),
        PreconditionFailure(violations=[violation]),
    ]
    if retry_seconds is not None:
        details.append(RetryInfo(retry_delay=_duration(retry_seconds)))
    return refusal(grpc.StatusCode.FAILED_PRECONDITION, message, details)


def invalid(
    violations: Mapping[str, str], reason: str = "INVALID_FIELDS", metadata: Mapping[str, str] | None = None
) -> grpc.Status:
    """INVALID_ARGUMENT: these fields are wrong, and why."""
    fields = [BadRequest.FieldViolation(field=field, description=why) for field, why in violations.items()]
    message = "; ".join(f"{field}: {why}" for field, why in violations.items())
    info = ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata or {})
    details: list[Message] = [info, BadRequest(field_violations=fields)]
    return refusal(grpc.StatusCode.INVALID_ARGUMENT, message, details)


def unauthenticated(message: str) -> grpc.Status:
    """UNAUTHENTICATED: nothing proves who calls."""
    return told(grpc.StatusCode.UNAUTHENTICATED, message, "CALLER_NOT_PROVEN", {})


def stopping() -> grpc.Status:
    """UNAVAILABLE: the agent is about to end; another may be there soon."""
    return unavailable("the agent is stopping", "STOPPING", {})


def _duration(seconds: float) -> Duration:
    whole = Duration()
    whole.FromNanoseconds(round(seconds * 1e9))
    return whole
