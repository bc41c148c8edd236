"""Just enough of DNS on the wire: read one question, write its answer."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

A, AAAA = 1, 28
NOERROR, NXDOMAIN = 0, 3

_HEADER = struct.Struct(">6H")
_RESPONSE_AUTHORITATIVE = 0x8480
_RECURSION_DESIRED = 0x0100
_RESPONSE_BIT = 0x8000
_POINTER_TO_QUESTION = b"\xc0\x0c"
_INTERNET = 1
_TTL = 5


@dataclass(frozen=True)
class Question:
    """A query's first question, and what an answer must repeat of it."""

    id: int
    flags: int
    name: str
    kind: int
    wire: bytes


def read_question(packet: bytes) -> Question | None:
    """Parse a query; None for what is not one."""
    try:
        number, flags, questions, *_ = _HEADER.unpack_from(packet)
        if flags & _RESPONSE_BIT or questions != 1:
            return None
        labels, at = [], _HEADER.size
        while packet[at]:
            labels.append(packet[at + 1 : at + 1 + packet[at]].decode("ascii", "replace"))
            at += 1 + packet[at]
        (kind,) = struct.unpack_from(">H", packet, at + 1)
    except (struct.error, IndexError):
        return None
    return Question(number, flags, ".".join(labels), kind, packet[_HEADER.size : at + 5])


def write_answer(question: Question, addresses: dict[int, str], code: int = NOERROR) -> bytes:
    """Answer with the address of the asked kind, or with no record where there is none."""
    address = addresses.get(question.kind) if code == NOERROR else None
    flags = _RESPONSE_AUTHORITATIVE | question.flags & _RECURSION_DESIRED | code
    answer = _HEADER.pack(question.id, flags, 1, 1 if address else 0, 0, 0) + question.wire
    if address:
        data = ipaddress.ip_address(address).packed
        answer += _POINTER_TO_QUESTION + struct.pack(">HHIH", question.kind, _INTERNET, _TTL, len(data)) + data
    return answer


def write_query(number: int, name: str, kind: int) -> bytes:
    """Write a query, for the lab's own tests and floods."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.rstrip(".").split("."))
    return _HEADER.pack(number, _RECURSION_DESIRED, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", kind, _INTERNET)
