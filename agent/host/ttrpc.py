"""ttrpc on the wire: frames in, frames out, no socket.

A frame is a 10-byte header (big-endian u32 length, u32 stream id, u8 type, u8 flags) and its
payload; clients use odd stream ids. Source: github.com/containerd/ttrpc, PROTOCOL.md.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from agent.host.pb import ttrpc_pb2

HEADER = struct.Struct(">IIBB")
TYPE_REQUEST = 1
TYPE_RESPONSE = 2
MAX_PAYLOAD_BYTES = 64 << 10
"""The protocol allows 4 MiB; an answer to Connect or State has a few hundred bytes."""


class MalformedError(Exception):
    """The peer does not speak ttrpc, or says more than any answer has."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: the status code is 0 for success, else one of google.rpc.Code."""

    stream: int
    code: int
    message: str
    payload: bytes


def request(stream: int, service: str, method: str, payload: bytes, timeout: float) -> bytes:
    """Return the frame that asks `service/method`; `timeout` in seconds tells the peer how long we listen."""
    body = ttrpc_pb2.Request(service=service, method=method, payload=payload, timeout_nano=int(timeout * 1e9))
    encoded = body.SerializeToString()
    return HEADER.pack(len(encoded), stream, TYPE_REQUEST, 0) + encoded


class Decoder:
    """Cuts a byte stream into replies, within bounds."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Reply]:
        """Take in bytes and yield the replies that are complete.

        Raises MalformedError on a frame that is oversized, undecodable, or no response: a server has no other to send.
        """
        self._buffer += data
        while len(self._buffer) >= HEADER.size:
            length, stream, kind, _ = HEADER.unpack_from(self._buffer)
            if kind != TYPE_RESPONSE:
                raise MalformedError(f"a frame has type {kind}; an answer has type {TYPE_RESPONSE}")
            if length > MAX_PAYLOAD_BYTES:
                raise MalformedError(f"a frame claims {length} bytes; an answer has at most {MAX_PAYLOAD_BYTES}")
            if len(self._buffer) < HEADER.size + length:
                return
            payload = bytes(self._buffer[HEADER.size : HEADER.size + length])
            del self._buffer[: HEADER.size + length]
            yield _reply(stream, payload)


def _reply(stream: int, payload: bytes) -> Reply:
    try:
        response = ttrpc_pb2.Response.FromString(payload)
    except DecodeError:
        raise MalformedError(f"a frame of {len(payload)} bytes is no ttrpc response") from None
    return Reply(stream, response.status.code, response.status.message[:500], response.payload)
