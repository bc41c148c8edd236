"""`nodediag actions`: what can be done now, and what stands in its way."""

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.agent_double import KILL_SHIM, READY, AgentDouble
from tests.unit.cli.asking import CommandLine


def test_an_action_is_told_with_all_that_matters(agent: AgentDouble, run: CommandLine) -> None:
    done = run("actions")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("Remediation is ON: ")
    words = " ".join(done.out.split())
    assert "Left this hour: 11 of 12 for all actions together. Highest fencing token: 7." in words
    assert "KillShim: ready does Kills the shim by pidfd" in words
    assert "takes shim --target a pid, a container id" in words
    assert "permitted by ContainerdShimHung: ShimUnresponsive, ShimOperationStuck" in words
    assert "risk The pod's containers end without their grace period." in words
    assert "limits rests 2 min after each time; 5 of 6 left this hour" in words
    assert max(map(len, done.out.splitlines())) <= 100


@pytest.mark.parametrize(
    ("changes", "action", "told"),
    [
        ({"enabled": False}, {"enabled": False}, ["OFF", "remediation.enabled: true", "KillShim: off"]),
        ({"dry_run": True}, {}, ["DRY RUN", "remediation.dry_run: false", "KillShim: ready, as a dry run"]),
        ({"paused": "maintenance"}, {}, ["PAUSED maintenance", "pause file", "KillShim: paused"]),
        ({"trouble": "disk full"}, {}, ["TROUBLE disk full", "KillShim: nothing can be recorded"]),
        ({}, {"enabled": False}, ["KillShim: off (setting remediation.actions.KillShim.enabled)"]),
        ({}, {"allowed": False}, ["KillShim: not allowed to you"]),
        ({}, {"cooldown_left_seconds": 40.0}, ["KillShim: rests for 40 s more"]),
        ({}, {"left_this_hour": 0}, ["KillShim: its budget of this hour is spent", "0 of 6 left"]),
    ],
)
def test_what_stands_in_the_way_is_told_with_what_would_help(
    agent: AgentDouble, run: CommandLine, changes: dict[str, Any], action: dict[str, Any], told: list[str]
) -> None:
    agent.status = replace(READY, actions=(replace(KILL_SHIM, **action),), **changes)
    done = run("actions")
    assert done.code == 0
    words = " ".join(done.out.split())
    for each in told:
        assert each in words


def test_programs_read_the_same_as_json(agent: AgentDouble, run: CommandLine) -> None:
    agent.status = replace(READY, paused="x\x1b")
    done = run("actions", "--format", "json")
    told = json.loads(done.out)
    assert (done.code, told["paused"], told["highestFencingToken"], told["enabled"]) == (0, "x\x1b", 7, True)
    (action,) = told["actions"]
    assert (action["action"], action["targets"], action["cooldownSeconds"]) == ("KillShim", ["shim"], 120.0)
    assert action["mends"]["ContainerdShimLeaked"] == ["ShimWithoutContainers"]


def test_what_an_agent_says_cannot_move_the_cursor(agent: AgentDouble, run: CommandLine) -> None:
    odd = replace(KILL_SHIM, does="\x1b[2J", risk="\u202e", mends={"\x1b": ("\x07",)})
    agent.status = replace(READY, paused="\x1b]0;", trouble="\r", actions=(odd,))
    assert all(line.isprintable() for line in run("actions").out.splitlines())


def test_no_agent_is_undetermined(agent: AgentDouble, run: CommandLine) -> None:
    agent.stop()
    done = run("actions")
    assert (done.code, done.out) == (2, "")
    assert "no agent answers on unix:" in done.err
