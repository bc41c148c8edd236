"""A lab node whose agent may mend: what the tests of remediation share."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agent.client import Client, ClientError
from agent.model import Action, Finding, Target
from tests.e2e.agent_process import AgentProcess
from tests.lab.pods import Container
from tests.lab.processes import Process, has_ended
from tests.lab.shim_ping import connect_answers
from tests.lab.waiting import wait_until

FOUND_SECONDS = 20.0
CLI_SECONDS = 60.0
QUICK: dict[str, dict[str, float]] = {
    "containerd_shim": {"period_seconds": 1, "ping_seconds": 1, "hung_seconds": 2, "leak_seconds": 2},
    "defunct_processes": {"period_seconds": 1, "lasting_seconds": 1},
    "kubelet_healthz": {"period_seconds": 1, "deadline_seconds": 3, "hedge_seconds": 0.5, "slow_seconds": 1},
    "container_runtime": {"period_seconds": 1, "deadline_seconds": 2, "hedge_seconds": 0.5},
}
"""How soon a fault is named is proven elsewhere, at default settings."""


def mending(state_dir: Path, **actions: dict[str, Any]) -> dict[str, Any]:
    """Return settings with which everything may be mended, at once and often, except as said of some actions."""
    free = {"cooldown_seconds": 0, "max_per_hour": 1000}
    each = {action.value: {**free, **actions.get(action.value, {})} for action in Action if action is not Action.NONE}
    remediation = {"enabled": True, "dry_run": False, "max_per_hour": 1000, "actions": each}
    return {"remediation": remediation, "host": {"state_dir": str(state_dir)}, "detectors": QUICK}


def found(agent: AgentProcess, fits: Callable[[Finding], bool], what: str) -> Finding:
    """Return the confirmed finding that fits, as soon as the agent has it."""
    with Client(agent.endpoint) as client:
        return found_by(client, fits, what)


def found_by(client: Client, fits: Callable[[Finding], bool], what: str) -> Finding:
    """The same, by a client of one's own."""

    def look() -> Finding | None:
        report = client.get_node_report()
        active = (active.finding for condition in report.conditions for active in condition.findings)
        return next((finding for finding in active if fits(finding)), None)

    return wait_until(look, FOUND_SECONDS, what)


def about(container: Container) -> Callable[[Finding], bool]:
    """Whether a finding is about this container."""
    return lambda finding: finding.target.container_id == container.id


def refusal_of(agent: AgentProcess, action: Action, target: Target, **how: Any) -> ClientError:
    """Ask for what must be refused, and return how."""
    with Client(agent.endpoint) as client:
        try:
            done = client.remediate(action, target, **how)
        except ClientError as error:
            return error
    raise AssertionError(f"this must be refused, and was {done.outcome}: {done.message}")


def reason_of(error: ClientError) -> str:
    """Return the one word of a refusal."""
    assert error.refusal is not None, error
    return error.refusal.reason.value


def nodediag(agent: AgentProcess, *words: str, stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
    """Run a client command against this agent."""
    command = [sys.executable, "-m", "agent", *words, "--endpoint", agent.endpoint]
    return subprocess.run(command, capture_output=True, text=True, timeout=CLI_SECONDS, check=False, input=stdin)


@contextmanager
def untouched(containers: list[Container]) -> Iterator[None]:
    """Hold that these containers are the same living processes afterwards, under shims that answer."""
    yield
    for each in containers:
        assert not has_ended(each.init), f"{each.pod.name} has lost its first process"
        assert not has_ended(each.shim), f"{each.pod.name} has lost its shim"
        assert connect_answers(each.shim_socket, each.id), f"the shim of {each.pod.name} does not answer"


def all_gone(processes: list[Process]) -> bool:
    """Whether every one of these processes has ended."""
    return all(has_ended(each) for each in processes)


def ledger_rows(agent: AgentProcess) -> list[dict[str, Any]]:
    """Return what `nodediag remediations` tells."""
    done = nodediag(agent, "remediations", "--format", "json")
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)["remediations"]
    return rows
