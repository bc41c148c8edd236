"""The conntrack sense: recorded files of several kernels, real netlink in a network namespace of its own."""

import asyncio
import ctypes
import errno
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from agent.host.conntrack import Conntrack, ConntrackSample, NotTrackedError, parse_stat, rise
from agent.host.ctnetlink import MAX_MISMATCHES, Netlink, _dump_unreplied, ctnetlink
from agent.host.rights import Capability
from agent.model import CannotSeeError, DeploymentCause
from tests.unit.doubles import rights_without

T = TypeVar("T")

STAT_4_19 = """\
entries  searched found new invalid ignore delete delete_list insert insert_failed drop early_drop icmp_error  \
expect_new expect_create expect_delete search_restart
00000123  00000000 0000abcd 00000000 00000011 00000777 00000000 00000000 00000000 0000002a 0000002b 00000000 00000001  \
00000000 00000000 00000000 00000c0d
00000123  00000000 0000000f 00000000 00000000 00000000 00000000 00000000 00000000 00000001 00000001 00000002 00000000  \
00000000 00000000 00000000 00000000
"""
STAT_6_1 = """\
entries  clashres found new invalid ignore delete chainlength insert insert_failed drop early_drop icmp_error  \
expect_new expect_create expect_delete search_restart
00000005  00000009 00000001 00000000 00000002 00000000 00000000 00000003 00000000 00000004 00000005 00000006 00000007  \
00000000 00000000 00000000 00000008
"""


class FakeNetlink:
    """Answers or fails as told; counts the questions."""

    def __init__(self, error: Exception | None = None, flows: dict[int, Any] | None = None) -> None:
        self.error, self.flows, self.asked = error, flows or {}, 0

    def totals(self) -> tuple[dict[int, dict[str, int]], int, int]:
        self.asked += 1
        if self.error:
            raise self.error
        return {0: {"drop": 1}}, 7, 100

    def unreplied(self, family: int, limit: int) -> tuple[list[Any], bool]:
        self.asked += 1
        if self.error:
            raise self.error
        found = self.flows.get(family, [])
        return found[:limit], len(found) <= limit


def not_permitted() -> OSError:
    return PermissionError(errno.EPERM, "Operation not permitted")


def make_proc(
    root: Path, *, stat: str | None = STAT_4_19, count: str | None = "291\n", limit: str = "262144\n"
) -> Path:
    sysctl = root / "sys/net/netfilter"
    sysctl.mkdir(parents=True)
    (root / "net/stat").mkdir(parents=True)
    (sysctl / "nf_conntrack_max").write_text(limit)
    if count is not None:
        (sysctl / "nf_conntrack_count").write_text(count)
    if stat is not None:
        (root / "net/stat/nf_conntrack").write_text(stat)
    return root


def sample(counters: dict[int, dict[str, int]], source: str = "netlink") -> ConntrackSample:
    return ConntrackSample(counters, 1, 10, source)


class TestParseStat:
    def test_columns_of_kernel_4_19(self) -> None:
        parsed = parse_stat(STAT_4_19)
        assert parsed[0] == {
            "found": 0xABCD,
            "invalid": 0x11,
            "insert_failed": 0x2A,
            "drop": 0x2B,
            "early_drop": 0,
            "error": 1,
            "search_restart": 0xC0D,
        }
        assert parsed[1]["early_drop"] == 2

    def test_columns_of_kernel_6_1_under_their_netlink_names(self) -> None:
        assert parse_stat(STAT_6_1)[0] == {
            "clash_resolve": 9,
            "found": 1,
            "invalid": 2,
            "chain_toolong": 3,
            "insert_failed": 4,
            "drop": 5,
            "early_drop": 6,
            "error": 7,
            "search_restart": 8,
        }

    @pytest.mark.parametrize(
        ("text", "wrong"),
        [
            ("", "no columns"),
            ("a b c\n1 2 3\n", "no columns"),
            ("drop insert_failed\n", "nothing below"),
            ("drop insert_failed\n1\n", "line 2 has 1 columns"),
            ("drop insert_failed\nzz 1\n", "invalid literal"),
            ("drop insert_failed\n1ffffffff 1\n", "no 32-bit"),
            ("drop insert_failed\n-1 1\n", "no 32-bit"),
        ],
    )
    def test_broken_text_is_named(self, text: str, wrong: str) -> None:
        with pytest.raises(ValueError, match=wrong):
            parse_stat(text)


class TestRise:
    @pytest.mark.parametrize(
        ("before", "after", "expected", "reset"),
        [
            pytest.param({0: {"drop": 1}, 1: {"drop": 2}}, {0: {"drop": 5}, 1: {"drop": 2}}, 4, False, id="sum"),
            pytest.param({0: {"drop": 2**32 - 3}}, {0: {"drop": 4}}, 7, False, id="wrap"),
            pytest.param(
                {0: {"drop": 2**32 - 1}, 1: {"drop": 10}},
                {0: {"drop": 1}, 1: {"drop": 13}},
                5,
                False,
                id="one CPU wraps",
            ),
            pytest.param({0: {"drop": 1000}}, {0: {"drop": 3}}, 0, True, id="reset"),
            pytest.param({0: {"drop": 3_000_000_000}}, {0: {"drop": 10}}, 0, True, id="reset of a large count"),
            pytest.param({0: {"drop": 5}}, {0: {"drop": 6}, 1: {"drop": 900}}, 1, False, id="CPU appears"),
            pytest.param({0: {"drop": 5}, 1: {"drop": 900}}, {0: {"drop": 6}}, 1, False, id="CPU is gone"),
            pytest.param({0: {"found": 5}}, {0: {"found": 5, "drop": 800}}, 0, False, id="counter appears"),
        ],
    )
    def test_rise_of_drop(
        self, before: dict[int, dict[str, int]], after: dict[int, dict[str, int]], expected: int, reset: bool
    ) -> None:
        change = rise(sample(before), sample(after))
        assert (change.events.get("drop"), change.reset) == (expected, reset)

    def test_one_counter_that_began_anew_voids_all(self) -> None:
        change = rise(sample({0: {"found": 9000, "drop": 0}}), sample({0: {"found": 2, "drop": 7}}))
        assert change.reset
        assert change.events == {"found": 0, "drop": 0}

    def test_samples_of_different_sources_are_not_compared(self) -> None:
        assert rise(sample({0: {"drop": 1}}), sample({0: {"drop": 9}}, source="procfs")).reset


NO_NET_ADMIN = rights_without(Capability.NET_ADMIN)


class TestSample:
    def test_netlink_first(self, tmp_path: Path) -> None:
        seen = Conntrack(make_proc(tmp_path), FakeNetlink()).sample()
        assert (seen.source, seen.entries, seen.limit, seen.blind) == ("netlink", 7, 100, "")

    def test_without_permission_the_file_is_read_and_what_is_missing_is_said(self, tmp_path: Path) -> None:
        seen = Conntrack(make_proc(tmp_path), FakeNetlink(not_permitted()), NO_NET_ADMIN).sample()
        assert (seen.source, seen.entries, seen.limit) == ("procfs", 291, 262144)
        assert seen.counters[0]["insert_failed"] == 0x2A
        assert seen.fault is not None
        assert (seen.fault.cause, seen.fault.subject) == (DeploymentCause.CAPABILITY, "CAP_NET_ADMIN")
        assert seen.blind == f"not visible: single DNS flows (netlink: {seen.fault.message})"

    def test_a_capability_that_is_held_is_not_named(self, tmp_path: Path) -> None:
        confined = rights_without(apparmor="docker-default (enforce)")
        seen = Conntrack(make_proc(tmp_path), FakeNetlink(not_permitted()), confined).sample()
        assert seen.fault is not None
        assert (seen.fault.cause, seen.fault.subject) == (DeploymentCause.APPARMOR, "docker-default (enforce)")
        assert "needs CAP_NET_ADMIN" not in seen.blind

    @pytest.mark.parametrize("stat", [None, "garbage\n", "x" * (1 << 22)])
    def test_without_the_file_only_the_fill_is_known(self, tmp_path: Path, stat: str | None) -> None:
        seen = Conntrack(make_proc(tmp_path, stat=stat), FakeNetlink(not_permitted())).sample()
        assert (dict(seen.counters), seen.entries, seen.limit) == ({}, 291, 262144)
        assert "packet counters and single DNS flows" in seen.blind
        assert "net/stat/nf_conntrack" in seen.blind

    def test_neither_way_works(self, tmp_path: Path) -> None:
        proc = make_proc(tmp_path, stat=None, count=None)
        with pytest.raises(CannotSeeError, match=r"needs CAP_NET_ADMIN.*No such file"):
            Conntrack(proc, FakeNetlink(not_permitted()), NO_NET_ADMIN).sample()

    @pytest.mark.parametrize("count", ["", "many", "-5"])
    def test_a_broken_number_is_unknown(self, tmp_path: Path, count: str) -> None:
        assert Conntrack(make_proc(tmp_path, count=count), FakeNetlink(not_permitted())).sample().entries is None

    def test_not_loaded_is_said_and_netlink_is_not_asked(self, tmp_path: Path) -> None:
        (tmp_path / "sys/net").mkdir(parents=True)
        netlink = FakeNetlink()
        sense = Conntrack(tmp_path, netlink)
        with pytest.raises(NotTrackedError, match="nf_conntrack_max"):
            sense.sample()
        with pytest.raises(NotTrackedError):
            sense.unreplied_dns_flows(10)
        assert netlink.asked == 0


class TestFlows:
    def test_both_families_share_the_limit(self, tmp_path: Path) -> None:
        v4 = [("10.0.0.9", 1000 + port, "10.96.0.10", 27) for port in range(3)]
        v6 = [("fd00::9", 1000, "fd00::a", 30), ("fd00::9", 1001, "fd00::a", 31)]
        sense = Conntrack(make_proc(tmp_path), FakeNetlink(flows={socket.AF_INET: v4, socket.AF_INET6: v6}))
        everything = sense.unreplied_dns_flows(10)
        assert everything.complete
        assert [flow.waited_seconds for flow in everything.flows] == [3, 3, 3, 0, 0]
        some = sense.unreplied_dns_flows(4)
        assert (len(some.flows), some.complete) == (4, False)

    def test_no_permission(self, tmp_path: Path) -> None:
        with pytest.raises(CannotSeeError, match="needs CAP_NET_ADMIN"):
            Conntrack(make_proc(tmp_path), FakeNetlink(not_permitted()), NO_NET_ADMIN).unreplied_dns_flows(10)


def in_own_network(work: Callable[[], T]) -> T:
    """Run `work` in a thread that has a network namespace of its own, in which everything is tracked."""
    results: list[T | BaseException] = []

    def run() -> None:
        try:
            assert ctypes.CDLL(None).unshare(0x40000000) == 0  # CLONE_NEWNET
            for command in ("ip link set lo up", *(f"{tool} -A OUTPUT -m conntrack --ctstate NEW" for tool in TABLES)):
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


TABLES = ("iptables", "ip6tables")
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, (*TABLES, "ip"))), reason="needs root, iptables and iproute2"
)


@needs_root
class TestRealNetlink:
    def test_counters_and_fill_agree_with_procfs(self) -> None:
        def work() -> tuple[ConntrackSample, dict[int, dict[str, int]]]:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.sendto(b"x", ("127.0.0.1", 53))
                seen = Conntrack().sample()
            # /proc/net is that of the process, not of this thread
            text = Path("/proc/thread-self/net/stat/nf_conntrack").read_text()
            return seen, {cpu: dict(counters) for cpu, counters in parse_stat(text).items()}

        seen, parsed = in_own_network(work)
        assert seen.source == "netlink"
        assert seen.entries is not None
        assert seen.entries >= 1
        assert seen.limit == int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text())
        assert seen.counters == parsed

    def test_only_unreplied_dns_flows_of_both_families(self) -> None:
        def work() -> Any:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
                server.bind(("127.0.0.1", 53))
                clients = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3)]
                for client in clients:
                    client.sendto(b"?", ("127.0.0.1", 53))
                server.sendto(b"!", server.recvfrom(10)[1])  # the first has its answer
                clients[1].sendto(b"?", ("127.0.0.1", 5353))  # not DNS
                clients.append(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
                clients[3].sendto(b"?", ("::1", 53))
                waiting = {clients[1].getsockname()[1], clients[2].getsockname()[1], clients[3].getsockname()[1]}
                flows = Conntrack().unreplied_dns_flows(10)
                one = Conntrack().unreplied_dns_flows(1)
                dumped = asyncio.run(count(_dump_unreplied(socket.AF_INET)))
                for client in clients:
                    client.close()
            return waiting, flows, one, dumped

        async def count(messages: AsyncIterator[Any]) -> int:
            return len([message async for message in messages])

        waiting, flows, one, dumped = in_own_network(work)
        assert flows.complete
        assert {flow.source_port for flow in flows.flows} == waiting
        assert {(flow.source, flow.server) for flow in flows.flows} == {("127.0.0.1", "127.0.0.1"), ("::1", "::1")}
        assert all(flow.waited_seconds <= 2 for flow in flows.flows)
        assert (len(one.flows), one.complete) == (1, False)
        assert dumped == 2  # the kernel filters, not we

    def test_leaves_no_file_descriptor_open(self) -> None:
        Netlink().totals()
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(5):
            Netlink().totals()
            Netlink().unreplied(socket.AF_INET, 1)
        assert len(list(Path("/proc/self/fd").iterdir())) == before

    def test_without_cap_net_admin(self) -> None:
        code = (
            "from agent.host.ctnetlink import Netlink\ntry: Netlink().totals()\nexcept PermissionError: print('EPERM')"
        )
        command = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert (done.stdout, done.stderr) == ("EPERM\n", "")

    def test_a_kernel_that_does_not_answer_is_left_in_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ctnetlink().AsyncNFCTSocket, "send", lambda _self, data: len(data))
        started = time.monotonic()
        with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"):
            Netlink(timeout_seconds=0.05).totals()
        assert time.monotonic() - started < 30

    def test_a_broken_answer_is_an_os_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def nonsense(_self: Any) -> list[Any]:
            raise IndexError("nonsense")

        monkeypatch.setattr(ctnetlink().AsyncNFCTSocket, "stat", nonsense)
        with pytest.raises(OSError, match="nonsense"):
            Netlink().totals()


class Message:
    """A flow as pyroute2 hands it over."""

    def __init__(self, port: int, status: int = 0) -> None:
        self.port, self.status = port, status

    def get_attr(self, name: str) -> Any:
        return {
            "CTA_PROTO_NUM": 17,
            "CTA_PROTO_DST_PORT": self.port,
            "CTA_PROTO_SRC_PORT": 4,
            "CTA_STATUS": self.status,
        }.get(name, self)

    def __getitem__(self, name: str) -> Any:
        return socket.AF_INET


@pytest.mark.parametrize("message", [Message(port=443), Message(port=53, status=2)], ids=["tuple", "status"])
def test_a_kernel_that_does_not_filter_is_not_dumped(monkeypatch: pytest.MonkeyPatch, message: Message) -> None:
    read = 0

    async def dump(_family: int) -> Any:
        nonlocal read
        while True:
            read += 1
            yield message

    monkeypatch.setattr("agent.host.ctnetlink._dump_unreplied", dump)
    with pytest.raises(OSError, match="does not filter"):
        Netlink().unreplied(socket.AF_INET, 10)
    assert read == MAX_MISMATCHES + 1


def test_pyroute2_is_imported_narrowly_and_can_still_be_imported_whole() -> None:
    code = (
        "import sys, agent.host.ctnetlink as c\n"
        "assert not any(m.startswith('pyroute2') for m in sys.modules)\n"
        "narrow = c.ctnetlink()\n"
        "assert not any(m.startswith('pyroute2.ndb') for m in sys.modules)\n"
        "import pyroute2\n"
        "assert pyroute2.NFCTSocket is narrow.NFCTSocket and pyroute2.netlink.nfnetlink.nfctsocket is narrow\n"
        "from pyroute2 import NDB, netns\n"
        "assert pyroute2.__version__ and pyroute2.ndb and c.ctnetlink() is narrow\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
