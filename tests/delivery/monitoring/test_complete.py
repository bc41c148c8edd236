"""Nothing is forgotten: what a new condition or reason needs is demanded, and said where it belongs."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import pytest

from agent.app import DETECTOR_CLASSES
from agent.detectors.kubelet_healthz import KubeletHealthzDetector
from tests.delivery.docs.markdown import ROOT, sections
from tests.delivery.monitoring.promtool import RULES, load
from tools.generate_monitoring import files
from tools.monitoring.condition_alerts import condition_group
from tools.monitoring.condition_texts import TEXTS
from tools.monitoring.rule import DOCS, Alert, Group, Severity, write

ALERTS = [rule for group in load(RULES)["groups"] for rule in group["rules"] if "alert" in rule]
PLACES = sorted(
    {a["annotations"]["runbook_url"].removeprefix(DOCS) for a in ALERTS if "{" not in a["annotations"]["runbook_url"]}
)
REASONS = [
    (kind, reason)
    for detector in DETECTOR_CLASSES
    for kind, reasons in detector.conditions.items()
    for reason in reasons
]


class OneMore(KubeletHealthzDetector):
    """A detector whose condition has a reason nobody has thought of."""

    conditions: ClassVar[Mapping[str, Mapping[str, str]]] = {
        **KubeletHealthzDetector.conditions,
        "KubeletHealthzFailing": {**KubeletHealthzDetector.conditions["KubeletHealthzFailing"], "HealthzOdd": "Odd."},
    }


def rules_of(kind: str, reason: str) -> list[dict[str, object]]:
    return [rule for rule in ALERTS if rule["alert"] == f"Nodediag{kind}" and rule["labels"]["reason"] == reason]


@pytest.mark.parametrize(("kind", "reason"), REASONS)
def test_every_reason_of_every_condition_has_one_alert(kind: str, reason: str) -> None:
    assert len(rules_of(kind, reason)) == 1


@pytest.mark.parametrize("severity", ["critical", "warning"])
def test_the_alert_about_the_fleet_is_held_no_longer_than_those_it_holds_back(severity: str) -> None:
    urgent = [rule for rule in ALERTS if rule["labels"]["severity"] == severity]
    (fleet,) = (rule for rule in urgent if rule["alert"] == "NodediagConditionWidespread")
    nodes = [rule["for"] for rule in urgent if "reason" in rule["labels"]]
    assert int(fleet["for"].rstrip("m")) <= max(int(held.rstrip("m")) for held in nodes)


def test_no_two_conditions_share_the_name_of_a_reason() -> None:
    """The alert about many nodes tells reasons apart by their names alone."""
    assert len({reason for _, reason in REASONS}) == len(REASONS)


def test_a_reason_without_words_is_refused_with_the_file_to_edit() -> None:
    others = tuple(each for each in DETECTOR_CLASSES if each is not KubeletHealthzDetector)
    with pytest.raises(
        LookupError, match=r"KubeletHealthzFailing/HealthzOdd: add each to tools/monitoring/condition_texts"
    ):
        condition_group((*others, OneMore))


def test_words_for_what_no_detector_declares_are_refused() -> None:
    more = {**TEXTS, "Gone": dataclasses.replace(TEXTS["DNSUnavailable"])}
    with pytest.raises(LookupError, match="no detector declares Gone/ServerSlow, Gone/ServerUnreachable"):
        condition_group(DETECTOR_CLASSES, more)


def test_every_file_is_what_the_code_makes_of_it() -> None:
    assert {name: (ROOT / name).read_text() for name in files()} == files()


def test_a_text_that_would_not_survive_the_file_is_refused() -> None:
    alert = Alert("A", "up  == 0", "1m", "why", Severity.WARNING, "s", "d", "r")
    with pytest.raises(ValueError, match="expr would not survive"):
        list(write((Group("g", "1m", "why", (alert,)),)))


@pytest.mark.parametrize("place", PLACES)
def test_what_an_alert_leads_to_is_there(place: str) -> None:
    name, _, anchor = place.partition("#")
    headings = {section.anchor: section for section in sections((ROOT / "docs" / name).read_text())}
    assert not anchor or headings[anchor].body


def test_alerts_about_any_condition_lead_to_the_conditions_own_page() -> None:
    theirs = {alert["annotations"]["runbook_url"] for alert in ALERTS} - {DOCS + place for place in PLACES}
    assert theirs == {f"{DOCS}runbooks/{{{{ $labels.type }}}}.md"}
