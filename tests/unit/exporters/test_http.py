"""The server on real sockets: right answers, and nobody can hold it."""

import contextlib
import gzip
import http.client
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from agent.clock import Clock
from agent.exporters import http as server_module
from agent.exporters.connections import Connections
from agent.exporters.http import HttpExporter, ListenError
from agent.exporters.metrics import Metrics
from agent.exporters.page import CONTENT_SECURITY_POLICY
from agent.exporters.site import Site
from agent.model import DetectorState, DetectorStatus, NodeReport
from agent.pipeline.board import Board, Entry

HANG_SECONDS = 25.0
"""What has not happened by then never will."""


class Loop:
    """The agent's own loop, which a test can stop."""

    alive = True

    def __call__(self) -> bool:
        if self.alive is None:
            raise RuntimeError("the loop is broken")
        return self.alive


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "POLL_SECONDS", 0.05)


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def site(board: Board, loop: Loop, clock: Clock) -> Site:
    return Site(board, loop, Metrics(board, clock, [], "1").expose)


@pytest.fixture
def served(site: Site) -> Iterator[HttpExporter]:
    exporter = HttpExporter("127.0.0.1:0", site)
    exporter.start()
    yield exporter
    exporter.stop()


def get(served: HttpExporter, path: str, method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", served.port, timeout=HANG_SECONDS)) as connection:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer, answer.read()


def talk(served: HttpExporter, data: bytes, seconds: float = 10) -> bytes:
    """Send bytes and return all that comes until the server closes."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=seconds) as client:
        client.sendall(data)
        received = b""
        while part := client.recv(65536):
            received += part
        return received


def publish(board: Board, name: str, state: DetectorState) -> None:
    board.publish(Entry(DetectorStatus(name, state)))


# -- answers


def test_metrics_in_the_format_asked_for(served: HttpExporter) -> None:
    answer, body = get(served, "/metrics?name=x")
    assert (answer.status, answer.getheader("Content-Type")) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert b"\nnodediag_build_info{" in body
    answer, body = get(served, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert (answer.getheader("Content-Type") or "").startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n")


@pytest.mark.parametrize(
    ("offer", "zipped"),
    [("gzip", True), ("deflate, GZIP;q=0.5", True), ("", False), ("br", False), ("gzip;q=0", False)],
)
def test_gzip_if_asked(served: HttpExporter, offer: str, zipped: bool) -> None:
    answer, body = get(served, "/metrics", Accept_Encoding=offer)
    assert answer.getheader("Content-Encoding") == ("gzip" if zipped else None)
    assert b"nodediag_build_info" in (gzip.decompress(body) if zipped else body)
    assert "Accept-Encoding" in (answer.getheader("Vary") or "")


def test_alive_as_long_as_our_own_loop_turns(served: HttpExporter, board: Board, loop: Loop) -> None:
    publish(board, "containerd_shim", DetectorState.FAILED)
    assert get(served, "/livez")[0].status == 200
    loop.alive = False
    answer, body = get(served, "/livez")
    assert (answer.status, body) == (503, b"the agent's own loop has stopped turning\n")


def test_ready_when_every_detector_has_looked(served: HttpExporter, board: Board) -> None:
    publish(board, "one", DetectorState.STARTING)
    publish(board, "two", DetectorState.STARTING)
    publish(board, "three", DetectorState.OVERDUE)
    answer, body = get(served, "/readyz")
    assert (answer.status, body) == (503, b"not looked yet: one, two\n")
    publish(board, "one", DetectorState.NOT_APPLICABLE)
    publish(board, "two", DetectorState.FAILED)
    assert get(served, "/readyz")[0].status == 200


def test_the_status_page(served: HttpExporter, board: Board, report: NodeReport) -> None:
    board.publish(Entry(report.detectors[0], report.conditions))
    answer, body = get(served, "/")
    assert answer.getheader("Content-Type") == "text/html; charset=utf-8"
    assert answer.getheader("Content-Security-Policy") == CONTENT_SECURITY_POLICY
    assert answer.getheader("X-Content-Type-Options") == "nosniff"
    assert answer.getheader("Cache-Control") == "no-store"
    assert answer.getheader("Server") == "nodediag"
    assert b"ContainerdShimHung" in body


@pytest.mark.parametrize("path", ["/metrics", "/livez", "/readyz", "/", "/nowhere"])
def test_head_is_get_without_the_body(served: HttpExporter, path: str) -> None:
    answer, _ = get(served, path, "HEAD")
    same, whole = get(served, path)
    raw = talk(served, f"HEAD {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert raw.partition(b"\r\n\r\n")[2] == b""
    assert answer.status == same.status
    assert abs(int(answer.getheader("Content-Length") or -1) - len(whole)) < 50  # process_* move


@pytest.mark.parametrize("path", ["/nowhere", "/metrics/", "/../etc/passwd", "//", "/%2e", "http://x/metrics", "*"])
def test_an_unknown_path_is_told_what_there_is(served: HttpExporter, path: str) -> None:
    answer, body = get(served, path)
    assert answer.status == 404 or (path == "//" and answer.status == 200)
    assert answer.status == 200 or body == b"not found; there are: /metrics /livez /readyz /\n"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "BREW"])
def test_other_methods_are_not_allowed(served: HttpExporter, method: str) -> None:
    answer, body = get(served, "/metrics", method)
    assert (answer.status, answer.getheader("Allow"), body) == (405, "GET, HEAD", b"Method Not Allowed\n")
    assert answer.getheader("Connection") == "close"


def test_a_page_that_fails_says_so_and_the_next_works(
    served: HttpExporter, loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    loop.alive = None  # type: ignore[assignment]
    answer, body = get(served, "/livez")
    assert (answer.status, b"could not be made" in body) == (500, True)
    assert "the loop is broken" in caplog.text
    assert get(served, "/readyz")[0].status == 200


# -- the protocol


def test_one_connection_serves_many_requests(served: HttpExporter) -> None:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", served.port, timeout=HANG_SECONDS)) as connection:
        for _ in range(5):
            connection.request("GET", "/metrics", headers={"A": "x" * 7000})
            before = connection.sock
            assert connection.getresponse().read()
            assert connection.sock is before is not None


def test_pipelined_requests_are_answered_in_order(served: HttpExporter) -> None:
    request = b"GET /%s HTTP/1.1\r\nHost: x\r\n%s\r\n"
    received = talk(served, request % (b"livez", b"") + request % (b"no", b"Connection: close\r\n"))
    assert received.index(b"HTTP/1.1 200 OK") < received.index(b"HTTP/1.1 404 Not Found")


def test_a_body_is_never_taken_for_a_request(served: HttpExporter) -> None:
    inner = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    for header in (b"Content-Length: %d" % len(inner), b"Transfer-Encoding: chunked"):
        received = talk(served, b"GET /livez HTTP/1.1\r\nHost: x\r\n" + header + b"\r\n\r\n" + inner)
        assert received.count(b"HTTP/1.1 ") == 1
        assert b"Connection: close" in received


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /livez HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
        (b"GET /livez\r\n\r\n", 400),
        (b"GET /livez HTTP/9.9\r\nHost: x\r\n\r\n", 505),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 70_000 + b"\r\n\r\n", 431),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"A: x\r\n" * 20_000 + b"\r\n", 431),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 17_000 + b"\r\n\r\n", 431),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\nA: " + b"x" * 15_000 + b"\r\n\r\n", 200),
        (b"\xff" * 5000 + b"\r\n\r\n", 400),
        (b"GET /livez HTTP/1.0\r\n\r\n", 200),
    ],
)
def test_what_is_no_request_is_refused_and_closed(served: HttpExporter, request_bytes: bytes, status: int) -> None:
    received = b""
    with socket.create_connection(("127.0.0.1", served.port), timeout=HANG_SECONDS) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(request_bytes)
        with contextlib.suppress(ConnectionError):
            while part := client.recv(65536):
                received += part
    # a reset may overtake the answer to a request that was not read to its end
    assert len(received) < 1000
    assert received.startswith(b"HTTP/1.1 %d " % status) or (received == b"" and status in {414, 431})
    assert get(served, "/livez")[0].status == 200


# -- nobody can hold it


def test_a_silent_and_a_trickling_client_are_sent_away(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "CONNECTION_SECONDS", 0.6)
    exporter = HttpExporter("127.0.0.1:0", site)
    exporter.start()

    def held(send: Callable[[socket.socket], None]) -> float:
        begin = time.monotonic()
        with (
            socket.create_connection(("127.0.0.1", exporter.port), timeout=HANG_SECONDS) as client,
            contextlib.suppress(OSError),
        ):
            client.settimeout(0.05)
            while time.monotonic() - begin < HANG_SECONDS:
                send(client)
                with contextlib.suppress(TimeoutError):
                    if client.recv(1) == b"":
                        break
        return time.monotonic() - begin

    try:
        with ThreadPoolExecutor(2) as pool:
            silent = pool.submit(held, lambda _: None)
            trickling = pool.submit(held, lambda client: client.sendall(b"G"))
            assert get(exporter, "/livez")[0].status == 200
            assert 0.5 < silent.result() < HANG_SECONDS
            assert 0.5 < trickling.result() < HANG_SECONDS
    finally:
        exporter.stop()


def test_a_client_that_does_not_read_is_sent_away(board: Board, loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "CONNECTION_SECONDS", 0.6)
    exporter = HttpExporter("127.0.0.1:0", Site(board, loop, lambda _: (os.urandom(32 << 20), "text/plain")))
    exporter.start()
    try:
        with socket.create_connection(("127.0.0.1", exporter.port), timeout=HANG_SECONDS) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            deadline = time.monotonic() + HANG_SECONDS
            while any(thread.name.startswith("Thread-") for thread in threading.enumerate()):
                assert time.monotonic() < deadline
                time.sleep(0.05)
    finally:
        exporter.stop()


def test_silent_clients_never_cost_others_their_turn(served: HttpExporter) -> None:
    before = threading.active_count()
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(socket.create_connection(("127.0.0.1", served.port), timeout=5))
        assert get(served, "/livez")[0].status == 200
        assert threading.active_count() - before < server_module.MAX_CONNECTIONS + 20


def test_50_parallel_scrapes_are_all_answered(served: HttpExporter) -> None:
    begin = time.monotonic()
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: get(served, "/metrics"), range(200)))
    assert {answer.status for answer, _ in answers} == {200}
    assert all(body.count(b"nodediag_build_info{") == 1 for _, body in answers)
    assert time.monotonic() - begin < 4 * HANG_SECONDS


def test_a_stuck_probe_and_a_stuck_listener_hold_no_scrape(served: HttpExporter, board: Board) -> None:
    release = threading.Event()

    def wait(_: Entry) -> None:
        release.wait(4 * HANG_SECONDS)

    board.subscribe(wait)
    stuck = threading.Thread(target=publish, args=(board, "stuck", DetectorState.OK), daemon=True)
    stuck.start()
    try:
        times = []
        for path in ("/metrics", "/livez", "/readyz", "/") * 5:
            begin = time.monotonic()
            assert get(served, path)[0].status == 200
            times.append(time.monotonic() - begin)
        assert max(times) < HANG_SECONDS
        assert stuck.is_alive()
    finally:
        release.set()


def test_connections_make_room_by_waiting_time_and_never_in_the_middle_of_an_answer() -> None:
    with contextlib.ExitStack() as stack:
        pairs = [socket.socketpair() for _ in range(5)]
        for pair in pairs:
            for end in pair:
                stack.enter_context(end)
        ours = [pair[0] for pair in pairs]
        theirs = [pair[1] for pair in pairs]
        connections = Connections(limit=3, seconds=60)
        assert connections.admit(ours[0])
        connections.answering(ours[0])
        assert connections.admit(ours[1])
        assert connections.admit(ours[2])
        assert connections.admit(ours[3])
        assert theirs[1].recv(1) == b""  # it waited longest
        connections.answering(ours[1])  # too late: it stays forgotten
        connections.answering(ours[2])
        connections.answering(ours[3])
        assert not connections.admit(ours[4])  # all are being answered
        connections.waiting(ours[0])
        assert connections.admit(ours[4])
        assert theirs[0].recv(1) == b""
        connections.drop_all()
        assert all(their.recv(1) == b"" for their in theirs[2:])


# -- listening


def test_ipv6(site: Site) -> None:
    exporter = HttpExporter("[::1]:0", site)
    exporter.start()
    try:
        with contextlib.closing(http.client.HTTPConnection("::1", exporter.port, timeout=HANG_SECONDS)) as connection:
            connection.request("GET", "/livez")
            assert connection.getresponse().status == 200
    finally:
        exporter.stop()


def test_a_port_in_use_is_told_plainly(served: HttpExporter, site: Site) -> None:
    with pytest.raises(ListenError) as caught:
        HttpExporter(f"127.0.0.1:{served.port}", site).start()
    text = str(caught.value)
    assert text.startswith(f"cannot serve HTTP on 127.0.0.1:{served.port}: address already in use. Another nodediag")
    assert "set http.listen" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("listen", "words"),
    [
        ("192.0.2.1:9797", "this host has no such address"),
        ("[2001:db8::1]:9797", "this host has no such address"),
        ("no-such-host.invalid:9797", "this host has no such address"),
        ("127.0.0.1:99999", "Set http.listen to host:port"),
        ("nonsense", "Set http.listen to host:port"),
    ],
)
def test_other_addresses_that_cannot_be_used(site: Site, listen: str, words: str) -> None:
    with pytest.raises(ListenError, match=words):
        HttpExporter(listen, site).start()


def test_no_permission_is_told_plainly(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(server_module._Server, "server_bind", refuse)
    with pytest.raises(ListenError, match=r"permission denied\. Ports below 1024 need CAP_NET_BIND_SERVICE"):
        HttpExporter("127.0.0.1:80", site).start()


def test_stop_is_quick_with_open_connections_and_frees_the_port(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "CONNECTION_SECONDS", 2 * HANG_SECONDS)
    exporter = HttpExporter("127.0.0.1:0", site)
    exporter.stop()
    exporter.start()
    port = exporter.port
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        begin = time.monotonic()
        exporter.stop()
        exporter.stop()
        assert time.monotonic() - begin < HANG_SECONDS
        while client.recv(65536):
            pass
    again = HttpExporter(f"127.0.0.1:{port}", site)
    again.start()
    again.stop()
