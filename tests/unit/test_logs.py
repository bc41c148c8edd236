"""Everything a running agent says is one JSON object a line."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

TALKER = """
import logging, threading, warnings
from agent import logs
logs.configure()
log = logging.getLogger("nodediag.test")
log.debug("not told")
log.info("plain", extra={"detector": "containerd_shim", "seconds": 1.5})
log.info("line\\nbreak \\udcff \\x1b[31m")
log.info("odd value", extra={"value": object})
try:
    1 / 0
except ZeroDivisionError:
    log.exception("failed")
warnings.warn("old ways")
def fall(): raise ValueError("fell")
thread = threading.Thread(target=fall, name="conntrack_dns")
thread.start()
thread.join()
"""


@pytest.fixture(scope="module")
def lines() -> list[dict[str, Any]]:
    done = subprocess.run([sys.executable, "-c", TALKER], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == ""
    return [json.loads(line) for line in done.stderr.splitlines()]


def only(lines: list[dict[str, Any]], begin: str) -> dict[str, Any]:
    (found,) = [line for line in lines if line["message"].startswith(begin)]
    return found


def test_a_line_has_level_logger_message_and_what_was_added(lines: list[dict[str, Any]]) -> None:
    line = only(lines, "plain")
    assert (line["level"], line["logger"]) == ("INFO", "nodediag.test")
    assert (line["detector"], line["seconds"]) == ("containerd_shim", 1.5)


def test_times_are_utc(lines: list[dict[str, Any]]) -> None:
    time = datetime.fromisoformat(only(lines, "plain")["time"])
    assert time.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - time) < timedelta(minutes=1)


def test_what_a_stranger_chose_cannot_break_a_line(lines: list[dict[str, Any]]) -> None:
    assert only(lines, "line")["message"] == "line\nbreak \udcff \x1b[31m"


def test_a_value_json_does_not_know_does_not_lose_the_line(lines: list[dict[str, Any]]) -> None:
    assert "object" in only(lines, "odd value")["value"]


def test_an_exception_stays_on_its_line(lines: list[dict[str, Any]]) -> None:
    assert "ZeroDivisionError" in only(lines, "failed")["exc_info"]


def test_warnings_of_libraries_are_lines_too(lines: list[dict[str, Any]]) -> None:
    assert any("old ways" in line["message"] for line in lines)


def test_a_thread_that_fails_is_told_by_name(lines: list[dict[str, Any]]) -> None:
    line = only(lines, "a thread failed")
    assert line["thread_name"] == "conntrack_dns"
    assert "ValueError: fell" in line["exc_info"]


def test_details_for_developers_are_not_told(lines: list[dict[str, Any]]) -> None:
    assert not any(line["message"] == "not told" for line in lines)
