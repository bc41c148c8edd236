"""Refusals as a client reads them: from the google.rpc details of an error."""

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from agent.acts import Refusal
from agent.api import revert
from agent.api.errors import DOMAIN
from agent.api.remediation_words import read_reason


def refusal_of(error: grpc.RpcError) -> Refusal | None:
    """Return why the agent refused; None if the error is none of its refusals, or one unknown here."""
    reason, retry_seconds = None, None
    status = _status(error)
    for packed in status.details if status is not None else ():
        info, retry = ErrorInfo(), RetryInfo()
        try:
            if packed.Unpack(info) and info.domain == DOMAIN:
                reason = read_reason(info.reason)
            elif packed.Unpack(retry):
                retry_seconds = revert.seconds(retry.retry_delay)
        except DecodeError:
            continue
    return None if reason is None else Refusal(reason, error.details() or "", retry_seconds)


def _status(error: grpc.RpcError) -> Status | None:
    if not isinstance(error, grpc.Call):
        return None
    try:
        return rpc_status.from_call(error)
    except (ValueError, DecodeError):  # details that contradict the error, or are none
        return None
