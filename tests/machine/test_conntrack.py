"""An agent inside a node of its own namespaces, whose conntrack table is made to suffer."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.detections import record
from tests.e2e.agent_process import AgentProcess
from tests.lab import conntrack_faults
from tests.lab.dns_servers import DnsServer
from tests.lab.netns import Node
from tests.lab.waiting import wait_until

NAMED_SECONDS = 15.0
PRESSURE = "ConntrackTablePressure"

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]


def agent_in(node: Node, folder: Path, dns: DnsServer) -> AgentProcess:
    """Return an agent that runs in a node's namespaces."""

    def connect(port: int) -> socket.socket:
        connection = node.make_socket(socket.AF_INET, socket.SOCK_STREAM)
        connection.settimeout(10)
        connection.connect(("127.0.0.1", port))
        return connection

    settings = {"dns": {"servers": [f"{dns.address}:{dns.port}"]}}
    return AgentProcess(folder, settings, start=lambda argv, **options: node.start(*argv, **options), connect=connect)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, AgentProcess]]:
    folder = tmp_path_factory.mktemp("agent")
    with (
        Node() as node,
        DnsServer(make_socket=node.make_socket) as dns,
        conntrack_faults.tracking(node),
        agent_in(node, folder, dns) as agent,
    ):
        yield node, agent


def race_and_pressure_are_false(agent: AgentProcess) -> bool:
    statuses = agent.statuses()
    return statuses["ConntrackDNSRace"] == statuses[PRESSURE] == statuses["DNSUnavailable"] == "False"


def await_settled(agent: AgentProcess) -> None:
    """Wait until two looks in a row found the table well: the first may still doubt what only the second tells of."""

    def looked() -> float | None:
        return agent.metric("nodediag_detector_last_run_timestamp_seconds", detector="conntrack_dns")

    wait_until(lambda: race_and_pressure_are_false(agent), 20, "the table is well")
    first = looked()
    wait_until(lambda: looked() != first and race_and_pressure_are_false(agent), 20, "and at the next look, too")


@pytest.mark.parametrize(
    ("fault", "maker", "reasons"),
    [
        ("conntrack table nearly full", conntrack_faults.table_nearly_full, {"TableNearlyFull"}),
        ("conntrack table full", conntrack_faults.table_full, {"TableFull"}),
        ("conntrack entries evicted", conntrack_faults.evicting_table, {"TableFull", "EarlyDrop", "TableNearlyFull"}),
    ],
)
def test_a_table_that_fills_up_is_named_and_clears(
    watched: tuple[Node, AgentProcess],
    fault: str,
    maker: Callable[[Node], AbstractContextManager[int]],
    reasons: set[str],
) -> None:
    node, agent = watched
    wait_until(lambda: race_and_pressure_are_false(agent), 20, "the table is well")
    before = time.time()
    with maker(node):
        began = time.time()
        wait_until(lambda: bool(agent.accusations(before)), NAMED_SECONDS, "the pressure is told of")
        told = agent.accusations(before)
        assert told[0].at - began < NAMED_SECONDS
        assert {change.type for change in told} == {PRESSURE}
        assert told[0].reason in reasons
        record(fault, "lab", max(0.0, told[0].at - began), condition=PRESSURE, reason=told[0].reason)
    wait_until(lambda: race_and_pressure_are_false(agent), NAMED_SECONDS, "the pressure is over")
    assert {change.type for change in agent.accusations(before)} == {PRESSURE}


def test_clashes_the_kernel_resolves_are_counted_and_accuse_nobody(watched: tuple[Node, AgentProcess]) -> None:
    node, agent = watched
    await_settled(agent)
    before, events = time.time(), "nodediag_conntrack_events_total"
    counted = agent.metric(events, event="clash_resolve") or 0
    rise = conntrack_faults.clashes(node, 100)
    assert rise >= 50
    wait_until(
        lambda: (agent.metric(events, event="clash_resolve") or 0) >= counted + rise, NAMED_SECONDS, "clashes counted"
    )
    assert agent.accusations(before) == []
    assert race_and_pressure_are_false(agent)
