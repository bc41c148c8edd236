"""deploy/daemonset.yaml as it is: admitted, ready, sees everything, and asks the API server for nothing."""

from collections.abc import Iterator

import pytest

from agent.model import DetectorState, Status
from tests.cluster.deployed import NAMESPACE, ROOT, Agent
from tests.lab.kubernetes.audit import requests_of
from tests.lab.kubernetes.cluster import Cluster


@pytest.fixture(scope="module")
def agent(cluster: Cluster) -> Iterator[Agent]:
    manifest = str(ROOT / "deploy" / "daemonset.yaml")
    cluster.kubectl.run("apply", "--validate=false", "--filename", manifest)
    yield Agent(cluster.kubectl)
    cluster.kubectl.run("delete", "--filename", manifest)


def test_it_is_admitted_guaranteed_and_ready(agent: Agent) -> None:
    print(f"rolled out after {agent.await_rollout():.1f} s")
    pod = agent.pod()
    assert pod["status"]["qosClass"] == "Guaranteed"
    assert {each["type"] for each in pod["status"]["conditions"] if each["status"] == "True"} >= {"Ready"}


def test_every_condition_is_seen_from_inside(agent: Agent) -> None:
    agent.await_rollout()
    agent.await_well()
    report = agent.report()
    assert {each.status for each in report.conditions} == {Status.FALSE}
    states = {each.name: each.state for each in report.detectors}
    assert states.pop("kubelet_pleg") is DetectorState.NOT_APPLICABLE, "the kubelet's API is an overlay's"
    assert set(states.values()) == {DetectorState.OK}


def test_a_person_sees_the_same_with_kubectl_exec(agent: Agent) -> None:
    agent.await_rollout()
    agent.await_well()
    code, text = agent.exec("nodediag", "report")
    assert (code, "Nothing wrong was seen." in text) == (0, True), text


def test_the_api_server_has_had_no_request_of_it(agent: Agent, cluster: Cluster) -> None:
    agent.await_rollout()
    agent.await_well()
    assert requests_of(cluster.control_plane.audit_log, f"system:serviceaccount:{NAMESPACE}:nodediag") == []
