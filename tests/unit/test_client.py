"""The typed client: what it sends and reads, and what it makes of refusals."""

import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import grpc
import pytest

from agent.acts import REFUSAL_CODES, Outcome, Refusal, RefusalReason, Request
from agent.client import PAGE, Client, ClientError
from agent.model import Action
from tests.unit.accused import hung_shim
from tests.unit.agent_double import READY, AgentDouble, Lost

TARGET = hung_shim().finding.target


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentDouble]:
    with AgentDouble(tmp_path / "agent.sock") as double:
        yield double


@pytest.fixture
def client(agent: AgentDouble) -> Iterator[Client]:
    with Client(agent.endpoint) as client:
        yield client


def error_of(client: Client, **how: str) -> ClientError:
    with pytest.raises(ClientError) as caught:
        client.remediate(Action.KILL_SHIM, TARGET, **how)  # type: ignore[arg-type]
    return caught.value


def test_what_was_asked_comes_back_with_what_came_of_it(agent: AgentDouble, client: Client) -> None:
    done = client.remediate(Action.KILL_SHIM, TARGET, fencing_token=9, dry_run=True, reason="why")
    (asked,) = agent.asked
    assert (asked.action, asked.target, asked.fencing_token, asked.dry_run, asked.reason) == (
        Action.KILL_SHIM,
        TARGET,
        9,
        True,
        "why",
    )
    assert UUID(asked.request_id).version == 4
    assert (done, done.outcome, done.request) == (agent.recorded[asked.request_id], Outcome.VERIFIED, asked)


def test_nothing_is_repeated_by_itself(agent: AgentDouble, client: Client) -> None:
    agent.answers = [Lost()]
    error = error_of(client, request_id=str(UUID(int=1)))
    assert (error.code, error.refusal, len(agent.asked)) == (grpc.StatusCode.UNAVAILABLE, None, 1)


def test_a_lost_answer_is_found_by_the_same_request_id(agent: AgentDouble, client: Client) -> None:
    agent.answers = [Lost(Outcome.VERIFIED)]
    error_of(client, request_id=str(UUID(int=1)))
    assert client.get_remediation(str(UUID(int=1))).outcome is Outcome.VERIFIED


@pytest.mark.parametrize("reason", RefusalReason)
def test_every_refusal_arrives_as_a_word(agent: AgentDouble, client: Client, reason: RefusalReason) -> None:
    sent = Refusal(reason, f"because of {reason}", 40.5)
    agent.answers = [sent]
    error = error_of(client)
    assert (error.refusal, error.code.name) == (sent, REFUSAL_CODES[reason])
    assert str(error) == f"the agent on {agent.endpoint} refuses: {reason}: because of {reason}"


def test_no_delay_is_not_a_delay_of_nothing(agent: AgentDouble, client: Client) -> None:
    agent.answers = [Refusal(RefusalReason.BUSY, "x", 0.0), Refusal(RefusalReason.BUSY, "x")]
    delays = [error.refusal.retry_seconds for error in (error_of(client), error_of(client)) if error.refusal]
    assert delays == [0.0, None]


def test_an_answer_may_take_longer_than_a_report(agent: AgentDouble) -> None:
    go_on = threading.Event()
    agent.answers = [go_on]
    timer = threading.Timer(0.5, go_on.set)
    timer.start()
    with Client(agent.endpoint, deadline_seconds=0.2) as hasty:
        assert hasty.remediate(Action.KILL_SHIM, TARGET).outcome is Outcome.VERIFIED
    timer.join()


def test_how_the_actions_stand_is_read(client: Client) -> None:
    assert client.list_actions() == READY


@pytest.mark.parametrize(("limit", "count", "sizes"), [(2, 2, [2]), (5, 5, [5, 2]), (500, 7, [PAGE] * 3)])
def test_a_list_is_read_page_by_page(
    agent: AgentDouble, client: Client, limit: int, count: int, sizes: list[int]
) -> None:
    for number in range(7):
        agent.record(Request(str(UUID(int=number)), Action.KILL_SHIM, TARGET, ""))
    found = client.list_remediations(limit)
    assert [UUID(each.request.request_id).int for each in found] == list(range(6, 6 - count, -1))
    assert agent.page_sizes == sizes


def test_evidence_is_put_together_from_its_chunks(agent: AgentDouble, client: Client) -> None:
    stored = agent.store("a", bytes(2500))
    assert client.list_evidence() == (stored,)
    assert client.fetch_evidence("a") == bytes(2500)
    with pytest.raises(ClientError) as caught:
        client.fetch_evidence("b")
    assert caught.value.code is grpc.StatusCode.NOT_FOUND
