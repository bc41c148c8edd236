"""Nothing is forgotten: what a new condition or reason needs is demanded, and said where it belongs."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from agent.app import DETECTOR_CLASSES
from agent.detectors.kubelet_healthz import KubeletHealthzDetector
from tests.unit.monitoring.promtool import RULES, load
from tools.generate_monitoring import files
from tools.monitoring.condition_alerts import condition_group
from tools.monitoring.condition_texts import TEXTS
from tools.monitoring.rule import RUNBOOKS, Alert, Group, Severity, write

DOCS = Path(__file__).parents[3] / "docs"
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
    return [
        rule
        for group in load(RULES)["groups"]
        for rule in group["rules"]
        if rule.get("alert") == f"Nodediag{kind}" and rule["labels"]["reason"] == reason
    ]


@pytest.mark.parametrize(("kind", "reason"), REASONS)
def test_every_reason_of_every_condition_has_one_alert(kind: str, reason: str) -> None:
    assert len(rules_of(kind, reason)) == 1


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
    deploy = RULES.parents[1]
    assert {name: (deploy / name).read_text() for name in files()} == files()


def test_a_text_that_would_not_survive_the_file_is_refused() -> None:
    alert = Alert("A", "up  == 0", "1m", "why", Severity.WARNING, "s", "d", "r")
    with pytest.raises(ValueError, match="expr would not survive"):
        list(write((Group("g", "1m", "why", (alert,)),)))


@pytest.mark.parametrize(
    "url", sorted({r["annotations"]["runbook_url"] for g in load(RULES)["groups"] for r in g["rules"] if "alert" in r})
)
def test_every_runbook_an_alert_links_to_is_there(url: str) -> None:
    name, _, anchor = url.removeprefix(RUNBOOKS).partition("#")
    if name.startswith("{{ $labels.type }}"):
        return  # one of those of the conditions, which the other alerts name
    headings = re.findall(r"^#+ (.+)$", (DOCS / "runbooks" / name).read_text(), re.MULTILINE)
    assert not anchor or anchor in [
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    ]
