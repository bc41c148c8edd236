"""The doorkeeper on real sockets: who comes in, what is passed on, and that nobody can hold or fill it."""

import errno
import json
import os
import resource
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from agent.api import doorkeeper as module
from agent.api.doorkeeper import PIECE_BYTES, Doorkeeper
from agent.api.endpoint import remover, take_path
from agent.api.hidden import HiddenSocket
from agent.api.reception import UserArrival, Visitor
from agent.client import Client, ClientError
from agent.model import ActiveFinding, Condition, DetectorState, DetectorStatus, Snapshot, Status
from agent.pipeline.board import Entry
from tests.integration.api.behind_tls import READER, TlsAgent
from tests.lab.waiting import wait_until
from tests.unit.builders import open_files
from tests.unit.doubles import SICK, finding

STRANGER = 65_534
BUFFERS = 4 << 20
"""More than all buffers on the way hold together."""
IDLE_SECONDS = 0.3

KNOCK = """
import os, socket, sys
knocker = socket.socket(socket.AF_UNIX)
knocker.settimeout(10)
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
knocker.connect(sys.argv[1])
try:
    knocker.sendall(b"hello")
    print(knocker.recv(100))
except OSError:
    print(b"")
"""


class Inside:
    """What listens behind the door, once it is called: hands every connection to `serve`, in a thread of its own."""

    def __init__(self, folder: Path, serve: Callable[[socket.socket], None]) -> None:
        self.peers: list[str] = []
        self.address = ""
        self._folder = folder
        self._serve = serve
        self._listener = socket.socket(socket.AF_UNIX)

    def __call__(self) -> HiddenSocket:
        hidden = HiddenSocket([self._folder])
        self.address = hidden.address.removeprefix("unix:")
        self._listener.bind(self.address)
        self._listener.listen(200)
        threading.Thread(target=self._run, daemon=True).start()
        hidden.hide()
        return hidden

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                connection, peer = self._listener.accept()
                self.peers.append(f"unix-abstract:{peer[1:].decode()}")
                threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            self._serve(connection)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def echo(connection: socket.socket) -> None:
    while piece := connection.recv(PIECE_BYTES):
        connection.sendall(piece)


@pytest.fixture
def folder(everybodys_folder: Path) -> Path:
    return everybodys_folder


def keeper_at(folder: Path, inside: Callable[[], HiddenSocket], **how: Any) -> Doorkeeper:
    endpoint = f"unix:{folder}/n.sock"
    return Doorkeeper(take_path(endpoint), UserArrival, inside, remover(endpoint), **how)


@pytest.fixture
def kept(folder: Path) -> Iterator[Callable[..., tuple[Doorkeeper, Inside]]]:
    with ExitStack() as stack:

        def keep(serve: Callable[[socket.socket], None] = echo, **how: Any) -> tuple[Doorkeeper, Inside]:
            inside = Inside(folder, serve)
            keeper = keeper_at(folder, inside, **how)
            stack.callback(inside.close)
            stack.callback(keeper.stop, 0.0)
            keeper.start()
            return keeper, inside

        yield keep


@contextmanager
def knocking(folder: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(10)
        caller.connect(os.fspath(folder / "n.sock"))
        yield caller


def knock_as(uid: int, folder: Path) -> str:
    """What a process of that user hears when it says hello."""
    words = [sys.executable, "-c", KNOCK, f"{folder}/n.sock", str(uid)]
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=30).stdout.strip()


def shut_out(caller: socket.socket) -> bool:
    """Whether the connection is closed without a byte."""
    try:
        caller.sendall(b"hello")
        return caller.recv(100) == b""
    except (BrokenPipeError, ConnectionResetError):
        return True


# -- who comes in


def test_a_stranger_is_shut_out_even_where_the_files_would_let_it_in(
    kept: Callable[..., tuple[Doorkeeper, Inside]], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, inside = kept()
    (folder / "n.sock").chmod(0o666)
    with caplog.at_level("WARNING"):
        heard = [knock_as(uid, folder) for uid in (STRANGER, STRANGER - 1, 0)]
    assert heard == ["b''", "b''", "b'hello'"]
    assert len(inside.peers) == 1  # not a connection was made for a stranger
    (told,) = caplog.records
    assert (told.message, told.__dict__["uid"]) == ("a user who may not call was shut out", STRANGER)


def test_the_mode_of_the_socket_keeps_a_stranger_away_already(
    kept: Callable[..., tuple[Doorkeeper, Inside]], folder: Path
) -> None:
    kept()
    assert stat.S_IMODE((folder / "n.sock").stat().st_mode) == 0o600
    with pytest.raises(subprocess.CalledProcessError) as caught:
        knock_as(STRANGER, folder)
    assert "PermissionError" in caught.value.stderr


def test_what_listens_behind_the_door_has_no_file(kept: Callable[..., tuple[Doorkeeper, Inside]], folder: Path) -> None:
    keeper, inside = kept()
    with knocking(folder) as caller:
        caller.sendall(b"hello")
        assert caller.recv(100) == b"hello"
    assert [each.name for each in folder.iterdir()] == ["n.sock"]
    with socket.socket(socket.AF_UNIX) as caller, pytest.raises(FileNotFoundError):
        caller.connect(inside.address)
    keeper.stop(0.0)
    assert not list(folder.iterdir())


def test_it_is_told_which_user_calls(kept: Callable[..., tuple[Doorkeeper, Inside]], folder: Path) -> None:
    keeper, inside = kept()
    with knocking(folder) as caller:
        caller.sendall(b"hello")
        assert caller.recv(100) == b"hello"
        (peer,) = inside.peers
        assert keeper.visitor(peer) == Visitor(uid=0)
        for other in ("unix:", "ipv4:127.0.0.1:80", f"{peer}0", "unix-abstract:nodediag.0.0"):
            assert keeper.visitor(other) is None
    wait_until(lambda: keeper.visitor(peer) is None or None, 30, "it is forgotten")


def test_an_agent_that_is_not_root_lets_in_itself_and_root_and_tells_them_apart(folder: Path) -> None:
    program = f"""
import json, os, sys
from tests.integration.api import test_doorkeeper as t
os.setgroups([]); os.setgid({STRANGER}); os.setuid({STRANGER})
uids = []
def note(connection):
    uids.append(keeper.visitor(inside.peers[-1]).uid)
    t.echo(connection)
inside = t.Inside(t.Path("{folder}"), note)
keeper = t.keeper_at(t.Path("{folder}"), inside)
keeper.start()
os.chmod("{folder}/n.sock", 0o666)
print("up", flush=True)
sys.stdin.readline()
print(json.dumps(uids))
"""
    words = [sys.executable, "-c", program]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == "up\n"
        heard = [knock_as(uid, folder) for uid in (STRANGER, 0, STRANGER - 1)]
        output, _ = agent.communicate("end\n", timeout=30)
    assert heard == ["b'hello'", "b'hello'", "b''"]
    assert json.loads(output) == [STRANGER, 0]


# -- what serves inside is started for the first caller


def test_nothing_is_started_before_somebody_comes(kept: Callable[..., tuple[Doorkeeper, Inside]], folder: Path) -> None:
    _, inside = kept()
    (folder / "n.sock").chmod(0o666)
    assert knock_as(STRANGER, folder) == "b''"
    assert inside.address == ""
    assert knock_as(0, folder) == "b'hello'"
    assert inside.address


def test_told_to_it_is_started_ahead_of_the_first(folder: Path) -> None:
    inside = Inside(folder, echo)
    keeper = keeper_at(folder, inside)
    with ExitStack() as stack:
        stack.callback(inside.close)
        stack.callback(keeper.stop, 0.0)
        keeper.start(ahead=True)
        wait_until(lambda: keeper._opening.inner, 30, "it is started, and nobody has come")
        with knocking(folder) as caller:
            caller.sendall(b"hello")
            assert caller.recv(100) == b"hello"
        assert not keeper._waiting


def test_who_comes_while_it_starts_waits_and_is_heard_whole(folder: Path) -> None:
    begun, may_go_on = threading.Event(), threading.Event()
    inside = Inside(folder, echo)

    def slow() -> HiddenSocket:
        begun.set()
        assert may_go_on.wait(10)
        return inside()

    keeper = keeper_at(folder, slow)
    keeper.start()
    with ExitStack() as stack:
        stack.callback(inside.close)
        stack.callback(keeper.stop, 0.0)
        callers = [stack.enter_context(knocking(folder)) for _ in range(5)]
        for number, caller in enumerate(callers):
            caller.sendall(b"hello %d" % number)
        assert begun.wait(10)
        wait_until(lambda: len(keeper._waiting) == 5, 30, "all wait")
        may_go_on.set()
        assert [caller.recv(100) for caller in callers] == [b"hello %d" % number for number in range(5)]
        assert not keeper._waiting


def test_where_it_cannot_be_started_callers_are_turned_away_and_the_next_has_it_tried_again(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inside = Inside(folder, echo)
    trials: list[str] = []

    def fails_once() -> HiddenSocket:
        trials.append("tried")
        if len(trials) == 1:
            raise MemoryError("no memory left")
        return inside()

    keeper = keeper_at(folder, fails_once)
    keeper.start()
    with ExitStack() as stack:
        stack.callback(inside.close)
        stack.callback(keeper.stop, 0.0)
        with knocking(folder) as caller:
            assert caller.recv(100) == b""
        (told,) = [each for each in caplog.records if "could not be started" in each.message]
        assert "no memory left" in str(told.exc_info)
        assert knock_as(0, folder) == "b'hello'"
    assert len(trials) == 2


def test_nobody_waits_for_ever_for_what_hangs_and_not_more_than_may_come_in(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "OPENING_SECONDS", 1.0)
    before = open_files()
    may_end = threading.Event()
    inside = Inside(folder, echo)

    def hangs() -> HiddenSocket:
        may_end.wait(30)
        return inside()

    keeper = keeper_at(folder, hangs, limit=3)
    keeper.start()
    with ExitStack() as stack:
        stack.callback(inside.close)
        callers = [stack.enter_context(knocking(folder)) for _ in range(3)]
        wait_until(lambda: len(keeper._waiting) == 3, 30, "three wait")
        with knocking(folder) as one_more:
            assert one_more.recv(100) == b""
        assert len(keeper._waiting) == 3
        assert [caller.recv(100) for caller in callers] == [b""] * 3
        assert not keeper._waiting
        keeper.stop(0.0)
        may_end.set()  # it comes when all is over
        wait_until(lambda: inside.address and not list(folder.iterdir()), 30, "nothing is left of it")
    wait_until(lambda: open_files() <= before, 30, "nor a descriptor")


# -- what is passed on


def test_bytes_arrive_in_order_both_ways(kept: Callable[..., tuple[Doorkeeper, Inside]], folder: Path) -> None:
    kept()
    sent = os.urandom(BUFFERS)
    with knocking(folder) as caller:
        threading.Thread(target=caller.sendall, args=(sent,), daemon=True).start()
        assert received(caller, len(sent)) == sent


def received(side: socket.socket, size: int) -> bytes:
    pieces, got = [], 0
    while got < size and (piece := side.recv(PIECE_BYTES)):
        pieces.append(piece)
        got += len(piece)
    return b"".join(pieces)


def test_who_stops_talking_still_hears_the_answer(kept: Callable[..., tuple[Doorkeeper, Inside]], folder: Path) -> None:
    def answer_at_the_end(connection: socket.socket) -> None:
        heard = received(connection, BUFFERS)
        connection.sendall(b"heard %d" % len(heard))

    keeper, _ = kept(answer_at_the_end)
    with knocking(folder) as caller:
        caller.sendall(b"x" * 1000)
        caller.shutdown(socket.SHUT_WR)
        assert received(caller, 100) == b"heard 1000"
        assert caller.recv(1) == b""
    wait_until(lambda: not keeper._relays, 30, "the connection is forgotten")


def test_an_end_inside_is_passed_on_and_what_was_said_before_it(
    kept: Callable[..., tuple[Doorkeeper, Inside]], folder: Path
) -> None:
    kept(lambda connection: connection.sendall(b"y" * BUFFERS))
    with knocking(folder) as caller:
        assert len(received(caller, 2 * BUFFERS)) == BUFFERS


def test_who_does_not_read_is_felt_inside_and_costs_one_piece(
    kept: Callable[..., tuple[Doorkeeper, Inside]], folder: Path
) -> None:
    written = [0]

    def talk(connection: socket.socket) -> None:
        while True:
            written[0] += connection.send(b"z" * PIECE_BYTES)

    keeper, _ = kept(talk)
    with knocking(folder) as caller:
        wait_until(lambda: settled(written), 10, "no more is taken")
        assert written[0] < BUFFERS
        (relay,) = keeper._relays
        assert len(relay._in.waiting) + len(relay._out.waiting) <= PIECE_BYTES
        assert thread_seconds(IDLE_SECONDS) < IDLE_SECONDS / 4  # and nobody runs in circles meanwhile
        assert len(received(caller, BUFFERS)) >= BUFFERS


def settled(counter: list[int]) -> bool:
    before = counter[0]
    time.sleep(0.05)
    return before > 0 and counter[0] == before


def thread_seconds(during: float) -> float:
    """Processor time this process takes in a while in which it has nothing to do."""
    began = time.process_time()
    time.sleep(during)
    return time.process_time() - began


def test_the_keeper_sleeps_while_connections_are_idle_half_closed_or_gone(
    kept: Callable[..., tuple[Doorkeeper, Inside]], folder: Path
) -> None:
    release = threading.Event()

    def never_end(connection: socket.socket) -> None:
        release.wait(20)

    keeper, _ = kept(never_end)
    with knocking(folder), knocking(folder) as half, knocking(folder) as full:
        half.shutdown(socket.SHUT_WR)
        with suppress(BlockingIOError):
            full.setblocking(False)
            while True:
                full.send(b"x" * PIECE_BYTES)
        with knocking(folder):
            pass  # gone
        wait_until(lambda: len(keeper._relays) == 4, 30, "all are in")
        assert thread_seconds(IDLE_SECONDS) < IDLE_SECONDS / 4
        release.set()


def test_connections_that_break_leave_nothing_behind(
    kept: Callable[..., tuple[Doorkeeper, Inside]], folder: Path
) -> None:
    keeper, _ = kept()
    with knocking(folder) as caller:
        caller.sendall(b"hello")
        caller.recv(100)
    wait_until(lambda: not keeper._relays, 30, "it is forgotten")
    before = open_files()
    for number in range(100):
        with knocking(folder) as caller:
            caller.sendall(b"x" * 100_000 if number % 2 else b"x")
            if number % 3 == 0:
                caller.shutdown(socket.SHUT_RD)
    wait_until(lambda: not keeper._relays, 30, "all are forgotten")
    wait_until(lambda: open_files() <= before, 30, "their descriptors are closed")


def test_nobody_behind_the_door_is_no_harm(
    kept: Callable[..., tuple[Doorkeeper, Inside]], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keeper, inside = kept()
    with knocking(folder) as caller:
        caller.sendall(b"hello")
        assert caller.recv(100) == b"hello"
    inside.close()
    wait_until(lambda: not keeper._relays, 30, "it has left")
    with caplog.at_level("WARNING"):
        for _ in range(3):
            with knocking(folder) as caller:
                assert shut_out(caller)
    assert [record.message for record in caplog.records] == ["a caller was shut out: its connection broke"]
    assert not keeper._relays


# -- bounds


def test_one_connection_too_many_is_closed_and_a_place_given_back_is_taken(
    kept: Callable[..., tuple[Doorkeeper, Inside]], folder: Path
) -> None:
    keeper, _ = kept(limit=3)
    with ExitStack() as stack:
        callers = [stack.enter_context(knocking(folder)) for _ in range(3)]
        wait_until(lambda: len(keeper._relays) == 3, 30, "all are in")
        with knocking(folder) as caller:
            assert shut_out(caller)
        callers[1].close()
        wait_until(lambda: len(keeper._relays) == 2, 30, "its place is free")
        with knocking(folder) as caller:
            caller.sendall(b"hello")
            assert caller.recv(100) == b"hello"


def test_without_descriptors_callers_wait_and_nobody_runs_in_circles(
    kept: Callable[..., tuple[Doorkeeper, Inside]], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack, caplog.at_level("WARNING"):
        caller = stack.enter_context(socket.socket(socket.AF_UNIX))
        caller.settimeout(10)
        plugs = stack.enter_context(ExitStack())
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_files() + 20, hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
            fill(plugs)
        caller.connect(os.fspath(folder / "n.sock"))
        caller.sendall(b"hello")
        assert thread_seconds(3 * module.PAUSE_SECONDS) < module.PAUSE_SECONDS
        plugs.close()
        assert caller.recv(100) == b"hello"
    assert [record.message for record in caplog.records] == ["callers have to wait"]


def fill(plugs: ExitStack) -> None:
    while True:
        stream = Path(os.devnull).open()  # noqa: SIM115 - closed with the others
        plugs.enter_context(stream)


# -- the end


def test_at_the_end_connections_get_a_moment_and_no_more(
    kept: Callable[..., tuple[Doorkeeper, Inside]], folder: Path
) -> None:
    keeper, _ = kept()
    with knocking(folder) as caller:
        caller.sendall(b"hello")
        assert caller.recv(100) == b"hello"
        keeper.close()
        wait_until(lambda: not (folder / "n.sock").exists(), 30, "the door is closed")
        caller.sendall(b"still in")
        assert caller.recv(100) == b"still in"
        began = time.monotonic()
        keeper.stop(0.2)
        assert 0.1 < time.monotonic() - began < 20
        assert shut_out(caller)


def test_a_socket_that_another_agent_has_put_there_is_left_alone(
    kept: Callable[..., tuple[Doorkeeper, Inside]], folder: Path
) -> None:
    keeper, _ = kept()
    (folder / "n.sock").unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(os.fspath(folder / "n.sock"))
        keeper.stop(0.0)
        assert (folder / "n.sock").exists()


# -- over TCP


@pytest.fixture
def tls(tmp_path: Path) -> Iterator[TlsAgent]:
    agent = TlsAgent(tmp_path / "tls")
    agent.api.start()
    yield agent
    agent.api.stop()


def dialled(agent: TlsAgent) -> socket.socket:
    host, port = agent.api.endpoint.split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def ended(side: socket.socket) -> bool:
    with suppress(ConnectionResetError):
        return side.recv(1) == b""
    return True


def test_who_connects_and_stays_silent_is_shut_out_in_time(tls: TlsAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ARRIVAL_SECONDS", 0.2)
    with dialled(tls) as silent, dialled(tls) as slow:
        slow.sendall(bytes.fromhex("160301"))  # the beginning of a handshake
        began = time.monotonic()
        assert ended(silent)
        assert ended(slow)
        assert 0.1 < time.monotonic() - began < 20


def test_the_silent_keep_nobody_from_coming_in(tls: TlsAgent) -> None:
    with ExitStack() as stack:
        silent = [stack.enter_context(dialled(tls)) for _ in range(3 * module.MAX_ARRIVALS)]
        with tls.client(READER) as client:
            client.get_node_report()
        assert ended(silent[0])  # it has waited longest
        silent[-1].settimeout(0.1)
        with pytest.raises(TimeoutError):
            silent[-1].recv(1)
        assert thread_seconds(IDLE_SECONDS) < IDLE_SECONDS / 4


def test_what_is_no_tls_or_breaks_off_harms_nobody(tls: TlsAgent, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        for junk in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01"):
            with dialled(tls) as stranger, suppress(OSError):
                stranger.sendall(junk)
                stranger.shutdown(socket.SHUT_WR)
                stranger.recv(100)
        with tls.client(READER) as client:
            client.get_node_report()
    (told,) = caplog.records
    assert told.message == "a caller was shut out: no secure connection"
    assert (told.__dict__["why"], told.__dict__["peer"]) == ("http request", "127.0.0.1")


def test_the_log_says_why_a_certificate_was_not_accepted(tls: TlsAgent, caplog: pytest.LogCaptureFixture) -> None:
    late = tls.identify(tls.authority.issue(READER, seconds=-1))
    with caplog.at_level("WARNING"), Client(tls.api.endpoint, tls=late) as client, pytest.raises(ClientError):
        client.get_node_report()
    (told,) = wait_until(lambda: caplog.records, 30, "it is told")
    assert told.__dict__["why"] == "certificate has expired"


def test_large_answers_and_slow_readers_over_tls(tls: TlsAgent) -> None:
    findings = tuple(ActiveFinding(finding(SICK, pid=pid), 1e9) for pid in range(1, 5001))
    sick = Condition(SICK, Status.TRUE, "Fever", "x" * 1000, 1e9, findings)
    tls.board.publish(Entry(DetectorStatus("doctor", DetectorState.OK), (sick,)))
    with tls.client(READER) as client, tls.client(READER) as other:
        watch = other.watch()
        for _ in range(5):
            assert len(client.get_node_report().conditions[0].findings) == 5000
        assert next(watch) == Snapshot((sick,))


def test_tls_connections_that_come_and_go_leave_nothing_behind(tls: TlsAgent) -> None:
    def call() -> None:
        with tls.client(READER) as client:
            client.get_node_report()

    keeper = tls.api._door._keeper  # type: ignore[union-attr]
    for _ in range(3):
        call()
    wait_until(lambda: not keeper._relays, 30, "all are forgotten")
    before = open_files()
    for _ in range(20):
        call()
        with dialled(tls):
            pass
    wait_until(lambda: not keeper._relays and not keeper._arrivals, 30, "all are forgotten")
    wait_until(lambda: open_files() <= before, 30, "their descriptors are closed")
    assert keeper._visitors == {}
