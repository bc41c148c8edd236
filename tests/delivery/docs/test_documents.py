"""What the documents say to type can be typed, and where they lead to there is something."""

import re
from functools import cache
from pathlib import Path

import pytest

from agent.cli.parser import parse
from agent.remediation.ledger_file import SCHEMA_VERSION
from tests.delivery.docs.markdown import (
    ROOT,
    command_lines,
    documents,
    links,
    nodediag_commands,
    sections,
    subcommands_named,
)

A_VARIABLE = re.compile(r"\$\{?\w+(:[^}]*\})?")
A_UUID = "3a0e9c5e-7b5f-4f0e-9d0c-2b8a1d0f6c11"


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_of_ours_in_a_document_can_be_typed(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = path.read_text()
    named = [[each, "--help"] for each in sorted(subcommands_named(text))]
    for words in nodediag_commands(text) + named:
        filled = [A_VARIABLE.sub(A_UUID, word) for word in words]
        try:
            parse(filled)
        except SystemExit as end:
            asked_for_help = end.code == 0 and {"--help", "--version"} & set(words)
            assert asked_for_help, f"nodediag {' '.join(words)}: {capsys.readouterr().err}"


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_within_the_project_leads_somewhere(path: Path) -> None:
    for target in links(path.read_text()):
        if "://" in target or target.startswith("mailto:"):
            continue
        place, _, anchor = target.partition("#")
        found = (path.parent / place).resolve() if place else path
        assert found.is_relative_to(ROOT), f"{target} leads out of the project"
        assert found.exists(), f"{target}: there is no such file"
        if anchor:
            assert anchor in _anchors(found), f"{target}: there is no such section"


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_right_to_a_part_of_an_object_is_asked_for_as_such(path: Path) -> None:
    """`kubectl auth can-i get nodes/pods` asks about a node of the name pods, and is always answered no."""
    asked = [line for line in command_lines(path.read_text()) if " auth can-i " in line]
    assert [line for line in asked if "/" in line.split(" can-i ")[1].split()[1]] == []


def test_the_index_leads_to_every_document() -> None:
    index = ROOT / "docs/README.md"
    led_to = {(index.parent / target.partition("#")[0]).resolve() for target in links(index.read_text())}
    runbooks = ROOT / "docs/runbooks"
    alone = {path for path in (ROOT / "docs").rglob("*.md") if path.parent != runbooks} - {index}
    assert {path for path in {*alone, runbooks / "README.md"} if path not in led_to} == set()


@cache
def _anchors(path: Path) -> frozenset[str]:
    return frozenset(section.anchor for section in sections(path.read_text()))


def test_the_version_of_the_ledger_is_the_one_in_the_upgrade_guide() -> None:
    assert f"| ledger, schema version {SCHEMA_VERSION} |" in (ROOT / "docs/upgrade.md").read_text()
