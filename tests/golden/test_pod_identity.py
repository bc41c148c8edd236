"""The same finding names the same pod, whatever becomes of the kubelet's API, and waits for none of it.

Two agents look at one node side by side: one that never asks the kubelet, and one that does.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from agent import app
from agent.exporters.metrics import Metrics
from agent.model import ActiveFinding, PodRef
from agent.pipeline.feed import Feed
from agent.settings import Loaded
from tests.golden.node import BETWEEN_LOOKS_SECONDS, CART, WEB, Node, PodOnDisk
from tests.lab.certificates import Authority
from tests.lab.kubelet_api import Answer, KubeletApi, closing, replying, sending
from tests.lab.kubelet_standin import Reply
from tests.lab.waiting import wait_until

WATCHES = ("containerd_shim", "defunct_processes")
MEBIBYTE = 1 << 20

pytestmark = pytest.mark.timeout(30)


def in_kubelet(pod: PodOnDisk, owner: str) -> dict[str, Any]:
    """A pod as the kubelet lists it: of its containers all but the sandbox."""
    statuses = [{"name": pod.name.container, "containerID": f"containerd://{name}"} for name in list(pod.inits)[1:]]
    kind, _, name = owner.partition("/")
    return {
        "metadata": {
            "name": pod.name.name,
            "namespace": pod.name.namespace,
            "uid": pod.name.uid,
            "labels": {"app": owner, "rest": "x"},
            "ownerReferences": [{"kind": kind, "name": name, "uid": "1", "controller": True}],
        },
        "spec": {"priorityClassName": "system-node-critical"},
        "status": {"qosClass": "Burstable", "containerStatuses": statuses},
    }


PODS = [in_kubelet(CART, "ReplicaSet/cart-7d9f4c"), in_kubelet(WEB, "StatefulSet/web")]


def told(pod: PodRef, owner: str) -> PodRef:
    """What is known of a pod once the kubelet has told it."""
    return replace(pod, owner=owner, qos_class="Burstable", node_critical=True, labels=(("app", owner),))


def listed(pods: list[Any]) -> bytes:
    return json.dumps({"kind": "PodList", "metadata": {}, "items": pods}).encode()


LIST = listed(PODS)
OTHERS = [{**PODS[0], "metadata": {"name": f"other-{n}", "namespace": "x", "uid": f"u{n}"}} for n in range(600)]
HEALTHY = replying(pods=Reply(LIST))


@dataclass
class Pair:
    """A node with a hung shim and a parent that does not reap, and the two agents that look at it."""

    node: Node
    without: app.Agent
    asking: app.Agent
    kubelet: KubeletApi

    def look(self) -> None:
        for agent in (self.without, self.asking):
            for runner in agent.runners:
                runner.look()
                if runner.unsettled:
                    runner.look()

    def accuse(self) -> None:
        """Look until the faults have lasted long enough."""
        self.look()
        self.node.clock.advance(BETWEEN_LOOKS_SECONDS)
        self.look()

    def pods(self) -> list[PodRef | None]:
        """What the asking agent says now of whose the findings are; looks once."""
        self.look()
        return [active.finding.pod for active in findings(self.asking)]


def findings(agent: app.Agent) -> list[ActiveFinding]:
    return [active for condition in agent.board.report().conditions for active in condition.findings]


def as_bundles_tell(active: ActiveFinding) -> ActiveFinding:
    """The finding without what only the kubelet's API tells."""
    pod = active.finding.pod
    assert pod
    bare = PodRef(pod.namespace, pod.name, pod.uid, pod.container)
    return replace(active, finding=replace(active.finding, pod=bare))


MakePair = Callable[..., Pair]


@pytest.fixture
def make_pair(tmp_path: Path) -> Iterator[MakePair]:
    with ExitStack() as stack:

        def make(answer: Answer = HEALTHY, *, shakes_hands: bool = True) -> Pair:
            node = Node(tmp_path, stack, frozenset({WEB.name.name}))
            node.add_zombies(CART.inits[list(CART.inits)[1]], 40)
            authority = Authority("the cluster's")
            kubelet = stack.enter_context(KubeletApi(tmp_path / "server", authority.issue("127.0.0.1"), answer))
            kubelet.shakes_hands = shakes_hands
            token, trust = tmp_path / "token", tmp_path / "ca.crt"
            token.write_text("a-token")
            trust.write_bytes(authority.pem)
            loaded = node.settings()
            settings = loaded.settings
            api = replace(
                settings.kubelet,
                api_url=kubelet.url,
                token_file=str(token),
                ca_file=str(trust),
                pod_labels=("app",),
            )
            asking = Loaded(replace(settings, kubelet=api), loaded.explicit)
            made = [app.build(each, node.clock, WATCHES) for each in (loaded, asking)]
            return Pair(node, made[0], made[1], kubelet)

        yield make


def test_a_later_look_shows_more_and_it_is_the_same_finding(make_pair: MakePair) -> None:
    pair = make_pair()
    pair.accuse()
    wait_until(lambda: all(pod and pod.owner for pod in pair.pods()), 10, "the kubelet has told")
    hung, parent = findings(pair.asking)
    assert hung.finding.pod == told(replace(WEB.name, container=""), "StatefulSet/web"), "a shim is the whole pod's"
    assert parent.finding.pod == told(CART.name, "ReplicaSet/cart-7d9f4c")
    assert list(map(as_bundles_tell, findings(pair.asking))) == findings(pair.without)
    assert len(pair.kubelet.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(HEALTHY, id="on"),
        pytest.param(replying(Reply(b"Unauthorized", 401, "Unauthorized")), id="401"),
        pytest.param(replying(Reply(b"Forbidden", 403, "Forbidden")), id="403"),
        pytest.param(replying(Reply(b"not JSON")), id="garbage"),
        pytest.param(replying(Reply(listed(OTHERS))), id="600 other pods"),
        pytest.param(sending(b""), id="hangs"),
        pytest.param(
            sending(b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n" + LIST[:-20]), id="hangs in the body"
        ),
        pytest.param(closing(b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n" + LIST), id="promises too much"),
        pytest.param(closing(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + LIST), id="promises too little"),
        pytest.param(
            closing(b"HTTP/1.1 200 OK\r\n\r\n" + LIST[:-2] + b"," + b" " * (21 * MEBIBYTE) + b"]}"), id="21 MiB"
        ),
    ],
)
def test_whatever_becomes_of_the_kubelets_api_the_same_findings_name_the_same_pods(
    make_pair: MakePair, answer: Answer
) -> None:
    pair = make_pair(answer)
    pair.accuse()
    assert [active.finding.pod and active.finding.pod.name for active in findings(pair.without)] == [
        "web-0",
        "cart-7d9f4c",
    ]
    assert list(map(as_bundles_tell, findings(pair.asking))) == findings(pair.without)
    wait_until(lambda: pair.kubelet.requests and pair.kubelet.requests[0], 10, "the kubelet is asked")
    pair.node.clock.advance(BETWEEN_LOOKS_SECONDS)
    pair.look()
    assert list(map(as_bundles_tell, findings(pair.asking))) == findings(pair.without)


def test_nor_does_a_server_that_shakes_no_hands_hold_anybody_up(make_pair: MakePair) -> None:
    pair = make_pair(shakes_hands=False)
    pair.accuse()
    wait_until(lambda: pair.kubelet.connections, 10, "the kubelet is asked")
    for _ in range(5):
        pair.look()
    assert findings(pair.asking) == findings(pair.without)
    assert pair.kubelet.connections == 1, "no second one while the first hangs"


def test_what_becomes_known_later_is_no_news_to_whoever_follows(
    make_pair: MakePair, caplog: pytest.LogCaptureFixture
) -> None:
    pair = make_pair(sending(b""))
    feed = Feed(pair.asking.board)
    pair.accuse()
    before = findings(pair.asking)
    watcher = feed.watch()
    next(iter(watcher))
    wait_until(lambda: pair.kubelet.requests and pair.kubelet.requests[0], 10, "the kubelet is asked")
    pair.kubelet.answer = HEALTHY
    pair.kubelet.end_connections()
    wait_until(lambda: any(each.name == "nodediag.kubelet" for each in caplog.records), 10, "the first reading fails")
    pair.node.clock.advance(31.0)
    wait_until(lambda: all(pod and pod.owner for pod in pair.pods()), 10, "the kubelet has told")
    assert not watcher._queue
    assert [active.since for active in findings(pair.asking)] == [active.since for active in before]


def test_the_counters_are_there_only_where_the_kubelet_may_be_asked(make_pair: MakePair) -> None:
    pair = make_pair()
    pair.accuse()
    wait_until(lambda: all(pod and pod.owner for pod in pair.pods()), 10, "the kubelet has told")
    asking, without = (
        Metrics(each.board, pair.node.clock, each.detectors, "1", meters=each.meters).expose()[0].decode()
        for each in (pair.asking, pair.without)
    )
    assert 'nodediag_kubelet_api_requests_total{code="200",path="/pods"} 1.0' in asking
    assert 'nodediag_kubelet_api_apiserver_requests_estimate_total{kind="token_review"} 1.0' in asking
    assert "kubelet_api" not in without


def test_a_node_without_findings_asks_for_nothing(make_pair: MakePair) -> None:
    pair = make_pair()
    for runner in pair.asking.runners:
        runner.look()  # nothing has lasted long enough yet
    assert not findings(pair.asking)
    assert pair.kubelet.connections == 0
