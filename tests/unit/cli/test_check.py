"""`nodediag check`: one look, one report, one exit code."""

import errno
import io
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent import app
from agent.cli import check, output
from agent.cli.exits import exit_code
from agent.cli.parser import parse
from agent.clock import Clock
from agent.model import CannotSeeError, CheckResult, Condition, NodeReport, NotApplicableError, Status
from agent.pipeline import runner
from agent.pipeline.board import Board
from agent.settings import Loaded
from tests.unit.cli.processes import SECONDS, closed_port, command, config_file, ended, running, silent_kubelet
from tests.unit.doubles import CLEAN, Script, Stuck, runner_of, sick

Scripted = Callable[..., list[tuple[str, ...]]]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    """Put detectors in the place of the real ones; the list that is returned gathers the names asked for."""

    def scripted(*detectors: Script, **settings: Any) -> list[tuple[str, ...]]:
        asked: list[tuple[str, ...]] = []

        def build(_: Loaded, clock: Clock, names: tuple[str, ...]) -> app.Agent:
            asked.append(names)
            board = Board("worker-3", clock)
            return app.Agent(board, detectors, tuple(runner_of(each, board, clock, **settings) for each in detectors))

        monkeypatch.setattr(app, "build", build)
        monkeypatch.setattr(runner, "CONFIRM_SECONDS", 0.05)
        monkeypatch.setattr(check, "TICK_SECONDS", 0.01)
        return asked

    return scripted


def run_check(*words: object) -> int:
    function, arguments = parse(["check", *map(str, words)])
    return function(arguments)


def statuses(output: str) -> dict[str, str]:
    return {condition["type"]: condition["status"] for condition in json.loads(output)["conditions"]}


# Exit codes


@pytest.mark.parametrize(
    ("found", "code"),
    [
        ([], 0),
        ([Status.FALSE, Status.FALSE], 0),
        ([Status.FALSE, Status.TRUE], 1),
        ([Status.UNKNOWN, Status.TRUE], 1),
        ([Status.FALSE, Status.UNKNOWN], 2),
    ],
)
def test_the_exit_code_is_that_of_the_worst_condition_that_is_known(found: list[Status], code: int) -> None:
    conditions = tuple(Condition(f"C{index}", status, "", "", 0) for index, status in enumerate(found))
    assert exit_code(NodeReport("worker-3", 0, conditions, ())) == code


@pytest.mark.parametrize(
    ("step", "code"),
    [(CLEAN, 0), (sick(), 1), (NotApplicableError("not here"), 0), (CannotSeeError("dark"), 2), (ValueError("odd"), 2)],
)
def test_a_look_decides_the_exit_code(scripted: Scripted, step: CheckResult | Exception, code: int) -> None:
    scripted(Script(step))
    assert run_check() == code


# Looking


def test_a_suspicion_is_looked_at_again_before_it_is_told(
    scripted: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    detector = Script(sick(), CLEAN)
    scripted(detector)
    assert run_check("--format", "json") == 0
    assert detector.probes == 2
    assert statuses(capsys.readouterr().out)["NodeSick"] == "False"


def test_a_rate_gets_its_second_sample(scripted: Scripted) -> None:
    detector = Script(CheckResult(unknown={"NodeSick": "needs a second look"}, recheck_seconds=0.1), CLEAN)
    scripted(detector)
    assert run_check() == 0
    assert detector.probes == 2


def test_what_is_decided_is_not_followed_any_further(scripted: Scripted) -> None:
    detector = Script(CheckResult(findings=sick(sightings=2).findings, follow_seconds=0.1))
    scripted(detector)
    assert run_check() == 1
    assert detector.probes == 1


def test_a_suspicion_that_is_never_confirmed_is_undetermined(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "SETTLE_SECONDS", 0.3)
    scripted(Script(sick()), failure_threshold=100, period_seconds=3600)
    assert run_check() == 2


def test_a_stuck_probe_is_reported_and_not_waited_for(scripted: Scripted, capsys: pytest.CaptureFixture[str]) -> None:
    stuck, well = Stuck(), Script(CLEAN)
    scripted(stuck, well, timeout_seconds=0.2)
    began = time.monotonic()
    assert run_check("--format", "json") == 2
    assert time.monotonic() - began < check.SETTLE_SECONDS / 2
    states = {each["name"]: each["state"] for each in json.loads(capsys.readouterr().out)["detectors"]}
    assert states == {"stuck": "overdue", "scripted": "ok"}
    stuck.release.set()


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], app.DETECTOR_NAMES),
        (["--detector", "kubelet_healthz"], ("kubelet_healthz",)),
        (["--detector", "kubelet_healthz", "--detector", "conntrack_dns"], ("kubelet_healthz", "conntrack_dns")),
        (["--detector", "kubelet_healthz", "--detector", "kubelet_healthz"], ("kubelet_healthz",)),
    ],
)
def test_the_named_detectors_look_each_once(scripted: Scripted, words: list[str], names: tuple[str, ...]) -> None:
    asked = scripted(Script(CLEAN))
    run_check(*words)
    assert asked == [names]


def test_a_detector_that_is_switched_off_is_not_called_well(
    scripted: Scripted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted(Script(CLEAN))
    file = config_file(tmp_path, kubelet_port=1)
    assert run_check("--config", file, "--detector", "conntrack_dns") == 2
    assert capsys.readouterr().err == "nodediag: switched off in the settings: conntrack_dns\n"


def test_with_every_detector_off_nothing_is_called_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = config_file(tmp_path, kubelet_port=1)
    file.write_text(file.read_text().replace('failure_threshold": 1', 'enabled": false'))
    assert run_check("--config", file) == 2
    assert capsys.readouterr().err == "nodediag: switched off in the settings: every detector\n"


# Telling


def test_json_is_one_document_on_standard_output(scripted: Scripted, capsys: pytest.CaptureFixture[str]) -> None:
    scripted(Script(sick(sightings=2)))
    run_check("--format", "json")
    output = capsys.readouterr()
    report = json.loads(output.out)
    assert report["conditions"][0]["findings"][0]["target"]["pid"] == 7
    assert output.out.endswith("}\n")
    assert output.err == ""


def test_text_is_plain_where_no_person_looks(scripted: Scripted, capsys: pytest.CaptureFixture[str]) -> None:
    scripted(Script(sick(sightings=2)))
    run_check()
    output = capsys.readouterr().out
    assert "7 has a fever" in output
    assert "\x1b" not in output


@pytest.mark.parametrize(
    ("environ", "colour"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({"NO_COLOR": ""}, True)]
)
def test_a_terminal_gets_colour_unless_it_is_unwanted(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], colour: bool
) -> None:
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert output._colour() is colour


def test_settings_that_cannot_be_used_are_undetermined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_check("--config", tmp_path / "missing.yaml") == 2
    assert "missing.yaml: 1 mistake\n  cannot be read: No such file or directory" in capsys.readouterr().err


class FullDisk(io.StringIO):
    def flush(self) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("stdout", "message"),
    [
        (FullDisk(), "cannot write to standard output: No space left on device"),
        (None, "standard output is closed"),
    ],
)
def test_a_report_that_cannot_be_written_is_undetermined(
    scripted: Scripted,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stdout: FullDisk | None,
    message: str,
) -> None:
    scripted(Script(sick(sightings=2)))
    monkeypatch.setattr("sys.stdout", stdout)
    assert run_check("--format", "json") == 2
    assert capsys.readouterr().err == f"nodediag: {message}\n"


# As a process


def test_a_reader_that_leaves_early_changes_nothing(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with closed_port() as port, open(writer, "wb") as nobody:  # noqa: PTH123 - a pipe has no path
        words = command("check", "--config", config_file(tmp_path, port))
        done = subprocess.run(words, stdout=nobody, stderr=subprocess.PIPE, text=True, timeout=SECONDS, check=False)
    assert (done.returncode, done.stderr) == (1, "")


def test_ctrl_c_ends_it_at_once_and_quietly(tmp_path: Path) -> None:
    with (
        silent_kubelet() as kubelet,
        running(command("check", "--config", config_file(tmp_path, kubelet.getsockname()[1]))) as process,
    ):
        kubelet.accept()
        code, seconds, output, errors = ended(process, signal.SIGINT)
    assert (code, output, errors) == (-signal.SIGINT, "", "")
    assert seconds < 10


CRASHING = """
import sys
from agent import __main__, app
def build(*_):
    raise RuntimeError("a bug")
app.build = build
sys.argv = ["nodediag", "check"]
__main__.main()
"""


def test_a_crash_is_undetermined_not_a_sick_node() -> None:
    words = [command()[0], "-c", CRASHING]
    done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 2
    assert "RuntimeError: a bug" in done.stderr
