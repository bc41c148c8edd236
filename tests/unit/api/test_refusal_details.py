"""What a client makes of the details of an error, also of odd ones."""

from collections.abc import Iterable
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from agent.acts import Refusal, RefusalReason
from agent.api.errors import DOMAIN
from agent.api.refusal_details import refusal_of

INFO = ErrorInfo(reason="BUSY", domain=DOMAIN)
RETRY = RetryInfo(retry_delay=Duration(seconds=2))


class Failed(grpc.RpcError, grpc.Call):
    """An error as grpc raises it."""

    def __init__(self, trailer: bytes | None, message: str = "one is under way") -> None:
        super().__init__()
        self._trailer = trailer
        self._message = message

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return self._message

    def trailing_metadata(self) -> Any:
        return () if self._trailer is None else (("grpc-status-details-bin", self._trailer),)

    def _nothing(self, *_: Any) -> Any:
        raise NotImplementedError

    initial_metadata = is_active = time_remaining = cancel = _nothing

    def add_callback(self, callback: object) -> bool:
        raise NotImplementedError


def failed(details: Iterable[Message], message: str = "one is under way") -> Failed:
    packed = []
    for detail in details:
        packed.append(Packed())
        packed[-1].Pack(detail)
    code: int = grpc.StatusCode.UNAVAILABLE.value[0]
    return Failed(Status(code=code, message=message, details=packed).SerializeToString(), message)


@pytest.mark.parametrize("details", [[INFO, RETRY], [RETRY, INFO]])
def test_reason_and_delay_are_read_in_any_order(details: list[Message]) -> None:
    assert refusal_of(failed(details)) == Refusal(RefusalReason.BUSY, "one is under way", 2.0)


@pytest.mark.parametrize(
    "details",
    [
        [],
        [RETRY],
        [ErrorInfo(reason="BUSY", domain="example.org")],
        [ErrorInfo(reason="FULL_MOON", domain=DOMAIN), RETRY],
    ],
)
def test_what_is_no_refusal_of_this_agent_is_none(details: list[Message]) -> None:
    assert refusal_of(failed(details)) is None


def test_details_that_cannot_be_read_are_none() -> None:
    broken = Packed(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff\xff")
    code: int = grpc.StatusCode.UNAVAILABLE.value[0]
    status = Status(code=code, message="x", details=[broken])
    for error in (
        Failed(None),
        Failed(b"\xff\xff"),
        Failed(status.SerializeToString(), "x"),
        Failed(status.SerializeToString(), "another message"),
        grpc.RpcError(),
    ):
        assert refusal_of(error) is None
