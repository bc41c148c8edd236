"""The shim sense against real servers on Unix sockets: well, silent, late, hostile and gone."""

import errno
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.host import shims as module
from agent.host.rights import Capability
from agent.host.shims import MAX_UNASKED_REPLIES, Outcome, ShimAnswer, ShimQuery, ShimSense, TaskState
from agent.model import DeploymentCause
from tests.unit.builders import (
    STOPPED,
    ManualClock,
    RealClock,
    ShimServer,
    drain,
    open_files,
    raw_frame,
    reply_frame,
)
from tests.unit.doubles import FakeClock, rights_without

PATIENCE = 5.0
"""For what answers: it never takes as long."""
SHORT = 0.05
"""For what does not."""


class Shims:
    """Makes servers in one directory and closes them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.servers: list[ShimServer] = []
        self.sockets: list[socket.socket] = []

    def server(self, **how: Any) -> ShimServer:
        self.servers.append(ShimServer(self.root / f"{len(self.servers)}.sock", **how))
        return self.servers[-1]

    def unserved(self, backlog: int = 16) -> tuple[socket.socket, ShimQuery]:
        """A socket nobody accepts from: what a stopped shim leaves."""
        path = str(self.root / f"u{len(self.sockets)}.sock")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(backlog)
        self.sockets.append(listener)
        return listener, ShimQuery(path, 2, ("c",))


@pytest.fixture
def shims(tmp_path: Path) -> Iterator[Shims]:
    made = Shims(tmp_path)
    yield made
    for server in made.servers:
        server.close()
    for sock in made.sockets:
        sock.close()


@pytest.fixture
def sense() -> ShimSense:
    return ShimSense(RealClock())


def denied_connections(monkeypatch: pytest.MonkeyPatch, number: int) -> list[str]:
    """Deny every connection, and return the addresses that were tried."""
    tried: list[str] = []

    class Denied(socket.socket):
        def connect(self, address: Any, /) -> None:
            tried.append(address)
            raise OSError(number, "denied")

    monkeypatch.setattr(socket, "socket", Denied)
    return tried


def ask(sense: ShimSense, query: ShimQuery, patience: float = PATIENCE) -> ShimAnswer:
    (answer,) = sense.ask([query], patience).values()
    return answer


class TestAnswers:
    def test_a_shim_that_answers_is_measured(self, shims: Shims, sense: ShimSense) -> None:
        server = shims.server(pid=4711, statuses={"b": STOPPED})
        answer = ask(sense, server.query("a", "b"))
        assert answer.outcome is Outcome.ANSWERED
        assert answer.shim_pid == 4711
        assert answer.connect_seconds is not None
        assert 0 < answer.connect_seconds < 1
        assert answer.states == {"a": TaskState(True, 2, 500), "b": TaskState(True, 3, 500)}
        assert answer.states_waiting == {}
        assert sorted(server.methods) == ["Connect", "State", "State"]

    def test_it_is_asked_by_the_version_its_bundle_names(self, shims: Shims, sense: ShimSense) -> None:
        server = shims.server()
        ask(sense, ShimQuery(str(server.path), 3, ("c",)))
        assert server.services == {"containerd.task.v3.Task"}

    @pytest.mark.parametrize("code", [5, 12, 14])
    def test_an_error_is_an_answer_too(self, shims: Shims, sense: ShimSense, code: int) -> None:
        server = shims.server(answers=frozenset(), greeting=reply_frame(1, code=code) + reply_frame(3, code=code))
        answer = ask(sense, server.query("c"))
        assert (answer.outcome, answer.shim_pid) == (Outcome.ANSWERED, None)
        assert answer.states == {"c": TaskState(False)}

    def test_nobody_to_ask_takes_no_time(self, sense: ShimSense) -> None:
        began = time.monotonic()
        assert sense.ask([], PATIENCE) == {}
        assert time.monotonic() - began < PATIENCE

    def test_one_silent_shim_of_thirty_delays_no_other(self, shims: Shims, sense: ShimSense) -> None:
        servers = [shims.server() for _ in range(29)]
        listener, silent = shims.unserved()
        queries = [server.query() for server in servers]
        queries.insert(7, silent)
        began = time.monotonic()
        answers = sense.ask(queries, PATIENCE)
        assert time.monotonic() - began < 10 * PATIENCE
        assert answers.pop(silent.address).outcome is Outcome.WAITING
        assert {answer.outcome for answer in answers.values()} == {Outcome.ANSWERED}
        assert max(answer.connect_seconds or 9 for answer in answers.values()) < PATIENCE
        assert drain(listener) == 1


class TestSilence:
    def test_a_silent_shim_waits_for_as_long_as_we_listened(self, shims: Shims, sense: ShimSense) -> None:
        _, query = shims.unserved()
        answer = ask(sense, query, SHORT)
        assert answer.outcome is Outcome.WAITING
        assert SHORT <= answer.waiting_seconds < SHORT + 0.5
        assert (answer.connect_seconds, answer.shim_pid) == (None, None)

    def test_a_shim_that_answers_connect_alone_is_waited_for_by_container(self, shims: Shims, sense: ShimSense) -> None:
        server = shims.server(answers=frozenset({"Connect"}))
        answer = ask(sense, server.query("a", "b"), SHORT)
        assert answer.outcome is Outcome.ANSWERED
        assert answer.states == {}
        assert answer.states_waiting.keys() == {"a", "b"}
        assert min(answer.states_waiting.values()) >= SHORT

    def test_a_stuck_shim_is_asked_connect_again_and_state_only_once(self, shims: Shims, sense: ShimSense) -> None:
        server = shims.server(answers=frozenset({"Connect"}))
        first = ask(sense, server.query("a"), SHORT)
        for _ in range(3):
            last = ask(sense, server.query("a"), SHORT)
        assert last.outcome is Outcome.ANSWERED
        assert last.states_waiting["a"] > first.states_waiting["a"]
        assert server.accepted == 1
        assert (server.methods.count("Connect"), server.methods.count("State")) == (4, 1)

    def test_a_late_answer_comes_on_the_connection_that_waited(self, shims: Shims, sense: ShimSense) -> None:
        server = shims.server(answers=frozenset())
        assert ask(sense, server.query("a"), SHORT).outcome is Outcome.WAITING
        server.wait_for_held(2)
        server.release()
        answer = ask(sense, server.query("a"))
        assert answer.outcome is Outcome.ANSWERED
        assert answer.connect_seconds is not None
        assert answer.connect_seconds >= SHORT
        assert answer.states == {"a": TaskState(True, 2, 500)}
        assert server.accepted == 1
        again = ask(sense, server.query("a"))
        assert again.outcome is Outcome.ANSWERED
        assert again.connect_seconds is not None
        assert again.connect_seconds < answer.connect_seconds
        assert server.accepted == 2

    def test_a_hung_shim_holds_one_connection_however_often_it_is_looked_at(
        self, shims: Shims, sense: ShimSense
    ) -> None:
        listener, query = shims.unserved()
        for _ in range(50):
            answer = ask(sense, query, 0.001)
        assert answer.outcome is Outcome.WAITING
        assert drain(listener) == 1

    def test_two_hundred_looks_at_every_kind_of_shim_leave_no_file_open(self, shims: Shims, sense: ShimSense) -> None:
        _, hung = shims.unserved()
        refused, dead = shims.unserved()
        refused.close()
        kinds = [
            hung,
            dead,
            ShimQuery(str(shims.root / "none"), 2, ("c",)),
            shims.server().query(),
            shims.server(answers=frozenset({"Connect"})).query(),
            shims.server(hang_up=True).query(),
            shims.server(greeting=b"garbage, garbage").query(),
        ]
        sense.ask(kinds, SHORT)
        sense.ask([], SHORT)  # forgets, and closes, what is no longer wanted
        kept = open_files()
        for _ in range(200):
            sense.ask(kinds, 0.001)
        sense.ask([], SHORT)
        deadline = time.monotonic() + 5
        while open_files() > kept and time.monotonic() < deadline:  # the servers of this test close their ends
            threading.Event().wait(0.01)
        assert open_files() <= kept

    def test_a_shim_no_longer_wanted_is_hung_up_on(self, shims: Shims, sense: ShimSense) -> None:
        listener, query = shims.unserved()
        ask(sense, query, SHORT)
        connection, _ = listener.accept()
        sense.ask([], SHORT)
        assert connection.recv(1 << 16) != b""
        assert connection.recv(1) == b""
        connection.close()

    def test_a_full_queue_is_a_shim_that_does_not_accept(self, shims: Shims) -> None:
        clock = ManualClock()
        sense = ShimSense(clock)
        _, query = shims.unserved(backlog=0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(query.address)
            answer = ask(sense, query)
            assert (answer.outcome, answer.waiting_seconds) == (Outcome.WAITING, 0.0)
            assert "queue is full" in answer.message
            clock.advance(7)
            assert ask(sense, query).waiting_seconds == 7.0
            sense.ask([], SHORT)
            assert ask(sense, query).waiting_seconds == 0.0


class TestOwnStall:
    def test_the_time_we_slept_ourselves_is_not_counted(self, shims: Shims, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "SLICE_SECONDS", 0.001)
        clock = ManualClock(step=0.01)
        sense = ShimSense(clock)
        _, query = shims.unserved()
        ask(sense, query, SHORT)
        clock.stall += 30
        assert ask(sense, query, SHORT).waiting_seconds < 1

    def test_an_answer_that_lies_in_the_buffer_when_time_is_up_counts(
        self, shims: Shims, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "SLICE_SECONDS", 0.001)
        clock = ManualClock(step=0.01)
        sense = ShimSense(clock)
        server = shims.server(answers=frozenset())
        assert ask(sense, server.query("a"), SHORT).outcome is Outcome.WAITING
        server.wait_for_held(2)
        server.release()
        clock.step = 1000
        assert ask(sense, server.query("a"), SHORT).outcome is Outcome.ANSWERED


class TestBroken:
    @pytest.mark.parametrize(
        ("greeting", "message"),
        [
            (b"HTTP/1.1 400 Bad Request\r\n\r\n", "type"),
            (raw_frame(1, b"", length=1 << 30), "claims 1073741824 bytes"),
            (raw_frame(1, b"\xff" * 30), "no ttrpc response"),
            (reply_frame(1, b"\xff\xff\xff"), "not understood"),
            (reply_frame(2) * (MAX_UNASKED_REPLIES + 1), "replies to nothing we asked"),
            (raw_frame(7, b"", kind=3) * 100, "type 3"),
        ],
        ids=["http", "oversized", "garbage", "garbage inside", "unasked", "another type"],
    )
    def test_what_is_no_answer_is_told_and_not_waited_for(
        self, shims: Shims, sense: ShimSense, greeting: bytes, message: str
    ) -> None:
        server = shims.server(answers=frozenset(), greeting=greeting)
        answer = ask(sense, server.query())
        assert answer.outcome is Outcome.BROKEN
        assert message in answer.message

    def test_endless_replies_end_at_once(self, shims: Shims, sense: ShimSense) -> None:
        server = shims.server(answers=frozenset(), greeting=reply_frame(2) * 500_000)
        began = time.monotonic()
        assert ask(sense, server.query()).outcome is Outcome.BROKEN
        assert time.monotonic() - began < 10 * PATIENCE

    def test_a_truncated_answer_is_waited_for(self, shims: Shims, sense: ShimSense) -> None:
        server = shims.server(answers=frozenset(), greeting=reply_frame(1, b"x" * 100)[:-1])
        assert ask(sense, server.query(), SHORT).outcome is Outcome.WAITING

    def test_a_shim_that_hangs_up_is_broken(self, shims: Shims, sense: ShimSense) -> None:
        answer = ask(sense, shims.server(hang_up=True).query())
        assert answer.outcome is Outcome.BROKEN
        assert "clos" in answer.message or "broke" in answer.message

    def test_a_socket_nobody_listens_on_is_refused(self, shims: Shims, sense: ShimSense) -> None:
        listener, query = shims.unserved()
        listener.close()
        assert ask(sense, query).outcome is Outcome.REFUSED

    @pytest.mark.parametrize("path", ["none.sock", "file/below"])
    def test_a_missing_socket_is_told(self, shims: Shims, sense: ShimSense, path: str) -> None:
        (shims.root / "file").write_text("")
        assert ask(sense, ShimQuery(str(shims.root / path), 2, ("c",))).outcome is Outcome.NO_SOCKET

    def test_a_file_that_is_no_socket_is_refused(self, shims: Shims, sense: ShimSense) -> None:
        (shims.root / "file").write_text("")
        assert ask(sense, ShimQuery(str(shims.root / "file"), 2, ("c",))).outcome is Outcome.REFUSED

    @pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
    def test_a_forbidden_socket_is_not_a_dead_shim_and_says_which_right_is_missing(
        self, shims: Shims, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        folder, address = shims.root, shims.server().path
        folder.chmod(0o600)
        lacking = (Capability.DAC_READ_SEARCH, Capability.DAC_OVERRIDE)
        sense = ShimSense(RealClock(), rights_without(*lacking, uid=folder.stat().st_uid))
        denied_connections(monkeypatch, number)
        answer = ask(sense, ShimQuery(str(address), 2, ("c",)))
        assert answer.outcome is Outcome.NOT_PERMITTED
        assert answer.fault is not None
        assert (answer.fault.cause, answer.fault.subject) == (DeploymentCause.CAPABILITY, "CAP_DAC_READ_SEARCH")
        assert f"the agent needs CAP_DAC_READ_SEARCH, because {folder} has mode 0600" in answer.message

    def test_what_apparmor_denies_is_not_tried_again_within_a_minute(
        self, shims: Shims, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        query, clock = ShimQuery(str(shims.server().path), 2, ("c",)), FakeClock()
        sense = ShimSense(clock, rights_without(apparmor="cri-containerd.apparmor.d (enforce)"))
        tried = denied_connections(monkeypatch, errno.EACCES)
        first, second = ask(sense, query), ask(sense, query)
        assert (first.fault, len(tried)) == (second.fault, 1)
        assert "by the AppArmor profile cri-containerd.apparmor.d (enforce)" in second.message
        clock.pass_time(61)
        ask(sense, query)
        assert len(tried) == 2

    def test_an_address_no_socket_can_have_is_told_and_not_raised(self, sense: ShimSense) -> None:
        assert ask(sense, ShimQuery("/" + "x" * 200, 2, ("c",))).outcome is Outcome.BROKEN

    def test_a_hung_shim_that_is_killed_is_seen_as_dead_at_the_next_look(self, shims: Shims, sense: ShimSense) -> None:
        server = shims.server(answers=frozenset())
        assert ask(sense, server.query(), SHORT).outcome is Outcome.WAITING
        server.wait_for_held(2)
        server.close()
        assert ask(sense, server.query()).outcome is Outcome.REFUSED

    def test_a_stopped_shim_that_is_killed_is_seen_as_dead_at_the_next_look(
        self, shims: Shims, sense: ShimSense
    ) -> None:
        listener, query = shims.unserved()
        assert ask(sense, query, SHORT).outcome is Outcome.WAITING
        listener.close()
        assert ask(sense, query).outcome is Outcome.REFUSED
