"""Certificates on disk: what is taken up, what is not, and what a handshake then shows."""

import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from agent.api import credentials as module
from agent.api.credentials import CertificateError, CertificateWatch, SwappedError, read
from agent.api.endpoint import EndpointError, TlsFiles
from tests.integration.api.behind_tls import READER, TlsAgent
from tests.lab.certificates import Authority, Issued, Projected
from tests.lab.waiting import wait_until

PERIOD = 0.01


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("callers")


@pytest.fixture
def loose(tmp_path: Path, authority: Authority) -> TlsFiles:
    """Three plain files."""
    issued = authority.issue("localhost")
    cert, key = issued.write(tmp_path, "tls")
    ca = tmp_path / "ca.crt"
    ca.write_bytes(authority.pem)
    return TlsFiles(str(cert), str(key), str(ca))


@pytest.fixture
def following(loose: TlsFiles) -> Iterator[CertificateWatch]:
    watch = CertificateWatch(loose, PERIOD)
    watch.load()
    watch.start()
    yield watch
    watch.stop()


def become_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def encrypted(issued: Issued) -> bytes:
    key = serialization.load_pem_private_key(issued.key, None)
    how = serialization.BestAvailableEncryption(b"secret")
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)


# -- what cannot be used is told


@pytest.mark.parametrize("which", ["cert_file", "key_file", "client_ca_file"])
@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda path: path.unlink(), "cannot be read: No such file or directory"),
        (lambda path: path.write_bytes(b"\n"), "is empty"),
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "written in part"),
        (lambda path: path.write_bytes(os.urandom(500)), "in PEM form"),
        (lambda path: path.write_bytes(b"x" * ((1 << 20) + 1)), "is larger than 1 MiB"),
        (lambda path: path.unlink() or path.mkdir(), "cannot be read: Is a directory"),
        (become_fifo, "is no file"),
        (lambda path: path.unlink() or path.symlink_to("/dev/zero"), "is no file"),
        (lambda path: path.unlink() or path.symlink_to(path), "cannot be read: Too many levels of symbolic links"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_reason(
    loose: TlsFiles, which: str, spoil: Callable[[Path], object], told: str
) -> None:
    path = getattr(loose, which)
    spoil(Path(path))
    with pytest.raises(CertificateError) as caught:
        CertificateWatch(loose).load()
    assert path in str(caught.value)
    assert told in str(caught.value)


def test_a_key_that_does_not_belong_to_the_certificate_is_refused(loose: TlsFiles, authority: Authority) -> None:
    Path(loose.key_file).write_bytes(authority.issue("x").key)
    with pytest.raises(CertificateError) as caught:
        read(loose)
    assert str(caught.value) == f"the key in {loose.key_file} is not that of the certificate in {loose.cert_file}"


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_a_password(loose: TlsFiles, authority: Authority) -> None:
    issued = authority.issue("x")
    Path(loose.cert_file).write_bytes(issued.cert)
    Path(loose.key_file).write_bytes(encrypted(issued))
    with pytest.raises(CertificateError, match="is encrypted; the agent needs it without a password"):
        read(loose)


def test_several_authorities_and_a_chain_may_stand_in_one_file(loose: TlsFiles, authority: Authority) -> None:
    both = authority.pem + Authority("another").pem
    Path(loose.client_ca_file).write_bytes(both)
    Path(loose.cert_file).write_bytes(Path(loose.cert_file).read_bytes() + authority.pem)
    assert read(loose).client_ca == both
    Path(loose.client_ca_file).write_bytes(both[:-40])
    with pytest.raises(CertificateError, match="written in part"):
        read(loose)


def test_an_agent_does_not_start_with_files_it_cannot_use(tmp_path: Path) -> None:
    agent = TlsAgent(tmp_path)
    (agent.files.folder / "..data" / "tls.key").write_bytes(b"x")
    with pytest.raises(EndpointError, match=r"cannot serve gRPC on 127.0.0.1:0: the key in .*tls.key cannot be used"):
        agent.api.start()
    agent.api.stop()


# -- what changes is taken up


def test_files_swapped_in_one_step_are_taken_up(tmp_path: Path, authority: Authority) -> None:
    files = Projected(tmp_path / "server")
    files.swap(authority.issue("one"), authority.pem)
    watch = CertificateWatch(TlsFiles(str(files.cert), str(files.key), str(files.ca)), PERIOD)
    watch.load()
    watch.start()
    other = Authority("other")
    for ca in (authority.pem, other.pem):
        fresh = authority.issue("two")
        files.swap(fresh, ca)
        wait_until(lambda: of(watch).cert == fresh.cert, 30, "the certificate is taken up")  # noqa: B023
        assert (of(watch).key, of(watch).client_ca) == (fresh.key, ca)
    watch.stop()


def of(watch: CertificateWatch) -> Any:
    return watch._current


def test_files_replaced_one_by_one_are_taken_up_when_all_are_there(
    following: CertificateWatch, loose: TlsFiles, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    before, fresh = of(following), authority.issue("fresh")
    with caplog.at_level("INFO"):
        Path(loose.key_file).write_bytes(fresh.key)
        wait_until(lambda: "is not that of the certificate" in following._told, 30, "the mistake is seen, and told")
        looks = Looks(following)
        looks.await_more(5)
        assert of(following) == before
        Path(loose.cert_file).write_bytes(fresh.cert)
        wait_until(lambda: of(following).cert == fresh.cert, 30, "the pair is taken up")
        wait_until(lambda: len(caplog.records) == 2, 30, "and that is told")
    assert [record.message for record in caplog.records] == [
        "new certificates cannot be used; the ones before stay in use",
        "new certificates are in use",
    ]
    assert caplog.records[1].__dict__["sha256"] == of(following).fingerprint


class Looks:
    """Counts how often the files are looked at from now on."""

    def __init__(self, watch: CertificateWatch) -> None:
        self._count = 0
        look = watch._look

        def counted() -> None:
            look()
            self._count += 1

        watch._look = counted  # type: ignore[method-assign]

    def await_more(self, looks: int) -> None:
        wanted = self._count + looks
        wait_until(lambda: self._count >= wanted, 30, "the files are looked at again")


def test_each_mistake_is_told_once_and_again_after_it_was_mended(
    following: CertificateWatch, loose: TlsFiles, caplog: pytest.LogCaptureFixture
) -> None:
    good = Path(loose.client_ca_file).read_bytes()
    with caplog.at_level("WARNING"):
        for spoilt in (b"broken", None, b"broken"):
            Path(loose.client_ca_file).write_bytes(spoilt or good)
            wait_until(lambda: bool(following._told) == bool(spoilt), 30, "it is seen")  # noqa: B023
    assert len(caplog.records) == 2
    assert loose.client_ca_file in caplog.records[0].__dict__["why"]


def test_files_at_rest_are_not_read_again(following: CertificateWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    monkeypatch.setattr(module, "_content", reads.append)
    Looks(following).await_more(5)
    assert reads == []


def test_files_swapped_between_two_reads_are_read_again(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Projected(tmp_path / "server")
    files.swap(authority.issue("one"), authority.pem)
    tls = TlsFiles(str(files.cert), str(files.key), str(files.ca))
    fresh = [authority.issue("two")]
    content = module._content

    def swapping(path: str) -> bytes:
        read = content(path)
        if fresh and path == tls.cert_file:
            files.swap(fresh[0], authority.pem)
            if not always:
                fresh.clear()
        return read

    monkeypatch.setattr(module, "_content", swapping)
    always, expected = False, fresh[0]
    assert (read(tls).cert, read(tls).key) == (expected.cert, expected.key)
    always, fresh = True, [authority.issue("three")]
    with pytest.raises(SwappedError):
        read(tls)


def test_a_disk_that_hangs_holds_no_handshake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = TlsAgent(tmp_path)
    agent.api.start()
    hanging, release = threading.Event(), threading.Event()

    def hang(files: TlsFiles) -> tuple[object, ...]:
        hanging.set()
        release.wait(30)
        return ()

    monkeypatch.setattr(module, "_state", hang)
    assert hanging.wait(30)
    with agent.client(READER, deadline_seconds=2) as client:
        client.get_node_report()
    agent.api.stop()
    release.set()


# -- what a handshake shows


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[TlsAgent]:
    agent = TlsAgent(tmp_path)
    agent.api.start()
    yield agent
    agent.api.stop()


def settings_frame(agent: TlsAgent, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> Any:
    """Shake hands and begin HTTP/2: (the connection, what the agent says)."""
    host, port = agent.api.endpoint.split(":")
    raw = socket.create_connection((host, int(port)), timeout=5)
    connection = context.wrap_socket(raw, server_hostname="localhost", session=session)
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000"))
    return connection, connection.recv(100)


def tls_client(agent: TlsAgent, issued: Issued, version: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=agent.authority.pem.decode())
    identity = agent.identify(issued)
    context.load_cert_chain(identity.cert_file, identity.key_file)
    context.set_alpn_protocols(["h2"])
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    return context


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_no_session_is_resumed_so_every_connection_shows_its_certificate_anew(
    agent: TlsAgent, version: ssl.TLSVersion
) -> None:
    context = tls_client(agent, agent.authority.issue(READER), version)
    first, said = settings_frame(agent, context)
    assert said
    assert first.session is not None  # the agent offered to resume
    second, said = settings_frame(agent, context, first.session)
    assert said
    assert not second.session_reused
    first.close()
    second.close()


@pytest.mark.filterwarnings("ignore:.*TLSv1_1 is deprecated")
def test_tls_1_1_is_not_spoken(agent: TlsAgent, following: CertificateWatch) -> None:
    assert following.context().minimum_version >= ssl.TLSVersion.TLSv1_2  # whatever the system's own policy
    with pytest.raises(OSError, match=r"SSL|reset"):
        settings_frame(agent, tls_client(agent, agent.authority.issue(READER), ssl.TLSVersion.TLSv1_1))


def test_without_a_client_certificate_there_is_no_connection(agent: TlsAgent) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=agent.authority.pem.decode())
    context.set_alpn_protocols(["h2"])
    with suppress(OSError):
        assert settings_frame(agent, context)[1] == b""
