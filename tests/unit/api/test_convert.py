"""What the model says, the protos say; and back, nothing is lost that is told."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given

from agent.api import convert, revert
from agent.api.pb import diagnostics_service_pb2 as service_pb
from agent.api.pb import node_report_pb2 as pb
from agent.exporters import report_json, report_text
from agent.model import Action, DeploymentCause, DetectorState, Event, Gap, NodeReport, Status, TargetKind, Value
from tests.unit.api.strategies import EVENTS, REPORTS
from tests.unit.doubles import finding
from tests.unit.exporters.conftest import HOSTILE, hostile_report, lazy_parent, misdeployed_report, report

__all__ = ["hostile_report", "misdeployed_report", "report"]


def there_and_back(seen: NodeReport) -> NodeReport:
    return revert.report(pb.NodeReport.FromString(convert.report(seen).SerializeToString()))


@given(REPORTS)
def test_a_report_survives_the_wire_field_by_field(seen: NodeReport) -> None:
    read = there_and_back(seen)
    assert read == seen
    for condition, before in zip(read.conditions, seen.conditions, strict=True):
        for one, other in zip(condition.findings, before.findings, strict=True):
            assert list(map(typed, one.finding.values.items())) == list(map(typed, other.finding.values.items()))


def typed(item: tuple[str, Value]) -> tuple[str, type, Value]:
    """A value with its kind, for 1 == 1.0 == True."""
    return (item[0], type(item[1]), item[1])


@given(EVENTS)
def test_an_event_survives_the_wire(event: Event) -> None:
    sent = convert.event(event).SerializeToString()
    assert revert.event(service_pb.WatchConditionsResponse.FromString(sent)) == event


def test_every_word_has_a_number_of_its_own_and_none_is_unspecified() -> None:
    for words, numbers in (
        (Status, convert.STATUSES),
        (DetectorState, convert.STATES),
        (TargetKind, convert.KINDS),
        (DeploymentCause, convert.CAUSES),
    ):
        assert set(numbers) == set(words)
        assert len(set(numbers.values())) == len(words)
        assert 0 not in numbers.values()


@pytest.mark.parametrize("name", ["report", "misdeployed_report"])
def test_a_report_prints_the_same_before_and_after(name: str, request: pytest.FixtureRequest) -> None:
    report: NodeReport = request.getfixturevalue(name)
    read = there_and_back(report)
    assert report_text.plain(read) == report_text.plain(report)
    assert report_json.dumps(read) == report_json.dumps(report)


def test_what_strangers_chose_arrives_with_its_odd_bytes_escaped(hostile_report: NodeReport) -> None:
    read = there_and_back(hostile_report)
    assert read.node_name == HOSTILE.replace("\udcff", "\\xff")
    assert json.loads(report_json.dumps(read)) == json.loads(report_json.dumps(hostile_report))


@pytest.mark.parametrize(
    ("value", "arrives"),
    [(2**63, float(2**63)), (-(2**63) - 1, float(-(2**63))), (math.inf, math.inf), (0, 0), (False, False)],
)
def test_values_at_the_edge(value: Value, arrives: Value) -> None:
    read = revert.value(convert.measurement("x", value))
    assert (type(read), read) == (type(arrives), arrives)


def test_no_number_stays_no_number() -> None:
    read = revert.value(convert.measurement("x", math.nan))
    assert isinstance(read, float)
    assert math.isnan(read)


def test_the_order_of_the_values_is_kept() -> None:
    active = lazy_parent()
    names = [each.name for each in convert.finding(active).values]
    assert names == ["zombies", "oldest_seconds", "growth_per_minute", "most_frequent_comm"]


def test_a_pid_of_zero_is_not_the_absence_of_a_pid() -> None:
    nobody = replace(finding().target, pid=None, start_time=None)
    init = replace(finding().target, pid=1, start_time=0)
    assert not convert.target(nobody).HasField("pid")
    assert revert.target(convert.target(nobody)) == nobody
    assert revert.target(convert.target(init)) == init


def test_words_of_a_newer_agent_claim_nothing() -> None:
    sent = pb.Condition(type="New", status=99)  # type: ignore[arg-type]
    assert revert.condition(sent).status is Status.UNKNOWN
    assert revert.detector(pb.Detector(state=99)).state is DetectorState.FAILED  # type: ignore[arg-type]
    assert revert.target(pb.Target(kind=99)).kind is TargetKind.NODE  # type: ignore[arg-type]
    assert revert.action("RebootNode") is Action.NONE
    assert revert.event(service_pb.WatchConditionsResponse()) is None
    assert revert.event(convert.event(Gap(3))) == Gap(3)
