"""The lab's own tests: every fault is really there, and nothing of it stays.

The proofs do not use the agent, nor, where it can be helped, the words of the
fault maker itself: they look into /proc, ask the shim by raw ttrpc, ask ctr,
read ``conntrack -S``, or talk to the server as a client would.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import cgroups, conntrack_faults, dns_wire
from .churn import churning
from .containerd import Containerd
from .containers import delete_container, exec_in, run_container, run_containers, run_pod, running_container
from .cri_pods import cri_pod
from .dns_servers import DnsMode, DnsServer
from .kubelet_standin import HEALTHZ_FAILED, KubeletMode, KubeletStandin, read_recording
from .leftovers import footprint
from .netns import Node, linked
from .pods import Container, Pod
from .processes import has_ended, kill, read_stat, send_signal, stat_of, state_of
from .requirements import missing_parts
from .shim_faults import (
    dead_shim_with_bundle,
    frozen_shim,
    has_shim,
    orphaned_shim,
    shim_without_live_container,
    stopped_shim,
    stuck_state,
)
from .shim_ping import connect_answers, state_answers
from .supervised import KubeletProcess, supervised
from .survivors import container_that_may_survive, surviving_processes
from .versions import is_at_least
from .waiting import LabTimeoutError, wait_until
from .zombies import (
    HOSTILE_NAMES,
    breeder_container,
    plain_zombies,
    reaping_parent,
    slow_leak,
    zombies_of,
    zombies_under_container,
)

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(bool(missing_parts()), reason=f"the lab lacks {', '.join(missing_parts())}"),
]

_SILENCE = 0.3
"""Seconds in which nothing comes where nothing ever comes."""
_PATIENCE = 30.0
"""Seconds within which comes what must come, on a busy machine too."""


@pytest.fixture(scope="module")
def containerd() -> Iterator[Containerd]:
    with Containerd() as running:
        yield running


@pytest.fixture
def container(containerd: Containerd) -> Iterator[Container]:
    with running_container(containerd) as running:
        yield running


@pytest.fixture
def node() -> Iterator[Node]:
    with Node() as running:
        yield running


class BodyError(Exception):
    """Raised by the tests in the body of a fault."""


def _link(path: str) -> str:
    return str(Path(path).readlink())


# -- waiting ------------------------------------------------------------------


def test_waiting_returns_what_the_predicate_returned() -> None:
    answers = iter([0, 0, 7])
    assert wait_until(lambda: next(answers), 5.0, "a seven") == 7


def test_waiting_ends_at_its_deadline_and_says_for_what() -> None:
    with pytest.raises(LabTimeoutError, match="a miracle"):
        wait_until(lambda: False, 0.05, "a miracle")


# -- nothing is left ------------------------------------------------------------


def test_nothing_is_left_of_a_lab_with_faults_in_progress() -> None:
    with Containerd() as lab:
        run_pod(lab)
        stopped, frozen, left_alone, headless = run_containers(lab, 4)
        seen = footprint(lab)
        assert len(seen.processes) >= 1 + 5 + 7
        # Faults which nobody undoes but the lab's own end.
        send_signal(stopped.shim, signal.SIGSTOP)
        lab.ctr("tasks", "pause", frozen.id)
        assert has_shim(left_alone)
        kill([headless.shim])
        lab.pause()
    wait_until(lambda: not seen.leftovers(), 15.0, f"nothing left of {seen.base}: {seen.leftovers()}")


def test_nothing_is_left_when_the_body_raises_in_every_fault() -> None:
    with pytest.raises(BodyError), Containerd() as lab:  # noqa: PT012 - the body is what raises
        containers = run_containers(lab, 5)
        seen = footprint(lab)
        with (
            stopped_shim(containers[0]),
            frozen_shim(containers[1]) as freezer,
            stuck_state(lab),
            dead_shim_with_bundle(lab, containers[2]),
            orphaned_shim(lab, containers[3]),
            container_that_may_survive(lab) as survivor,
            surviving_processes(lab, survivor),
            shim_without_live_container(lab, containers[4]),
            zombies_under_container(lab, 50),
        ):
            raise BodyError
    wait_until(lambda: not seen.leftovers(), 15.0, f"nothing left of {seen.base}")
    assert not freezer.exists()


def test_containerd_is_stopped_and_started_again_over_living_containers() -> None:
    with Containerd() as lab:
        container = run_container(lab)
        seen = footprint(lab)
        first = lab.process
        lab.crash()
        assert state_of(first) == ""
        assert has_shim(container)
        lab.start()
        assert lab.process != first
        assert lab.task_status(container.id) == "RUNNING"
        lab.stop()
        lab.start()
        assert lab.task_status(container.id) == "RUNNING"
        seen = footprint(lab)
    wait_until(lambda: not seen.leftovers(), 15.0, "nothing left")


def test_a_paused_containerd_takes_connections_and_answers_none(containerd: Containerd) -> None:
    containerd.pause()
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(containerd.address))
        with pytest.raises(subprocess.TimeoutExpired):
            containerd.ctr("version", timeout=_SILENCE)
    finally:
        containerd.resume()
    assert containerd.ctr("version").returncode == 0


def test_cri_answers_when_it_is_switched_on() -> None:
    grpc = pytest.importorskip("grpc")
    with Containerd(cri=True) as lab, grpc.insecure_channel(f"unix://{lab.address}") as channel:
        version = channel.unary_unary("/runtime.v1.RuntimeService/Version")
        assert b"containerd" in version(b"", timeout=5.0)


# -- containers -----------------------------------------------------------------


def test_a_container_looks_like_one_of_kubernetes(containerd: Containerd) -> None:
    pod = Pod(name="cache-0", namespace="shop", pids_limit=100)
    with running_container(containerd, pod=pod, name="redis", pids_limit=50) as container:
        assert len(container.id) == len(container.sandbox_id) == 64
        spec = (container.bundle / "config.json").read_text()
        for text in (pod.uid, '"cache-0"', '"shop"', '"redis"', pod.sandbox_id):
            assert text in spec
        assert (
            f"/kubepods/besteffort/pod{pod.uid}/{container.id}\n"
            in Path(f"/proc/{container.init_pid}/cgroup").read_text()
        )
        assert cgroups.members(container.cgroup) == {container.init_pid}
        limits = [
            file.read_text().strip()
            for tree in cgroups.hierarchies()
            for path in (pod.cgroup, container.cgroup)
            if (file := tree.at(path) / "pids.max").exists()
        ]
        assert limits == ["100", "50"]
        assert exec_in(containerd, container, "/bin/echo", "hello").stdout == "hello\n"
        assert containerd.task_status(container.id) == "RUNNING"
        assert connect_answers(container.shim_socket, container.id)
        assert state_answers(container.shim_socket, container.id)
    assert containerd.task_status(container.id) == ""


def test_the_containers_of_a_pod_share_one_shim(containerd: Containerd) -> None:
    sandbox, app, sidecar = run_pod(containerd)
    assert sandbox.is_sandbox
    assert not app.is_sandbox
    assert sandbox.shim == app.shim == sidecar.shim
    assert sandbox.shim_socket == sidecar.shim_socket
    assert _link(f"/proc/{app.shim_pid}/cwd") == str(sandbox.bundle)
    for container in (sidecar, app, sandbox):
        delete_container(containerd, container)
    wait_until(lambda: state_of(sandbox.shim) == "", 15.0, "the end of the shim with its last container")


def test_thirty_containers_have_a_shim_each(containerd: Containerd) -> None:
    containers = run_containers(containerd, 30)
    assert len({c.shim for c in containers}) == 30
    for container in containers:
        delete_container(containerd, container)


def test_healthy_containers_come_and_go(containerd: Containerd) -> None:
    known = set(containerd.containers)
    with churning(containerd, containers=4) as churn:
        wait_until(lambda: churn.deleted >= 4, 30.0, "containers deleted")
        assert churn.execs >= churn.deleted * 3
    assert set(containerd.containers) == known


# -- shims ------------------------------------------------------------------------


def test_a_stopped_shim_is_silent_and_its_neighbour_is_not(containerd: Containerd, container: Container) -> None:
    with running_container(containerd) as neighbour:
        with stopped_shim(container):
            assert state_of(container.shim) == "T"
            assert not connect_answers(container.shim_socket, container.id, _SILENCE)
            assert connect_answers(neighbour.shim_socket, neighbour.id)
        assert connect_answers(container.shim_socket, container.id)


def test_a_stopped_shim_may_be_killed_in_the_body(containerd: Containerd) -> None:
    container = run_container(containerd)
    with stopped_shim(container):
        kill([container.shim])
        wait_until(lambda: not container.bundle.exists(), 15.0, "containerd's own clean-up")
    delete_container(containerd, container)


@pytest.mark.parametrize("version", [1, 2])
def test_a_frozen_shim_is_silent_until_it_is_thawed(container: Container, version: int) -> None:
    try:
        cgroups.freezer_hierarchy(version)
    except RuntimeError as error:
        pytest.skip(str(error))
    with frozen_shim(container, version) as directory:
        assert str(container.shim_pid) in (directory / "cgroup.procs").read_text().split()
        assert not connect_answers(container.shim_socket, container.id, _SILENCE)
        assert state_of(container.shim) == ("D" if version == 1 else "S")
    assert not directory.exists()
    assert connect_answers(container.shim_socket, container.id)


def test_a_stuck_state_leaves_connect_alone(containerd: Containerd) -> None:
    with stuck_state(containerd) as container:
        assert connect_answers(container.shim_socket, container.id)
        assert not state_answers(container.shim_socket, container.id, _SILENCE)
        assert state_of(container.init) == "S"
    assert containerd.task_status(container.id) == ""


def test_a_stuck_shim_may_be_killed_in_the_body(containerd: Containerd) -> None:
    with stuck_state(containerd) as container:
        kill([container.shim])
    assert containerd.task_status(container.id) == ""
    assert not container.bundle.exists()


def test_a_dead_shim_leaves_its_bundle_and_no_process(containerd: Containerd) -> None:
    container = run_container(containerd)
    with dead_shim_with_bundle(containerd, container):
        assert (container.bundle / "config.json").exists()
        assert not has_shim(container)
        assert cgroups.members(container.cgroup) == set()
        assert containerd.task_status(container.id) == ""
        with pytest.raises(ConnectionRefusedError):
            connect_answers(container.shim_socket, container.id)
    assert not container.bundle.exists()


@pytest.mark.parametrize("alive", [True, False])
def test_an_orphaned_shim_answers_without_its_bundle(containerd: Containerd, alive: bool) -> None:
    container = run_container(containerd)
    with orphaned_shim(containerd, container, keep_processes=alive):
        assert not container.bundle.exists()
        assert connect_answers(container.shim_socket, container.id)
        assert _link(f"/proc/{container.shim_pid}/cwd") == f"{container.bundle} (deleted)"
        assert bool(cgroups.members(container.cgroup)) is alive
    assert not has_shim(container)


def test_a_shim_without_live_container_has_a_stopped_task(containerd: Containerd) -> None:
    container = run_container(containerd)
    with shim_without_live_container(containerd, container):
        wait_until(lambda: containerd.task_status(container.id) == "STOPPED", 5.0, "the task stopped")
        assert container.bundle.exists()
        assert connect_answers(container.shim_socket, container.id)
        assert stat_of(container.init) is None
    assert not has_shim(container)


def test_surviving_processes_live_on_under_pid_1(containerd: Containerd) -> None:
    with container_that_may_survive(containerd) as container, surviving_processes(containerd, container):
        stat = stat_of(container.init)
        assert stat is not None
        assert stat.ppid == 1
        assert cgroups.members(container.cgroup) == {container.init_pid}
        assert not container.bundle.exists()
        assert not has_shim(container)
        assert containerd.task_status(container.id) == ""
    assert cgroups.members(container.cgroup) == set()


def test_only_containerd_2_lets_the_processes_of_a_cri_pod_outlive_their_shim() -> None:
    with Containerd(cri=True) as lab, cri_pod(lab, ("app", "side")) as containers:
        assert containers[0].shim == containers[1].shim
        kill([containers[0].shim])
        wait_until(lambda: not any(each.bundle.exists() for each in containers), 20.0, "containerd's clean-up")
        if not is_at_least(2):
            wait_until(lambda: all(has_ended(each.init) for each in containers), 20.0, "the end of the processes")
        assert [has_ended(each.init) for each in containers] == [not is_at_least(2)] * 2
    assert [has_ended(each.init) for each in containers] == [True, True]


def test_a_shared_shim_is_not_taken_from_a_pod(containerd: Containerd) -> None:
    sandbox, app = run_pod(containerd, ["app"])
    with pytest.raises(ValueError, match="shares its shim"), dead_shim_with_bundle(containerd, app):
        pass
    for container in (app, sandbox):
        delete_container(containerd, container)


# -- zombies ------------------------------------------------------------------------


@pytest.mark.parametrize("count", [500, 16018])
def test_zombies_in_their_thousands_stand_under_pid_1_of_a_container(containerd: Containerd, count: int) -> None:
    with zombies_under_container(containerd, count, b"server_readines") as breeder:
        zombies = breeder.zombies()
        assert len(zombies) == count
        assert {z.comm for z in zombies} == {b"server_readines"}
        assert breeder.container is not None
        assert breeder.container.init_pid == zombies[0].ppid
    assert read_stat(zombies[0].pid) != zombies[0]


def test_hostile_names_reach_proc_byte_for_byte(containerd: Containerd) -> None:
    with breeder_container(containerd) as breeder:
        for name in HOSTILE_NAMES:
            with zombies_of(breeder, 1, name):
                assert [z.comm for z in breeder.zombies()] == [name]
            assert breeder.zombies() == []


def test_a_slow_leak_grows_and_a_reaping_parent_does_not(containerd: Containerd) -> None:
    with breeder_container(containerd) as breeder:
        with slow_leak(breeder, 50.0):
            wait_until(lambda: len(breeder.zombies()) >= 50, 10.0, "fifty zombies leaked")
        assert breeder.zombies() == []
        with reaping_parent(breeder, 50.0, lifetime=0.2):
            first = wait_until(breeder.zombies, 5.0, "a zombie")
            wait_until(lambda: not set(first) & set(breeder.zombies()), 5.0, "the first ones reaped")
            wait_until(breeder.zombies, 5.0, "new ones")
            assert len(breeder.zombies()) < 50
        assert breeder.zombies() == []


def test_a_parent_that_heeds_sigchld_reaps_when_it_gets_one(containerd: Containerd) -> None:
    with zombies_under_container(containerd, 20) as breeder:
        breeder.heed_sigchld()
        assert len(breeder.zombies()) == 20
        assert send_signal(breeder.process, signal.SIGCHLD)
        wait_until(lambda: not breeder.zombies(), 5.0, "all reaped")
        assert state_of(breeder.process) == "S"


def test_plain_zombies_are_in_no_container() -> None:
    with plain_zombies(20) as breeder:
        assert len(breeder.zombies()) == 20
        assert "kubepods" not in Path(f"/proc/{breeder.process.pid}/cgroup").read_text()
    assert state_of(breeder.process) == ""


# -- a node and its conntrack ---------------------------------------------------------


def test_a_node_is_its_own_host(node: Node) -> None:
    links = node.run("readlink", "/proc/self/ns/net", "/proc/1/ns/net", "/proc/self/ns/pid").stdout.split()
    assert links[0] == links[1] != _link("/proc/self/ns/net")
    assert links[2] != _link("/proc/self/ns/pid")
    sleeping = node.start("sleep", "1000")
    sleeping.send_signal(signal.SIGSTOP)
    wait_until(lambda: state_of(sleeping.process) == "T", 5.0, "the command stopped")
    sleeping.send_signal(signal.SIGCONT)
    sleeping.send_signal(signal.SIGTERM)
    assert sleeping.wait(5.0) != 0


def test_nothing_is_left_of_a_node() -> None:
    with Node() as node:
        init, sleeping = node.init, node.start("sleep", "1000")
    assert state_of(init) in ("", "Z")
    wait_until(lambda: not state_of(init) and not state_of(sleeping.process), 10.0, "all reaped")


def test_a_pod_reaches_its_node(node: Node) -> None:
    with linked(node) as pod:
        assert pod.run("busybox", "ping", "-c", "1", "-W", "5", "10.244.0.1").returncode == 0


def test_clashes_come_on_demand(node: Node) -> None:
    before = conntrack_faults.counters(node)
    assert conntrack_faults.clashes(node, 100) >= 50
    after = conntrack_faults.counters(node)
    assert after["clash_resolve"] - before["clash_resolve"] >= 50
    assert after["drop"] == before["drop"]


def test_clashes_go_on_for_as_long_as_wanted(node: Node) -> None:
    with conntrack_faults.clashing(node, every=0.05):
        seen = conntrack_faults.counters(node)["clash_resolve"]
        wait_until(lambda: conntrack_faults.counters(node)["clash_resolve"] > seen + 20, 10.0, "more clashes")


def test_the_table_fills_nearly_and_the_limit_is_restored(node: Node) -> None:
    limit = Path("/proc/sys/net/netfilter/nf_conntrack_max")
    before = limit.read_text()
    with conntrack_faults.table_nearly_full(node, 1000, 0.95):
        assert limit.read_text().strip() == "1000"
        assert 940 <= conntrack_faults.entries(node) <= 1000
        assert conntrack_faults.counters(node)["drop"] == 0
    assert limit.read_text() == before
    assert conntrack_faults.entries(node) == 0


def test_a_full_table_drops(node: Node) -> None:
    limit = Path("/proc/sys/net/netfilter/nf_conntrack_max")
    before = limit.read_text()
    with pytest.raises(BodyError), conntrack_faults.table_full(node, 1000):  # noqa: PT012 - the body is what raises
        dropped = conntrack_faults.counters(node)["drop"]
        wait_until(lambda: conntrack_faults.counters(node)["drop"] > dropped, 5.0, "more drops")
        raise BodyError
    assert limit.read_text() == before


def test_an_evicting_table_drops_early(node: Node) -> None:
    with conntrack_faults.evicting_table(node, 1000):
        assert conntrack_faults.counters(node)["early_drop"] > 0


def test_dns_flows_are_with_and_without_reply(node: Node) -> None:
    listing = ("conntrack", "-L", "-p", "udp", "--dport", "53")
    with (
        conntrack_faults.unreplied_dns_flows(node, 30, ["10.244.0.5", "10.244.0.6"]),
        conntrack_faults.replied_dns_flows(node, 20, ["10.244.0.5"]),
    ):
        flows = node.run(*listing).stdout.splitlines()
        unreplied = [flow for flow in flows if "[UNREPLIED]" in flow]
        assert len(unreplied) == 30
        assert len(flows) == 50
        assert sum("src=10.244.0.6 " in flow for flow in unreplied) == 15
    assert node.run(*listing).stdout == ""
    assert "10.244.0.5" not in node.run("ip", "address").stdout


def test_every_query_makes_a_flow_of_its_own_however_few_ports_there_are(node: Node) -> None:
    node.run("sysctl", "-qw", "net.ipv4.ip_local_port_range=40000 40059")
    with conntrack_faults.unreplied_dns_flows(node, 30, ["10.244.0.5"]):
        assert len(node.run("conntrack", "-L", "-p", "udp", "--dport", "53").stdout.splitlines()) == 30


# -- DNS servers ------------------------------------------------------------------------


def _ask(client: socket.socket, *kinds: int) -> None:
    for kind in kinds:
        client.send(dns_wire.write_query(kind, "kubernetes.default.svc.cluster.local", kind))


def _answers(client: socket.socket, count: int) -> list[bytes]:
    """Wait for so many answers, and then for a moment in which no further one may come."""
    client.settimeout(_PATIENCE)
    found = [client.recv(512) for _ in range(count)]
    client.settimeout(_SILENCE)
    with pytest.raises(TimeoutError):
        client.recv(512)
    return found


def _client(server: DnsServer) -> socket.socket:
    client = socket.socket(socket.AF_INET6 if ":" in server.address else socket.AF_INET, socket.SOCK_DGRAM)
    client.connect((server.address, server.port))
    return client


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_dns_server_in_all_its_moods(address: str) -> None:
    with DnsServer(address, delay=0.4) as server, _client(server) as client:
        _ask(client, dns_wire.A, dns_wire.AAAA)
        _answers(client, 2)

        server.set_mode(DnsMode.DROPS_SECOND)
        _ask(client, dns_wire.A, dns_wire.AAAA)
        (answer,) = _answers(client, 1)
        assert answer[1] == dns_wire.A
        assert [q.kind for q in server.dropped] == [dns_wire.AAAA]
        for kind in (dns_wire.A, dns_wire.AAAA):
            _ask(client, kind)
            (answer,) = _answers(client, 1)
            assert answer[1] == kind

        server.set_mode(DnsMode.NXDOMAIN)
        _ask(client, dns_wire.A)
        (answer,) = _answers(client, 1)
        assert answer[3] & 0xF == dns_wire.NXDOMAIN

        server.set_mode(DnsMode.SLOW)
        before = time.monotonic()
        _ask(client, dns_wire.A)
        client.settimeout(_PATIENCE)
        client.recv(512)
        assert time.monotonic() - before >= 0.4

        server.set_mode(DnsMode.SILENT)
        _ask(client, dns_wire.A)
        _answers(client, 0)

        server.set_mode(DnsMode.CLOSED)
        _ask(client, dns_wire.A)
        client.settimeout(_PATIENCE)
        with pytest.raises(ConnectionRefusedError):
            client.recv(512)

        server.set_mode(DnsMode.HEALTHY)
        _ask(client, dns_wire.A)
        _answers(client, 1)


def test_a_resolver_library_understands_the_answers() -> None:
    resolver = pytest.importorskip("dns.resolver").Resolver(configure=False)
    with DnsServer() as server:
        resolver.nameservers, resolver.port = [server.address], server.port
        assert [r.address for r in resolver.resolve("kubernetes.default", "A")] == ["10.96.0.1"]
        assert [r.address for r in resolver.resolve("kubernetes.default", "AAAA")] == ["fd00::1"]


def test_a_dns_server_may_live_in_a_node(node: Node) -> None:
    with DnsServer("127.0.0.1", 53, make_socket=node.make_socket):
        listening = node.run("cat", "/proc/net/udp").stdout
        assert "0100007F:0035" in listening
        assert node.run("busybox", "nslookup", "kubernetes.default", "127.0.0.1").returncode == 0


# -- the kubelet's stand-in ---------------------------------------------------------------


def _get(url: str, timeout: float = 5.0) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            return answer.status, answer.read(1000)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def _dial(kubelet: KubeletStandin) -> socket.socket:
    client = socket.create_connection((kubelet.address, kubelet.port), timeout=_PATIENCE)
    client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    return client


def _read(client: socket.socket, size: int) -> bytes:
    """Read exactly so many bytes, however slowly they come."""
    client.settimeout(_PATIENCE)
    data = b""
    while len(data) < size:
        part = client.recv(size - len(data))
        assert part, f"the connection was closed after {data!r}"
        data += part
    return data


def test_a_kubelet_well_late_failing_and_gone() -> None:
    with KubeletStandin() as kubelet:
        assert _get(kubelet.url) == (200, b"ok")
        assert _get(f"{kubelet.url}/syncloop")[0] == 404

        kubelet.set_mode(KubeletMode.LATE, seconds=0.3)
        before = time.monotonic()
        assert _get(kubelet.url) == (200, b"ok")
        assert time.monotonic() - before >= 0.3

        kubelet.set_mode(KubeletMode.ERROR_500)
        assert _get(kubelet.url) == (500, HEALTHZ_FAILED)

        port = kubelet.port
        kubelet.set_mode(KubeletMode.REFUSE)
        with pytest.raises(urllib.error.URLError, match="refused"):
            _get(kubelet.url)

        kubelet.set_mode(KubeletMode.HEALTHY)
        assert kubelet.port == port
        assert _get(kubelet.url) == (200, b"ok")


@pytest.mark.parametrize("mode", [KubeletMode.NEVER, KubeletMode.BACKLOG])
def test_a_silent_kubelet_takes_the_connection_and_sends_nothing(mode: KubeletMode) -> None:
    with KubeletStandin(mode) as kubelet:
        with _dial(kubelet) as client:
            client.settimeout(_SILENCE)
            with pytest.raises(TimeoutError):
                client.recv(1)
        kubelet.set_mode(KubeletMode.HEALTHY)
        assert _get(kubelet.url) == (200, b"ok")


@pytest.mark.parametrize("mode", [KubeletMode.TRICKLE_HEADERS, KubeletMode.TRICKLE_BODY])
def test_a_trickling_kubelet_sends_for_ever_and_never_ends(mode: KubeletMode) -> None:
    with KubeletStandin(mode, seconds=0.02) as kubelet, _dial(kubelet) as client:
        before = time.monotonic()
        beginning = _read(client, 100)
        assert time.monotonic() - before >= 0.5
        assert beginning.startswith(b"HTTP/1.1 200 OK")
        assert (b"\r\n\r\n" in beginning) is (mode is KubeletMode.TRICKLE_BODY)


def test_a_kubelet_gone_mad() -> None:
    with KubeletStandin(KubeletMode.ENDLESS_BODY) as kubelet:
        with _dial(kubelet) as client:
            received = 0
            while received < 10_000_000:
                received += len(client.recv(1 << 20))
        kubelet.set_mode(KubeletMode.GARBAGE)
        with _dial(kubelet) as client:
            assert not _read(client, 4).startswith(b"HTTP")
        kubelet.set_mode(KubeletMode.RESET)
        with _dial(kubelet) as client, pytest.raises(ConnectionResetError):
            client.recv(10)


def test_a_recorded_answer_is_replayed(tmp_path: Path) -> None:
    (tmp_path / "verbose.headers").write_text("HTTP/2 200 \r\ncontent-type: text/plain\r\ncontent-length: 77\r\n\r\n")
    (tmp_path / "verbose.body").write_bytes(b"[+]ping ok\nhealthz check passed\n")
    with KubeletStandin(routes={"/healthz": read_recording(tmp_path, "verbose")}) as kubelet:
        assert _get(f"{kubelet.url}?verbose") == (200, b"[+]ping ok\nhealthz check passed\n")


# -- services with a supervisor ----------------------------------------------------


def _healthz(kubelet: KubeletProcess) -> int:
    try:
        with urllib.request.urlopen(kubelet.url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_supervised_kubelet_is_started_again_healthy_and_on_its_port() -> None:
    with KubeletProcess() as kubelet:
        first, url = kubelet.process, kubelet.url
        stat = stat_of(first)
        assert stat is not None
        assert (stat.comm, stat.ppid) == (b"kubelet", os.getpid())
        assert _healthz(kubelet) == 200
        kubelet.set_mode(KubeletMode.ERROR_500)
        assert _healthz(kubelet) == 500
        kill([first])
        second = kubelet.wait_for_start(2)
        assert (second != first, kubelet.url, _healthz(kubelet)) == (True, url, 200)
        kubelet.hang()
        with pytest.raises(TimeoutError):
            urllib.request.urlopen(url, timeout=0.3)
    assert stat_of(second) is None
    assert not kubelet.base.exists()


def test_a_forsaken_kubelet_stays_dead() -> None:
    with KubeletProcess() as kubelet:
        kubelet.forsake()
        kill([kubelet.process])
        wait_until(lambda: stat_of(kubelet.process) is None, 5.0, "the kubelet reaped")
        assert kubelet.starts == 1


def test_a_kubelet_without_supervisor_has_pid_1_for_a_parent() -> None:
    with KubeletProcess(supervised=False) as kubelet:
        stat = stat_of(kubelet.process)
        assert stat is not None
        assert (stat.comm, stat.ppid) == (b"kubelet", 1)
        assert _healthz(kubelet) == 200
    wait_until(lambda: stat_of(kubelet.process) is None, 10.0, "the orphan reaped")


def test_a_supervised_containerd_is_started_again_and_keeps_its_container(
    containerd: Containerd, container: Container
) -> None:
    with supervised(containerd) as supervisor:
        first = containerd.process
        kill([first])
        wait_until(lambda: supervisor.starts == 1, 20.0, "the new containerd")
        assert containerd.process != first
        assert containerd.task_status(container.id) == "RUNNING"
    assert connect_answers(container.shim_socket, container.id)
