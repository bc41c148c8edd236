"""A real Prometheus scrapes a real agent: nothing fires on a healthy node, the right alert does for a real fault."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import LabNode
from tests.e2e.prometheus_process import DEPLOY, PrometheusProcess
from tests.lab.kubelet_standin import KubeletMode
from tests.lab.shim_faults import stopped_shim
from tests.lab.waiting import LabTimeoutError, wait_until

NODE = "worker-3"
SCRAPED_SECONDS, FIRES_SECONDS, RESOLVED_SECONDS = 10.0, 25.0, 25.0
ONLY_WITH_A_FAULT = {
    "Hung shims: since the last answer",
    "Zombies by parent, at most 10",
    "Nodes by reason",
    "What is wrong now",
    "What cannot be seen now",
    "Findings now",
    "Findings",
    "Most hung and stuck shims",
    "Most zombies",
    "Most DNS queries lost, per second",
    "Fullest conntrack tables",
    "Remediations since the agent was started",
}
"""Panels that are empty on a node on which nothing is wrong."""

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def prometheus(lab_node: LabNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusProcess]:
    folder: Path = tmp_path_factory.mktemp("prometheus")
    with PrometheusProcess(folder, lab_node.agent.port, NODE) as process:
        wait_until(lambda: process.value(f'up{{node="{NODE}"}}') == 1, SCRAPED_SECONDS, "the agent is scraped")
        yield process


def test_nothing_fires_on_a_healthy_node(lab_node: LabNode, prometheus: PrometheusProcess) -> None:
    wait_until(lab_node.agent.all_well, RESOLVED_SECONDS, "the node is well")
    wait_until(lambda: prometheus.value("nodediag:up:sum") == 1, SCRAPED_SECONDS, "the rules have seen the agent")
    wait_until(prometheus.all_evaluated, SCRAPED_SECONDS, "every rule was evaluated without an error")
    wait_until(lambda: prometheus.alerts() == [], RESOLVED_SECONDS, "no alert is pending or fires")
    assert prometheus.value("nodediag:nodes_wrong:count") == 0


def test_a_panel_shows_something_on_a_healthy_node_unless_it_is_about_faults(prometheus: PrometheusProcess) -> None:
    panels = [panel for panel in by_default() if panel["title"] not in ONLY_WITH_A_FAULT]

    def empty() -> set[str]:
        return {
            panel["title"]
            for panel in panels
            for target in panel.get("targets", [])
            if not prometheus.query(target["expr"].replace("$node", NODE).replace("$__rate_interval", "30s"))
        }

    with suppress(LabTimeoutError):
        wait_until(lambda: not empty(), SCRAPED_SECONDS, "every other panel shows something")
    assert empty() == set()


def by_default() -> list[dict[str, Any]]:
    """Return the panels of what is on by default: neither those of parts to be switched on, nor what needs one."""
    row, found = "", []
    for panel in json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())["panels"]:
        row = panel["title"] if panel["type"] == "row" else row
        if not row.endswith("parts that are switched on") and panel["title"] != "PLEGUnhealthy":
            found.append(panel)
    return found


def test_real_faults_fire_their_alerts_which_are_resolved_after(
    lab_node: LabNode, prometheus: PrometheusProcess
) -> None:
    pod = lab_node.pods[0]
    with stopped_shim(pod):
        lab_node.kubelet.set_mode(KubeletMode.REFUSE)
        try:
            shim = wait_until(
                lambda: prometheus.firing("NodediagContainerdShimHung", "ShimUnresponsive"), FIRES_SECONDS, "it fires"
            )
            kubelet = wait_until(
                lambda: prometheus.firing("NodediagKubeletHealthzFailing", "HealthzRefused"), FIRES_SECONDS, "it fires"
            )
            hung = prometheus.query("node:nodediag_shims_hung:top10")
        finally:
            lab_node.kubelet.set_mode(KubeletMode.HEALTHY)
    assert shim["labels"] == {
        "alertname": "NodediagContainerdShimHung",
        "severity": "critical",
        "type": "ContainerdShimHung",
        "reason": "ShimUnresponsive",
        "node": NODE,
        "instance": f"127.0.0.1:{lab_node.agent.port}",
        "job": "nodediag",
    }
    assert f"Hung: {pod.pod_namespace}/{pod.pod_name} for " in shim["annotations"]["description"]
    assert kubelet["annotations"]["summary"] == f"{NODE}: the kubelet does not answer as it should (HealthzRefused)"
    assert [(series["metric"]["node"], series["value"][1]) for series in hung] == [(NODE, "1")]
    wait_until(lambda: prometheus.alerts() == [], RESOLVED_SECONDS, "every alert is resolved")
