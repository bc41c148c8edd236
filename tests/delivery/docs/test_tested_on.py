"""docs/tested-on.md has a row for every reason of every condition, and no empty cell. Its figures are not tested."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from agent.model import Action
from tests import detections
from tests.delivery.docs.markdown import sections
from tools import tested_on
from tools.tested_on import IMPOSSIBLE, NOT_RUN, PLACES, PLANNED, page, registered

PAGE = tested_on.PAGE.read_text()
A_CELL = re.compile(r"\d+\.\d \(\d+\)|no, note \d+|see `\w+`( and `\w+`)*|not run")
AN_OUTCOME = re.compile(r"[a-z_]+ \(\d+\)(, [a-z_]+ \(\d+\))*|not run")


def table(text: str, title: str) -> list[list[str]]:
    """Return the cells of the one table below a heading, its head first."""
    (body,) = (each.body for each in sections(text) if each.title == title)
    lines = [line for line in body.splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_reason_of_every_condition_has_a_row() -> None:
    _, *rows = table(PAGE, "Seconds to detection")
    assert {row[0] for row in rows} == {f"{kind}: `{reason}`" for kind, reason in registered()}


def test_every_action_has_a_row() -> None:
    _, *rows = table(PAGE, "Remediation")
    assert {row[0] for row in rows} == {action.value for action in Action if action is not Action.NONE}


def test_every_fault_is_one_the_registry_knows() -> None:
    assert set(detections.FAULTS.values()) == set(registered())
    assert {reason for reason, _ in IMPOSSIBLE} <= {reason for _, reason in registered()}
    assert {place for _, place in IMPOSSIBLE} <= set(PLACES) == set(detections.WHERE)


@pytest.mark.parametrize(("title", "form"), [("Seconds to detection", A_CELL), ("Remediation", AN_OUTCOME)])
def test_every_cell_has_a_figure_or_says_why_it_has_none(title: str, form: re.Pattern[str]) -> None:
    head, *rows = table(PAGE, title)
    assert [f"{place} {version}" for place, version in PLANNED if f"{place} {version}" not in head] == []
    for row in rows:
        assert len(row) == len(head)
        assert [cell for cell in row[2:] if not form.fullmatch(cell)] == [], row[:2]


def test_a_place_that_was_run_says_on_what_and_at_which_commit() -> None:
    head, *rows = table(PAGE, "Machines")
    for row in rows:
        facts = dict(zip(head, row, strict=True))
        assert facts["last run"] == NOT_RUN or "-" not in (facts["commits"], facts["kernel"], facts["cgroup"])


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(detections, "FOLDER", tmp_path / "detections")
    monkeypatch.setenv("CONTAINERD", "2.1")
    return tmp_path / "detections"


def test_what_is_recorded_stands_on_the_page(recorded: Path) -> None:
    for seconds in (3.0, 5.0, 9.0):
        detections.record("shim stopped", "lab", seconds, facts={"kernel": "6.1", "cgroup": "v2"})
    detections.record(
        "a new one", "VM", 1.0, condition="DNSUnavailable", reason="ServerSlow", containerd="9.9", facts={}
    )
    detections.record_outcome("KillShim", "shim stopped", "lab", "verified", facts={})
    made = "\n".join(page(detections.read(recorded)))
    head, *rows = table(made, "Seconds to detection")
    cells = {row[1]: dict(zip(head, row, strict=True)) for row in rows}
    assert cells["shim stopped"]["lab 2.1"] == "5.0 (3)"
    assert cells["shim stopped"]["lab 1.6"] == NOT_RUN
    assert cells["a new one"]["VM 9.9"] == "1.0 (1)"
    assert cells["kubelet discards events"]["lab 1.6"].startswith("no, note ")
    head, *rows = table(made, "Remediation")
    ended = {(row[0], row[1]): dict(zip(head, row, strict=True)) for row in rows}
    assert ended["KillShim", "shim stopped"]["lab 2.1"] == "verified (1)"


def test_a_fault_that_is_reported_for_another_reason_is_not_listed_as_not_run(recorded: Path) -> None:
    detections.record("kubelet throttled", "lab", 20.0, reason="HealthzTimeout", facts={})
    detections.record("conntrack entries evicted", "lab", 4.0, reason="TableFull", containerd="1.6", facts={})
    detections.record("conntrack entries evicted", "lab", 5.0, facts={})
    head, *rows = table("\n".join(page(detections.read(recorded))), "Seconds to detection")
    cells = {(row[0].partition("`")[2].rstrip("`"), row[1]): dict(zip(head, row, strict=True)) for row in rows}
    throttled, evicted = "kubelet throttled", "conntrack entries evicted"
    assert cells["HealthzTimeout", throttled]["lab 2.1"] == "20.0 (1)"
    assert set(list(cells["HealthzSlow", throttled].values())[2:]) == {"see `HealthzTimeout`"}
    assert cells["HealthzTimeout", throttled]["lab 1.6"] == NOT_RUN
    assert cells["EarlyDrop", evicted]["lab 2.1"] == "5.0 (1)"
    assert cells["EarlyDrop", evicted]["lab 1.6"] == "see `TableFull`"
    assert cells["TableFull", "conntrack table full"]["lab 1.6"] == NOT_RUN


def test_a_race_that_every_kernel_here_resolves_cannot_be_made_in_any_place(recorded: Path) -> None:
    head, *rows = table("\n".join(page(detections.read(recorded))), "Seconds to detection")
    (race,) = (row for row in rows if "`InsertFailed`" in row[0])
    assert all(cell.startswith("no, note ") for cell in race[2:])
    assert "VM 1.7" not in head


def test_what_has_no_name_or_place_is_refused(recorded: Path) -> None:
    with pytest.raises(ValueError, match="name its condition and reason"):
        detections.record("a new one", "lab", 1.0, facts={})
    with pytest.raises(ValueError, match="none of lab, image"):
        detections.record("shim stopped", "somewhere", 1.0, facts={})
    assert not recorded.exists()


def test_several_processes_record_at_once(recorded: Path) -> None:
    code = (
        f"import pathlib; from tests import detections as d; d.FOLDER = pathlib.Path({str(recorded)!r})\n"
        "for _ in range(50): d.record('shim stopped', 'lab', 1.0, facts={'kernel': 'k' * 2000})"
    )
    started = [subprocess.Popen([sys.executable, "-c", code], cwd=detections.ROOT) for _ in range(3)]
    assert [each.wait(60) for each in started] == [0, 0, 0]
    (path,) = recorded.iterdir()
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 150
