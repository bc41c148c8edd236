"""Each overlay on the cluster: it sees everything, and requests of the API server exactly what docs/cost.md names."""

import re
import urllib.request

import pytest

from tests.cluster.fleet import OVERLAYS, PORTS_APART, Fleet
from tests.lab.kubernetes.audit import requests_of, reviews_of
from tests.lab.kubernetes.cluster import Cluster
from tests.lab.waiting import wait_until
from tests.lab.whole_node import ADDRESS

KUBELET_API = f"http://{ADDRESS}:{9797 + PORTS_APART * (1 + OVERLAYS.index('kubelet-api'))}"


def user_of(overlay: str) -> str:
    """Return the service account of an overlay's copy."""
    return f"system:serviceaccount:nodediag-{overlay}:nodediag"


def estimated() -> dict[str, int]:
    """Return how many reviews the agent estimates to have caused."""
    with urllib.request.urlopen(f"{KUBELET_API}/metrics", timeout=10) as reply:
        text = reply.read().decode()
    found = re.findall(r'nodediag_kubelet_api_apiserver_requests_estimate_total\{kind="(\w+)"\} ([0-9.]+)', text)
    return {kind: int(float(count)) for kind, count in found}


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_condition_of_an_overlay_is_seen(fleet: Fleet, name: str) -> None:
    fleet.agents[name].await_well()
    kinds = {each.type for each in fleet.agents[name].report().conditions}
    assert ("PLEGUnhealthy" in kinds) == (name == "kubelet-api")


@pytest.mark.parametrize("name", ["kubelet-api", "remediation"])
def test_an_overlay_that_needs_no_api_server_requests_nothing(fleet: Fleet, cluster: Cluster, name: str) -> None:
    assert requests_of(cluster.control_plane.audit_log, user_of(name)) == []


def test_kubelet_api_causes_exactly_the_reviews_that_it_estimates(fleet: Fleet, cluster: Cluster) -> None:
    log, user = cluster.control_plane.audit_log, user_of("kubelet-api")
    wait_until(lambda: estimated().get("subject_access_review"), 60, "the kubelet's API was read")
    wait_until(lambda: estimated() == reviews_of(log, user), 30, "the reviews are those estimated")
    print(f"reviews that the kubelet requested for us: {estimated()}")


def test_node_conditions_patches_its_node_and_writes_events_alone(fleet: Fleet, cluster: Cluster) -> None:
    log, user = cluster.control_plane.audit_log, user_of("node-conditions")
    wait_until(lambda: requests_of(log, user), 60, "the node's status is patched")
    kinds = {
        (each["verb"], each["objectRef"]["resource"], each["objectRef"].get("subresource", ""))
        for each in requests_of(log, user)
    }
    assert kinds <= {("patch", "nodes", "status"), ("create", "events", ""), ("patch", "events", "")}
