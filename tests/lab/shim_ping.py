"""A raw ttrpc call to a shim, so that the lab can prove a fault without the agent's own client.

Only as much of ttrpc and protobuf as one request with one string field needs.
That a reply of our stream came is the proof. Of its content only this is read:
whether the shim serves that version of the task API.
"""

from __future__ import annotations

import socket
import struct
import time
from pathlib import Path

_HEADER = struct.Struct(">IIBB")
_REQUEST, _RESPONSE = 1, 2
_STREAM = 1
_SERVICES = (b"containerd.task.v3.Task", b"containerd.task.v2.Task")
"""The task API of containerd 2.x, and that of 1.x. A shim of either answers the other one with Unimplemented."""


def call(address: Path, method: str, container_id: str, timeout: float = 1.0) -> bytes | None:
    """Send one request naming a container; return the reply, None when none came in time.

    ``ConnectionError`` and ``FileNotFoundError`` are passed on: nobody listens.
    """
    deadline = time.monotonic() + timeout
    for service in _SERVICES:
        reply = _call(address, service, method, container_id, max(0.001, deadline - time.monotonic()))
        if reply is None or b"service " + service not in reply:
            return reply
    raise ValueError(f"the shim at {address} serves neither task v3 nor v2")


def _call(address: Path, service: bytes, method: str, container_id: str, timeout: float) -> bytes | None:
    argument = _field(1, container_id.encode())
    request = (
        _field(1, service) + _field(2, method.encode()) + _field(3, argument) + b"\x20" + _varint(int(timeout * 1e9))
    )
    deadline = time.monotonic() + timeout
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(str(address))
            connection.sendall(_HEADER.pack(len(request), _STREAM, _REQUEST, 0) + request)
            length, stream, kind, _ = _HEADER.unpack(_read(connection, _HEADER.size, deadline))
            body = _read(connection, length, deadline)
        except TimeoutError:
            return None
    if (stream, kind) != (_STREAM, _RESPONSE):
        raise ValueError(f"not a ttrpc response to our request: stream {stream}, type {kind}")
    return body


def connect_answers(address: Path, container_id: str, timeout: float = 1.0) -> bool:
    """Tell whether ``Connect``, which takes no lock of the container, is answered."""
    return call(address, "Connect", container_id, timeout) is not None


def state_answers(address: Path, container_id: str, timeout: float = 1.0) -> bool:
    """Tell whether ``State``, which waits for the container's running operation, is answered."""
    return call(address, "State", container_id, timeout) is not None


def _read(connection: socket.socket, size: int, deadline: float) -> bytes:
    data = b""
    while len(data) < size:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionResetError("the shim closed the connection")
        data += part
    return data


def _field(number: int, value: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
