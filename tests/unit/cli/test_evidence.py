"""`nodediag evidence`: what was captured, unchanged or not at all."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from agent import client
from tests.unit.agent_double import AgentDouble
from tests.unit.cli.asking import CommandLine
from tests.unit.cli.processes import SECONDS, command

DOCUMENT = json.dumps({"shim": {"pid": 4242, "comm": "\u202eodd"}, "many": list(range(2000))}).encode()


def test_all_are_listed_a_line_each(agent: AgentDouble, run: CommandLine) -> None:
    agent.store("20260801-KillShim", b"{}")
    done = run("evidence")
    assert done.code == 0
    assert done.out == (
        "20260801-KillShim  2026-08-01 03:12:45 UTC  KillShim  2 bytes  "
        "of request 1b4e28ba-2fa1-41d2-883f-0016d3cca427\n"
    )
    (one,) = json.loads(run("evidence", "--format", "json").out)["evidence"]
    assert (one["id"], one["size"], len(one["sha256"])) == ("20260801-KillShim", 2, 64)


def test_one_is_written_byte_for_byte(agent: AgentDouble) -> None:
    agent.store("a", DOCUMENT)
    words = command("evidence", "--endpoint", agent.endpoint, "a")
    done = subprocess.run(words, capture_output=True, timeout=SECONDS, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, DOCUMENT, b"")


def test_a_terminal_is_shown_what_cannot_harm_it(agent: AgentDouble) -> None:
    agent.store("a", '{"comm": "\u202e\x9bodd"}'.encode())
    ours, theirs = os.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal, os.fdopen(theirs, "wb") as stdout:
        words = command("evidence", "--endpoint", agent.endpoint, "a")
        assert subprocess.run(words, stdout=stdout, timeout=SECONDS, check=False).returncode == 0
        shown = terminal.read(1000)
    assert shown == b'{\r\n  "comm": "\\u202e\\u009bodd"\r\n}\r\n'


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"size": 3}, "it has 2 bytes instead of 3"),
        ({"sha256": "0" * 64}, "its sha256 is 44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"),
    ],
)
def test_what_is_not_what_was_listed_is_not_printed(
    agent: AgentDouble, run: CommandLine, changes: dict[str, object], told: str
) -> None:
    stored = agent.store("a", b"{}")
    agent.evidence["a"] = (replace(stored, **changes), b"{}")  # type: ignore[arg-type]
    done = run("evidence", "a")
    assert (done.code, done.out) == (2, "")
    assert told in done.err


def test_what_does_not_end_is_not_read_to_its_end(
    agent: AgentDouble, run: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "MAX_EVIDENCE_BYTES", 5000)
    agent.store("a", DOCUMENT)
    done = run("evidence", "a")
    assert (done.code, done.out) == (2, "")
    assert "was not read to its end" in done.err


def test_one_there_is_not_is_told_plainly(agent: AgentDouble, run: CommandLine) -> None:
    done = run("evidence", "\x1bx")
    assert (done.code, done.out) == (2, "")
    assert "no evidence \\x1bx is stored" in done.err
    assert run("evidence").out == "No evidence is stored.\n"


def test_no_agent_is_undetermined(agent: AgentDouble, run: CommandLine, tmp_path: Path) -> None:
    agent.stop()
    assert run("evidence", "a").code == run("evidence").code == 2
