"""The example controller: when it asks, how it repeats, and that only the lease's holder acts."""

import fcntl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import pytest

from agent.acts import Outcome, Refusal, RefusalReason
from agent.client import Client
from agent.model import Action, ActiveFinding, Changed
from examples import controller as example
from examples.controller import DONE, LATER, POLICY, SOON, Controller, lease
from tests.lab.waiting import wait_until
from tests.unit.accused import hung_shim, lazy_parent, silent_kubelet
from tests.unit.agent_double import AgentDouble, Answer, Lost, condition_of, report_of

ROOT = Path(__file__).parents[2]
PATIENCE = POLICY["ShimUnresponsive"]
SECONDS = 20


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentDouble]:
    with AgentDouble(tmp_path / "agent.sock") as double:
        yield double


@pytest.fixture
def client(agent: AgentDouble) -> Iterator[Client]:
    with Client(agent.endpoint) as client:
        yield client


def knowing(client: Client, *found: ActiveFinding) -> Controller:
    """A controller that knows of these findings since moment 0."""
    controller = Controller(client, 7)
    controller.found = {each.finding.key: each.finding for each in found}
    controller.step(0)
    return controller


def ids(agent: AgentDouble) -> list[str]:
    return [asked.request_id for asked in agent.asked]


# -- when it asks


def test_it_asks_once_the_policys_time_is_over_and_not_before(agent: AgentDouble, client: Client) -> None:
    controller = knowing(client, hung_shim())
    controller.step(PATIENCE - 0.1)
    assert agent.asked == []
    controller.step(PATIENCE)
    (asked,) = agent.asked
    assert (asked.action, asked.target, asked.fencing_token) == (Action.KILL_SHIM, hung_shim().finding.target, 7)


def test_what_has_cleared_meanwhile_starts_anew(agent: AgentDouble, client: Client) -> None:
    controller = knowing(client, hung_shim())
    found, controller.found = controller.found, {}
    controller.step(PATIENCE - 1)
    controller.found = found
    controller.step(PATIENCE)
    assert agent.asked == []
    controller.step(2 * PATIENCE)
    assert len(agent.asked) == 1


def test_it_does_not_act_on_reasons_that_are_not_in_its_policy_or_have_no_action(
    agent: AgentDouble, client: Client
) -> None:
    controller = knowing(client, silent_kubelet(), hung_shim(action=Action.NONE))
    controller.step(1e6)
    assert agent.asked == []


def test_it_asks_for_one_at_a_time(agent: AgentDouble, client: Client) -> None:
    controller = knowing(client, hung_shim(), lazy_parent())
    controller.step(1e6)
    assert [asked.action for asked in agent.asked] == [Action.KILL_SHIM]
    controller.step(1e6 + 1)
    assert [asked.action for asked in agent.asked] == [Action.KILL_SHIM, Action.SIGNAL_PARENT]


# -- how it repeats


@pytest.mark.parametrize(
    ("answer", "rest", "same"),
    [
        (Lost(), SOON, True),
        (Refusal(RefusalReason.STOPPING, "the agent is stopping"), SOON, True),
        (Refusal(RefusalReason.BUSY, "one is under way", 2.5), 2.5, True),
        (Refusal(RefusalReason.BUDGET_SPENT, "enough", 1800.0), 1800.0, True),
        (Refusal(RefusalReason.NOT_CONFIRMED, "it answers"), LATER, False),
        (Outcome.INEFFECTIVE, DONE, False),
        (Outcome.DRY_RUN, DONE, False),
    ],
)
def test_it_rests_as_long_as_the_answer_asks_for_and_keeps_an_unanswered_id(
    agent: AgentDouble, client: Client, answer: Answer, rest: float, same: bool
) -> None:
    agent.answers = [answer]
    controller = knowing(client, hung_shim())
    for moment in (PATIENCE, PATIENCE + rest - 0.1):
        controller.step(moment)
        assert len(agent.asked) == 1
    controller.step(PATIENCE + rest)
    first, second = ids(agent)
    assert (first == second) is same
    assert UUID(first).version == 4


def test_an_id_without_an_answer_outlives_what_is_known(agent: AgentDouble, client: Client) -> None:
    agent.answers = [Lost(Outcome.VERIFIED)]
    controller = knowing(client, hung_shim())
    controller.step(PATIENCE)
    found, controller.found = controller.found, {}  # the agent starts anew
    controller.step(PATIENCE + SOON)
    controller.found = found
    controller.step(PATIENCE + SOON + 1)
    controller.step(2 * PATIENCE + SOON + 1)
    assert len(agent.asked) == 2
    assert len(set(ids(agent))) == 1


def test_who_has_lost_the_lease_ends(agent: AgentDouble, client: Client) -> None:
    agent.answers = [Refusal(RefusalReason.STALE_FENCING_TOKEN, "8 was seen")]
    controller = knowing(client, hung_shim())
    with pytest.raises(SystemExit, match="another controller acts"):
        controller.step(PATIENCE)


# -- what it knows


def followed(controller: Controller) -> None:
    with suppress(ValueError):  # the test is over, and its client closed
        controller.follow()


def test_it_follows_changes_and_restarts_of_the_agent(
    agent: AgentDouble, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example, "SOON", 0.05)
    agent.report = report_of(hung_shim())
    controller = Controller(client, 7)
    threading.Thread(target=followed, args=(controller,), daemon=True).start()
    wait_until(lambda: set(controller.found) == {hung_shim().finding.key}, SECONDS, "the snapshot is known")

    agent.report = report_of(hung_shim(), lazy_parent())
    agent.events.put(Changed(condition_of("ExcessiveDefunctProcesses", (lazy_parent(),))))
    wait_until(lambda: len(controller.found) == 2, SECONDS, "the change is known")

    agent.stop()
    wait_until(lambda: not controller.found, SECONDS, "nothing is known any more")
    agent.start()
    wait_until(lambda: len(controller.found) == 2, SECONDS, "all is known again")


# -- the lease


def test_the_token_rises_with_each_holder(tmp_path: Path) -> None:
    tokens = []
    for _ in range(12):
        with lease(str(tmp_path / "lease")) as token:
            tokens.append(token)
    assert tokens == list(range(1, 13))


def test_nobody_holds_the_lease_beside_a_running_controller_and_the_next_has_a_higher_token(
    tmp_path: Path, agent: AgentDouble
) -> None:
    path = tmp_path / "lease"
    words = [sys.executable, "examples/controller.py", "--endpoint", agent.endpoint, "--lease", str(path)]
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True) as first:
        try:
            wait_until(lambda: path.exists() and path.stat().st_size, SECONDS, "the first holds the lease")
            with path.open("rb") as file, pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            assert first.poll() is None
        finally:
            first.kill()
    with lease(str(path)) as token:
        assert token == 2
    assert path.stat().st_mode & 0o777 == 0o600


def test_it_is_small_enough_to_be_read() -> None:
    assert len((ROOT / "examples" / "controller.py").read_text().splitlines()) < 100
