"""The kubelet's list of pods in pieces of any size, whatever it holds, and what it costs."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.host.kubelet_calls import PODS
from agent.host.pod_list import (
    MAX_BYTES,
    MAX_CONTAINERS,
    MAX_HEAD_BYTES,
    MAX_POD_BYTES,
    MAX_PODS,
    MAX_SECONDS,
    ListedPod,
    PodListError,
    PodListReader,
    read_pods,
)
from agent.model import PodRef

RECORDED = (Path(__file__).parents[2] / "fixtures" / "kubelet" / "tls-pods.body").read_bytes()
PIECE = 16 * 1024
UID = "0b7c6f4e-52b1-4d0c-9a3e-6f1d2c8b7a90"
MEBIBYTE = 1 << 20


def pod(name: str = "cart-1", *, uid: str = UID, **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"metadata": {"name": name, "namespace": "shop", "uid": uid}, "spec": {}, "status": {}}
    for table, words in more.items():
        made[table] = {**made[table], **words}
    return made


def listed(*pods: Any) -> bytes:
    """A PodList as Go writes it."""
    text = {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": list(pods)}
    return json.dumps(text, separators=(",", ":")).encode()


def read(body: bytes, *labels: str, piece: int = PIECE) -> list[ListedPod]:
    reader = PodListReader(labels)
    pods = [each for start in range(0, len(body), piece) for each in reader.feed(body[start : start + piece])]
    assert reader.ended
    return pods


def only(body: bytes, *labels: str) -> ListedPod:
    (found,) = read(body, *labels)
    return found


def cost(body: bytes) -> int:
    """Bytes that reading takes at its peak, beside the body itself."""
    reader = PodListReader(())
    tracemalloc.start()
    try:
        for start in range(0, len(body), PIECE):
            for _ in reader.feed(body[start : start + PIECE]):
                pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_recorded_list_is_read() -> None:
    pods = read(RECORDED, "app", "team")
    assert [each.ref.name for each in pods] == [
        "crashloop-peers-node",
        "multi-peers-node",
        "slow-probe-peers-node",
        "web-peers-node",
        "zombie-maker-peers-node",
    ]
    assert pods[0].ref == PodRef(
        "default",
        "crashloop-peers-node",
        "8c20511ca361daa5688ec54cabfced86",
        qos_class="BestEffort",
        node_critical=False,
        labels=(("app", "crashloop"),),
    )
    assert pods[0].containers == (
        ("333f195464e726b30b99456a91ddf39f02b501460757d66c84e4b5fb595bcd8f", "app"),
        ("91c0e6f5318c93c8c44f6f7df59848ccb44122d230dcc99a2585fb5b9dfb75db", "app"),
    ), "the one that ended before is still known"
    assert [name for _, name in pods[1].containers] == ["a", "b", "init"]


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 61, 4096])
def test_the_size_of_the_pieces_does_not_matter(piece: int) -> None:
    assert read(RECORDED, "app", piece=piece) == read(RECORDED, "app", piece=len(RECORDED))


TEXTS = st.text(st.sampled_from('a"\\{}[],:\n\u2028\U0001f600'), max_size=12)


@given(st.lists(TEXTS, max_size=4), st.integers(1, 40))
def test_brackets_and_quotes_in_texts_are_no_structure(texts: list[str], piece: int) -> None:
    pods = [pod(f"p{n}", uid=f"u{n}", metadata={"annotations": {text: text}}) for n, text in enumerate(texts)]
    body = json.dumps({"metadata": {}, "items": pods}, ensure_ascii=False).encode()
    assert [each.ref.name for each in read(body, piece=piece)] == [f"p{n}" for n in range(len(texts))]


def test_owner_priority_and_labels() -> None:
    owners = [
        {"kind": "Widget", "name": "w", "uid": "1", "apiVersion": "example.org/v1"},
        {"kind": "ReplicaSet", "name": "cart-7d9f", "uid": "2", "controller": True, "apiVersion": "apps/v1"},
    ]
    found = only(
        listed(
            pod(
                metadata={"ownerReferences": owners, "labels": {"team": "pay", "app": "cart", "rest": "x"}},
                spec={"priorityClassName": "system-node-critical"},
                status={"qosClass": "Guaranteed"},
            )
        ),
        "team",
        "app",
        "absent",
    ).ref
    assert (found.owner, found.qos_class, found.node_critical) == ("ReplicaSet/cart-7d9f", "Guaranteed", True)
    assert found.labels == (("app", "cart"), ("team", "pay"))


@pytest.mark.parametrize(
    "odd",
    [
        {"metadata": []},
        {"metadata": {"name": 5, "uid": UID}},
        {"metadata": {"name": "x" * 254, "uid": UID}},
        {"metadata": {"name": "x"}},
        {},
        7,
        "text",
        ["metadata"],
        None,
    ],
)
def test_what_is_no_pod_is_passed_over(odd: Any) -> None:
    assert only(listed(odd, pod("next"), odd)).ref.name == "next"


def test_odd_words_in_a_pod_are_left_out() -> None:
    statuses = [
        {"name": "a", "containerID": "containerd://../../etc"},
        {"name": "b", "containerID": 5},
        {"containerID": "containerd://abc"},
        {"name": "c", "containerID": "containerd://def", "lastState": "odd"},
        "odd",
    ]
    found = only(
        listed(
            pod(
                metadata={"labels": {"app": 5}, "ownerReferences": {"controller": True}},
                status={"qosClass": "Best", "containerStatuses": statuses, "initContainerStatuses": 3},
            )
        ),
        "app",
    )
    assert found.ref == PodRef("shop", "cart-1", UID, node_critical=False)
    assert found.containers == (("def", "c"),)


def test_no_pod_has_more_containers_than_are_kept() -> None:
    statuses = [{"name": "a", "containerID": f"containerd://{n}"} for n in range(3 * MAX_CONTAINERS)]
    assert len(only(listed(pod(status={"containerStatuses": statuses}))).containers) == MAX_CONTAINERS


@pytest.mark.parametrize("body", [b'{"kind":"PodList","metadata":{},"items":null}\n', listed()])
def test_a_node_without_pods(body: bytes) -> None:
    assert read(body) == []


@pytest.mark.parametrize(
    "body",
    [
        b"\x16\x03\x01 not JSON",
        b"<html>",
        b"[1, 2]",
        b'{"kind":"Status","message":"' + b"x" * MAX_HEAD_BYTES,
        b'{"items":[{"metadata":{"name" 5}}]}',
        b'{"items":[{"metadata":}]}',
        b'{"items":[{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}]}",
        b'{"items":[{"a":' + b"9" * 5000 + b"}]}",
        b'{"items":[{]}',
    ],
)
def test_what_is_no_list_of_pods_is_told(body: bytes) -> None:
    with pytest.raises(PodListError, match=r"no list of pods|no JSON"):
        read(body)


def test_a_pod_that_is_too_large_is_passed_over_and_counted() -> None:
    reader = PodListReader(())
    body = listed(pod("large", metadata={"annotations": {"a": "x" * MAX_POD_BYTES}}), pod("next"))
    pods = [each for start in range(0, len(body), PIECE) for each in reader.feed(body[start : start + PIECE])]
    assert [each.ref.name for each in pods] == ["next"]
    assert reader.too_large == 1


class TestCost:
    def test_a_list_of_twenty_megabytes_is_never_held(self) -> None:
        large = {"containers": [{"name": "a", "args": ["x" * 40_000]}]}
        body = listed(*(pod(f"p{n}", uid=f"u{n}", spec=large) for n in range(500)))
        assert len(body) > 19 * MEBIBYTE
        assert cost(body) < MEBIBYTE

    @pytest.mark.parametrize(
        "inner",
        [
            b"[" + b'{"name":"A"},' * 19_000 + b"{}]",
            b"[" + b'{"name":"A"},' * 36_000 + b"{}]",
            b"[" + b"[]," * 60_000 + b"[]]",
            b"[" + b"[]," * 19_000 + b"[]]",
            b"[" + b'"a",' * 19_000 + b"[]]",
            b'"' + b"\\u00e9" * 80_000 + b'"',
        ],
        ids=["names", "too many names", "too many lists", "lists", "words", "text"],
    )
    def test_a_pod_made_to_cost_much_costs_little(self, inner: bytes) -> None:
        metadata = b'"metadata":{"name":"a","uid":"b"}'
        body = b'{"items":[{' + metadata + b',"spec":{"env":' + inner + b"}}]}"
        assert cost(body) < 3 * MEBIBYTE

    def test_a_text_without_end_is_not_held(self) -> None:
        assert cost(b'{"items":[{"a":"' + b"x" * (8 * MEBIBYTE)) < 3 * MAX_POD_BYTES


class Kubelet:
    """Hands over a body as a KubeletApi does, and keeps how it was asked."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.asked: list[tuple[str, float, int]] = []
        self.taken = 0

    def get(self, path: str, take: Callable[[bytes], bool], *, seconds: float, max_bytes: int) -> None:
        self.asked.append((path, seconds, max_bytes))
        for start in range(0, len(self.body), PIECE):
            self.taken += 1
            if not take(self.body[start : start + PIECE]):
                return


class TestReading:
    def test_pods_are_asked_for_within_bounds_and_no_longer_than_there_are_any(self) -> None:
        kubelet = Kubelet(RECORDED + b" " * 10 * PIECE)
        pods: list[ListedPod] = []
        read_pods(kubelet, (), pods.append)
        assert len(pods) == 5
        assert kubelet.asked == [(PODS, MAX_SECONDS, MAX_BYTES)]
        assert (MAX_BYTES, MAX_PODS) == (20 << 20, 500)
        assert kubelet.taken == 1

    def test_of_more_pods_than_there_may_be_the_first_are_read(self) -> None:
        pods: list[ListedPod] = []
        with pytest.raises(PodListError, match="lists more than 500 pods"):
            read_pods(Kubelet(listed(*(pod(f"p{n}", uid=f"u{n}") for n in range(600)))), (), pods.append)
        assert len(pods) == MAX_PODS

    def test_a_list_that_ends_in_the_middle_is_told_and_what_is_whole_is_read(self) -> None:
        pods: list[ListedPod] = []
        with pytest.raises(PodListError, match="ends in the middle"):
            read_pods(Kubelet(RECORDED[:-3000]), (), pods.append)
        assert len(pods) == 3

    def test_a_pod_too_large_is_told(self) -> None:
        large = pod(metadata={"annotations": {"a": "x" * MAX_POD_BYTES}})
        with pytest.raises(PodListError, match="1 of its pods have more than 512 KiB, or 20000 values"):
            read_pods(Kubelet(listed(large)), (), lambda _: None)
