"""An agent that plays a script, and a command line that asks it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.agent_double import AgentDouble
from tests.unit.cli.asking import CommandLine


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentDouble]:
    with AgentDouble(tmp_path / "agent.sock") as double:
        yield double


@pytest.fixture
def run(agent: AgentDouble, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(agent, capsys, monkeypatch)
