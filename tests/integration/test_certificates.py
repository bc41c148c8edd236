"""Certificates renewed while everybody calls: no call fails, and what is out of date is shut out."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from agent.api.credentials import PERIOD_SECONDS
from agent.client import Client, ClientError, ClientTls
from tests.e2e.agent_process import AgentProcess, free_port
from tests.lab.certificates import Authority, Issued, Projected
from tests.lab.waiting import wait_until

READER = "reader.ops.svc"
STRANGER = "stranger.ops.svc"
SWAPS = 6
BETWEEN_SWAPS = PERIOD_SECONDS / 3
"""Swaps come faster than the agent looks, and slower."""
TAKEN_UP = PERIOD_SECONDS + 2.0
SHORT_LIFE = 4.0
DETECTORS = ("containerd_shim", "defunct_processes", "conntrack_dns", "kubelet_healthz", "container_runtime")


SHARED = "agent.nodediag.svc"
"""What a certificate that all agents share is made out to."""


class Node:
    """A real agent over TCP, whose only detector watches for zombies, and the files it serves with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority("agents and callers")
        self.files = Projected(folder / "server")
        self.trusted = folder / "agents-ca.crt"
        self.trusted.write_bytes(self.authority.pem)
        self.served = self.renew()
        self.endpoint = f"127.0.0.1:{free_port()}"

    @property
    def settings(self) -> dict[str, Any]:
        files = self.files
        return {
            "detectors": {name: {"enabled": name == "defunct_processes"} for name in DETECTORS},
            "grpc": {
                "listen": self.endpoint,
                "tls": {"cert_file": str(files.cert), "key_file": str(files.key), "client_ca_file": str(files.ca)},
                "callers": [{"identity": READER}],
            },
        }

    def renew(self, ca: bytes | None = None) -> Issued:
        """Swap in a new certificate, as the kubelet does."""
        self.served = self.authority.issue("127.0.0.1", SHARED)
        self.files.swap(self.served, ca or self.authority.pem)
        return self.served

    def identify(self, issued: Issued, stem: str) -> ClientTls:
        cert, key = issued.write(self.folder, stem)
        return ClientTls(str(cert), str(key), str(self.trusted))

    def call(self, tls: ClientTls) -> None:
        """One call on a connection of its own."""
        with Client(self.endpoint, tls=tls) as client:
            client.get_node_report()

    def refuses(self, tls: ClientTls) -> bool:
        told = ""
        try:
            self.call(tls)
        except ClientError as error:
            told = f"{error.code.name} {error}"
        assert not told or ("UNAVAILABLE" in told and "because of your certificate. Is it valid now" in told)
        return bool(told)

    def shown_serial(self, tls: ClientTls) -> int:
        """The serial number of the certificate a new connection is shown."""
        import socket  # noqa: PLC0415
        import ssl  # noqa: PLC0415

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(tls.ca_file)
        context.load_cert_chain(tls.cert_file, tls.key_file)
        context.set_alpn_protocols(["h2"])
        host, port = self.endpoint.split(":")
        with (
            socket.create_connection((host, int(port)), timeout=5) as raw,
            context.wrap_socket(raw, server_hostname=host) as connection,
        ):
            shown = connection.getpeercert(binary_form=True)
        assert shown is not None
        return x509.load_der_x509_certificate(shown).serial_number


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    with AgentProcess(tmp_path / "agent", node.settings):
        yield node


class Load:
    """Clients that call all the time; every failure is kept."""

    def __init__(self, *calls: Callable[[], object]) -> None:
        self.counts = [0] * len(calls)
        self.failures: list[str] = []
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=each, daemon=True) for each in enumerate(calls)]

    def _run(self, number: int, call: Callable[[], object]) -> None:
        while not self._end.is_set():
            try:
                call()
                self.counts[number] += 1
            except Exception as error:
                self.failures.append(repr(error))
            self._end.wait(0.005)

    @contextmanager
    def running(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            wait_until(lambda: all(self.counts) or self.failures, 10, "everybody calls")
            yield
        finally:
            self._end.set()
            for thread in self._threads:
                thread.join(10)


def test_certificates_are_renewed_under_load_without_a_failed_call(node: Node) -> None:
    good = node.identify(node.authority.issue(READER), "good")
    with ExitStack() as stack:
        lasting = [stack.enter_context(Client(node.endpoint, tls=good)) for _ in range(2)]
        load = Load(*(client.get_node_report for client in lasting), *[lambda: node.call(good)] * 3)
        with load.running():
            serials = set()
            for number in range(SWAPS):
                node.renew()
                pause = BETWEEN_SWAPS if number % 2 else TAKEN_UP
                threading.Event().wait(pause)  # the swaps themselves are what is timed
                serials.add(node.shown_serial(good))
            wait_until(
                lambda: node.shown_serial(good) == node.served.serial, TAKEN_UP, "new connections see the new one"
            )
        counted = list(load.counts)
    assert load.failures == []
    assert len(serials) >= SWAPS / 2
    assert min(counted) > 50


def test_a_callers_certificate_counts_until_it_expires_and_the_renewed_one_from_then(node: Node) -> None:
    short = node.authority.issue(READER, seconds=SHORT_LIFE)
    tls = node.identify(short, "caller")
    node.call(tls)
    expires = x509.load_pem_x509_certificate(short.cert).not_valid_after_utc.timestamp()
    threading.Event().wait(max(0.0, expires - time.time() + 0.1))
    wait_until(lambda: node.refuses(tls), 30, "it is refused once it has expired")
    assert node.refuses(tls)
    node.call(node.identify(node.authority.issue(READER), "caller"))


def test_the_authority_before_is_refused_once_it_was_replaced(node: Node) -> None:
    old = node.identify(node.authority.issue(READER), "old")
    successor = Authority("callers, from now on")
    new = node.identify(successor.issue(READER), "new")
    assert node.refuses(new)
    with Load(lambda: node.call(old)).running():
        node.renew(node.authority.pem + successor.pem)
        wait_until(lambda: not node.refuses(new), TAKEN_UP, "both are accepted meanwhile")
    node.call(old)
    node.renew(successor.pem)
    wait_until(lambda: node.refuses(old), TAKEN_UP, "the old one is refused")
    node.call(new)


def test_a_renewal_that_went_wrong_leaves_the_agent_serving(node: Node) -> None:
    good = node.identify(node.authority.issue(READER), "good")
    before = node.served
    wrong = replace(node.authority.issue("127.0.0.1"), key=node.authority.issue("x").key)
    load = Load(lambda: node.call(good))
    with load.running():
        node.files.swap(wrong, node.authority.pem)
        log = node.folder / "agent" / "log.json"
        wait_until(lambda: "is not that of the certificate" in log.read_text(), 2 * TAKEN_UP, "the log says so")
        assert node.shown_serial(good) == before.serial
        fresh = node.renew()
        wait_until(lambda: node.shown_serial(good) == fresh.serial, TAKEN_UP, "the next one is taken up")
    assert load.failures == []
    assert log.read_text().count("new certificates cannot be used") == 1


def test_the_command_line_calls_over_tcp(node: Node) -> None:
    from tests.integration.test_clients import asked  # noqa: PLC0415
    from tests.unit.cli.processes import command, ended, running  # noqa: PLC0415

    good = node.identify(node.authority.issue(READER), "good")
    shown = ("--cert", good.cert_file, "--key", good.key_file, "--ca", good.ca_file)
    done = asked("report", "--endpoint", node.endpoint, *shown)
    assert (done.returncode, done.stderr) == (0, "")
    with running(command("watch", "--endpoint", node.endpoint, *shown)) as watch:
        assert watch.stdout is not None
        assert "ExcessiveDefunctProcesses" in watch.stdout.readline()
        assert ended(watch, signal.SIGINT)[0] == -signal.SIGINT
    done = asked("report", "--endpoint", node.endpoint, *shown, "--server-name", SHARED)
    assert (done.returncode, done.stderr) == (0, "")
    done = asked("report", "--endpoint", node.endpoint, *shown, "--server-name", "worker-4")
    assert done.returncode == 2
    assert "If all agents share one certificate, say its name by --server-name." in done.stderr
    done = asked("report", "--endpoint", node.endpoint)
    assert done.returncode == 2
    assert "are needed: --cert, --key and --ca" in done.stderr
    stranger = node.identify(node.authority.issue(STRANGER), "stranger")
    shown = ("--cert", stranger.cert_file, "--key", stranger.key_file, "--ca", stranger.ca_file)
    done = asked("report", "--endpoint", node.endpoint, *shown)
    assert done.returncode == 2
    assert f"PERMISSION_DENIED: your certificate names {STRANGER}, and no caller" in done.stderr


def test_an_agent_with_files_it_cannot_use_or_a_port_that_is_taken_exits_2(tmp_path: Path) -> None:
    from tests.integration.test_clients import asked  # noqa: PLC0415

    node = Node(tmp_path)
    with AgentProcess(tmp_path / "agent", node.settings):
        config = tmp_path / "agent" / "nodediag.yaml"
        second = config.read_text().replace('"http": {"listen": "127.0.0.1:', '"http": {"listen": "127.0.0.2:')
        (tmp_path / "second.yaml").write_text(second)
        done = asked("run", "--config", tmp_path / "second.yaml")
        assert done.returncode == 2
        assert f"cannot serve gRPC on {node.endpoint}: Address already in use." in done.stderr
    node.files.swap(replace(node.served, key=b""), node.authority.pem)
    done = asked("run", "--config", config)
    assert done.returncode == 2
    assert f"cannot serve gRPC on {node.endpoint}: {node.files.key} is empty. See the settings grpc.tls." in done.stderr


def test_keys_are_no_part_of_what_the_agent_logs(node: Node) -> None:
    good = node.identify(node.authority.issue(READER), "good")
    node.renew()
    wait_until(lambda: node.shown_serial(good) == node.served.serial, TAKEN_UP, "it is taken up")
    key = serialization.load_pem_private_key(node.served.key, None)
    body = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).splitlines()[1]
    log = (node.folder / "agent" / "log.json").read_bytes()
    assert body not in log
    assert b"PRIVATE" not in log
