"""The dashboard as it is checked in: a panel for everything, nothing on top of anything, and nothing asked in vain."""

import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, ProcessCollector

from agent.app import DETECTOR_CLASSES, condition_types
from agent.exporters.metrics import OWN, PREFIX
from tests.delivery.docs.markdown import ROOT
from tests.delivery.monitoring.promql import complaint, metrics, selections
from tests.delivery.monitoring.promtool import DEPLOY, RULES, load

DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
TARGET = {"job", "instance", "node"}
SYNTHETIC = {"up": set[str](), "scrape_duration_seconds": set[str](), "scrape_samples_scraped": set[str]()}
"""What Prometheus itself stores with every scrape."""
OF_OTHERS = {
    "ALERTS": {"alertname", "alertstate", "severity"},
    "kube_node_info": {"node", "os_image"},
}


@pytest.fixture(scope="module")
def declared() -> dict[str, set[str]]:
    """Every series there can be, and its labels."""
    found: dict[str, set[str]] = {**SYNTHETIC, **OF_OTHERS}
    for name, kind, labels in reference():
        if kind == "histogram":
            found[f"{name}_bucket"] = labels | {"le"}
            found |= {f"{name}_{part}": labels for part in ("sum", "count")}
        else:
            found[name] = labels
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    found |= {sample.name: set[str]() for family in registry.collect() for sample in family.samples}
    for rule in recorded():
        grouped = re.findall(r"by \(([^)]*)\)", rule["expr"])
        labels = {label for each in grouped for label in each.split(", ")}
        found[rule["record"]] = labels | set(rule.get("labels", {}))
    return found


def reference() -> list[tuple[str, str, set[str]]]:
    """Return name, type and labels of every metric in the reference, which `make lint` holds to the code."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    return [(name, kind, set(re.findall(r"\w+", labels))) for name, kind, labels in rows]


def recorded() -> list[dict[str, Any]]:
    return [rule for group in load(RULES)["groups"] for rule in group["rules"] if "record" in rule]


def exprs() -> list[str]:
    return [target["expr"] for panel in PANELS for target in panel.get("targets", [])]


def filled_in(expr: str) -> str:
    return expr.replace("$node", "worker-3").replace("$__rate_interval", "2m")


def test_prometheus_understands_every_question(tmp_path: Path) -> None:
    asked = [filled_in(expr) for expr in (*exprs(), *(a["expr"] for a in DASHBOARD["annotations"]["list"]))]
    assert complaint(asked, tmp_path) == ""
    assert "$" not in "".join(asked)


def test_a_question_that_is_no_promql_is_told(tmp_path: Path) -> None:
    assert "unclosed left parenthesis" in complaint(["sum(up", "up"], tmp_path)


def test_every_metric_a_panel_or_a_rule_asks_for_exists_with_its_labels(declared: dict[str, set[str]]) -> None:
    rules = [rule["expr"] for group in load(RULES)["groups"] for rule in group["rules"]]
    asked = [filled_in(expr) for expr in (*exprs(), *rules)]
    assert {metric for expr in asked for metric in metrics(expr)} - set(declared) == set()
    wrong = {
        (metric, label)
        for expr in asked
        for metric, label in selections(expr)
        if label not in declared[metric] | TARGET
    }
    assert wrong == set()


def test_every_metric_of_the_reference_is_shown_somewhere() -> None:
    rules = [rule["expr"] for group in load(RULES)["groups"] for rule in group["rules"]]
    asked = {metric for expr in (*exprs(), *rules) for metric in metrics(filled_in(expr))}
    names = {name for name, _, _ in reference()}
    assert {metric.name for metric in OWN} <= {name.removeprefix(PREFIX) for name in names}
    assert {name for name in names if not {name, f"{name}_bucket"} & asked} == set()


def test_every_condition_has_a_panel_that_explains_its_reasons_and_links_to_its_runbook() -> None:
    by_title = {panel["title"]: panel for panel in PANELS}
    for detector in DETECTOR_CLASSES:
        for kind, reasons in detector.conditions.items():
            panel = by_title[kind]
            assert f'type="{kind}",status="True"' in panel["targets"][0]["expr"]
            assert all(f"**{reason}**" in panel["description"] for reason in reasons)
            assert panel["links"][0]["url"].endswith(f"/docs/runbooks/{kind}.md")
    assert len(condition_types(DETECTOR_CLASSES)) >= 8  # type: ignore[arg-type]


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    assert [number for number, times in Counter(panel["id"] for panel in PANELS).items() if times > 1] == []
    for one, other in combinations(PANELS, 2):
        a, b = one["gridPos"], other["gridPos"]
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        apart = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or apart, (one["title"], other["title"])
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in (panel["gridPos"] for panel in PANELS))


def test_every_panel_asks_the_chosen_data_source() -> None:
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    asking = [panel for panel in PANELS if panel["type"] != "row"]
    assert all(panel["datasource"] == chosen for panel in asking)
    assert all(target["datasource"] == chosen for panel in asking for target in panel["targets"])
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource", "node"]


def test_panels_about_one_node_ask_about_that_node_alone() -> None:
    begins = next(n for n, panel in enumerate(PANELS) if panel["title"].startswith("$node"))
    of_the_node = [target["expr"] for panel in PANELS[begins:] for target in panel.get("targets", [])]
    for expr in of_the_node:
        selected = {metric for metric, label in selections(expr) if label == "node"}
        assert selected == metrics(filled_in(expr)), expr


def test_what_grows_with_the_fleet_is_read_from_records_or_cut_to_its_top() -> None:
    begins = next(n for n, panel in enumerate(PANELS) if panel["title"].startswith("$node"))
    for expr in (target["expr"] for panel in PANELS[:begins] for target in panel.get("targets", [])):
        raw = {name for name in metrics(filled_in(expr)) if ":" not in name and name != "ALERTS"}
        assert not raw or expr.startswith("topk("), expr
