"""What the engine refuses, as gRPC errors with google.rpc details."""

from collections.abc import Callable, Mapping

import grpc

from agent.acts import REFUSAL_CODES, Refusal, RefusalReason
from agent.api import errors
from agent.printable import encodable

FIELDS = {
    RefusalReason.UNKNOWN_ACTION: "action",
    RefusalReason.WRONG_TARGET_KIND: "target.kind",
    RefusalReason.INEXACT_TARGET: "target",
    RefusalReason.REQUEST_ID_REUSED: "request_id",
}
"""The field of RemediateRequest a refusal is about, where it is about one."""


def status_of(refused: Refusal, metadata: Mapping[str, str]) -> grpc.Status:
    """Return the status to abort a call with: the code of the reason, ErrorInfo, and whatever else fits."""
    reason, message, wait = refused.reason, encodable(refused.message), refused.retry_seconds
    make: Mapping[str, Callable[[], grpc.Status]] = {
        "INVALID_ARGUMENT": lambda: errors.invalid({FIELDS.get(reason, "target"): message}, reason.value, metadata),
        "PERMISSION_DENIED": lambda: errors.denied(message, reason.value, metadata),
        "RESOURCE_EXHAUSTED": lambda: errors.exhausted(message, reason.value, metadata, wait),
        "UNAVAILABLE": lambda: errors.unavailable(message, reason.value, metadata, wait),
        "FAILED_PRECONDITION": lambda: errors.precondition(
            message, reason.value, metadata, metadata.get("action", ""), wait
        ),
    }
    return make[REFUSAL_CODES[reason]]()
