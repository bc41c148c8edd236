"""`nodediag report` and `watch`, asking a real `nodediag run`."""

import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import jsonschema
import pytest

from agent.model import Status
from tests.integration.test_run import STOP_SECONDS, get
from tests.lab.waiting import wait_until
from tests.unit.cli.processes import (
    SECONDS,
    closed_port,
    command,
    config_file,
    ended,
    endpoint,
    log_line,
    running,
    silent_kubelet,
)

SCHEMA = Path(__file__).parents[2] / "docs" / "report.schema.json"
KUBELET = "KubeletHealthzFailing"


@contextmanager
def an_agent(folder: Path, kubelet_port: int) -> Iterator["subprocess.Popen[str]"]:
    """`nodediag run` whose only detector has looked."""
    with running(command("run", "--config", config_file(folder, kubelet_port))) as process:
        assert process.stderr is not None
        line = log_line(process.stderr, "started")
        assert line["api"] == endpoint(folder)
        wait_until(lambda: get(line["listen"], "/readyz")[0] == 200, SECONDS, "every detector has looked")
        yield process


def asked(*words: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=SECONDS, check=False)


def steady(report: dict[str, Any]) -> dict[str, Any]:
    """A report without what is another at every look."""
    for each in report["conditions"]:
        del each["lastTransitionTime"]
        for finding in each["findings"]:
            del finding["since"]
            finding["values"] = {key: type(value).__name__ for key, value in finding["values"].items()}
    for each in report["detectors"]:
        del each["durationSeconds"]
    return {key: value for key, value in report.items() if key != "observedAt"}


def test_report_says_what_check_says_and_exits_as_it_does(tmp_path: Path) -> None:
    with closed_port() as port, an_agent(tmp_path, port):
        reports = [asked("report", "--endpoint", endpoint(tmp_path), "--format", form) for form in ("text", "json")]
        checks = [asked("check", "--config", tmp_path / "nodediag.yaml", "--format", form) for form in ("text", "json")]
    assert [done.returncode for done in (*reports, *checks)] == [1, 1, 1, 1]
    assert [done.stderr for done in reports] == ["", ""]
    assert reports[0].stdout.startswith("Node worker-3 at ")
    assert f"{KUBELET}: HealthzRefused" in reports[0].stdout
    told, seen = (json.loads(done.stdout) for done in (reports[1], checks[1]))
    jsonschema.validate(told, json.loads(SCHEMA.read_text()))
    assert steady(told) == steady(seen)


def test_watch_tells_how_things_stand_and_each_change_until_it_is_interrupted(tmp_path: Path) -> None:
    with socket.socket() as kubelet:
        kubelet.bind(("127.0.0.1", 0))
        port = kubelet.getsockname()[1]
        with (
            an_agent(tmp_path, port),
            running(command("watch", "--endpoint", endpoint(tmp_path), "--format", "json")) as lines,
            running(command("watch", "--endpoint", endpoint(tmp_path), "--type", KUBELET)) as text,
        ):
            assert lines.stdout is not None
            assert text.stdout is not None
            snapshot = json.loads(lines.stdout.readline())
            assert snapshot["event"] == "snapshot"
            assert [each["status"] for each in snapshot["conditions"]] == [Status.TRUE]
            assert f" {KUBELET} True HealthzRefused: " in text.stdout.readline()
            kubelet.listen()  # and never answers
            changed = json.loads(lines.stdout.readline())
            assert changed["event"] == "changed"
            assert changed["condition"]["findings"][0]["reason"] == "HealthzTimeout"
            assert f" {KUBELET} True HealthzTimeout: " in next_with(text.stdout, "HealthzTimeout")
            for process in (lines, text):
                code, seconds, _, errors = ended(process, signal.SIGINT)
                assert (code, errors) == (-signal.SIGINT, "")
                assert seconds < STOP_SECONDS


def next_with(stream: IO[str], word: str) -> str:
    return next(line for line in stream if word in line)


def test_a_watch_ends_plainly_with_the_agent_and_does_not_hold_it(tmp_path: Path) -> None:
    with (
        closed_port() as port,
        an_agent(tmp_path, port) as agent,
        running(command("watch", "--endpoint", endpoint(tmp_path))) as watch,
    ):
        assert watch.stdout is not None
        assert KUBELET in watch.stdout.readline()
        code, seconds, _, errors = ended(agent, signal.SIGTERM)
        assert (code, seconds < STOP_SECONDS) == (0, True)
        assert all(json.loads(line)["level"] in {"INFO", "WARNING"} for line in errors.splitlines())
        told = watch.communicate(timeout=SECONDS)[1]
    assert watch.returncode == 2
    assert told == f"nodediag: the agent is stopping ({endpoint(tmp_path)})\n"
    assert not (tmp_path / "nodediag.sock").exists()


def test_watch_without_standard_output_says_so(tmp_path: Path) -> None:
    with closed_port() as port, an_agent(tmp_path, port):
        shell = f"{' '.join(command('watch', '--endpoint', endpoint(tmp_path)))} >&-"
        done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 2
    assert done.stderr == "nodediag: standard output is closed\n"


def test_a_type_there_is_not_is_told_with_those_there_are(tmp_path: Path) -> None:
    with closed_port() as port, an_agent(tmp_path, port):
        done = asked("watch", "--endpoint", endpoint(tmp_path), "--type", "KubeletSad")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(f"KubeletSad is no condition of this agent; there are: {KUBELET}\n")


@pytest.mark.parametrize("name", ["report", "watch"])
def test_no_agent_is_told_plainly(tmp_path: Path, name: str) -> None:
    done = asked(name, "--endpoint", endpoint(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    asks = "Is the agent running, and is --endpoint right?"
    assert done.stderr == f"nodediag: no agent answers on {endpoint(tmp_path)}: No such file or directory. {asks}\n"


def test_an_agent_that_stands_still_is_told_plainly(tmp_path: Path) -> None:
    with silent_kubelet() as kubelet, an_agent_that_has_not_looked(tmp_path, kubelet.getsockname()[1]) as agent:
        agent.send_signal(signal.SIGSTOP)
        done = asked("report", "--endpoint", endpoint(tmp_path))
    assert done.returncode == 2
    assert "has not answered for 5 s. Is it standing still, and is --endpoint right?" in done.stderr


@contextmanager
def an_agent_that_has_not_looked(folder: Path, kubelet_port: int) -> Iterator["subprocess.Popen[str]"]:
    with running(command("run", "--config", config_file(folder, kubelet_port))) as process:
        assert process.stderr is not None
        log_line(process.stderr, "started")
        yield process


def test_a_report_before_the_first_look_is_undetermined(tmp_path: Path) -> None:
    with silent_kubelet() as kubelet, an_agent_that_has_not_looked(tmp_path, kubelet.getsockname()[1]):
        done = asked("report", "--endpoint", endpoint(tmp_path), "--format", "json")
    assert done.returncode == 2
    assert [each["state"] for each in json.loads(done.stdout)["detectors"]] == ["starting"]
