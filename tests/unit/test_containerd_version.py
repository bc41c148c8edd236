"""What becomes of tests on a version of containerd that cannot be had, and of one that nobody knows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.versions import containerd_version

ROOT = Path(__file__).resolve().parents[2]
REASON = "containerd 2.1 cannot be had: the mirror is closed"
ANY_TEST = "tests/lab/test_lab_itself.py::test_waiting_returns_what_the_predicate_returned"


def run(**environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a test of the lab on 2.1, as if that could not be had."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", ANY_TEST]
    chosen = {"CONTAINERD": "2.1", "NODEDIAG_LAB_CONTAINERD": ""}  # not what our own run has chosen
    unavailable = {**chosen, "NODEDIAG_LAB_CONTAINERD_UNAVAILABLE": f"2.1 {REASON}", **environment}
    return subprocess.run(command, cwd=ROOT, env=os.environ | unavailable, capture_output=True, text=True, check=False)


def test_it_is_skipped_with_the_reason() -> None:
    done = run(STRICT="")
    assert done.returncode == 0
    assert REASON in done.stdout
    assert "1 skipped" in done.stdout


def test_it_fails_with_the_reason_where_nothing_may_be_skipped() -> None:
    done = run(STRICT="1")
    assert done.returncode == 1
    assert REASON in done.stdout
    assert "1 error" in done.stdout


def test_the_default_version_is_never_skipped() -> None:
    done = run(CONTAINERD="1.6", NODEDIAG_LAB_CONTAINERD_UNAVAILABLE=f"1.6 {REASON}", STRICT="")
    assert done.returncode == 1
    assert REASON in done.stdout


@pytest.mark.parametrize("version", ["2", "1.6.20", "latest"])
def test_an_unknown_version_is_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setenv("CONTAINERD", version)
    with pytest.raises(ValueError, match=r"must be one of 1\.6, 1\.7, 2\.1"):
        containerd_version()


def test_the_tool_refuses_an_unknown_version_and_says_which_there_are() -> None:
    done = subprocess.run([ROOT / "tools/get-containerd", "2"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "usage: get-containerd 1.6|1.7|2.1\n"
