"""DeleteConntrackFlows: what it picks from plain entries, and what it does to a real table of its own."""

import ctypes
import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from agent.acts import RefusalReason, RefusedError
from agent.host.conntrack import Conntrack, ConntrackSample, NotTrackedError
from agent.host.ctnetlink import FlowEntry, ctnetlink
from agent.model import Action, CannotSeeError, Finding, Target, TargetKind
from agent.remediation.actions.delete_conntrack_flows import MAX_EVIDENCE_FLOWS, MAX_FLOWS, DeleteConntrackFlows
from agent.remediation.flows import Deletion, Look, NetlinkFlowTable, undisturbed
from agent.remediation.remedy import ActError, Case, Remedy
from tests.unit.builders import ManualClock, RealClock

T = TypeVar("T")
SERVER = "10.96.0.10"
FINDING = Finding(
    "ConntrackDNSRace", "InsertFailed", "lost", Action.DELETE_CONNTRACK_FLOWS, Target(TargetKind.CONNTRACK)
)
SAMPLE = ConntrackSample({0: {"insert_failed": 7, "drop": 8}}, 100, 262144, "netlink")
TO_ALL = Target(TargetKind.CONNTRACK)


def flow(port: int = 40000, remaining: int = 20, **what: Any) -> FlowEntry:
    entry = FlowEntry(socket.AF_INET, "10.244.1.7", port, SERVER, 53, 0, port * 7, remaining)
    return entry._replace(**what)


def server(address: str = SERVER) -> Target:
    return Target(TargetKind.DNS_SERVER, address=address)


class Sense(Conntrack):
    """Counters as told."""

    def __init__(self, problem: Exception | None = None) -> None:
        self.problem = problem

    def sample(self) -> ConntrackSample:
        if self.problem:
            raise self.problem
        return SAMPLE


@dataclass
class Table:
    """A table whose looks are written down."""

    clock: ManualClock
    looks: list[tuple[FlowEntry, ...] | Exception]
    deletion: Callable[[tuple[FlowEntry, ...]], Deletion] | None = None
    complete: bool = True
    asked: list[str] = field(default_factory=list)
    deleted: tuple[FlowEntry, ...] = ()

    def look(self, server: str, limit: int) -> Look:
        assert limit == MAX_FLOWS
        self.asked.append(server)
        flows = self.looks.pop(0)
        if isinstance(flows, Exception):
            raise flows
        now = self.clock.monotonic()
        return Look(flows, now, now, self.complete)

    def delete(self, flows: tuple[FlowEntry, ...], seen_at: float) -> Deletion:
        self.deleted = flows
        if self.deletion:
            return self.deletion(flows)
        return Deletion(dict.fromkeys(flows, self.clock.monotonic()))


@pytest.fixture
def clock() -> ManualClock:
    """Time passes by half a second whenever somebody asks how long he was awake."""
    return ManualClock(step=0.5)


@pytest.fixture(autouse=True)
def no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.remediation.waiting.time.sleep", lambda _seconds: None)


def remedy(table: Table, sense: Conntrack | None = None, problem: str | None = None) -> DeleteConntrackFlows:
    return DeleteConntrackFlows(sense or Sense(), table, table.clock, lambda: problem)


def refusal(made: DeleteConntrackFlows, target: Target = TO_ALL) -> tuple[RefusalReason, str]:
    with pytest.raises(RefusedError) as caught, made.confirm(target, FINDING):
        pass
    return caught.value.refusal.reason, caught.value.refusal.message


def test_is_a_remedy(clock: ManualClock) -> None:
    made: Remedy = remedy(Table(clock, []))
    assert made.targets == (TargetKind.DNS_SERVER, TargetKind.CONNTRACK)


@pytest.mark.parametrize(
    ("target", "asked"),
    [
        (server("10.96.0.10"), "10.96.0.10"),
        (server("10.96.0.10:53"), "10.96.0.10"),
        (server("[::1]:53"), "::1"),
        (server("[fd00:0:0::000a]"), "fd00::a"),
        (server("fd00::a"), "fd00::a"),
        (TO_ALL, ""),
    ],
)
def test_addresses(clock: ManualClock, target: Target, asked: str) -> None:
    table = Table(clock, [()])
    assert refusal(remedy(table), target)[0] is RefusalReason.NOT_CONFIRMED
    assert table.asked == [asked]


@pytest.mark.parametrize(
    "target",
    [
        server(""),
        server("10.96.0.10:5353"),
        server("[::1]:5353"),
        server("10.96.0.10:"),
        server("10.96.0.10:053x"),
        server("[::1"),
        server("[::1]53"),
        server("::1%eth0"),
        server("0.0.0.0"),
        server("::"),
        server("10.96.0.0/24"),
        server("kube-dns"),
        server("10.96.0.10:٥٣"),
        server("x" * 100_000),
        Target(TargetKind.CONNTRACK, address=SERVER),
        Target(TargetKind.NODE),
    ],
    ids=lambda target: target.address[:20],
)
def test_what_is_no_exact_address_is_refused_unasked(clock: ManualClock, target: Target) -> None:
    table = Table(clock, [])
    reason, message = refusal(remedy(table), target)
    assert reason is RefusalReason.INEXACT_TARGET
    assert len(message) < 300
    assert table.asked == []


def confirmed(clock: ManualClock, first: tuple[FlowEntry, ...], second: tuple[FlowEntry, ...]) -> tuple[FlowEntry, ...]:
    """What is deleted after these looks, which are three seconds apart."""
    table = Table(clock, [first, second])
    with suppress(RefusedError), remedy(table).confirm(TO_ALL, FINDING) as case:
        case.perform()
    return table.deleted


def test_a_flow_that_waits_undisturbed_is_picked(clock: ManualClock) -> None:
    assert confirmed(clock, (flow(remaining=20),), (flow(remaining=17),)) == (flow(remaining=17),)


@pytest.mark.parametrize(
    "second",
    [
        pytest.param((), id="gone or answered"),
        pytest.param((flow(40001, 17),), id="another came"),
        pytest.param((flow(remaining=17, id=1),), id="another id"),
        pytest.param((flow(remaining=17, zone=1),), id="another zone"),
        pytest.param((flow(remaining=29),), id="asked again just now"),
        pytest.param((flow(remaining=20),), id="asked again, and the timer is where it was"),
        pytest.param((flow(remaining=18),), id="asked again early"),
    ],
)
def test_any_other_is_not(clock: ManualClock, second: tuple[FlowEntry, ...]) -> None:
    assert confirmed(clock, (flow(remaining=20),), second) == ()
    assert refusal(remedy(Table(clock, [(flow(remaining=20),), second])))[0] is RefusalReason.NOT_CONFIRMED


def test_only_those_that_wait_are_picked_and_counted(clock: ManualClock) -> None:
    first = tuple(flow(port, 20) for port in range(40000, 40010))
    second = tuple(flow(port, 17 if port % 2 else 29) for port in range(40000, 40012))
    table = Table(clock, [first, second, ()])
    with remedy(table).confirm(server(), FINDING) as case:
        assert case.message == f"5 UDP flows to DNS server {SERVER} wait in vain for an answer"
        assert case.perform() == f"deleted 5 of 5 UDP flows to DNS server {SERVER}"
        assert case.verify().helped is True
    assert {entry.source_port for entry in table.deleted} == {40001, 40003, 40005, 40007, 40009}


def test_no_flow_at_all_is_said_at_once(clock: ManualClock) -> None:
    reason, message = refusal(remedy(Table(clock, [()])), server())
    assert reason is RefusalReason.NOT_CONFIRMED
    assert message.startswith(f"no UDP flow to DNS server {SERVER} has waited for an answer for 2 s or more; 0 are")


@pytest.mark.parametrize(
    ("sense", "looks", "problem", "reason", "words"),
    [
        (Sense(NotTrackedError("conntrack is not loaded")), [], None, RefusalReason.NOT_CONFIRMED, "not loaded"),
        (Sense(CannotSeeError("no way")), [], None, RefusalReason.CANNOT_SEE, "no way"),
        (Sense(), [PermissionError(errno.EPERM, "x")], None, RefusalReason.CANNOT_SEE, "Permission denied"),
        (Sense(), [ValueError("garbage")], None, RefusalReason.CANNOT_SEE, "garbage"),
        (Sense(), [(flow(),), TimeoutError(errno.ETIMEDOUT, "late")], None, RefusalReason.CANNOT_SEE, "late"),
        (Sense(), [], "this is not the node's network", RefusalReason.CANNOT_SEE, "not the node's network"),
    ],
)
def test_what_cannot_be_seen(
    clock: ManualClock, sense: Sense, looks: list[Any], problem: str | None, reason: RefusalReason, words: str
) -> None:
    got, message = refusal(remedy(Table(clock, looks), sense, problem))
    assert got is reason
    assert words in message


def opened(clock: ManualClock, table: Table, count: int = 2) -> AbstractContextManager[Case]:
    table.looks[:0] = [
        tuple(flow(port, 20) for port in range(40000, 40000 + count)),
        tuple(flow(port, 17) for port in range(40000, 40000 + count)),
    ]
    return remedy(table).confirm(TO_ALL, FINDING)


def test_a_deleted_flow_that_is_still_there(clock: ManualClock) -> None:
    with opened(clock, Table(clock, [(flow(40001, 17), flow(40002, 29))])) as case:
        case.perform()
        outcome = case.verify()
    assert outcome.helped is False
    assert outcome.message.startswith("1 of 2 deleted flows are still in the table; 1 others are without an answer")


def test_a_flow_begun_anew_from_the_same_port_with_the_same_id_is_not_the_deleted_one(clock: ManualClock) -> None:
    with opened(clock, Table(clock, [(flow(40001, 29),)])) as case:
        case.perform()
        outcome = case.verify()
    assert outcome.helped is True
    assert "none of the 2 deleted flows is left; 1 others" in outcome.message


def test_more_flows_than_are_looked_at(clock: ManualClock) -> None:
    with opened(clock, Table(clock, [()], complete=False)) as case:
        assert f"there are more than the {MAX_FLOWS} looked at" in case.message
        case.perform()
        assert case.verify().helped is None


def test_nothing_to_delete_any_more_is_no_success(clock: ManualClock) -> None:
    table = Table(clock, [], lambda _flows: Deletion({}, Counter(answered=1, renewed=1)))
    with opened(clock, table) as case:
        assert case.perform().endswith(", 1 had been answered, 1 had been asked again")
        assert case.verify().helped is None


def test_verifying_blind_is_said(clock: ManualClock) -> None:
    with opened(clock, Table(clock, [OSError(errno.EBADMSG, "nonsense")])) as case:
        case.perform()
        outcome = case.verify()
    assert outcome.helped is None
    assert "nonsense" in outcome.message


def test_evidence_is_bounded_and_json(clock: ManualClock) -> None:
    with opened(clock, Table(clock, []), count=MAX_EVIDENCE_FLOWS + 1) as case:
        seen = json.loads(json.dumps(case.evidence()))
    assert (len(seen["flows"]), seen["flowsInAll"]) == (MAX_EVIDENCE_FLOWS, MAX_EVIDENCE_FLOWS + 1)
    assert seen["flows"][0]["source_port"] == 40000
    assert seen["conntrack"]["counters"] == {"0": {"insert_failed": 7, "drop": 8}}


@pytest.mark.parametrize(
    ("seconds", "drop", "expected"),
    [
        (3.0, 3, True),
        (3.0, 4, True),
        (3.0, 2, False),
        (3.9, 3, True),
        (4.0, 3, False),
        (0.4, 0, True),
        (0.4, -1, False),
    ],
)
def test_undisturbed_goes_by_whole_seconds(seconds: float, drop: int, expected: bool) -> None:
    assert undisturbed(flow(remaining=20), flow(remaining=20 - drop), seconds) is expected


# --- a real table ---------------------------------------------------------------------------

TABLES = ("iptables", "ip6tables")
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, (*TABLES, "ip"))), reason="needs root, iptables and iproute2"
)


def in_own_network(work: Callable[[], T]) -> T:
    """Run `work` in a thread that has a network namespace of its own, in which everything is tracked."""
    results: list[T | BaseException] = []

    def run() -> None:
        try:
            assert ctypes.CDLL(None).unshare(0x40000000) == 0  # CLONE_NEWNET
            rules = [f"{tool} -A OUTPUT -m conntrack --ctstate NEW" for tool in TABLES]
            rules += [
                f"iptables -t raw -A {chain} -p udp -d 127.0.0.{zone} -j CT {option} {zone}"
                for chain in ("OUTPUT", "PREROUTING")
                for zone, option in ((7, "--zone"), (9, "--zone-orig"))
            ]
            for command in ("ip link set lo up", "ip address add fd00::a dev lo nodad", *rules):
                subprocess.run(command.split(), check=True, capture_output=True)
            results.append(work())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]


@contextmanager
def sent(*to: tuple[str, int]) -> Iterator[list[int]]:
    """Send a packet from a port of its own to each address; yield the ports."""
    with ExitStack() as stack:
        ports = []
        for address in to:
            family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
            client = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            client.sendto(b"?", address)
            ports.append(client.getsockname()[1])
        yield ports


@contextmanager
def silent_servers() -> Iterator[socket.socket]:
    """Take packets to port 53 on IPv4 and leave them unread, or the sender would be told that nobody listens."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as v4,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as v6,
    ):
        v6.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        v4.bind(("0.0.0.0", 53))
        v6.bind(("::", 53))
        yield v4


def unreplied(server: str = "") -> dict[int, FlowEntry]:
    return {entry.source_port: entry for entry in NetlinkFlowTable(RealClock()).look(server, MAX_FLOWS).flows}


@needs_root
class TestRealTable:
    def test_each_flow_is_named_exactly(self) -> None:
        def work() -> tuple[list[int], dict[int, FlowEntry], dict[int, FlowEntry]]:
            every = (("127.0.0.1", 53), ("127.0.0.7", 53), ("::1", 53), ("fd00::a", 53), ("127.0.0.1", 5353))
            with silent_servers(), sent(*every) as ports:
                return ports, unreplied(), {**unreplied("127.0.0.7"), **unreplied("fd00::a")}

        ports, every, some = in_own_network(work)
        assert set(every) == set(ports[:4])
        assert [every[port].zone for port in ports[:4]] == [0, 7, 0, 0]
        assert (every[ports[2]].source, every[ports[2]].server) == ("::1", "::1")
        assert len({entry.id for entry in every.values()}) == 4
        assert set(some) == {ports[1], ports[3]}

    def test_a_zone_for_one_direction_cannot_be_named_and_is_left_alone(self) -> None:
        def work() -> dict[int, FlowEntry]:
            with silent_servers(), sent(("127.0.0.9", 53)):
                return unreplied()

        assert in_own_network(work) == {}

    def test_flows_are_deleted_one_by_one_by_all_that_names_them(self) -> None:
        def work() -> tuple[list[int], Deletion, set[int]]:
            every = (("127.0.0.1", 53), ("127.0.0.7", 53), ("::1", 53), ("127.0.0.1", 53), ("127.0.0.1", 53))
            with silent_servers(), sent(*every) as ports:
                seen = unreplied()
                wrong_id = seen[ports[3]]._replace(id=seen[ports[3]].id ^ 1)
                wrong_zone = seen[ports[4]]._replace(zone=7)
                wanted = (*(seen[port] for port in ports[:3]), wrong_id, wrong_zone)
                clock = RealClock()
                return ports, NetlinkFlowTable(clock).delete(wanted, clock.monotonic()), set(unreplied())

        ports, deletion, left = in_own_network(work)
        assert {entry.source_port for entry in deletion.deleted} == set(ports[:3])
        assert deletion.left == {"gone": 2}
        assert left == set(ports[3:])

    def test_a_flow_answered_asked_again_or_gone_since_is_kept(self) -> None:
        def work() -> tuple[Deletion, int, int]:
            with silent_servers() as server, sent(*[("127.0.0.1", 53)] * 3) as ports:
                seen = unreplied()
                server.sendto(b"!", ("127.0.0.1", ports[0]))
                # as it would be read had the client asked again after the look
                renewed = seen[ports[1]]._replace(remaining_seconds=seen[ports[1]].remaining_seconds - 5)
                table, clock = NetlinkFlowTable(RealClock()), RealClock()
                table.delete((seen[ports[2]],), clock.monotonic())
                before = Conntrack().sample().entries
                deletion = table.delete((seen[ports[0]], renewed, seen[ports[2]]), clock.monotonic())
                after = Conntrack().sample().entries
                assert before is not None
                assert after is not None
                return deletion, before, after

        deletion, before, after = in_own_network(work)
        assert deletion == Deletion({}, Counter(answered=1, renewed=1, gone=1))
        assert (before, after) == (2, 2)

    def test_no_request_ever_goes_without_a_tuple(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A kernel that is sent a delete without one flushes the table."""
        asked: list[tuple[int, list[str]]] = []
        real = ctnetlink().AsyncNFCTSocket.request

        async def request(self: Any, msg: Any, msg_type: int, **how: Any) -> Any:
            asked.append((msg_type, sorted(name for name, *_ in msg["attrs"])))
            return await real(self, msg, msg_type, **how)

        def work() -> Deletion:
            with silent_servers(), sent(("127.0.0.1", 53), ("127.0.0.7", 53)):
                seen = tuple(unreplied().values())
                monkeypatch.setattr(ctnetlink().AsyncNFCTSocket, "request", request)
                clock = RealClock()
                return NetlinkFlowTable(clock).delete(seen, clock.monotonic())

        assert len(in_own_network(work).deleted) == 2
        named = ["CTA_ID", "CTA_TUPLE_ORIG"]
        assert sorted(asked) == [(1, named), (1, [*named, "CTA_ZONE"]), (2, named), (2, [*named, "CTA_ZONE"])]

    def test_without_cap_net_admin(self) -> None:
        code = (
            "from agent.remediation.flows import *\nfrom tests.unit.builders import RealClock\n"
            "flow = FlowEntry(2, '127.0.0.1', 4, '127.0.0.1', 53, 0, 1, 1)\n"
            "try: NetlinkFlowTable(RealClock()).delete((flow,), 0)\nexcept ActError as error: print(error)"
        )
        without = ["unshare", "--net", "setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
        done = subprocess.run(
            [*without, sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            cwd=Path(__file__).parents[4],
        )
        needed = "Permission denied: the agent needs CAP_NET_ADMIN, because"
        assert done.stdout.startswith(f"0 of 1 flows were deleted, then it failed: {needed}")

    def test_a_kernel_that_does_not_answer_is_left_in_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ctnetlink().AsyncNFCTSocket, "send", lambda _self, data: len(data))
        with pytest.raises(ActError, match=r"0 of 1 flows were deleted, then it failed: the kernel did not answer"):
            NetlinkFlowTable(RealClock(), answer_seconds=0.05).delete((flow(),), 0)

    def test_deleting_ends_in_time_and_says_how_far_it_came(self) -> None:
        with pytest.raises(ActError, match=r"0 of 1 flows were deleted, then it failed: it takes too long"):
            NetlinkFlowTable(RealClock(), delete_seconds=0).delete((flow(),), 0)
