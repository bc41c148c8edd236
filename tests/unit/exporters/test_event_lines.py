"""What a watch tells, line by line."""

import json
from dataclasses import replace
from typing import Any

import pytest

from agent.exporters.event_lines import as_json, as_text
from agent.exporters.report_json import to_json
from agent.model import Changed, Event, Gap, NodeReport, Removed, Snapshot
from tests.unit.exporters.conftest import HOSTILE, NOW

AT = "2026-08-01T03:12:45.250Z"


def test_a_snapshot_is_a_line_for_each_condition(report: NodeReport) -> None:
    first, second, *others = as_text(Snapshot(report.conditions), NOW)
    assert first == f"{AT} ContainerdShimHung True ShimUnresponsive: a shim hangs"
    assert second == f"{AT} ContainerdShimLeaked False AsExpected: 7 shims, each with its containers"
    assert len(others) == len(report.conditions) - 2


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (Removed("DNSUnavailable"), "DNSUnavailable no longer applies: what it watches is not on this node"),
        (Gap(1), "1 change was left out because this reader was too slow; all conditions follow"),
        (Gap(70), "70 changes were left out because this reader was too slow; all conditions follow"),
    ],
)
def test_other_events_are_one_line(event: Event, line: str) -> None:
    assert list(as_text(event, NOW)) == [f"{AT} {line}"]


def test_json_is_one_object_a_line_with_conditions_as_in_the_report(report: NodeReport) -> None:
    conditions = to_json(report)["conditions"]
    expected: list[tuple[Event, dict[str, Any]]] = [
        (Snapshot(report.conditions), {"event": "snapshot", "conditions": conditions}),
        (Changed(report.conditions[1]), {"event": "changed", "condition": conditions[1]}),
        (Removed("DNSUnavailable"), {"event": "removed", "type": "DNSUnavailable"}),
        (Gap(3), {"event": "gap", "missed": 3}),
    ]
    for event, told in expected:
        (line,) = as_json(event, NOW)
        assert json.loads(line) == {"receivedAt": AT, **told}


def test_hostile_words_stay_on_their_line(hostile_report: NodeReport) -> None:
    hostile = replace(hostile_report.conditions[0], type=HOSTILE)
    for event in (Snapshot(hostile_report.conditions), Changed(hostile), Removed(HOSTILE)):
        lines = [*as_text(event, NOW), *as_json(event, NOW)]
        assert all(line.isprintable() for line in lines)
        assert all(line.isascii() for line in as_json(event, NOW))
