"""How the agents are scraped: the PodMonitor and the plain configuration give their series the very same labels."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.app import DETECTOR_CLASSES
from tests.delivery.monitoring.promtool import DEPLOY, promtool

FOLDER = DEPLOY / "prometheus"
DISCOVERED = {
    "__meta_kubernetes_namespace": "nodediag",
    "__meta_kubernetes_pod_name": "nodediag-x7k2p",
    "__meta_kubernetes_pod_phase": "Running",
    "__meta_kubernetes_pod_node_name": "worker-3",
    "__meta_kubernetes_pod_container_name": "nodediag",
    "__meta_kubernetes_pod_container_port_name": "metrics",
    "__meta_kubernetes_pod_label_app_kubernetes_io_name": "nodediag",
}
"""What Prometheus knows of a pod of the agent before relabelling."""
BY_THE_OPERATOR = {"namespace": "nodediag", "container": "nodediag", "pod": "nodediag-x7k2p", "endpoint": "metrics"}
"""The labels the operator gives every target of a PodMonitor."""
WANTED = {"job": "nodediag", "instance": "10.0.0.7:9797", "node": "worker-3"}


@pytest.fixture(scope="module")
def podmonitor() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / "podmonitor.yaml").read_text())
    return loaded


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    (loaded,) = yaml.safe_load((FOLDER / "scrape-config.yaml").read_text())
    assert isinstance(loaded, dict)
    return loaded


def labels_of(relabelling: list[dict[str, Any]], given: dict[str, str], folder: Path) -> list[dict[str, str]]:
    """Let promtool relabel a discovered pod; return the labels of the targets that come of it."""
    job = {
        "job_name": "nodediag",
        "static_configs": [{"targets": ["10.0.0.7:9797"], "labels": {**DISCOVERED, **given}}],
        "relabel_configs": relabelling,
    }
    file = folder / "prometheus.json"  # which is YAML, too
    file.write_text(json.dumps({"scrape_configs": [job]}))
    done = promtool("check", "service-discovery", "--timeout=1s", str(file), "nodediag")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return [{k: v for k, v in target["labels"].items() if not k.startswith("__")} for target in found]


def snake(rule: dict[str, Any]) -> dict[str, Any]:
    names = {"sourceLabels": "source_labels", "targetLabel": "target_label"}
    return {names.get(key, key): value for key, value in rule.items()}


def test_prometheus_takes_the_plain_configuration(plain: dict[str, Any], tmp_path: Path) -> None:
    # Debian's Prometheus knows no kubernetes_sd_configs at all; of this part only the form can be looked at.
    (discovery,) = plain["kubernetes_sd_configs"]
    assert (discovery["role"], discovery["namespaces"]) == ("pod", {"names": ["nodediag"]})
    assert discovery["selectors"] == [{"role": "pod", "label": "app.kubernetes.io/name=nodediag"}]
    understood = {key: value for key, value in plain.items() if key != "kubernetes_sd_configs"}
    file = tmp_path / "prometheus.json"
    file.write_text(json.dumps({"scrape_configs": [understood]}))
    done = promtool("check", "config", "--lint-fatal", str(file))
    assert done.returncode == 0, done.stdout + done.stderr


def test_plain_series_carry_job_instance_and_node_alone(plain: dict[str, Any], tmp_path: Path) -> None:
    assert labels_of(plain["relabel_configs"], {}, tmp_path) == [WANTED]


@pytest.mark.parametrize(
    "other", [{"container_port_name": "grpc"}, {"phase": "Failed"}], ids=["another port", "evicted"]
)
def test_what_does_not_serve_metrics_is_not_scraped(
    plain: dict[str, Any], other: dict[str, str], tmp_path: Path
) -> None:
    given = {f"__meta_kubernetes_pod_{name}": value for name, value in other.items()}
    assert labels_of(plain["relabel_configs"], given, tmp_path) in ([], [{}])


def test_the_operators_series_carry_the_same_labels(podmonitor: dict[str, Any], tmp_path: Path) -> None:
    (endpoint,) = podmonitor["spec"]["podMetricsEndpoints"]
    job = {
        "source_labels": [f"__meta_kubernetes_pod_label_{podmonitor['spec']['jobLabel']}".translate({46: 95, 47: 95})],
        "target_label": "job",
    }  # what the operator makes of jobLabel
    relabelling = [job, *map(snake, endpoint["relabelings"])]
    assert labels_of(relabelling, BY_THE_OPERATOR, tmp_path) == [WANTED]


def test_both_scrape_equally_often_and_take_equally_much(podmonitor: dict[str, Any], plain: dict[str, Any]) -> None:
    (endpoint,) = podmonitor["spec"]["podMetricsEndpoints"]
    theirs = (endpoint["interval"], endpoint["scrapeTimeout"], podmonitor["spec"]["sampleLimit"], endpoint["path"])
    assert theirs == (plain["scrape_interval"], plain["scrape_timeout"], plain["sample_limit"], "/metrics")
    assert theirs[:3] == ("30s", "10s", 1000)


def test_no_label_of_a_target_pushes_one_of_the_agents_own_aside() -> None:
    own = {label for detector in DETECTOR_CLASSES for metric in detector.metrics for label in metric.labels}
    assert own & set(WANTED) == set()
    assert own & set(BY_THE_OPERATOR)  # hence the labeldrop


def test_the_operators_rules_are_the_plain_ones() -> None:
    theirs = yaml.safe_load((FOLDER / "prometheusrule.yaml").read_text())
    assert (theirs["apiVersion"], theirs["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert theirs["spec"] == yaml.safe_load((FOLDER / "rules.yaml").read_text())


def test_what_is_scraped_is_what_the_manifest_runs(podmonitor: dict[str, Any], plain: dict[str, Any]) -> None:
    documents = list(yaml.safe_load_all((DEPLOY / "daemonset.yaml").read_text()))
    (daemonset,) = (each for each in documents if each["kind"] == "DaemonSet")
    template, namespace = daemonset["spec"]["template"], daemonset["metadata"]["namespace"]
    ports = [port["name"] for container in template["spec"]["containers"] for port in container["ports"]]
    labels = template["metadata"]["labels"].items()
    assert podmonitor["spec"]["selector"]["matchLabels"].items() <= labels
    assert [each["port"] for each in podmonitor["spec"]["podMetricsEndpoints"]] == ["metrics"]
    assert "metrics" in ports
    assert podmonitor["metadata"]["namespace"] == namespace
    assert podmonitor["spec"]["namespaceSelector"]["matchNames"] == [namespace]
    (discovery,) = plain["kubernetes_sd_configs"]
    assert discovery["namespaces"]["names"] == [namespace]
    (selector,) = discovery["selectors"]
    assert tuple(selector["label"].split("=")) in labels
