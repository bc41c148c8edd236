"""The containerd sense: against an HTTP/2 server of h2's own, against nonsense, and against a real containerd."""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import StreamEnded
from hypothesis import given
from hypothesis import strategies as st

from agent.clock import StallMeter
from agent.host.containerd import METHOD, STATUS_UNIMPLEMENTED, RuntimeAnswer, VersionTalk, ask_version
from agent.host.exchange import Attempt, Ending, NoAnswerError, Phase
from agent.host.pb.cri_pb2 import VersionResponse

VERSION = VersionResponse(
    version="0.1.0", runtime_name="containerd", runtime_version="1.6.20~ds1", runtime_api_version="v1"
).SerializeToString()
# The same message as containerd 1.6.20 sent it, in hex: the field numbers are the real ones.
RECORDED = bytes.fromhex("0a05302e312e30120a636f6e7461696e6572641a0a312e362e32307e64733122027631")

Headers = list[tuple[bytes, bytes]]
OK: Headers = [(b":status", b"200"), (b"content-type", b"application/grpc")]


def framed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


def response(body: bytes | None, trailers: Headers, headers: Headers = OK, repeat: int = 1) -> bytes:
    """Return a server's bytes up to the end of stream 1, to the question of VersionTalk."""
    server = H2Connection(H2Configuration(client_side=False))
    server.initiate_connection()
    server.receive_data(VersionTalk().question)
    if body is None:
        server.send_headers(1, headers + trailers, end_stream=True)
    else:
        server.send_headers(1, headers)
        for _ in range(repeat):
            server.send_data(1, body)
        server.send_headers(1, trailers, end_stream=True)
    return server.data_to_send()


def heard(data: bytes) -> RuntimeAnswer | None:
    talk = VersionTalk()
    talk.hear(data)
    return talk.answer


def test_the_question_is_a_unary_call() -> None:
    server = H2Connection(H2Configuration(client_side=False, header_encoding=None))
    server.initiate_connection()
    events = server.receive_data(VersionTalk().question)
    headers = dict(next(e.headers for e in events if hasattr(e, "headers")))
    assert headers[b":path"] == METHOD.encode()
    assert headers[b"te"] == b"trailers"
    assert any(isinstance(event, StreamEnded) for event in events)


def test_a_version_is_read() -> None:
    assert RECORDED == VERSION
    expected = RuntimeAnswer(0, "", "containerd", "1.6.20~ds1")
    assert heard(response(framed(RECORDED), [(b"grpc-status", b"0")])) == expected


@pytest.mark.parametrize(
    ("body", "trailers", "expected"),
    [
        (None, [(b"grpc-status", b"12"), (b"grpc-message", b"unknown service")], RuntimeAnswer(12, "unknown service")),
        (b"", [(b"grpc-status", b"2"), (b"grpc-message", b"a%0Ab%FF")], RuntimeAnswer(2, "a\\nb\\xff")),
        (b"", [(b"grpc-status", b"0")], RuntimeAnswer(0)),
        (framed(b"\xff\xff"), [(b"grpc-status", b"0")], RuntimeAnswer(0, "its version cannot be read")),
    ],
)
def test_any_grpc_answer_is_an_answer(body: bytes | None, trailers: Headers, expected: RuntimeAnswer) -> None:
    assert heard(response(body, trailers)) == expected


@pytest.mark.parametrize(
    ("data", "ending"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", Ending.MALFORMED),
        (response(None, [], [(b":status", b"404")]), Ending.MALFORMED),
        (response(None, [(b"grpc-status", b"OK")]), Ending.MALFORMED),
        (b"\0\0\0\4\0\0\0\0\0" + b"\0\0\x08\x07\0\0\0\0\0" + bytes(8), Ending.CLOSED),
        (b"\0\0\0\4\0\0\0\0\0" + b"\0\0\4\3\0\0\0\0\1\0\0\0\x0b", Ending.CLOSED),
        (response(bytes(9_000), [(b"grpc-status", b"0")], repeat=2), Ending.TOO_LARGE),
    ],
    ids=["http1", "no-grpc", "odd-status", "goaway", "reset", "too-large"],
)
def test_what_is_no_answer(data: bytes, ending: Ending) -> None:
    with pytest.raises(NoAnswerError) as caught:
        heard(data)
    assert caught.value.ending is ending
    assert str(caught.value).isprintable()


FRAMES = [response(framed(RECORDED), [(b"grpc-status", b"0")]), b"\0\0\0\4\0\0\0\0\0", b"\0\0\1\1\4\0\0\0\1\x88"]


@given(st.lists(st.sampled_from(FRAMES) | st.binary(min_size=1), min_size=1))
def test_whatever_arrives_is_an_answer_or_none(pieces: list[bytes]) -> None:
    talk = VersionTalk()
    with suppress(NoAnswerError):
        for piece in pieces:
            if talk.answer is None:
                talk.hear(piece)


@given(st.integers(0, len(FRAMES[0]) - 1), st.binary(min_size=1, max_size=4))
def test_a_damaged_answer_is_an_answer_or_none(place: int, damage: bytes) -> None:
    with suppress(NoAnswerError):
        heard(FRAMES[0][:place] + damage + FRAMES[0][place + len(damage) :])


# --- over a socket


def ask(address: Path, deadline: float = 60.0, hedge: float = 30.0) -> tuple[Attempt[RuntimeAnswer], ...]:
    return ask_version(str(address), deadline=deadline, hedge=hedge, clock=StallMeter())


def test_an_answer_over_a_socket(tmp_path: Path) -> None:
    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            for byte in FRAMES[0]:
                connection.sendall(bytes([byte]))
            connection.recv(4096)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        (attempt,) = ask(tmp_path / "s")
    assert attempt.answer == RuntimeAnswer(0, "", "containerd", "1.6.20~ds1")


def test_an_answer_counts_although_its_sender_has_gone_before_we_acknowledged(tmp_path: Path) -> None:
    pings = (b"\0\0\x08\6\0\0\0\0\0" + bytes(8)) * 1000

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.recv(4096)
        time.sleep(0.05)
        connection.sendall(FRAMES[1] + pings + FRAMES[0])
        connection.close()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        (attempt,) = ask(tmp_path / "s")
    assert attempt.ending is Ending.ANSWERED


def test_nobody_answers(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        first, second = ask(tmp_path / "s", deadline=0.2, hedge=0.07)
    assert (first.ending, first.waiting_for, second.ending) == (Ending.TIMEOUT, Phase.FIRST_BYTE, Ending.TIMEOUT)


def test_nobody_listens(tmp_path: Path) -> None:
    (missing,) = ask(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
    (dead,) = ask(tmp_path / "s")
    assert (missing.ending, missing.detail) == (Ending.REFUSED, "ENOENT: no such file or directory")
    assert (dead.ending, dead.detail) == (Ending.REFUSED, "ECONNREFUSED: connection refused")


def test_a_path_too_long_is_our_own_error(tmp_path: Path) -> None:
    (attempt,) = ask(tmp_path / ("x" * 120))
    assert (attempt.ending, attempt.detail) == (Ending.ERROR, "AF_UNIX path too long")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_no_permission_is_our_own_error(tmp_path: Path) -> None:
    def as_nobody() -> None:
        become(65534)
        results.extend(ask(Path("/proc/self/fd") / str(folder) / "s"))

    results: list[Attempt[RuntimeAnswer]] = []
    with ExitStack() as over:
        listener = over.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        (tmp_path / "s").chmod(0o600)
        folder = os.open(tmp_path, os.O_RDONLY)
        over.callback(os.close, folder)
        thread = threading.Thread(target=as_nobody)
        thread.start()
        thread.join()
    assert (results[0].ending, results[0].detail) == (Ending.ERROR, "EACCES: permission denied")


def become(user: int) -> None:
    """Change this thread's user alone; the C library's wrapper would change all threads'."""
    number = {"x86_64": 117, "aarch64": 147}[os.uname().machine]  # setresuid
    assert ctypes.CDLL(None, use_errno=True).syscall(number, user, user, user) == 0


# --- a real containerd

CONFIG = """
version = 2
root = "{base}/root"
state = "{base}/state"
disabled_plugins = [{disabled}]
[grpc]
  address = "{base}/c.sock"
[ttrpc]
  address = "{base}/c.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "{base}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
"""

Start = Callable[[bool], subprocess.Popen[bytes]]


@pytest.fixture
def containerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Start]]:
    """Start a private containerd without shims, with or without CRI, and end it."""
    if os.geteuid() != 0 or shutil.which("containerd") is None:
        pytest.skip("needs root and containerd")
    base = tmp_path_factory.mktemp("c")
    with ExitStack() as over:

        def start(cri: bool) -> subprocess.Popen[bytes]:
            names = ["aufs", "btrfs", "devmapper", "zfs"]
            disabled = [f'"io.containerd.snapshotter.v1.{name}"' for name in names]
            disabled += [] if cri else ['"io.containerd.grpc.v1.cri"']
            (base / "config.toml").write_text(CONFIG.format(base=base, disabled=", ".join(disabled)))
            log = over.enter_context((base / "log").open("ab"))
            command = ["containerd", "-c", str(base / "config.toml")]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            over.callback(process.wait, 10)
            over.callback(process.kill)
            until = time.monotonic() + 60
            while ask(base / "c.sock", deadline=1, hedge=0.4)[0].ending is not Ending.ANSWERED:
                assert process.poll() is None, (base / "log").read_text()[-2000:]
                assert time.monotonic() < until, (base / "log").read_text()[-2000:]
                time.sleep(0.05)
            return process

        yield base / "c.sock", start


def signal_own(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    handle = os.pidfd_open(process.pid)
    signal.pidfd_send_signal(handle, number)
    os.close(handle)


def all_threads_stopped(pid: int) -> bool:
    """A SIGSTOP reaches thread after thread; until then one of them may still answer."""
    stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)


@pytest.mark.lab
def test_a_real_containerd_with_cri_stopped_continued_and_killed(containerd: tuple[Path, Start]) -> None:
    address, start = containerd
    process = start(True)
    until = time.monotonic() + 60
    while not ((attempt := ask(address, deadline=2, hedge=1)[0]).answer and attempt.answer.runtime_name):
        assert time.monotonic() < until, attempt
        time.sleep(0.1)
    assert attempt.answer.status == 0
    assert attempt.answer.runtime_name == "containerd"
    assert attempt.answer.runtime_version

    signal_own(process, signal.SIGSTOP)
    while not all_threads_stopped(process.pid):
        time.sleep(0.01)
    stopped = ask(address, deadline=0.2, hedge=0.07)
    assert [(each.ending, each.waiting_for) for each in stopped] == [(Ending.TIMEOUT, Phase.FIRST_BYTE)] * 2

    signal_own(process, signal.SIGCONT)
    assert ask(address)[0].ending is Ending.ANSWERED

    process.kill()
    process.wait(10)
    assert ask(address)[0].ending is Ending.REFUSED


@pytest.mark.lab
def test_a_real_containerd_without_cri_is_alive(containerd: tuple[Path, Start]) -> None:
    address, start = containerd
    start(False)
    (attempt,) = ask(address)
    assert attempt.answer is not None
    assert attempt.answer.status == STATUS_UNIMPLEMENTED
