"""Refusals with google.rpc details, so that programs need not read sentences."""

from collections.abc import Iterable, Mapping

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
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


def exhausted(message: str, reason: str, metadata: Mapping[str, str]) -> grpc.Status:
    """RESOURCE_EXHAUSTED: a limit is reached."""
    info = ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata)
    return refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, message, [info])


def invalid(violations: Mapping[str, str]) -> grpc.Status:
    """INVALID_ARGUMENT: these fields are wrong, and why."""
    fields = [BadRequest.FieldViolation(field=field, description=why) for field, why in violations.items()]
    message = "; ".join(f"{field}: {why}" for field, why in violations.items())
    return refusal(grpc.StatusCode.INVALID_ARGUMENT, message, [BadRequest(field_violations=fields)])


def stopping() -> grpc.Status:
    """UNAVAILABLE: the agent is about to end; another may be there soon."""
    info = ErrorInfo(reason="STOPPING", domain=DOMAIN)
    return refusal(grpc.StatusCode.UNAVAILABLE, "the agent is stopping", [info])
