"""The client subcommands, run in this process against an agent that plays a script."""

import io
from dataclasses import dataclass

import pytest

from agent.cli.parser import parse
from tests.unit.agent_double import AgentDouble


@dataclass(frozen=True)
class Done:
    """What a command came to."""

    code: int
    out: str
    err: str


class Terminal(io.StringIO):
    """Standard input at which somebody sits who types this."""

    def isatty(self) -> bool:
        return True


class CommandLine:
    """Types commands."""

    def __init__(self, agent: AgentDouble, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self._agent = agent
        self._capsys = capsys
        self._patch = patch

    def __call__(self, *words: object, typed: str | None = None) -> Done:
        """Run a command; `typed` makes it a terminal at which this is typed."""
        with self._patch.context() as patch:
            if typed is not None:
                patch.setattr("sys.stdin", Terminal(typed))
                patch.setattr("sys.stderr.isatty", lambda: True)
            name, *others = map(str, words)
            function, arguments = parse([name, "--endpoint", self._agent.endpoint, *others])
            code = function(arguments)
        output = self._capsys.readouterr()
        return Done(code, output.out, output.err)
