"""Conntrack under pressure: a full table, clashes on demand, flows without reply.

All of it happens inside a node of the lab (``netns``).  Only the table's limit
is shared with the machine: ``nf_conntrack_max`` exists once and can be written
from the first network namespace alone, so it is lowered for the moment, under
a lock, never below what the machine itself needs, and always restored.
"""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

from . import dns_wire
from .dns_servers import DnsServer
from .netns import Node
from .nfqueue import PacketQueue
from .waiting import wait_until
from .whole_node import in_machine_network

DNS_PORT = 53

_SYSCTL = Path("/proc/sys/net/netfilter")
_MACHINE_HEADROOM = 500
_LONG = "3600"
_QUEUE_NUMBER = 53
_LARGEST_BATCH = 100
_FIRST_PORT = 20000
_PORTS_EACH = 40000


@contextmanager
def tracking(node: Node) -> Iterator[None]:
    """Switch connection tracking on in the node: the kernel tracks only where a rule asks for it."""
    rule = ["INPUT", "-m", "conntrack", "--ctstate", "INVALID"]
    for tool in ("iptables", "ip6tables"):
        node.run(tool, "-w", "-A", *rule)
    try:
        yield
    finally:
        for tool in ("iptables", "ip6tables"):
            node.run(tool, "-w", "-D", *rule)


def counters(node: Node) -> dict[str, int]:
    """Return the node's conntrack counters, summed over the processors, as ``conntrack -S`` prints them."""
    total: dict[str, int] = {}
    for line in node.run("conntrack", "-S").stdout.splitlines():
        for word in line.split()[1:]:
            name, _, value = word.partition("=")
            total[name] = total.get(name, 0) + int(value)
    return total


def entries(node: Node) -> int:
    """Return the number of entries in the node's table."""
    return int(node.run("cat", str(_SYSCTL / "nf_conntrack_count")).stdout)


@contextmanager
def lowered_limit(limit: int) -> Iterator[int]:
    """Lower the machine's ``nf_conntrack_max``; yield what it became."""
    # Opened where it may be written; the descriptor stays what it was, wherever it is used.
    opened = in_machine_network(lambda: (_SYSCTL / "nf_conntrack_max").open("r+", encoding="ascii"))
    count = in_machine_network((_SYSCTL / "nf_conntrack_count").read_text)
    with opened as file:
        # Two labs at once would restore each other's lowered value.
        fcntl.flock(file, fcntl.LOCK_EX)
        before = file.read()
        in_use = int(count)
        lowered = min(int(before), max(limit, in_use + _MACHINE_HEADROOM if in_use else limit))
        try:
            _rewrite(file, str(lowered))
            yield lowered
        finally:
            _rewrite(file, before)


def _rewrite(file: TextIO, text: str) -> None:
    file.seek(0)
    file.write(text)
    file.flush()


@contextmanager
def table_nearly_full(node: Node, limit: int = 2000, share: float = 0.95) -> Iterator[int]:
    """Fill the node's table to a share of its limit with UDP flows; yield the number of entries."""
    with tracking(node), lowered_limit(limit) as lowered, _lasting_flows(node):
        _send_flows(node, int(lowered * share) - entries(node))
        try:
            yield entries(node)
        finally:
            node.run("conntrack", "-F")


@contextmanager
def table_full(node: Node, limit: int = 2000, packets_per_second: float = 50.0) -> Iterator[int]:
    """Fill the table with flows the kernel may not evict, and go on sending: packets are dropped.

    Flows that were never answered would be evicted early for new ones, so the
    fill is of assured flows, which ``conntrack`` inserts.
    """
    with ExitStack() as undo:
        undo.enter_context(tracking(node))
        lowered = undo.enter_context(lowered_limit(limit))
        undo.enter_context(_lasting_flows(node))
        undo.callback(node.run, "conntrack", "-F")
        _insert_assured(node, lowered - entries(node))
        undo.enter_context(_sending(node, packets_per_second))
        before = counters(node)["drop"]
        wait_until(lambda: counters(node)["drop"] > before, 10.0, "packets dropped for the full table")
        yield entries(node)


@contextmanager
def evicting_table(node: Node, limit: int = 2000, packets_per_second: float = 50.0) -> Iterator[int]:
    """Fill the table with flows that were never answered, and go on sending: old ones are evicted early.

    The kernel looks for a victim in a few hash buckets only, and in a table this
    small most are empty: so packets are dropped as well, several to an eviction.
    """
    with ExitStack() as undo:
        undo.enter_context(tracking(node))
        lowered = undo.enter_context(lowered_limit(limit))
        undo.enter_context(_lasting_flows(node))
        undo.callback(node.run, "conntrack", "-F")
        _send_flows(node, lowered - entries(node))
        undo.enter_context(_sending(node, packets_per_second))
        before = counters(node)["early_drop"]
        wait_until(lambda: counters(node)["early_drop"] > before, 10.0, "flows evicted early")
        yield entries(node)


class ClashMaker:
    """Makes two packets of one new flow meet in the table: each was new when it came in.

    Both are held in a queue, where neither is confirmed yet, and released
    together; the second finds the first one's entry in its place.
    """

    def __init__(self, node: Node, queue: PacketQueue, server: tuple[str, int]) -> None:
        self._node = node
        self._queue = queue
        self._server = server

    def make(self, pairs: int) -> int:
        """Make that many clashes of an A and an AAAA query; return the rise of ``clash_resolve``."""
        before = counters(self._node)["clash_resolve"]
        while pairs > 0:
            batch = min(pairs, _LARGEST_BATCH)
            self._batch(batch)
            pairs -= batch
        return counters(self._node)["clash_resolve"] - before

    def _batch(self, pairs: int) -> None:
        with ExitStack() as sockets:
            for number in range(pairs):
                client = self._node.make_socket(socket.AF_INET, socket.SOCK_DGRAM)
                sockets.enter_context(client)
                client.connect(self._server)
                for kind in (dns_wire.A, dns_wire.AAAA):
                    client.send(dns_wire.write_query(number, "kubernetes.default.svc.cluster.local", kind))
            self._queue.hold(2 * pairs)
            self._queue.release()


@contextmanager
def clash_maker(node: Node, address: str = "127.0.0.1", port: int = DNS_PORT) -> Iterator[ClashMaker]:
    """Prepare the node for clashes on queries to a healthy DNS server of its own."""
    rule = ["OUTPUT", "-p", "udp", "-d", address, "--dport", str(port), "-j", "NFQUEUE"]
    rule += ["--queue-num", str(_QUEUE_NUMBER)]
    with (
        tracking(node),
        DnsServer(address, port, make_socket=node.make_socket),
        PacketQueue(node, _QUEUE_NUMBER) as queue,
    ):
        node.run("iptables", "-w", "-A", *rule)
        try:
            yield ClashMaker(node, queue, (address, port))
        finally:
            node.run("iptables", "-w", "-D", *rule)
            _forget_flows(node, address)


def clashes(node: Node, pairs: int = 100) -> int:
    """Make that many clashes now; return the rise of ``clash_resolve``."""
    with clash_maker(node) as maker:
        return maker.make(pairs)


@contextmanager
def clashing(node: Node, pairs_each: int = 10, every: float = 0.5) -> Iterator[None]:
    """Make clashes again and again for as long as the body runs."""
    ending = threading.Event()
    failures: list[Exception] = []

    def work(maker: ClashMaker) -> None:
        try:
            while not ending.wait(every):
                maker.make(pairs_each)
        except Exception as error:
            failures.append(error)

    with clash_maker(node) as maker:
        if maker.make(pairs_each) <= 0:
            raise RuntimeError("this kernel resolved no clash")
        worker = threading.Thread(target=work, args=(maker,), name="lab-clashes")
        worker.start()
        try:
            yield
        finally:
            ending.set()
            worker.join()
    if failures:
        raise failures[0]


@contextmanager
def unreplied_dns_flows(
    node: Node, count: int, source_ips: Sequence[str], server: str = "10.96.0.10"
) -> Iterator[None]:
    """Leave that many UDP/53 flows without a reply, by turns from each of the source addresses.

    The addresses are given to the node itself, so nothing leaves it.
    """
    with _dns_addresses(node, [*source_ips, server]), tracking(node), _lasting_flows(node):
        sink = node.make_socket(_family(server), socket.SOCK_DGRAM)
        with sink:
            sink.bind((server, DNS_PORT))
            _query_from(node, count, source_ips, server, answered=False)
            try:
                yield
            finally:
                _forget_flows(node, server)


@contextmanager
def replied_dns_flows(
    node: Node, count: int, source_ips: Sequence[str], server: str = "10.96.0.11"
) -> Iterator[DnsServer]:
    """The control: that many UDP/53 flows, each with its reply."""
    with (
        _dns_addresses(node, [*source_ips, server]),
        tracking(node),
        _lasting_flows(node),
        DnsServer(server, DNS_PORT, make_socket=node.make_socket) as answering,
    ):
        _query_from(node, count, source_ips, server, answered=True)
        try:
            yield answering
        finally:
            _forget_flows(node, server)


@contextmanager
def _dns_addresses(node: Node, addresses: Sequence[str]) -> Iterator[None]:
    present = node.run("ip", "-o", "address", "show").stdout
    new = [a for a in dict.fromkeys(addresses) if f" {a}/" not in present]
    for address in new:
        node.add_address(address)
    try:
        yield
    finally:
        for address in new:
            node.run("ip", "address", "delete", f"{address}/{128 if ':' in address else 32}", "dev", "lo")


def _query_from(node: Node, count: int, source_ips: Sequence[str], server: str, *, answered: bool) -> None:
    with ExitStack() as sockets:
        for number in range(count):
            client = sockets.enter_context(node.make_socket(_family(server), socket.SOCK_DGRAM))
            client.settimeout(5.0)
            # The sockets stay open to the end: a port given back may be given out again, and two of its flows are one.
            client.bind((source_ips[number % len(source_ips)], 0))
            client.connect((server, DNS_PORT))
            client.send(dns_wire.write_query(number & 0xFFFF, "example.svc.cluster.local", dns_wire.A))
            if answered:
                client.recv(512)


def _forget_flows(node: Node, server: str) -> None:
    family = "ipv6" if ":" in server else "ipv4"
    # It fails when there is nothing to delete, which is as well.
    node.run("conntrack", "-D", "-f", family, "-p", "udp", "-d", server, check=False)


@contextmanager
def _lasting_flows(node: Node) -> Iterator[None]:
    """Let the node's UDP entries live for an hour, not for half a minute."""
    names = ("nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream")
    before = {name: node.run("cat", str(_SYSCTL / name)).stdout.strip() for name in names}
    for name in names:
        node.run("tee", str(_SYSCTL / name), given=_LONG)
    try:
        yield
    finally:
        for name, value in before.items():
            node.run("tee", str(_SYSCTL / name), given=value)


def _send_flows(node: Node, count: int) -> None:
    """Make that many flows on loopback, each of one packet to a port of its own."""
    with (
        node.make_socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
        node.make_socket(socket.AF_INET, socket.SOCK_DGRAM) as sink,
    ):
        sink.bind(("127.0.0.1", 0))
        for number in range(count):
            # An unconnected socket is not told that nobody listens there.
            host, port = divmod(number, _PORTS_EACH)
            client.sendto(b"x", (f"127.0.1.{host + 1}", _FIRST_PORT + port))


def _insert_assured(node: Node, count: int) -> None:
    lines = []
    for number in range(count):
        host, port = divmod(number, _PORTS_EACH)
        source, server = f"10.99.0.{host + 1}", "10.99.1.1"
        lines.append(
            f"-A -t {_LONG} -u SEEN_REPLY,ASSURED"
            f" -s {source} -d {server} -r {server} -q {source}"
            f" -p udp --sport {_FIRST_PORT + port} --dport 9 --reply-port-src 9 --reply-port-dst {_FIRST_PORT + port}"
        )
    node.run("conntrack", "--load-file", "-", given="\n".join(lines) + "\n")


@contextmanager
def _sending(node: Node, per_second: float) -> Iterator[None]:
    """Keep sending packets of new flows from a thread."""
    ending = threading.Event()

    def work(client: socket.socket) -> None:
        number = 0
        while not ending.wait(1.0 / per_second):
            number += 1
            # A packet dropped on its way out is told to the sender as EPERM.
            try:
                client.sendto(b"x", ("127.0.2.1", _FIRST_PORT + number % _PORTS_EACH))
            except PermissionError:
                continue

    with node.make_socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        worker = threading.Thread(target=work, args=(client,), name="lab-sender")
        worker.start()
        try:
            yield
        finally:
            ending.set()
            worker.join()


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
