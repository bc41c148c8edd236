"""Asks containerd whether it answers: CRI's `Version`, the first thing a kubelet asks too.

gRPC is spoken by the sans-IO library h2 over `host.exchange`, not by grpcio: a unary call is
one HEADERS and one DATA frame, h2 costs 1.7 MiB where grpcio costs 12, and the time limit stays our
own (awake time, no hidden threads, no reconnecting behind our back).

Any gRPC answer proves that containerd's server loop lives, also `UNIMPLEMENTED` from a containerd
whose CRI plugin is switched off, and an error from one whose CRI plugin still starts.
"""

import socket
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from google.protobuf.message import DecodeError
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings

from agent.clock import Clock
from agent.host.exchange import MAX_DETAIL, Attempt, Ending, NoAnswerError, Peer, converse
from agent.host.pb.cri_pb2 import VersionRequest, VersionResponse
from agent.printable import printable

METHOD = "/runtime.v1.RuntimeService/Version"
MAX_MESSAGE_BYTES = 16 * 1024
MAX_TEXT = 80

STATUS_OK = 0
STATUS_UNIMPLEMENTED = 12

_STREAM = 1
_TYPE_AT, _SETTINGS = 3, b"\x04"
"""A server's first frame must be SETTINGS (RFC 9113, 3.4 and 4.1); h2 does not insist on it."""
_PREFIX_BYTES = 5
"""Of a gRPC message: one byte whether it is compressed, four of length (gRPC over HTTP/2, Length-Prefixed-Message)."""


@dataclass(frozen=True, slots=True)
class RuntimeAnswer:
    """What came back: the gRPC status (0 = OK), its text, and the runtime's name and version if it told them."""

    status: int
    message: str = ""
    runtime_name: str = ""
    runtime_version: str = ""


def ask_version(address: str, *, deadline: float, hedge: float, clock: Clock) -> tuple[Attempt[RuntimeAnswer], ...]:
    """Ask the CRI server at a unix socket for its version, at most twice at once (see `converse`)."""
    peer = Peer(socket.AF_UNIX, address)
    return converse(peer, VersionTalk, deadline=deadline, hedge=hedge, clock=clock)


class VersionTalk:
    """One unary gRPC call and its response (a Talk)."""

    def __init__(self) -> None:
        self._http = H2Connection(H2Configuration(client_side=True, header_encoding=None))
        self._http.local_settings = Settings(client=True, initial_values=_LIMITS)
        self.question = self._ask()
        self.answer: RuntimeAnswer | None = None
        self._headers: dict[bytes, bytes] = {}
        self._body = b""
        self._opening = b""

    def hear(self, data: bytes) -> bytes:
        """Take what arrived and return what HTTP/2 wants acknowledged. Raises NoAnswerError."""
        self._opening = (self._opening + data)[: _TYPE_AT + 1]
        if self._opening[_TYPE_AT:] not in (b"", _SETTINGS):
            raise NoAnswerError(Ending.MALFORMED, f"it does not speak HTTP/2, it says {printable(data, MAX_TEXT)}")
        try:
            for event in self._http.receive_data(data):
                self._take(event)
        except H2Error as error:
            raise NoAnswerError(Ending.MALFORMED, printable(str(error), MAX_DETAIL)) from None
        return self._http.data_to_send()

    def _ask(self) -> bytes:
        message = VersionRequest(version="v1").SerializeToString()
        prefix = bytes(1) + len(message).to_bytes(_PREFIX_BYTES - 1, "big")
        self._http.initiate_connection()
        self._http.send_headers(_STREAM, _HEADERS)
        self._http.send_data(_STREAM, prefix + message, end_stream=True)
        return self._http.data_to_send()

    def _take(self, event: Event) -> None:
        match event:
            case ResponseReceived() | TrailersReceived():
                self._headers.update(event.headers)
            case DataReceived():
                self._body += event.data
                if len(self._body) > MAX_MESSAGE_BYTES:
                    raise NoAnswerError(Ending.TOO_LARGE, f"no whole answer within {MAX_MESSAGE_BYTES // 1024} KiB")
            case StreamEnded():
                self.answer = _answer(self._headers, self._body)
            case StreamReset() | ConnectionTerminated() if self.answer is None:
                raise NoAnswerError(Ending.CLOSED, f"the call was ended with HTTP/2 error {int(event.error_code or 0)}")


_LIMITS = {SettingCodes.ENABLE_PUSH: 0, SettingCodes.MAX_HEADER_LIST_SIZE: MAX_MESSAGE_BYTES}
_HEADERS = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", METHOD.encode()),
    (b":authority", b"localhost"),
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
    (b"user-agent", b"nodediag"),
]


def _answer(headers: dict[bytes, bytes], body: bytes) -> RuntimeAnswer:
    """Read a gRPC response (gRPC over HTTP/2). Raises NoAnswerError."""
    status = headers.get(b"grpc-status", b"")
    if not status.isdigit() or len(status) > 3:
        code = printable(headers.get(b":status", b"?"), 8)
        raise NoAnswerError(Ending.MALFORMED, f"HTTP status {code} without a gRPC status")
    message = printable(unquote_to_bytes(headers.get(b"grpc-message", b"")), MAX_TEXT)
    if int(status) != STATUS_OK or len(body) < _PREFIX_BYTES:
        return RuntimeAnswer(int(status), message)
    try:
        version = VersionResponse.FromString(body[_PREFIX_BYTES:])
    except DecodeError:
        return RuntimeAnswer(STATUS_OK, "its version cannot be read")
    name, number = printable(version.runtime_name, MAX_TEXT), printable(version.runtime_version, MAX_TEXT)
    return RuntimeAnswer(STATUS_OK, message, name, number)
