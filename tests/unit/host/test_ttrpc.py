"""Frames of ttrpc: recorded ones, broken ones, and any way of cutting them."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.host.pb import containerd_task_pb2, ttrpc_pb2
from agent.host.ttrpc import (
    HEADER,
    MAX_PAYLOAD_BYTES,
    TYPE_REQUEST,
    Decoder,
    MalformedError,
    Reply,
    request,
)
from tests.unit.builders import raw_frame, reply_frame, split_at

RECORDED = json.loads((Path(__file__).parents[2] / "fixtures/ttrpc-2.4.json").read_text())
"""What shims of containerd 2.4 answered: Connect and State of task v3, task v2, and an unknown container."""
CONNECT, STATE, UNIMPLEMENTED, UNKNOWN_CONTAINER = (bytes.fromhex(payload) for payload in RECORDED.values())
STREAM = b"".join(
    raw_frame(stream, body) for stream, body in ((1, CONNECT), (3, STATE), (5, UNIMPLEMENTED), (7, UNKNOWN_CONTAINER))
)


def decode(*parts: bytes) -> list[Reply]:
    decoder = Decoder()
    return [reply for part in parts for reply in decoder.feed(part)]


def test_recorded_answers_are_understood() -> None:
    connect, state, unimplemented, unknown = decode(STREAM)
    assert (connect.stream, connect.code) == (1, 0)
    assert containerd_task_pb2.ConnectResponse.FromString(connect.payload).shim_pid == 20966
    answer = containerd_task_pb2.StateResponse.FromString(state.payload)
    assert (answer.id[:12], answer.pid, answer.status) == ("c71ac615cf06", 21004, 2)
    assert unimplemented == Reply(5, 12, "service containerd.task.v2.Task", b"")
    assert (unknown.code, unknown.message) == (5, "container not created: not found")


def test_a_request_says_who_is_asked_and_for_how_long() -> None:
    frame = request(3, "containerd.task.v2.Task", "Connect", b"payload", 2.5)
    length, stream, kind, flags = HEADER.unpack_from(frame)
    assert (length, stream, kind, flags) == (len(frame) - HEADER.size, 3, TYPE_REQUEST, 0)
    assert ttrpc_pb2.Request.FromString(frame[HEADER.size :]) == ttrpc_pb2.Request(
        service="containerd.task.v2.Task", method="Connect", payload=b"payload", timeout_nano=2_500_000_000
    )


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_however_the_stream_is_cut_the_replies_are_the_same(cuts: list[int]) -> None:
    assert decode(*split_at(STREAM, cuts)) == decode(STREAM)


@given(st.binary(max_size=300))
def test_garbage_is_malformed_or_waits_for_more_and_nothing_else(data: bytes) -> None:
    try:
        replies = decode(data)
    except MalformedError:
        return
    assert all(isinstance(reply, Reply) for reply in replies)


@pytest.mark.parametrize("length", range(0, len(STREAM), 25))
def test_a_truncated_stream_gives_the_replies_that_are_whole(length: int) -> None:
    replies = decode(STREAM[:length])
    assert replies == decode(STREAM)[: len(replies)]
    assert len(replies) < 4


def test_an_oversized_frame_is_refused_at_its_header() -> None:
    with pytest.raises(MalformedError, match="claims 65537 bytes"):
        decode(raw_frame(1, b"", length=MAX_PAYLOAD_BYTES + 1))
    with pytest.raises(MalformedError, match="claims 4294967295 bytes"):
        decode(raw_frame(1, b"", length=0xFFFFFFFF))


def test_a_frame_as_large_as_allowed_is_taken() -> None:
    body = ttrpc_pb2.Response(payload=b"x" * (MAX_PAYLOAD_BYTES - 4)).SerializeToString()
    assert len(body) == MAX_PAYLOAD_BYTES
    assert len(decode(raw_frame(1, body))) == 1


@pytest.mark.parametrize("kind", [0, TYPE_REQUEST, 3, 255])
def test_a_frame_that_is_no_response_is_refused_and_not_read_for_ever(kind: int) -> None:
    with pytest.raises(MalformedError, match=f"type {kind}"):
        decode(raw_frame(1, CONNECT, kind))


@pytest.mark.parametrize("body", [b"\xff" * 20, b"\x0a\x7f", b"\x0a\x04\x12\x02\xff\xfe"])
def test_a_payload_that_is_no_response_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedError, match="no ttrpc response"):
        decode(raw_frame(1, body))


def test_an_empty_frame_is_a_success_without_payload() -> None:
    assert decode(raw_frame(9, b"")) == [Reply(9, 0, "", b"")]


def test_a_long_error_text_is_cut() -> None:
    (reply,) = decode(reply_frame(1, code=2, message="x" * 9000))
    assert len(reply.message) == 500
