"""DeleteConntrackFlows in a node of the lab, whose table holds flows of every kind."""

import json
import re
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.lab import dns_wire
from tests.lab.conntrack_faults import replied_dns_flows, tracking, unreplied_dns_flows
from tests.lab.netns import Node

SOURCES, SOURCES_V6 = ("10.244.0.7", "10.244.0.8"), ("fd00:244::7",)
SILENT, OTHER, HEALTHY, SILENT_V6 = "10.96.0.10", "10.96.0.20", "10.96.0.11", "fd00:96::a"
ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]


@pytest.fixture
def node() -> Iterator[Node]:
    with Node() as running, tracking(running):
        yield running


@contextmanager
def flows_of_every_kind(node: Node) -> Iterator[None]:
    """40 unanswered to one server, 25 to another, 30 to one by IPv6; 20 answered; UDP and TCP to other ports."""
    with ExitStack() as stack:
        stack.enter_context(unreplied_dns_flows(node, 40, SOURCES, SILENT))
        stack.enter_context(unreplied_dns_flows(node, 25, SOURCES, OTHER))
        stack.enter_context(unreplied_dns_flows(node, 30, SOURCES_V6, SILENT_V6))
        stack.enter_context(replied_dns_flows(node, 20, SOURCES, HEALTHY))
        for number in range(10):
            client = stack.enter_context(node.make_socket(socket.AF_INET, socket.SOCK_DGRAM))
            client.bind((SOURCES[0], 0))
            client.sendto(b"x", (SILENT, 5300 + number))
        listener = stack.enter_context(node.make_socket(socket.AF_INET, socket.SOCK_STREAM))
        listener.bind((SILENT, 53))
        listener.listen()
        for _ in range(5):
            connection = stack.enter_context(node.make_socket(socket.AF_INET, socket.SOCK_STREAM))
            connection.connect((SILENT, 53))
        yield


def table(node: Node) -> Counter[tuple[str, str, str, bool]]:
    """Count the entries by protocol, server, port (53 or other) and whether they are unreplied, by conntrack(8)."""
    found: Counter[tuple[str, str, str, bool]] = Counter()
    for family in ("ipv4", "ipv6"):
        for line in node.run("conntrack", "-L", "-f", family).stdout.splitlines():
            protocol = line.split()[0]
            server, port = re.findall(r"dst=(\S+)", line)[0], re.findall(r"dport=(\d+)", line)
            if protocol in {"udp", "tcp"}:
                found[(protocol, server, "53" if port[0] == "53" else "other", "[UNREPLIED]" in line)] += 1
    return found


KINDS: Counter[tuple[str, str, str, bool]] = Counter(
    {
        ("udp", SILENT, "53", True): 40,
        ("udp", OTHER, "53", True): 25,
        ("udp", SILENT_V6, "53", True): 30,
        ("udp", HEALTHY, "53", False): 20,
        ("udp", SILENT, "other", True): 10,
        ("tcp", SILENT, "53", False): 5,
    }
)


def act(node: Node, address: str) -> dict[str, Any]:
    command = ["env", "-C", str(ROOT), sys.executable, "-m", "tests.parts.flow_action", address]
    answer: dict[str, Any] = json.loads(node.run(*command).stdout)
    return answer


@pytest.mark.parametrize(
    ("address", "deleted"),
    [
        (SILENT, [SILENT]),
        (f"{OTHER}:53", [OTHER]),
        (f"[{SILENT_V6}]:53", [SILENT_V6]),
        ("-", [SILENT, OTHER, SILENT_V6]),
    ],
)
def test_exactly_the_unanswered_dns_flows_meant_are_deleted(node: Node, address: str, deleted: list[str]) -> None:
    with flows_of_every_kind(node):
        assert table(node) == KINDS
        answer = act(node, address)
        meant = Counter({("udp", server, "53", True): KINDS["udp", server, "53", True] for server in deleted})
        assert answer["flows"] == meant.total()
        assert answer["done"].startswith(f"deleted {meant.total()} of {meant.total()} UDP flows to ")
        assert answer["helped"] is True
        assert table(node) == KINDS - meant


@pytest.mark.parametrize("address", [HEALTHY, "10.96.0.99", "fd00:96::b"])
def test_a_server_without_unanswered_flows_is_refused(node: Node, address: str) -> None:
    with flows_of_every_kind(node):
        assert act(node, address)["refused"] == "NOT_CONFIRMED"
        assert table(node) == KINDS


def test_a_client_that_keeps_asking_is_left_alone(node: Node) -> None:
    """Its flow sees a packet every 0.2 s; an act that took it for waiting would break it again and again."""
    with unreplied_dns_flows(node, 3, SOURCES, SILENT), ExitStack() as stack:
        client = stack.enter_context(node.make_socket(socket.AF_INET, socket.SOCK_DGRAM))
        client.bind((SOURCES[0], 0))
        port = client.getsockname()[1]
        script = (
            "import socket, time\n"
            "client = socket.socket(fileno=0)\n"
            "while True:\n"
            f"    client.sendto({dns_wire.write_query(1, 'a.b', dns_wire.A)!r}, ({SILENT!r}, 53))\n"
            "    time.sleep(0.2)\n"
        )
        asking = node.start(sys.executable, "-I", "-S", "-c", script, stdin=client)
        stack.callback(asking.kill)
        answer = act(node, SILENT)
        assert (answer["flows"], answer["helped"]) == (3, True)
        assert "1 others are without an answer just now" in answer["message"]
        assert f"sport={port} " in node.run("conntrack", "-L", "-p", "udp").stdout
