"""deploy/daemonset.yaml as it is: admitted, ready, sees everything, and requests nothing of the API server."""

from agent.model import DetectorState, Status
from tests.cluster.deployed import NAMESPACE, Agent
from tests.lab.kubernetes.audit import requests_of
from tests.lab.kubernetes.cluster import Cluster


def test_it_is_admitted_guaranteed_and_ready(shipped: Agent) -> None:
    pod = shipped.pod()
    assert pod["status"]["qosClass"] == "Guaranteed"
    assert {each["type"] for each in pod["status"]["conditions"] if each["status"] == "True"} >= {"Ready"}


def test_every_condition_is_seen_from_inside(shipped: Agent) -> None:
    shipped.await_well()
    report = shipped.report()
    assert {each.status for each in report.conditions} == {Status.FALSE}
    assert report.deployment == (), "it lacks no capability and no mount"
    states = {each.name: each.state for each in report.detectors}
    assert states.pop("kubelet_pleg") is DetectorState.NOT_APPLICABLE, "the kubelet's API is an overlay's"
    assert set(states.values()) == {DetectorState.OK}


def test_a_person_sees_the_same_with_kubectl_exec(shipped: Agent) -> None:
    shipped.await_well()
    code, text = shipped.exec("nodediag", "report")
    assert (code, "Nothing wrong was seen." in text) == (0, True), text


def test_the_api_server_has_had_no_request_of_it(shipped: Agent, cluster: Cluster) -> None:
    shipped.await_well()
    assert requests_of(cluster.control_plane.audit_log, f"system:serviceaccount:{NAMESPACE}:nodediag") == []
