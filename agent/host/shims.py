"""Asks all shims at once whether they answer.

One conversation a shim, one selector for all, one deadline. `Connect` takes only the shim's
service mutex and never forks; `State` also takes the container's init mutex, which a wedged
lifecycle operation holds. Any answer at all, an error status too, proves the server loop alive.

A question that went unanswered is not asked again: its connection stays open and is listened
to at the next look. So a hung shim holds one queued connection instead of a growing backlog,
a stuck one holds one waiting goroutine, and the time since the question was put is the evidence.
"""

import errno
import os
import selectors
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from google.protobuf.message import DecodeError

from agent.clock import Clock
from agent.host import ttrpc
from agent.host.backoff import Backoff
from agent.host.pb import containerd_task_pb2
from agent.host.rights import WRITE, Rights
from agent.model import DeploymentCause, DeploymentFault

STOPPED = 3
"""containerd.v1.types.Status.STOPPED"""
MAX_UNASKED_REPLIES = 64
"""A peer that keeps answering what was not asked is no shim."""
SLICE_SECONDS = 0.1
"""Longest single wait, so that the deadline is kept in awake time."""
QUESTION_TIMEOUT_SECONDS = 3600.0
"""What the shim is told about how long we listen; a wedged one has its question for as long as it takes."""


class Outcome(StrEnum):
    """How a conversation stands after a look."""

    ANSWERED = "answered"
    WAITING = "waiting"
    REFUSED = "refused"
    NO_SOCKET = "no_socket"
    NOT_PERMITTED = "not_permitted"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class ShimQuery:
    """A shim to ask: its socket path, task API version, and the containers it serves (never empty)."""

    address: str
    task_version: int
    container_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TaskState:
    """Answer to `State`: status as in containerd.v1.types.Status; `found` is False if the shim knows no such task."""

    found: bool
    status: int = 0
    pid: int = 0


@dataclass(frozen=True, slots=True)
class ShimAnswer:
    """What one shim said, or for how long it has not (seconds of awake time). `fault`: the right that was missing."""

    address: str
    outcome: Outcome
    message: str = ""
    fault: DeploymentFault | None = None
    shim_pid: int | None = None
    connect_seconds: float | None = None
    waiting_seconds: float = 0.0
    states: Mapping[str, TaskState] = field(default_factory=dict)
    states_waiting: Mapping[str, float] = field(default_factory=dict)


class _Failure(NamedTuple):
    """Why a conversation ended, and the fault of the agent's deployment if that is why."""

    outcome: Outcome
    message: str
    fault: DeploymentFault | None = None


@dataclass(slots=True)
class _Question:
    method: str
    container_id: str
    asked_at: float


@dataclass(slots=True)
class _Conversation:
    query: ShimQuery
    sock: socket.socket
    connect_asked_at: float
    decoder: ttrpc.Decoder = field(default_factory=ttrpc.Decoder)
    open_questions: dict[int, _Question] = field(default_factory=dict)
    next_stream: int = 1
    outbox: bytes = b""
    unasked_replies: int = 0
    failure: "_Failure | None" = None
    shim_pid: int | None = None
    connect_seconds: float | None = None
    states: dict[str, TaskState] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to listen to."""
        return self.failure is not None or not self.open_questions

    def asks(self, method: str, container_id: str = "") -> bool:
        """Whether such a question is still unanswered; any container if none is named."""
        questions = self.open_questions
        return bool(questions) and any(
            q.method == method and container_id in {"", q.container_id} for q in questions.values()
        )


class ShimSense:
    """Pings shims; keeps the unanswered conversations between two looks."""

    def __init__(self, clock: Clock, rights: Rights | None = None) -> None:
        self._clock = clock
        self._rights = rights or Rights()
        self._backoff = Backoff(clock.monotonic)
        self._kept: dict[str, _Conversation] = {}
        self._queue_full_since: dict[str, float] = {}

    def ask(self, queries: Iterable[ShimQuery], patience: float) -> dict[str, ShimAnswer]:
        """Ask every shim and wait at most `patience` awake seconds for those newly asked.

        Returns one answer per address. Never raises for what a shim does.
        """
        wanted = {query.address: query for query in queries}
        for address in [a for a in self._kept if a not in wanted]:
            self._kept.pop(address).sock.close()
        self._queue_full_since = {a: since for a, since in self._queue_full_since.items() if a in wanted}
        talks = {address: self._begin(query) for address, query in wanted.items()}
        self._converse([talk for talk in talks.values() if talk.failure is None], patience)
        now = self._clock.awake()
        answers = {address: self._answer(talk, now) for address, talk in talks.items()}
        for address, talk in talks.items():
            if talk.failure is None and talk.open_questions:
                self._kept[address] = talk
            else:
                self._kept.pop(address, None)
                talk.sock.close()
        return answers

    def _begin(self, query: ShimQuery) -> _Conversation:
        talk = self._kept.get(query.address)
        if talk is not None and _is_closed(talk.sock):
            talk.sock.close()
            talk = None  # that shim is gone: a new connection tells whether another has its place
        now = self._clock.awake()
        talk = talk or self._open(query, now)
        talk.query = query
        if talk.failure is not None:
            return talk
        if not talk.asks("Connect"):
            talk.connect_asked_at = now
            self._put(talk, "Connect", query.container_ids[0], now)
        for container_id in query.container_ids:
            if not talk.asks("State", container_id):
                self._put(talk, "State", container_id, now)
        self._send(talk)  # at once, so that the shim is woken once, for the connection and what it brings
        return talk

    def _open(self, query: ShimQuery, now: float) -> _Conversation:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        talk = _Conversation(query, sock, now)
        denied = self._backoff.held_off(query.address)
        if denied is not None:
            talk.failure = _Failure(Outcome.NOT_PERMITTED, str(denied), denied)
            return talk
        try:
            sock.connect(query.address)
        except PermissionError as error:
            fault = self._backoff.note(query.address, self._rights.path(query.address, error, WRITE))
            talk.failure = _Failure(Outcome.NOT_PERMITTED, str(fault), fault)
        except OSError as error:
            talk.failure = _connect_failure(error, query.address)
        return talk

    def _put(self, talk: _Conversation, method: str, container_id: str, now: float) -> None:
        talk.outbox += _frame(talk.next_stream, talk.query.task_version, method, container_id)
        talk.open_questions[talk.next_stream] = _Question(method, container_id, now)
        talk.next_stream += 2

    def _converse(self, talks: list[_Conversation], patience: float) -> None:
        """Hear who has answered by now, which is nearly all; wait only for the others."""
        for talk in talks:
            self._receive(talk)
        left = [talk for talk in talks if not talk.is_over]
        if left:
            self._listen(left, patience)

    def _listen(self, talks: list[_Conversation], patience: float) -> None:
        with selectors.DefaultSelector() as selector:
            for talk in talks:
                events = selectors.EVENT_READ | (selectors.EVENT_WRITE if talk.outbox else 0)
                selector.register(talk.sock, events, talk)
            awaited = list(talks)
            while True:
                while awaited and not self._is_fresh(awaited[-1], patience):
                    awaited.pop()
                # The last round does not wait: what lies in the socket buffer by then was answered.
                for key, mask in selector.select(SLICE_SECONDS if awaited else 0):
                    self._serve(selector, key.data, mask)
                if not awaited:
                    break

    def _is_fresh(self, talk: _Conversation, patience: float) -> bool:
        """Whether this look still has to wait for a conversation; once it has not, it never has again."""
        now = self._clock.awake()
        return talk.failure is None and any(now - q.asked_at < patience for q in talk.open_questions.values())

    def _serve(self, selector: selectors.BaseSelector, talk: _Conversation, mask: int) -> None:
        if mask & selectors.EVENT_WRITE and self._send(talk):
            selector.modify(talk.sock, selectors.EVENT_READ, talk)
        if mask & selectors.EVENT_READ:
            self._receive(talk)
        if talk.is_over:
            selector.unregister(talk.sock)

    def _send(self, talk: _Conversation) -> bool:
        """Send what is left to send; True when nothing is."""
        try:
            sent = talk.sock.send(talk.outbox, socket.MSG_NOSIGNAL) if talk.outbox else 0
        except BlockingIOError:
            return False
        except OSError:
            sent = len(talk.outbox)  # the reading side tells what happened
        talk.outbox = talk.outbox[sent:]
        return not talk.outbox

    def _receive(self, talk: _Conversation) -> None:
        try:
            data = talk.sock.recv(ttrpc.MAX_PAYLOAD_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            talk.failure = _Failure(Outcome.BROKEN, f"the connection broke: {error.strerror}")
            return
        if not data:
            talk.failure = _Failure(Outcome.BROKEN, "it closed the connection without answering")
            return
        try:
            for reply in talk.decoder.feed(data):
                self._take(talk, reply)
        except (ttrpc.MalformedError, DecodeError) as error:
            talk.failure = _Failure(Outcome.BROKEN, f"its answer is not understood: {error}")

    def _take(self, talk: _Conversation, reply: ttrpc.Reply) -> None:
        question = talk.open_questions.pop(reply.stream, None)
        if question is None:
            talk.unasked_replies += 1
            if talk.unasked_replies > MAX_UNASKED_REPLIES:
                raise ttrpc.MalformedError(f"more than {MAX_UNASKED_REPLIES} replies to nothing we asked")
            return
        if question.method == "Connect":
            talk.connect_seconds = self._clock.awake() - question.asked_at
            if reply.code == 0:
                answer = containerd_task_pb2.ConnectResponse.FromString(reply.payload)
                talk.shim_pid = answer.shim_pid or None
        elif reply.code == 0:
            state = containerd_task_pb2.StateResponse.FromString(reply.payload)
            talk.states[question.container_id] = TaskState(True, state.status, state.pid)
        else:
            talk.states[question.container_id] = TaskState(False)

    def _answer(self, talk: _Conversation, now: float) -> ShimAnswer:
        address = talk.query.address
        queue_full_seconds = self._queue_full_seconds(talk, now)
        if talk.failure is not None:
            return ShimAnswer(address, *talk.failure, waiting_seconds=queue_full_seconds)
        waiting = {q.container_id: now - q.asked_at for q in talk.open_questions.values() if q.method == "State"}
        outcome = Outcome.WAITING if talk.asks("Connect") else Outcome.ANSWERED
        answer = ShimAnswer(
            address,
            outcome,
            shim_pid=talk.shim_pid,
            connect_seconds=talk.connect_seconds if outcome is Outcome.ANSWERED else None,
            waiting_seconds=now - talk.connect_asked_at if outcome is Outcome.WAITING else 0.0,
            states=dict(talk.states),
            states_waiting=waiting,
        )
        talk.states.clear()
        return answer

    def _queue_full_seconds(self, talk: _Conversation, now: float) -> float:
        address = talk.query.address
        if talk.failure is None or talk.failure.outcome is not Outcome.WAITING:
            self._queue_full_since.pop(address, None)
            return 0.0
        return now - self._queue_full_since.setdefault(address, now)


@lru_cache(maxsize=4096)
def _frame(stream: int, task_version: int, method: str, container_id: str) -> bytes:
    """Return the frame of one question. Remembered, since every look asks the same of the same shims."""
    kind = containerd_task_pb2.ConnectRequest if method == "Connect" else containerd_task_pb2.StateRequest
    payload = kind(id=container_id).SerializeToString()
    service = f"containerd.task.v{task_version}.Task"
    return ttrpc.request(stream, service, method, payload, QUESTION_TIMEOUT_SECONDS)


def _is_closed(sock: socket.socket) -> bool:
    """Whether the peer has closed a connection, with nothing left to read from it."""
    try:
        return not sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _connect_failure(error: OSError, address: str) -> _Failure:
    """Name why a socket could not be connected."""
    if error.errno == errno.ECONNREFUSED:
        return _Failure(Outcome.REFUSED, "nothing listens on its socket")
    folder = os.path.dirname(address)
    if error.errno == errno.ENOENT and not os.path.isdir(folder):
        fault = DeploymentFault(
            DeploymentCause.MOUNT,
            folder,
            f"the folder of its socket, {folder}, does not exist here",
            f"mount the node's {folder} at the same path",
        )
        return _Failure(Outcome.NOT_PERMITTED, str(fault), fault)
    if error.errno in {errno.ENOENT, errno.ENOTDIR}:
        return _Failure(Outcome.NO_SOCKET, "its socket does not exist")
    if error.errno == errno.EAGAIN:
        return _Failure(Outcome.WAITING, "its socket's queue is full: it has not accepted a connection for long")
    return _Failure(Outcome.BROKEN, f"its socket cannot be connected: {error.strerror}")
