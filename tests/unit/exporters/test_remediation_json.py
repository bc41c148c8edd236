"""The act flow as JSON: ASCII, camelCase, and the report's names for a target."""

import json
from dataclasses import replace

import pytest

from agent.acts import Outcome, Refusal, RefusalReason, Remediation, Request
from agent.exporters import remediation_json, remediation_text, report_json
from agent.model import Action, ActiveFinding, Condition, Finding, NodeReport, Status, Target, TargetKind
from tests.unit.exporters.conftest import HOSTILE, NOW

TARGET = Target(TargetKind.SHIM, 4242, 987654, HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE)
REQUEST = Request(HOSTILE, Action.KILL_SHIM, TARGET, HOSTILE, reason=HOSTILE)
REFUSAL = Refusal(RefusalReason.PAUSED, HOSTILE, 1.5)
DONE = Remediation(REQUEST, Outcome.REFUSED, HOSTILE, NOW, NOW + 1, refusal=REFUSAL, evidence_id=HOSTILE)


@pytest.mark.parametrize(
    "target", [TARGET, Target(TargetKind.CONNTRACK), Target(TargetKind.PROCESS, 0, 0, cgroup="/x")]
)
def test_a_target_is_written_as_the_report_writes_it(target: Target) -> None:
    found = ActiveFinding(Finding("C", "R", "", Action.NONE, target), NOW)
    condition = Condition("C", Status.TRUE, "R", "", NOW, (found,))
    report = report_json.to_json(NodeReport("n", NOW, (condition,), ()))
    told = remediation_json.remediation_json(replace(DONE, request=replace(REQUEST, target=target)))
    assert told["target"] == report["conditions"][0]["findings"][0]["target"]


def test_what_strangers_chose_leaves_as_ascii() -> None:
    for told in (remediation_json.remediation_json(DONE), remediation_json.refused_json(REQUEST, REFUSAL)):
        text = remediation_json.dumps(told)
        assert text.isascii()
        assert json.loads(text)["refusal"] == {
            "reason": "PAUSED",
            "message": HOSTILE.replace("\udcff", "\\xff"),
            "retrySeconds": 1.5,
        }


def test_a_refusal_that_is_not_recorded_has_the_form_of_one_that_is() -> None:
    recorded = remediation_json.remediation_json(DONE)
    told = remediation_json.refused_json(REQUEST, REFUSAL)
    assert set(told) < set(recorded)
    assert {key: recorded[key] for key in told} == told


def test_what_strangers_chose_is_shown_as_escapes() -> None:
    lines = [*remediation_text.remediation_lines(DONE), remediation_text.remediation_line(DONE)]
    assert all(line.isprintable() for line in lines)
