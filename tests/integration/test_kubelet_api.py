"""The agent as a process on a node of files whose kubelet speaks TLS: told over /metrics and in the report."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.agent_process import AgentProcess
from tests.golden.node import CART, WEB, Node
from tests.golden.test_pod_identity import LIST
from tests.lab.certificates import CERT, Projected, self_signed
from tests.lab.kubelet_api import Conversation, KubeletApi
from tests.lab.kubelet_standin import Reply
from tests.lab.waiting import wait_until

SECONDS = 40.0
OFF = ("conntrack_dns", "kubelet_healthz", "container_runtime")

pytestmark = pytest.mark.timeout(90)


def healthy(talk: Conversation) -> None:
    """Answer as a kubelet that keeps up."""
    body = LIST if talk.path == "/pods" else b"kubelet_pleg_last_seen_seconds %.0f\n" % (time.time() - 1)
    talk.send(Reply(body).wire())


def hanging(talk: Conversation) -> None:
    talk.over.wait()


def report(agent: AgentProcess) -> dict[str, Any]:
    words = [sys.executable, "-m", "agent", "report", "--endpoint", agent.endpoint, "--format", "json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False)
    read: dict[str, Any] = json.loads(done.stdout)
    return read


def accused(agent: AgentProcess) -> list[dict[str, Any]]:
    """The pods of all findings, once there are two."""
    pods = [each["pod"] for condition in report(agent)["conditions"] for each in condition["findings"]]
    return pods if len(pods) == 2 else []


Start = Callable[..., tuple[AgentProcess, KubeletApi]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start an agent on a node with a hung shim and a parent that does not reap; its kubelet is pinned."""
    with ExitStack() as stack:

        def start(answer: Callable[[Conversation], None]) -> tuple[AgentProcess, KubeletApi]:
            node = Node(tmp_path, stack, frozenset({WEB.name.name}))
            node.add_zombies(CART.inits[list(CART.inits)[1]], 40)
            own = self_signed("worker-3")
            pinned = Projected(tmp_path / "pki")
            pinned.swap(own, b"")
            kubelet = stack.enter_context(KubeletApi(tmp_path / "server", own, answer))
            (tmp_path / "token").write_text("a-token")
            here = node.settings().settings
            settings = {
                "host": {"proc": here.host.proc, "sys": here.host.sys},
                "containerd": {"state_dir": here.containerd.state_dir},
                "kubelet": {
                    "api_url": kubelet.url,
                    "token_file": str(tmp_path / "token"),
                    "ca_file": str(pinned.folder / CERT),
                    "pod_labels": ["app"],
                },
                "detectors": {name: {"enabled": False} for name in OFF},
            }
            return stack.enter_context(AgentProcess(tmp_path / "agent", settings)), kubelet

        yield start


def bare(pod: dict[str, Any]) -> tuple[str, ...]:
    return pod["namespace"], pod["name"], pod["uid"], pod["container"]


NAMED = [(WEB.name.namespace, WEB.name.name, WEB.name.uid, ""), ("shop", CART.name.name, CART.name.uid, "cart")]


def test_findings_are_named_and_soon_tell_whose_they_are_in_full(start: Start) -> None:
    agent, kubelet = start(healthy)
    wait_until(lambda: all("owner" in pod for pod in accused(agent) or [{}]), SECONDS, "the kubelet has told")
    pods = accused(agent)
    assert [bare(pod) for pod in pods] == NAMED
    assert pods[1]["owner"] == "ReplicaSet/cart-7d9f4c"
    assert (pods[1]["qosClass"], pods[1]["nodeCritical"]) == ("Burstable", True)
    assert pods[1]["labels"] == {"app": "ReplicaSet/cart-7d9f4c"}
    assert agent.statuses()["PLEGUnhealthy"] == "False"
    assert agent.metric("nodediag_kubelet_api_requests_total", path="/pods", code="200") == 1
    assert agent.metric("nodediag_kubelet_api_requests_total", path="/metrics", code="200") == 1
    assert agent.metric("nodediag_kubelet_api_apiserver_requests_estimate_total", kind="token_review") == 1
    assert len(kubelet.requests) == 2


def test_findings_are_named_in_time_while_the_kubelets_api_hangs(start: Start) -> None:
    agent, kubelet = start(hanging)
    pods = wait_until(lambda: accused(agent), SECONDS, "both faults are found")
    assert [bare(pod) for pod in pods] == NAMED
    assert not any("owner" in pod for pod in pods)
    wait_until(lambda: agent.statuses()["PLEGUnhealthy"] == "Unknown", SECONDS, "PLEG is not known")
    assert agent.get("/livez")[0] == 200
    assert agent.stop() < 2.0
    assert kubelet.connections == 2, "one for each question"
