"""The rules as they are checked in, tried out by promtool: when each alert fires, when not, and what it says."""

from pathlib import Path
from typing import Any

import pytest

from tests.delivery.monitoring.agent_cases import AGENT_CASES
from tests.delivery.monitoring.condition_cases import CONDITION_CASES
from tests.delivery.monitoring.fleet_cases import FLEET_CASES
from tests.delivery.monitoring.promtool import RULES, Case, load, promtool, try_case

CASES = (*CONDITION_CASES, *AGENT_CASES, *FLEET_CASES)


def test_promtool_takes_the_rules() -> None:
    done = promtool("check", "rules", "--lint-fatal", str(RULES))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_alert_fires_for_a_fault_and_for_nothing_shorter(case: Case, tmp_path: Path) -> None:
    done = try_case(case, tmp_path, RULES)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tried_out() -> None:
    tried = {(case.alert, case.reason, case.labels["severity"]) for case in CASES}
    assert {(rule["alert"], rule["labels"].get("reason", ""), rule["labels"]["severity"]) for rule in alerts()} == tried


def alerts() -> list[dict[str, Any]]:
    return [rule for group in load(RULES)["groups"] for rule in group["rules"] if "alert" in rule]
