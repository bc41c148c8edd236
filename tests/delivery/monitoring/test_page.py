"""docs/prometheus.md tells what there is: its configuration can be used as it stands, its names are the rules' own."""

import re
from typing import Any

import pytest
import yaml

from agent.exporters.metrics import OWN
from tests.delivery.docs.markdown import ROOT
from tests.delivery.monitoring.promtool import DEPLOY, RULES, load

PAGE = (ROOT / "docs" / "prometheus.md").read_text()
SCRAPING, INHIBITION, GROUPING = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
ALL_RULES: list[dict[str, Any]] = [rule for group in load(RULES)["groups"] for rule in group["rules"]]
ALERTS = {rule["alert"] for rule in ALL_RULES if "alert" in rule}
LABELS = {"alertname", "severity", "type", "reason", "node", "job"}
_MATCHER = re.compile(r"(\w+) (=|!=|=~) \"?([^\"]+)\"?")


def test_the_page_scrapes_as_the_file_does() -> None:
    assert SCRAPING["scrape_configs"] == yaml.safe_load((DEPLOY / "prometheus" / "scrape-config.yaml").read_text())


@pytest.mark.parametrize("rule", INHIBITION["inhibit_rules"], ids=lambda rule: rule["source_matchers"][0])
def test_what_holds_alerts_back_names_alerts_and_labels_there_are(rule: dict[str, Any]) -> None:
    for side in ("source_matchers", "target_matchers"):
        matchers = [found.groups() for found in map(_MATCHER.fullmatch, rule[side]) if found]
        assert len(matchers) == len(rule[side])
        assert {label for label, _, _ in matchers} <= LABELS
        names = [(operator, value) for label, operator, value in matchers if label == "alertname"]
        assert names
        assert any(all(_matches(each, *name) for name in names) for each in ALERTS)
    assert set(rule["equal"]) <= LABELS


def test_alerts_are_grouped_by_labels_they_have() -> None:
    route = GROUPING["route"]
    assert set(route["group_by"]) <= LABELS
    (own,) = route["routes"]
    assert own["matchers"] == ["alertname = NodediagDeploymentFault"]
    (metric,) = (each for each in OWN if each.name == "deployment_fault")
    (rule,) = (each for each in ALL_RULES if each.get("alert") == "NodediagDeploymentFault")
    assert "without (detector, type, effect)" in rule["expr"]
    assert set(own["group_by"]) == {"alertname", *metric.labels} - {"detector", "type", "effect"}


def _matches(alert: str, operator: str, value: str) -> bool:
    return bool(re.fullmatch(value, alert)) if operator == "=~" else (alert == value) == (operator == "=")


def test_every_view_of_the_fleet_is_listed_and_nothing_else() -> None:
    table = PAGE.partition("## Views of the fleet")[2].partition("\n## ")[0]
    recorded = {rule["record"] for rule in ALL_RULES if "record" in rule}
    steps = {name for name in recorded if "_bucket:" in name}
    assert set(re.findall(r"`(\w*:[\w:]+)`", table)) == recorded - steps
