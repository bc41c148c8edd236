"""The rules as they are checked in, tried out by promtool: when each alert fires, when not, and what it says."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.delivery.monitoring.agent_cases import AGENT_CASES
from tests.delivery.monitoring.condition_cases import CONDITION_CASES
from tests.delivery.monitoring.fleet_cases import FLEET_CASES
from tests.delivery.monitoring.promtool import RULES, STEP, Case, load, on, promtool, try_case, values

CASES = (*CONDITION_CASES, *AGENT_CASES, *FLEET_CASES)


def test_promtool_takes_the_rules() -> None:
    done = promtool("check", "rules", "--lint-fatal", str(RULES))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_alert_fires_for_a_fault_and_for_nothing_shorter(case: Case, tmp_path: Path) -> None:
    done = try_case(case, tmp_path, RULES)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_restart_of_the_agent_wakes_nobody_twice(tmp_path: Path) -> None:
    """A scrape that fails ends every series of the agent at once; its successor tells of the fault again."""
    tells = values(("1", 30), ("stale", 1), ("_", 2), ("1", 60))
    selector = 'nodediag_findings{type="KubeletHealthzFailing",reason="HealthzRefused"}'
    firing = 'count(ALERTS{alertname="NodediagKubeletHealthzFailing",alertstate="firing"})'
    test = {
        "interval": f"{STEP}s",
        "input_series": [{"series": on(selector, "n1"), "values": tells}],
        "promql_expr_test": [
            {"expr": firing, "eval_time": f"{at * STEP}s", "exp_samples": [{"labels": "{}", "value": 1}]}
            for at in range(10, 60)
        ],
    }
    file = tmp_path / "restart.json"
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": f"{STEP}s", "tests": [test]}))
    done = promtool("test", "rules", str(file))
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tried_out() -> None:
    tried = {(case.alert, case.reason, case.labels["severity"]) for case in CASES}
    assert {(rule["alert"], rule["labels"].get("reason", ""), rule["labels"]["severity"]) for rule in alerts()} == tried


def alerts() -> list[dict[str, Any]]:
    return [rule for group in load(RULES)["groups"] for rule in group["rules"] if "alert" in rule]
