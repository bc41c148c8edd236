"""The DNS sense against real UDP servers on loopback: healthy, lossy, silent, slow and hostile ones."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.clock import StallMeter
from agent.host.dns import NODE_LOCAL_DNS, Dns, Exchange
from agent.host.dns_conversation import MAX_JUNK, Asked, Fate, encode_name, name_problem, question
from agent.host.dns_servers import DnsServer, parse_resolv_conf, parse_server, servers_problem

NAME = "kubernetes.default.svc.cluster.local"
ATTEMPT = 10.0
"""For what is answered; it takes as long only if it is not."""
SHORT = 0.15
"""For what is never answered."""
SPOILT = 0.5
"""For what is answered by nonsense alone."""
LOSSY = 1.5
"""For what is answered in part: each answer has as long, on a machine that does other things as well."""
HANG_SECONDS = 20.0
"""What has not ended by then waits for what will not come."""
Reply = Callable[[bytes], None]
Behaviour = Callable[[bytes, tuple[str, int], Reply], None]
A, L, U, R = Fate.ANSWERED, Fate.LOST, Fate.UNSENT, Fate.REFUSED


def answer(query: bytes, rcode: int = dns.rcode.NOERROR) -> bytes:
    response = dns.message.make_response(dns.message.from_wire(query))
    response.set_rcode(dns.rcode.Rcode.make(rcode))
    return response.to_wire()


@contextmanager
def serving(behaviour: Behaviour, address: str = "127.0.0.1") -> Iterator[str]:
    """Serve until the block ends; yields `address:port`."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as server:
        server.bind((address, 0))
        server.settimeout(5)
        port = server.getsockname()[1]

        def run() -> None:
            while True:
                query, client = server.recvfrom(4096)
                if query == b"stop":
                    return

                def reply(data: bytes, client: tuple[str, int] = client) -> None:
                    server.sendto(data, client)

                behaviour(query, client, reply)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield f"[{address}]:{port}" if family == socket.AF_INET6 else f"{address}:{port}"
        finally:
            with socket.socket(family, socket.SOCK_DGRAM) as client:
                client.sendto(b"stop", (address, port))
            thread.join()


def healthy(query: bytes, _client: tuple[str, int], reply: Reply) -> None:
    reply(answer(query))


def silent(_query: bytes, _client: tuple[str, int], _reply: Reply) -> None:
    pass


class DropOneOfPair:
    """Answers the first query of each pair and drops the second; pairs and controls come by turns, a socket each."""

    def __init__(self) -> None:
        self.clients: list[tuple[str, int]] = []

    def __call__(self, query: bytes, client: tuple[str, int], reply: Reply) -> None:
        first = client not in self.clients
        if first:
            self.clients.append(client)
        is_pair = self.clients.index(client) % 2 == 0
        if first or not is_pair:
            reply(answer(query))


def ask(*servers: str, attempt: float = ATTEMPT, repeats: int = 3, name: str = NAME) -> tuple[Exchange, ...]:
    sense = Dns(StallMeter(), name, servers)
    return sense.ask(sense.servers().servers, attempt, repeats)


def fates(exchange: Exchange) -> tuple[list[tuple[Fate, ...]], list[tuple[Fate, ...]]]:
    """The fates of pairs and controls; which of a pair came first is chance, so they are sorted."""
    pairs = [tuple(sorted(query.fate for query in pair)) for pair in exchange.pairs]
    return pairs, [tuple(query.fate for query in control) for control in exchange.controls]


class TestAsk:
    @pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
    def test_healthy(self, address: str) -> None:
        kinds: list[str] = []

        def behaviour(query: bytes, client: tuple[str, int], reply: Reply) -> None:
            message = dns.message.from_wire(query)
            assert message.flags == dns.flags.RD
            kinds.append(message.question[0].to_text())
            healthy(query, client, reply)

        with serving(behaviour, address) as server:
            started = time.monotonic()
            (seen,) = ask(server)
            assert time.monotonic() - started < ATTEMPT
        assert fates(seen) == ([(A, A)], [(A, A)])
        assert all(
            query.seconds is not None and query.seconds < ATTEMPT for query in (*seen.pairs[0], *seen.controls[0])
        )
        assert sorted(kinds[:2]) == [f"{NAME}. IN A", f"{NAME}. IN AAAA"]
        assert kinds[2:] == [f"{NAME}. IN A", f"{NAME}. IN AAAA"]

    def test_pair_leaves_one_socket_and_the_control_another(self) -> None:
        clients: list[tuple[str, int]] = []

        def behaviour(query: bytes, client: tuple[str, int], reply: Reply) -> None:
            clients.append(client)
            healthy(query, client, reply)

        with serving(behaviour) as server:
            ask(server)
        assert clients[0] == clients[1] != clients[2] == clients[3]

    @pytest.mark.parametrize("rcode", [dns.rcode.NXDOMAIN, dns.rcode.SERVFAIL, dns.rcode.REFUSED])
    def test_any_rcode_is_an_answer(self, rcode: int) -> None:
        with serving(lambda query, _, reply: reply(answer(query, rcode))) as server:
            assert fates(ask(server)[0]) == ([(A, A)], [(A, A)])

    def test_an_error_without_question_is_an_answer(self) -> None:
        with serving(lambda query, _, reply: reply(query[:2] + b"\x80\x01" + bytes(8))) as server:
            assert fates(ask(server)[0]) == ([(A, A)], [(A, A)])

    def test_drops_one_of_each_parallel_pair(self) -> None:
        with serving(DropOneOfPair()) as server:
            (seen,) = ask(server, attempt=LOSSY)
        assert fates(seen) == ([(A, L)] * 4, [(A, A)] * 4)

    def test_loses_one_query_once(self) -> None:
        dropped: list[bytes] = []

        def behaviour(query: bytes, client: tuple[str, int], reply: Reply) -> None:
            if dropped:
                healthy(query, client, reply)
            dropped.append(query)

        with serving(behaviour) as server:
            (seen,) = ask(server, attempt=LOSSY)
        assert fates(seen) == ([(A, L), (A, A), (A, A), (A, A)], [(A, A)] * 4)

    def test_silent(self) -> None:
        with serving(silent) as server:
            (seen,) = ask(server, attempt=SHORT)
        assert fates(seen) == ([(L, L)], [(L, U)])
        assert 2 * SHORT <= seen.waited_seconds < HANG_SECONDS

    def test_refused_is_known_at_once(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as reserved:
            reserved.bind(("127.0.0.1", 0))
            server = f"127.0.0.1:{reserved.getsockname()[1]}"
        started = time.monotonic()
        (seen,) = ask(server, attempt=2 * HANG_SECONDS)
        assert time.monotonic() - started < HANG_SECONDS
        assert fates(seen) == ([(R, R)], [(R, U)])
        assert seen.detail == "Connection refused"

    def test_slow_is_answered_and_measured_though_it_takes_longer_than_an_attempt(self) -> None:
        """The pair is answered once the control is asked, which is an attempt later; the control never is."""
        held: list[tuple[bytes, Reply]] = []

        def behaviour(query: bytes, _client: tuple[str, int], reply: Reply) -> None:
            held.append((query, reply))
            if len(held) == 3:
                for asked, send in held[:2]:
                    send(answer(asked))

        with serving(behaviour) as server:
            (seen,) = ask(server, attempt=LOSSY)
        assert fates(seen) == ([(A, A)], [(L, U)])
        for query in seen.pairs[0]:
            assert query.seconds is not None
            assert LOSSY - 0.1 < query.seconds < HANG_SECONDS

    def test_several_servers_are_asked_at_once(self) -> None:
        """The first answers once all are asked; when an attempt has passed, the others see that it was asked, too."""
        asked = {name: threading.Event() for name in ("first", "second", "third")}
        at_once: list[bool] = []

        def once_all_are_asked(query: bytes, _client: tuple[str, int], reply: Reply) -> None:
            asked["first"].set()
            if all(each.wait(LOSSY) for each in asked.values()):
                reply(answer(query))

        def silent_as(name: str) -> Behaviour:
            clients: set[tuple[str, int]] = set()

            def behaviour(_query: bytes, client: tuple[str, int], _reply: Reply) -> None:
                clients.add(client)
                asked[name].set()
                if len(clients) == 2:
                    at_once.append(asked["first"].is_set())

            return behaviour

        with (
            serving(once_all_are_asked) as first,
            serving(silent_as("second")) as second,
            serving(silent_as("third"), "::1") as third,
        ):
            seen = ask(first, second, third, attempt=LOSSY)
        assert [str(each.server) for each in seen] == [first, second, third]
        assert [fates(each)[0] for each in seen] == [[(A, A)], [(L, L)], [(L, L)]]
        assert at_once == [True, True]

    def test_no_way_there(self) -> None:
        (seen,) = ask("fe80::1%nowhere")
        assert fates(seen) == ([(Fate.UNREACHABLE, Fate.UNREACHABLE)], [(Fate.UNREACHABLE, Fate.UNREACHABLE)])
        assert seen.detail

    def test_no_server_no_answer(self) -> None:
        assert Dns(StallMeter(), NAME).ask((), ATTEMPT, 3) == ()


class TestHostile:
    @pytest.mark.parametrize(
        "spoil",
        [
            pytest.param(lambda query: bytes([query[0] ^ 1]) + answer(query)[1:], id="wrong id"),
            pytest.param(lambda query: query, id="echo of the query"),
            pytest.param(lambda query: answer(query)[:12] + b"\1x\0" + answer(query)[-4:], id="other question"),
            pytest.param(lambda query: answer(query)[:11], id="truncated header"),
            pytest.param(lambda query: answer(query)[:20], id="truncated question"),
            pytest.param(lambda query: query[:2] + b"\x80\x00" + bytes(8), id="no question and no error"),
            pytest.param(lambda _: b"", id="empty"),
            pytest.param(lambda _: b"\xff" * 60000, id="huge"),
        ],
    )
    def test_what_answers_nothing_is_no_answer(self, spoil: Callable[[bytes], bytes]) -> None:
        with serving(lambda query, _, reply: reply(spoil(query))) as server:
            (seen,) = ask(server, attempt=SPOILT)
        assert fates(seen) == ([(L, L)], [(L, U)])
        assert 1 <= seen.junk <= 3, "as much as came in time"

    def test_an_answer_of_60_kb_is_one(self) -> None:
        with serving(lambda query, _, reply: reply(answer(query) + bytes(60000))) as server:
            assert fates(ask(server)[0]) == ([(A, A)], [(A, A)])

    def test_an_answer_from_another_address_is_none(self) -> None:
        def behaviour(query: bytes, client: tuple[str, int], _reply: Reply) -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
                other.bind(("127.0.0.2", 0))
                other.sendto(answer(query), client)

        with serving(behaviour) as server:
            (seen,) = ask(server, attempt=SHORT)
        assert fates(seen) == ([(L, L)], [(L, U)])
        assert seen.junk == 0

    def test_a_flood_is_read_only_so_far_and_costs_no_cpu(self) -> None:
        def behaviour(_query: bytes, _client: tuple[str, int], reply: Reply) -> None:
            for _ in range(3 * MAX_JUNK):
                reply(b"junk")

        with serving(behaviour) as server:
            cpu = time.thread_time()
            (seen,) = ask(server)
        assert time.thread_time() - cpu < 0.1
        assert fates(seen) == ([(L, L)], [(L, U)])
        assert seen.junk == 2 * MAX_JUNK

    def test_real_answers_after_some_junk_count(self) -> None:
        def behaviour(query: bytes, client: tuple[str, int], reply: Reply) -> None:
            reply(b"junk")
            healthy(query, client, reply)

        with serving(behaviour) as server:
            (seen,) = ask(server)
        assert fates(seen) == ([(A, A)], [(A, A)])

    @given(st.binary(max_size=600))
    def test_any_bytes_are_survived(self, data: bytes) -> None:
        asked = Asked(question(77, encode_name(NAME), 1))
        assert asked.answered_by(data) in (True, False)


OWN_STALL = f"""
import sys
from agent.clock import StallMeter
from agent.host.dns import Dns
clock = StallMeter()
clock.start()
sense = Dns(clock, "{NAME}", sys.argv[1:])
print("ready", flush=True)
(seen,) = sense.ask(sense.servers().servers, 1.0, 3)
for query in (*seen.pairs[0], *seen.controls[0]):
    print(query.fate, query.seconds is not None and query.seconds < 1.0)
"""


def test_our_own_stall_loses_nothing_and_makes_nobody_slow() -> None:
    """The prober is stopped the moment its queries arrive, for longer than an attempt, and answered meanwhile."""
    stopped: list[float] = []

    def behaviour(query: bytes, client: tuple[str, int], reply: Reply) -> None:
        if not stopped:
            stopped.append(time.monotonic())
            prober.send_signal(signal.SIGSTOP)
            threading.Timer(1.5, prober.send_signal, (signal.SIGCONT,)).start()
        time.sleep(0.02)
        healthy(query, client, reply)

    with serving(behaviour) as server:
        command = [sys.executable, "-c", OWN_STALL, server]
        prober = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        output, _ = prober.communicate(timeout=60)
    assert time.monotonic() - stopped[0] > 1.4
    assert output.split("\n") == ["ready", *["answered True"] * 4, ""]


def test_time_is_up_only_by_the_time_in_which_we_could_run() -> None:
    """As under a CPU quota: most of the time is not ours, and answers take longer than an attempt of wall time."""

    class Throttled(StallMeter):
        def awake(self) -> float:
            return self.monotonic() / 40

    def behaviour(query: bytes, _client: tuple[str, int], reply: Reply) -> None:
        threading.Timer(0.15, reply, (answer(query),)).start()

    with serving(behaviour) as server:
        sense = Dns(Throttled(), NAME, [server])
        (seen,) = sense.ask(sense.servers().servers, 0.1, 3)
    assert fates(seen) == ([(A, A)], [(A, A)])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a network namespace")
def test_blocked_by_this_nodes_own_packet_filter() -> None:
    """The kernel refuses to send (EPERM), as it also does when conntrack drops our own packet."""
    code = f"""
import ctypes, subprocess
ctypes.CDLL(None).unshare(0x40000000)
subprocess.run("ip link set lo up && iptables -A OUTPUT -p udp -j DROP", shell=True, check=True)
from agent.clock import StallMeter
from agent.host.dns import Dns
sense = Dns(StallMeter(), "{NAME}", ["127.0.0.1"])
(seen,) = sense.ask(sense.servers().servers, 2, 3)
print(*(query.fate for query in (*seen.pairs[0], *seen.controls[0])), seen.detail)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "blocked blocked blocked unsent Operation not permitted\n"


class TestServers:
    @pytest.mark.parametrize(
        ("text", "address", "port", "shown"),
        [
            ("1.2.3.4", "1.2.3.4", 53, "1.2.3.4"),
            (" 1.2.3.4:5353 ", "1.2.3.4", 5353, "1.2.3.4:5353"),
            ("::1", "::1", 53, "::1"),
            ("[::1]:5353", "::1", 5353, "[::1]:5353"),
            ("[::1]", "::1", 53, "::1"),
            ("fe80::1%eth0", "fe80::1%eth0", 53, "fe80::1%eth0"),
            ("[fe80::1%eth0]:5353", "fe80::1%eth0", 5353, "[fe80::1%eth0]:5353"),
            ("2001:db8::", "2001:db8::", 53, "2001:db8::"),
        ],
    )
    def test_parse(self, text: str, address: str, port: int, shown: str) -> None:
        server = parse_server(text)
        assert server == DnsServer(address, port)
        assert str(server) == shown
        assert servers_problem([text]) is None

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "dns.example",
            "1.2.3",
            "1.2.3.4:",
            "1.2.3.4:0",
            "1.2.3.4:65536",
            "1.2.3.4:x",
            "1.2.3.4:²",
            "[::1",
            "[::1]:",
            "[::1]53",
            "[::1]:0",
            "::1]:53",
            "1.2.3.4:5353000053",
            ":53",
            "x" * 9999,
        ],
    )
    def test_what_is_no_server_is_refused_shortly(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"no server address|no port") as caught:
            parse_server(text)
        assert len(str(caught.value)) < 200
        assert servers_problem(["1.1.1.1", text]) == str(caught.value)

    def test_resolv_conf(self) -> None:
        text = (
            "# nameserver 9.9.9.9\n; nameserver 9.9.9.8\nsearch a.example\nnameserver 10.96.0.10\nnameserver\n"
            "nameserver 10.96.0.10\n  nameserver\tfe80::1%eth0 # x\nnameserver dns.example\noptions ndots:5\n"
            "nameserver ::1\nnameserver 4.4.4.4\n"
        )
        servers, bad = parse_resolv_conf(text)
        assert [str(server) for server in servers] == ["10.96.0.10", "fe80::1%eth0", "::1"]
        assert bad == ("dns.example",)

    def test_settings_win_over_resolv_conf(self, tmp_path: Path) -> None:
        seen = Dns(StallMeter(), NAME, ["1.1.1.1", "1.1.1.1:53", "2.2.2.2", "3.3.3.3", "4.4.4.4"], tmp_path).servers()
        assert [server.address for server in seen.servers] == ["1.1.1.1", "2.2.2.2", "3.3.3.3"]
        assert (seen.origin, seen.problem) == ("the settings", "only the first 3 are asked, 1 are not")

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            (None, "cannot be read: No such file or directory"),
            (b"", "names no nameserver"),
            (b"nameserver x\xff\n", "which is no address"),
            (b"\0" * 300_000, "names no nameserver"),
        ],
    )
    def test_resolv_conf_without_servers_says_why(self, tmp_path: Path, content: bytes | None, problem: str) -> None:
        path = tmp_path / "resolv.conf"
        if content is not None:
            path.write_bytes(content)
        seen = Dns(StallMeter(), NAME, resolv_conf=path).servers()
        assert seen.servers == ()
        assert problem in seen.problem
        assert str(path) in seen.problem


FIB_TRIE = """\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 10.96.0.10/32 2 0 2
        |-- 10.96.0.10
           /32 host LOCAL
        |-- 169.254.20.10
           /32 host LOCAL
     |-- 10.0.0.0
        /24 link UNICAST
     |-- 10.0.0.255
        /32 link BROADCAST
     |-- 127.0.0.1
        /32 host LOCAL
"""


class TestNodeLocalDns:
    @pytest.mark.parametrize(
        ("fib_trie", "expected"),
        [
            (FIB_TRIE, {NODE_LOCAL_DNS, "10.96.0.10"}),
            (FIB_TRIE.replace(NODE_LOCAL_DNS, "169.254.20.11"), {NODE_LOCAL_DNS}),
            (None, {NODE_LOCAL_DNS}),
        ],
        ids=["on an interface", "not here", "unreadable"],
    )
    def test_recognised(self, tmp_path: Path, fib_trie: str | None, expected: set[str]) -> None:
        if fib_trie is not None:
            (tmp_path / "net").mkdir()
            (tmp_path / "net/fib_trie").write_text(fib_trie)
        assert Dns(StallMeter(), NAME, proc=tmp_path).node_local() == expected


class TestName:
    def test_encoded_as_on_the_wire(self) -> None:
        assert encode_name("a.example.") == b"\1a\7example\0"

    @pytest.mark.parametrize("name", ["", ".", "a..b", "a" * 64, ".".join(["a" * 60] * 5), "münchen.de"])
    def test_what_is_no_name_is_refused(self, name: str) -> None:
        assert "no DNS name" in str(name_problem(name))
        with pytest.raises(ValueError, match="no DNS name"):
            Dns(StallMeter(), name)
