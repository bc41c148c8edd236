"""The thread that tells the API server how this node is, and counts what that costs.

It waits for the API server; nobody waits for it. The board's listeners only wake it, a scrape only reads its counters,
and the end of the agent leaves it behind wherever it is.
"""

import logging
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from agent.clock import Clock
from agent.exporters.node_conditions.calls import Call, call_for
from agent.exporters.node_conditions.pace import Answer, Dice
from agent.exporters.node_conditions.plan import Pause, Plan, Request
from agent.exporters.node_conditions.status import Seen
from agent.model import DetectorState, Metric, MetricKind, Sample
from agent.pipeline.board import Board, Entry

log = logging.getLogger("nodediag.node_conditions")

AFTER_A_MISTAKE_SECONDS = 60.0
"""Pause after an error of our own, which is logged."""
REQUESTS = Metric(
    "node_conditions_requests_total",
    MetricKind.COUNTER,
    "Requests to the API server, by what became of them: an HTTP status, or why there was none. Only if switched on.",
    ("verb", "resource", "code"),
)
PENDING = Metric(
    "node_conditions_pending",
    MetricKind.GAUGE,
    "Conditions and findings the API server has not been told of as they stand now. Only if switched on.",
)


class Sender(Protocol):
    """Whoever sends requests; `send` may take its time, and raises nothing."""

    def send(self, call: Call) -> Answer:
        """Send one request and return what became of it."""
        ...


@dataclass(frozen=True, slots=True)
class Pacing:
    """When is written: see the settings of the same names."""

    heartbeat_seconds: float
    min_interval_seconds: float
    events: bool


class NodeConditions:
    """Tells one board to the API server. `types` are all conditions nodediag has; `sender` may block."""

    metrics: ClassVar[tuple[Metric, ...]] = (REQUESTS, PENDING)

    def __init__(
        self,
        board: Board,
        node: str,
        types: Sequence[str],
        pacing: Pacing,
        clock: Clock,
        sender: Sender,
        dice: Dice,
    ) -> None:
        self._board = board
        self._node = node
        self._types = types
        self._clock = clock
        self._sender = sender
        self._plan = Plan(
            pacing.heartbeat_seconds,
            pacing.min_interval_seconds,
            events=pacing.events,
            now=clock.monotonic(),
            dice=dice,
        )
        self._troubles = Troubles(clock)
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, str, str]] = Counter()
        self._pending = 0
        self._news = threading.Event()
        self._ended = threading.Event()
        board.subscribe(self._hear)

    def start(self) -> None:
        """Begin to tell, in a thread of its own."""
        threading.Thread(target=self._loop, name="node-conditions", daemon=True).start()

    def stop(self) -> None:
        """Send nothing further. A request under way is left behind; nothing is waited for."""
        self._ended.set()
        self._news.set()

    def samples(self) -> Iterator[Sample]:
        """Yield the values of `metrics` as they are now."""
        with self._lock:
            requests, pending = dict(self._requests), self._pending
        yield from (Sample(REQUESTS.name, count, labels) for labels, count in requests.items())
        yield Sample(PENDING.name, pending)

    def _hear(self, _: Entry) -> None:
        self._news.set()

    def _loop(self) -> None:
        while not self._ended.is_set():
            try:
                self._news.wait(self._turn())
            except Exception:  # the thread must outlive a mistake of our own
                log.exception("node conditions could not be told")
                self._ended.wait(AFTER_A_MISTAKE_SECONDS)

    def _turn(self) -> float:
        """Do what is due; return for how long nothing is, unless the board changes."""
        self._news.clear()
        seen = seen_on(self._board.entries(), self._types)
        step = self._plan.next(seen, self._clock.monotonic())
        self._count(seen)
        if isinstance(step, Pause):
            return step.seconds
        call = call_for(step, self._node, self._clock.wall())
        answer = self._sender.send(call)
        self._take_in(step, call, answer, seen)
        return 0.0

    def _take_in(self, step: Request, call: Call, answer: Answer, seen: Seen) -> None:
        self._plan.told(step, answer, self._clock.monotonic())
        with self._lock:
            self._requests[call.verb, call.resource, answer.label] += 1
        self._count(seen)
        if not self._ended.is_set():
            self._troubles.note(call, answer)

    def _count(self, seen: Seen) -> None:
        pending = self._plan.pending(seen)
        with self._lock:
            self._pending = pending


class Troubles:
    """Says in the log what keeps us from telling: once when it begins or becomes another, once when it is over."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: dict[str, tuple[str, float]] = {}

    def note(self, call: Call, answer: Answer) -> None:
        """Take in what became of a request."""
        before = self._known.get(call.resource)
        details = {"resource": call.resource, "verb": call.verb}
        now = self._clock.monotonic()
        if answer.turned:
            return
        if answer.done:
            if before is not None:
                del self._known[call.resource]
                after = round(now - before[1], 1)
                log.info("the API server is told again", extra={**details, "after_seconds": after})
            return
        since = now if before is None else before[1]
        self._known[call.resource] = (answer.label, since)
        if before is None or before[0] != answer.label:
            log.warning("the API server cannot be told", extra={**details, "code": answer.label, "why": answer.problem})


def seen_on(entries: Sequence[Entry], types: Sequence[str]) -> Seen:
    """Return what the entries of a board say; `types` are all that nodediag has, reported here or not."""
    conditions = tuple(condition for entry in entries for condition in entry.conditions)
    present = {condition.type for condition in conditions}
    waiting = any(entry.status.state is DetectorState.STARTING for entry in entries)
    return Seen(conditions, tuple(kind for kind in types if kind not in present), waiting)
