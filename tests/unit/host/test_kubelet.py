"""The kubelet sense against real sockets on loopback. Where lateness matters, time passes when the peer says so."""

import fcntl
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.clock import StallMeter
from agent.host import kubelet
from agent.host.exchange import LINGER_SECONDS, RECEIVE_LIMIT, Attempt, Ending, NoAnswerError, Peer, Phase, converse
from agent.host.kubelet import MAX_BODY_BYTES, HttpAnswer, HttpTalk, failing_checks, healthz, url_problem
from agent.host.service import Lifetime, ServiceProcess
from agent.model import ProcessId
from tests.lab.waiting import wait_until
from tests.unit.builders import ManualClock

FIXTURES = Path(__file__).parents[2] / "fixtures" / "kubelet"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

DEADLINE, HEDGE = 0.2, 0.07
HANG_SECONDS = 30.0
"""Of real time: what has not happened by then never will."""

Handler = Callable[[socket.socket, int], None]
Serve = Callable[[Handler], str]


def recorded(name: str) -> bytes:
    headers = (FIXTURES / f"{name}.headers").read_bytes().rstrip()
    return headers + b"\r\n\r\n" + (FIXTURES / f"{name}.body").read_bytes()


def accept_all(listener: socket.socket, handler: Handler, over: ExitStack) -> None:
    number = 0
    with suppress(OSError):
        while True:
            connection, _ = listener.accept()
            over.callback(connection.close)
            threading.Thread(target=handle, args=(handler, connection, number), daemon=True).start()
            number += 1


def handle(handler: Handler, connection: socket.socket, number: int) -> None:
    with suppress(OSError, ValueError):  # the test may end first, and a closed connection has no descriptor
        connection.recv(4096)
        handler(connection, number)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a peer whose `handler(connection, number)` runs once the request of a connection is read."""
    with ExitStack() as over:

        def start(handler: Handler) -> str:
            listener = over.enter_context(socket.create_server(("127.0.0.1", 0)))
            over.callback(listener.shutdown, socket.SHUT_RDWR)
            threading.Thread(target=accept_all, args=(listener, handler, over), daemon=True).start()
            return f"http://127.0.0.1:{listener.getsockname()[1]}/healthz"

        yield start


def ask(url: str, deadline: float = 2 * HANG_SECONDS, hedge: float = HANG_SECONDS) -> tuple[Attempt[HttpAnswer], ...]:
    """Ask a peer that answers at once, or never with a short deadline."""
    return healthz(url, deadline=deadline, hedge=hedge, clock=StallMeter())


@contextmanager
def ends(clock: ManualClock) -> Iterator[None]:
    """Let time run out in the end, so that a fault makes a test fail and not hang."""
    alarm = threading.Timer(HANG_SECONDS, clock.advance, (1e6,))
    alarm.daemon = True
    alarm.start()
    try:
        yield
    finally:
        alarm.cancel()


def ask_by(clock: ManualClock, url: str, deadline: float = DEADLINE) -> tuple[Attempt[HttpAnswer], ...]:
    """Ask by a clock that the peer moves."""
    with ends(clock):
        return healthz(url, deadline=deadline, hedge=HEDGE, clock=clock)


class Hearing(HttpTalk):
    """Takes note of each time that something was heard."""

    def __init__(self, url: str, heard: threading.Semaphore) -> None:
        super().__init__(kubelet._request(url)[1])
        self._heard = heard

    def hear(self, data: bytes) -> bytes:
        try:
            return super().hear(data)
        finally:
            self._heard.release()


def heard_by(
    clock: ManualClock, url: str, heard: threading.Semaphore, deadline: float, hedge: float
) -> tuple[Attempt[HttpAnswer], ...]:
    """Ask by a clock that the peer moves, which awaits `heard`."""
    peer = kubelet._request(url)[0]
    with ends(clock):
        return converse(peer, lambda: Hearing(url, heard), deadline=deadline, hedge=hedge, clock=clock)


def until_left(connection: socket.socket) -> None:
    """Wait until the other side has closed the connection."""
    while connection.recv(4096):
        pass


def answer(data: bytes) -> Handler:
    return lambda connection, _: connection.sendall(data)


def flood(start: bytes, more: bytes) -> Handler:
    def send(connection: socket.socket, _: int) -> None:
        connection.sendall(start)
        while True:
            connection.sendall(more)

    return send


# --- answers


@pytest.mark.parametrize("name", ["healthz", "containerd-killed-healthz"])
def test_recorded_healthy_answer(serve: Serve, name: str) -> None:
    (attempt,) = ask(serve(answer(recorded(name))))
    assert attempt.ending is Ending.ANSWERED
    assert attempt.answer == HttpAnswer(200, b"ok")
    assert attempt.connect_seconds is not None
    assert attempt.first_byte_seconds is not None
    assert 0 < attempt.connect_seconds <= attempt.first_byte_seconds <= attempt.total_seconds


def test_recorded_verbose_and_not_found(serve: Serve) -> None:
    (verbose,) = ask(serve(answer(recorded("healthz-verbose"))))
    (missing,) = ask(serve(answer(recorded("healthz-syncloop"))))
    assert verbose.answer == HttpAnswer(200, b"[+]ping ok\nhealthz check passed\n")
    assert missing.answer == HttpAnswer(404, b"404 page not found\n")


def test_not_ok_names_its_failing_checks(serve: Serve) -> None:
    body = (FIXTURES / "tls-healthz-verbose.body").read_bytes()
    body = body.replace(b"[+]syncloop ok", b"[-]syncloop failed: reason withheld").replace(b"passed", b"failed")
    head = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: %d\r\n\r\n" % len(body)
    (attempt,) = ask(serve(answer(head + body)))
    assert attempt.answer is not None
    assert (attempt.answer.status, failing_checks(attempt.answer.body)) == (500, ("syncloop",))


def test_a_body_without_length_ends_with_the_connection(serve: Serve) -> None:
    def send(connection: socket.socket, _: int) -> None:
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nok")
        connection.shutdown(socket.SHUT_RDWR)

    (attempt,) = ask(serve(send))
    assert attempt.answer == HttpAnswer(200, b"ok")


def test_the_request_asks_for_path_and_query() -> None:
    _, request = kubelet._request("http://[::1]:10248/healthz?verbose=1#part")
    assert HttpTalk(request).question.startswith(b"GET /healthz?verbose=1 HTTP/1.1\r\nHost: [::1]:10248\r\n")


# --- lateness


def test_a_late_answer_is_timed_by_phase(serve: Serve) -> None:
    clock, heard = ManualClock(), threading.Semaphore(0)

    def late(connection: socket.socket, _: int) -> None:
        clock.advance(0.3)
        connection.sendall(OK[:-2])
        heard.acquire(timeout=HANG_SECONDS)
        clock.advance(0.3)
        connection.sendall(OK[-2:])

    (attempt,) = heard_by(clock, serve(late), heard, deadline=2, hedge=1)
    assert attempt.ending is Ending.ANSWERED
    assert attempt.connect_seconds == 0
    assert attempt.first_byte_seconds == pytest.approx(0.3)
    assert attempt.total_seconds == pytest.approx(0.6)


def test_a_peer_that_never_answers_is_asked_twice_and_no_longer_than_the_deadline(serve: Serve) -> None:
    clock = ManualClock()

    def never(connection: socket.socket, number: int) -> None:
        clock.advance(DEADLINE - HEDGE if number else HEDGE)
        until_left(connection)

    first, second = ask_by(clock, serve(never))
    assert (first.ending, second.ending) == (Ending.TIMEOUT, Ending.TIMEOUT)
    assert first.waiting_for is Phase.FIRST_BYTE
    assert first.total_seconds == pytest.approx(DEADLINE)
    assert second.started - first.started == pytest.approx(HEDGE)
    assert second.ended == first.ended, "they share one deadline"


@pytest.mark.parametrize(("start", "drop"), [(OK[:20], b"A"), (CHUNKED, b"1\r\no\r\n")], ids=["header", "body"])
def test_a_trickling_peer_does_not_stretch_the_deadline(serve: Serve, start: bytes, drop: bytes) -> None:
    clock, heard = ManualClock(), threading.Semaphore(0)
    begin = clock.now

    def trickle(connection: socket.socket, number: int) -> None:
        connection.sendall(start)
        if not number:
            heard.acquire(timeout=HANG_SECONDS)
        while True:  # until the other side has left
            if not number and clock.now < begin + DEADLINE:
                clock.advance(0.02)
            connection.sendall(drop)
            time.sleep(0.01)

    first, second = heard_by(clock, serve(trickle), heard, DEADLINE, HEDGE)
    assert (first.ending, first.waiting_for) == (Ending.TIMEOUT, Phase.TOTAL)
    assert second.ending is Ending.TIMEOUT
    assert first.first_byte_seconds == 0
    assert DEADLINE <= first.total_seconds < 2 * DEADLINE


def test_a_listener_that_never_accepts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        first, second = ask(f"http://127.0.0.1:{listener.getsockname()[1]}/", DEADLINE, HEDGE)
    assert (first.ending, first.waiting_for, second.ending) == (Ending.TIMEOUT, Phase.FIRST_BYTE, Ending.TIMEOUT)


def test_a_full_accept_queue() -> None:
    with ExitStack() as over:
        listener = over.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        over.enter_context(socket.create_connection(listener.getsockname(), timeout=HANG_SECONDS))
        for _ in range(2):
            filler = over.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        first, _ = ask(f"http://127.0.0.1:{listener.getsockname()[1]}/", DEADLINE, HEDGE)
    assert (first.ending, first.waiting_for) == (Ending.TIMEOUT, Phase.CONNECT)
    assert first.connect_seconds is None


class Watched(ManualClock):
    """Takes note of being read for the third time, which is after the first try to connect."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.tried = threading.Event()

    def awake(self) -> float:
        self.reads += 1
        if self.reads > 2:
            self.tried.set()
        return super().awake()


def test_a_full_unix_queue_is_tried_again(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    clock = Watched()
    with ExitStack() as over:
        listener = over.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(path)
        listener.listen(0)
        over.enter_context(socket.socket(socket.AF_UNIX)).connect(path)

        def answer_later() -> None:
            clock.tried.wait(HANG_SECONDS)
            clock.advance(0.15)
            listener.accept()[0].close()
            connection, _ = listener.accept()
            connection.recv(4096)
            connection.sendall(OK)

        def talk() -> HttpTalk:
            return HttpTalk(kubelet._request("http://127.0.0.1/")[1])

        peer = Peer(socket.AF_UNIX, path)
        (full, _) = converse(peer, talk, deadline=0.1, hedge=0.05, clock=StallMeter())
        threading.Thread(target=answer_later, daemon=True).start()
        with ends(clock):
            (freed,) = converse(peer, talk, deadline=2, hedge=1, clock=clock)
    assert (full.ending, full.waiting_for) == (Ending.TIMEOUT, Phase.CONNECT)
    assert freed.ending is Ending.ANSWERED
    assert freed.connect_seconds == pytest.approx(0.15)


# --- two tries


def test_one_lost_connection_is_told_apart(serve: Serve) -> None:
    clock = ManualClock()

    def first_hangs(connection: socket.socket, number: int) -> None:
        if number:
            connection.sendall(OK)
        else:
            clock.advance(HEDGE)
        until_left(connection)
        clock.advance(DEADLINE)

    first, second = ask_by(clock, serve(first_hangs))
    assert (first.ending, second.ending) == (Ending.TIMEOUT, Ending.ANSWERED)


def test_tries_released_by_the_same_moment_both_have_their_answer(serve: Serve) -> None:
    clock, both_asked, first_ended = ManualClock(), threading.Event(), threading.Event()

    def stuck(connection: socket.socket, number: int) -> None:
        if number:
            both_asked.set()
            first_ended.wait(HANG_SECONDS)
            clock.advance(0.9 * LINGER_SECONDS)
            connection.sendall(OK)
        else:
            clock.advance(HEDGE)
            both_asked.wait(HANG_SECONDS)
            connection.sendall(OK)
            until_left(connection)
            first_ended.set()

    first, second = ask_by(clock, serve(stuck), deadline=2)
    assert (first.ending, second.ending) == (Ending.ANSWERED, Ending.ANSWERED)


def test_the_second_try_is_left_soon_after_the_first_has_ended(serve: Serve) -> None:
    clock, both_asked, second_left = ManualClock(), threading.Event(), threading.Event()

    def slow(connection: socket.socket, number: int) -> None:
        if number:
            both_asked.set()
            until_left(connection)
            second_left.set()
            return
        clock.advance(HEDGE)
        both_asked.wait(HANG_SECONDS)
        connection.sendall(OK)
        until_left(connection)
        for _ in range(100):
            clock.advance(LINGER_SECONDS)
            if second_left.wait(0.1):
                return

    first, second = ask_by(clock, serve(slow), deadline=1000)
    assert (first.ending, second.ending) == (Ending.ANSWERED, Ending.LEFT)


# --- wrong answers


def test_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    (attempt,) = ask(f"http://127.0.0.1:{port}/healthz")
    assert attempt.ending is Ending.REFUSED
    assert attempt.detail == "ECONNREFUSED: connection refused"


@pytest.mark.parametrize("data", [b"", OK[:10], OK[:-1], b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok"])
def test_closed_in_the_middle(serve: Serve, data: bytes) -> None:
    def send(connection: socket.socket, _: int) -> None:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_RDWR)

    (attempt,) = ask(serve(send))
    assert (attempt.ending, attempt.answer) == (Ending.CLOSED, None)


def test_reset(serve: Serve) -> None:
    def reset(connection: socket.socket, _: int) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    (attempt,) = ask(serve(reset))
    assert (attempt.ending, attempt.detail) == (Ending.CLOSED, "ECONNRESET: connection reset by peer")


GARBAGE = [b"SSH-2.0-x\r\n\r\n", b"\x15\x03\x01\x00\x02\x02\x46\r\n\r\n", b"HTTP/1.1 999999 \r\n\r\n", b"\0" * 40_000]


@pytest.mark.parametrize("data", GARBAGE, ids=["ssh", "tls", "status", "zeros"])
def test_garbage(serve: Serve, data: bytes) -> None:
    (attempt,) = ask(serve(answer(data)))
    assert attempt.ending is Ending.MALFORMED
    assert attempt.detail.isprintable()
    assert len(attempt.detail) <= 120


def test_endless_headers(serve: Serve) -> None:
    (attempt,) = ask(serve(flood(b"HTTP/1.1 200 OK\r\n", b"X-A: " + b"b" * 1000 + b"\r\n")))
    assert attempt.ending is Ending.MALFORMED


@pytest.mark.parametrize("status", [200, 500])
def test_an_endless_body_is_cut_and_its_status_kept(serve: Serve, status: int) -> None:
    start = b"HTTP/1.1 %d X\r\nContent-Length: 99999999999\r\n\r\n" % status
    (attempt,) = ask(serve(flood(start, b"x" * 4096)))
    assert attempt.ending is Ending.TOO_LARGE
    assert attempt.answer is not None
    assert (attempt.answer.status, len(attempt.answer.body), attempt.answer.whole) == (status, MAX_BODY_BYTES, False)


@pytest.mark.parametrize("more", [b"1\r\nx\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"], ids=["tiny-chunks", "continue"])
def test_an_answer_of_mere_envelopes_is_cut(serve: Serve, more: bytes) -> None:
    start = CHUNKED if more.startswith(b"1") else b""
    (attempt,) = ask(serve(flood(start, more * 500)))
    assert (attempt.ending, attempt.answer) == (Ending.TOO_LARGE, None)
    assert str(RECEIVE_LIMIT // 1024) in attempt.detail


def test_no_descriptor_left_is_our_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> socket.socket:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(socket, "socket", none)
    (attempt,) = ask("http://127.0.0.1:1/")
    assert (attempt.ending, attempt.detail) == (Ending.ERROR, "EMFILE: too many open files")


# --- our own stalls


def test_our_own_stall_does_not_count_against_the_peer(serve: Serve) -> None:
    clock = ManualClock()

    def late(connection: socket.socket, _: int) -> None:
        clock.stall = 2 * DEADLINE
        connection.sendall(OK)

    (attempt,) = ask_by(clock, serve(late))
    assert attempt.ending is Ending.ANSWERED
    assert attempt.total_seconds == 0


def test_an_answer_that_lies_in_the_socket_counts_although_the_deadline_has_passed(serve: Serve) -> None:
    asked, asleep, arrived = threading.Event(), threading.Event(), threading.Event()

    class Asleep(ManualClock):
        """This process is not run between the answer's arrival and the deadline."""

        def awake(self) -> float:
            if asked.is_set():
                asleep.set()
                arrived.wait(HANG_SECONDS)
                self.now = late
            return super().awake()

    def send(connection: socket.socket, _: int) -> None:
        asked.set()
        asleep.wait(HANG_SECONDS)
        connection.sendall(OK)
        wait_until(lambda: unacknowledged(connection) == 0, HANG_SECONDS, "the answer has arrived")
        arrived.set()

    clock = Asleep()
    late = clock.now + 100
    attempts = ask_by(clock, serve(send))
    assert attempts[0].ending is Ending.ANSWERED
    assert clock.now == late


def unacknowledged(connection: socket.socket) -> int:
    """Return how many bytes the other side's kernel has not taken yet (tcp(7), SIOCOUTQ)."""
    return int(struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))[0])


# --- URLs, text, processes


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://127.0.0.1:10248/healthz", None),
        ("http://[::1]:10248/healthz", None),
        ("http://localhost:10248", None),
        ("http://10.0.0.7/healthz?verbose", None),
        ("https://127.0.0.1:10250/healthz", "http://"),
        ("http://node-1:10248/healthz", "IP address"),
        ("http://user:secret@127.0.0.1/", "credentials"),
        ("http://127.0.0.1:99999/", "range"),
        ("http://[::1/", "Invalid"),
        ("http://127.0.0.1/a b", "ASCII"),
        ("http://127.0.0.1/\r\nX: y", "ASCII"),
        ("http://127.0.0.1/ä", "ASCII"),
        ("", "http://"),
    ],
)
def test_url_problem(url: str, problem: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def numeric_only(*args: Any, **more: Any) -> Any:
        assert more["flags"] & socket.AI_NUMERICHOST, "a name would be resolved"
        return real(*args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", numeric_only)
    found = url_problem(url)
    assert found is None if problem is None else found is not None and problem in found


def test_failing_checks_are_bounded_and_escaped() -> None:
    body = b"[+]ping ok\n[-]\x1b[31mroot\x00 failed: x\n[-]" + b"n" * 5000 + b"\n" + b"[-]again failed\n" * 100
    names = failing_checks(body)
    assert names[0] == "\\x1b[31mroot\\x00"
    assert len(names[1]) == 64
    assert len(names) == 17
    assert names[-1] == "…"


PIECES = [b"HTTP/1.1 200 OK\r\n", CHUNKED, b"\r\n", b"1\r\nx\r\n", b"0\r\n", b"\xff", OK]


@given(st.lists(st.sampled_from(PIECES) | st.binary(min_size=1)))
def test_whatever_arrives_is_an_answer_or_none(pieces: list[bytes]) -> None:
    talk = HttpTalk(kubelet._request("http://127.0.0.1/")[1])
    with suppress(NoAnswerError):
        for piece in [*pieces, b""]:
            if talk.answer is None:
                assert talk.hear(piece) == b""


def test_a_process_is_followed_without_scanning() -> None:
    clock = ManualClock()
    ages: dict[ProcessId, float] = {ProcessId(7, 70): 100.0}
    scans: list[float] = []

    def find() -> ProcessId | None:
        scans.append(1)
        return next(iter(ages), None)

    service = ServiceProcess(find, ages.get, clock)
    assert [service.look(urgent=True) for _ in range(3)] == [Lifetime(ProcessId(7, 70), 100.0)] * 3
    assert len(scans) == 1
    ages.clear()
    assert service.look(urgent=False) == Lifetime(ended=ProcessId(7, 70))
    assert service.look(urgent=False) == Lifetime(ended=ProcessId(7, 70))
    assert len(scans) == 2
    ages[ProcessId(8, 90)] = 0.5
    assert service.look(urgent=False).process is None, "scanned just now"
    assert service.look(urgent=True) == Lifetime(ProcessId(8, 90), 0.5)
