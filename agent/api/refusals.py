"""What the engine refuses, as gRPC errors with google.rpc details."""

from collections.abc import Mapping

import grpc
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, PreconditionFailure, RetryInfo

from agent.acts import REFUSAL_CODES, Refusal, RefusalReason
from agent.api import convert
from agent.api.errors import DOMAIN, refusal
from agent.exporters.printable import encodable

FIELDS = {
    RefusalReason.UNKNOWN_ACTION: "action",
    RefusalReason.WRONG_TARGET_KIND: "target.kind",
    RefusalReason.INEXACT_TARGET: "target",
    RefusalReason.REQUEST_ID_REUSED: "request_id",
}
"""The field of RemediateRequest a refusal is about, where it is about one."""


def status_of(refused: Refusal, metadata: Mapping[str, str]) -> grpc.Status:
    """Return the status to abort a call with: the code of the reason, ErrorInfo, and whatever else fits."""
    code = grpc.StatusCode[REFUSAL_CODES[refused.reason]]
    message = encodable(refused.message)
    details: list[Message] = [ErrorInfo(reason=refused.reason.value, domain=DOMAIN, metadata=metadata)]
    if refused.retry_seconds is not None:
        details.append(RetryInfo(retry_delay=convert.duration(refused.retry_seconds)))
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        field = FIELDS.get(refused.reason, "")
        details.append(BadRequest(field_violations=[BadRequest.FieldViolation(field=field, description=message)]))
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        violation = PreconditionFailure.Violation(
            type=refused.reason.value, subject=metadata.get("action", ""), description=message
        )
        details.append(PreconditionFailure(violations=[violation]))
    return refusal(code, message, details)


def not_found(message: str) -> grpc.Status:
    """NOT_FOUND: what was asked for is not stored, or is not stored any more."""
    return refusal(grpc.StatusCode.NOT_FOUND, encodable(message), [ErrorInfo(reason="NOT_FOUND", domain=DOMAIN)])


def unreadable(message: str) -> grpc.Status:
    """FAILED_PRECONDITION: the state folder cannot be read."""
    info = ErrorInfo(reason="STATE_UNREADABLE", domain=DOMAIN)
    return refusal(grpc.StatusCode.FAILED_PRECONDITION, encodable(message), [info])


def under_way(message: str) -> grpc.Status:
    """DEADLINE_EXCEEDED: what came of it is not known yet."""
    info = ErrorInfo(reason="UNDER_WAY", domain=DOMAIN)
    return refusal(grpc.StatusCode.DEADLINE_EXCEEDED, encodable(message), [info])
