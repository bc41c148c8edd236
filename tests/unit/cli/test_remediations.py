"""`nodediag remediations`: what was asked for, and what came of it."""

import json
from uuid import UUID

import pytest

from agent.acts import Outcome, Refusal, RefusalReason, Request
from agent.model import Action
from tests.unit.accused import hung_shim
from tests.unit.agent_double import AgentDouble
from tests.unit.cli.asking import CommandLine


def request(number: int, *, dry_run: bool = False, reason: str = "") -> Request:
    return Request(
        str(UUID(int=number)), Action.KILL_SHIM, hung_shim().finding.target, "", dry_run=dry_run, reason=reason
    )


def test_the_latest_comes_first_a_line_each(agent: AgentDouble, run: CommandLine) -> None:
    for number in range(8):  # more than one page
        agent.record(request(number))
    done = run("remediations")
    lines = done.out.splitlines()
    assert (done.code, len(lines)) == (0, 8)
    assert lines[0] == (
        "2026-08-01 03:12:45 UTC  verified     KillShim shim 4242 (container 9c0e6f0d1a2b)  "
        "00000000-0000-0000-0000-000000000007  it is verified"
    )
    assert "000000000000  it is verified" in lines[-1]


def test_no_more_are_asked_for_and_told_than_wanted(agent: AgentDouble, run: CommandLine) -> None:
    for number in range(8):
        agent.record(request(number))
    assert len(run("remediations", "--limit", 4).out.splitlines()) == 4
    assert agent.page_sizes == [4, 1]


def test_one_is_told_in_full(agent: AgentDouble, run: CommandLine) -> None:
    asked = request(5, dry_run=True, reason="it hangs since noon")
    agent.record(asked, Outcome.DRY_RUN, evidence_id="20260801-031245-KillShim")
    done = run("remediations", "--request-id", asked.request_id.upper())
    words = " ".join(done.out.split())
    assert done.code == 0
    assert "dry_run: it is dry_run Nothing was changed; a live run would have acted." in words
    assert "target shim, pid 4242, started at tick 987654" in words
    assert "asked by uid:0 with fencing token 0 reason it hangs since noon" in words
    assert "took 4.0 s evidence 20260801-031245-KillShim" in words


@pytest.mark.parametrize(("acted", "told"), [(True, "may have been done: look at the node"), (False, "not begun")])
def test_one_that_was_interrupted_says_whether_it_was_begun(
    agent: AgentDouble, run: CommandLine, acted: bool, told: str
) -> None:
    agent.record(request(5), Outcome.INTERRUPTED, acted=acted)
    assert told in " ".join(run("remediations", "--request-id", UUID(int=5)).out.split())


def test_one_that_was_refused_says_why(agent: AgentDouble, run: CommandLine) -> None:
    why = Refusal(RefusalReason.NOT_CONFIRMED, "the shim answers in 0.4 ms")
    agent.record(request(5), Outcome.REFUSED, refusal=why, message=why.message)
    assert "refused: NOT_CONFIRMED: the shim answers in 0.4 ms" in run("remediations", "--request-id", UUID(int=5)).out


def test_programs_read_json(agent: AgentDouble, run: CommandLine) -> None:
    agent.record(request(5), Outcome.RUNNING, finished_at=0.0)
    one = json.loads(run("remediations", "--request-id", UUID(int=5), "--format", "json").out)
    many = json.loads(run("remediations", "--format", "json").out)
    assert many == {"remediations": [one]}
    assert (one["outcome"], one["finishedAt"], one["caller"]) == ("running", None, "uid:0")
    assert one["target"]["startTime"] == 987654


def test_one_there_is_not_is_told_plainly(agent: AgentDouble, run: CommandLine) -> None:
    done = run("remediations", "--request-id", UUID(int=5))
    assert (done.code, done.out) == (2, "")
    assert f"no remediation {UUID(int=5)} is recorded" in done.err


def test_none_at_all_is_said(agent: AgentDouble, run: CommandLine) -> None:
    assert run("remediations").out == "Nothing was asked for, as far as is recorded.\n"


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "x", "9" * 5000])
def test_a_limit_that_is_none_is_refused(limit: str, run: CommandLine, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run("remediations", f"--limit={limit}")
    assert caught.value.code == 2
    assert "must be a number from 1 to 1000" in capsys.readouterr().err
