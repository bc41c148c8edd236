"""Whoever is woken by a condition finds its page, and on it the reason, what to type, and what not to."""

import re
from dataclasses import fields
from functools import cache
from typing import Any

import pytest

from agent.act_flow import REMEDY_CLASSES
from agent.app import DETECTOR_CLASSES
from agent.exporters.advice import advise
from agent.model import Action, Finding, Target, TargetKind
from agent.settings import Settings
from tests.delivery.docs.markdown import RUNBOOKS, Section, blocks, command_lines, links, nodediag_commands, sections

REASONS = {kind: reasons for detector in DETECTOR_CLASSES for kind, reasons in detector.conditions.items()}
EVERY_REASON = [(kind, reason) for kind, reasons in REASONS.items() for reason in reasons]
MENDS = {
    (remedy.action, kind, reason) for remedy in REMEDY_CLASSES for kind, all_ in remedy.mends.items() for reason in all_
}
COMMON = [
    "What it means",
    "Who is affected",
    "How sure it is",
    "Confirm by hand",
    "What to do",
    "What not to do",
    "When it clears",
]
PAGES = sorted(path.stem for path in RUNBOOKS.glob("*.md") if path.stem != "README")
READS_COMMAND_LINES = re.compile(
    r"(^|[|;&(] *)(sudo +)?(ps|pgrep|pkill|pidof|killall|lsof|fuser|htop|w|systemctl status)\b"
)
ASKS_WHO_MAY_HANG = re.compile(r"(^|[|;&(] *)(time +)?(ctr|crictl)\b")
CHANGES_THE_NODE = re.compile(
    r"nodediag remediate|\bkill\b|systemctl (start|restart|thaw|reset-failed)|> \"?(/sys|\$\{FILE)|sysctl -w"
    r"|conntrack -[DF]|kubectl .*\bdelete\b"
)
A_DEFAULT = re.compile(r"(?P<value>\d+(?:\.\d+)?)(?: s)?\s+\(`(?P<path>detectors\.\w+\.\w+)`\)")


def test_every_condition_has_a_runbook() -> None:
    assert set(REASONS) <= set(PAGES)


def test_the_index_leads_to_every_runbook_and_to_nothing_else() -> None:
    index = (RUNBOOKS / "README.md").read_text()
    table = next(section for section in sections(index) if section.level == 1).body.partition("\n## ")[0]
    assert sorted(link for link in links(table)) == [f"{page}.md" for page in PAGES]


@pytest.mark.parametrize("page", PAGES)
def test_a_runbook_answers_the_same_questions_in_the_same_order(page: str) -> None:
    first, *rest = _sections(page)
    assert (first.level, first.title) == (1, page)
    assert [section.title for section in rest if section.level == 2][: len(COMMON)] == COMMON


@pytest.mark.parametrize(("kind", "reason"), EVERY_REASON)
def test_an_alert_can_link_to_every_reason(kind: str, reason: str) -> None:
    found = [section for section in _sections(kind) if section.title == reason and section.level == 2]
    assert [section.anchor for section in found] == [reason.lower()]


@pytest.mark.parametrize("kind", REASONS)
def test_a_runbook_has_no_section_for_a_reason_there_is_not(kind: str) -> None:
    titles = [section.title for section in _sections(kind) if section.level == 2]
    assert sorted(titles) == sorted([*COMMON, *REASONS[kind]])


@pytest.mark.parametrize("page", PAGES)
def test_no_section_is_empty(page: str) -> None:
    assert [section.title for section in _sections(page) if len(section.body.split()) < 8] == []


@pytest.mark.parametrize("page", PAGES)
def test_there_is_something_to_type_before_anything_is_mended(page: str) -> None:
    confirm = next(section for section in _sections(page) if section.title == "Confirm by hand")
    assert list(blocks(confirm.body, "sh"))
    assert not re.search(
        r"^ *(kill|systemctl restart|nodediag remediate)", "\n".join(command_lines(confirm.body)), re.MULTILINE
    )


@pytest.mark.parametrize("page", [*PAGES, "README"])
def test_nothing_to_type_can_hang_without_a_limit(page: str) -> None:
    for line in command_lines(_text(page)):
        assert not READS_COMMAND_LINES.search(line), f"{line}: reads the command lines of all processes"
        assert not ASKS_WHO_MAY_HANG.search(line), f"{line}: needs a timeout"


@pytest.mark.parametrize("page", [*PAGES, "README"])
def test_a_block_that_is_pasted_whole_carries_out_one_decision(page: str) -> None:
    for block in blocks(_text(page), "sh"):
        commands = "\n".join(_commands(block)).replace("&&\n", "&& ").splitlines()
        changing = [command for command in commands if CHANGES_THE_NODE.search(command)]
        assert not changing or len(commands) == 1, f"{page}: {block}"


@pytest.mark.parametrize("page", [*PAGES, "README"])
def test_a_command_that_ends_or_writes_something_stops_where_its_variable_is_not_set(page: str) -> None:
    for block in blocks(_text(page), "sh"):
        for command in "\n".join(_commands(block)).replace("&&\n", "&& ").splitlines():
            if CHANGES_THE_NODE.search(command) and not command.startswith("nodediag"):
                first_use = re.findall(r"\$\{?([A-Z]+)(:\?)?", command)
                checked = {name for name, check in first_use if check}
                assert {name for name, _ in first_use} <= checked, f"{page}: {command}"


@pytest.mark.parametrize("page", PAGES)
def test_wherever_a_shim_is_killed_by_hand_its_survivors_are_dealt_with(page: str) -> None:
    for section in _sections(page):
        if section.level == 2 and re.search(r"containerd-shim .*kill -9", section.body):
            assert "containerd 2.x" in section.body
            assert "second copy" in section.body
            assert "kill -9 $p; done" in section.body


@pytest.mark.parametrize("action", Action)
@pytest.mark.parametrize("kind", TargetKind)
def test_what_the_report_says_to_type_keeps_the_runbooks_rules(action: Action, kind: TargetKind) -> None:
    target = Target(kind, 7, 1, "boot", "a" * 64, "k8s.io", "/kubepods/x", "10.96.0.10:53")
    thaw_file = "/sys/fs/cgroup/freezer/kubepods/x/freezer.state"
    for values in ({}, {"processState": "T"}, {"orphanedSeconds": 9.0}, {"thawFile": thaw_file}):
        for step in advise(Finding("C", "R", "message", action, target, values=values)).steps:
            for line in step.commands:
                assert not READS_COMMAND_LINES.search(line), line
                assert not ASKS_WHO_MAY_HANG.search(line), line


@pytest.mark.parametrize("kind", REASONS)
def test_a_runbook_offers_just_the_actions_its_condition_permits(kind: str) -> None:
    offered = {words[1] for words in nodediag_commands(_text(kind)) if words[:1] == ["remediate"]}
    assert offered == {action for action, of, _ in MENDS if of == kind}


@pytest.mark.parametrize(("kind", "reason"), EVERY_REASON)
def test_a_reasons_section_offers_no_action_it_does_not_permit(kind: str, reason: str) -> None:
    section = next(section for section in _sections(kind) if section.title == reason)
    for words in nodediag_commands(section.body):
        if words[0] == "remediate":
            assert (words[1], kind, reason) in MENDS


@pytest.mark.parametrize("page", PAGES)
def test_a_number_beside_its_setting_is_the_settings_default(page: str) -> None:
    for found in A_DEFAULT.finditer(_text(page)):
        assert float(found["value"]) == _default(found["path"]), found.group()


@pytest.mark.parametrize("page", PAGES)
def test_a_runbook_can_be_read_at_three_in_the_morning(page: str) -> None:
    assert len(_text(page).splitlines()) <= 170
    assert all(len(line) <= 170 for line in _text(page).splitlines())


def _default(path: str) -> object:
    value: Any = Settings()
    for name in path.split("."):
        assert name in {each.name for each in fields(value)}, f"there is no setting {path}"
        value = getattr(value, name)
    return value


def _commands(block: list[str]) -> list[str]:
    """The lines of a block without comments; a loop over several lines is one command."""
    lines = [line.split("   #")[0].strip() for line in block]
    joined = re.sub(r"do\n(.*)\ndone", r"do \1; done", "\n".join(line for line in lines if line))
    return joined.splitlines()


@cache
def _text(page: str) -> str:
    return (RUNBOOKS / f"{page}.md").read_text()


@cache
def _sections(page: str) -> list[Section]:
    return sections(_text(page))
