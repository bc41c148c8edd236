"""What the kubelet's own metrics tell about its PLEG, the loop that lists containers and notices their changes.

`/metrics` is read as it arrives, line by line, and of its thousands of lines only these few families are parsed. It
hangs for the whole node while a single shim is stopped (recordings, shim-stop-150), and a request that was given up
still keeps a goroutine of the kubelet waiting. So a question is asked once: while it is unanswered it is listened to,
not asked again, and an answer that comes too late is thrown away, since nobody knows of which moment it tells.
"""

import math
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from agent.clock import Clock
from agent.host.kubelet import KubeletApiError
from agent.host.kubelet_calls import METRICS

MAX_BYTES = 20 << 20
MAX_LINE_BYTES = 4096
"""A longer line is passed over."""
GIVE_UP_SECONDS = 600.0
"""A question that is unanswered for this long is asked once more."""

_LINE = re.compile(
    rb"(kubelet_pleg_(?:last_seen_seconds|discard_events|relist_(?:duration|interval)_seconds_(?:sum|count))"
    rb"|kubelet_evented_pleg_connection_success_count) +([0-9.eE+-]{1,32})(?: +-?[0-9]{1,20})?\s*"
)
"""A sample without labels (Prometheus text format 0.0.4). The buckets have labels and are not needed."""


@dataclass(frozen=True, slots=True)
class Relists:
    """A histogram of seconds, of which only these are kept."""

    count: float
    sum: float


@dataclass(frozen=True, slots=True)
class PlegMetrics:
    """What one scrape told, at `wall` (seconds since the epoch) and `monotonic`; None: it was not in it.

    `last_seen` is when the last relist that succeeded began, in seconds since the epoch (pkg/kubelet/pleg/generic.go).
    `evented`: the kubelet hears of changes from the runtime, and lists only every 5 min.
    """

    wall: float
    monotonic: float
    last_seen: float | None = None
    discarded: float | None = None
    durations: Relists | None = None
    intervals: Relists | None = None
    evented: bool = False


class PlegParser:
    """Takes the bytes of `/metrics` in any pieces. The first word on each family counts."""

    def __init__(self) -> None:
        self._values: dict[bytes, float] = {}
        self._line = b""
        self._skipping = False

    def feed(self, data: bytes) -> bool:
        """Take the next bytes; True: there is room for more."""
        *whole, rest = (self._line + data).split(b"\n")
        for line in whole:
            if not self._skipping:
                self._parse(line)
            self._skipping = False
        self._skipping = self._skipping or len(rest) > MAX_LINE_BYTES
        self._line = b"" if self._skipping else rest
        return True

    def metrics(self, wall: float, monotonic: float) -> PlegMetrics:
        """Return what was told. A last line without its end may be half a number, and does not count."""
        return PlegMetrics(
            wall,
            monotonic,
            self._values.get(b"kubelet_pleg_last_seen_seconds"),
            self._values.get(b"kubelet_pleg_discard_events"),
            self._relists(b"kubelet_pleg_relist_duration_seconds"),
            self._relists(b"kubelet_pleg_relist_interval_seconds"),
            self._values.get(b"kubelet_evented_pleg_connection_success_count", 0.0) > 0,
        )

    def _parse(self, line: bytes) -> None:
        found = _LINE.fullmatch(line) if line.startswith(b"kubelet_") and len(line) <= MAX_LINE_BYTES else None
        if found is None:
            return
        try:
            value = float(found[2])
        except ValueError:
            return
        if math.isfinite(value) and value >= 0:
            self._values.setdefault(found[1], value)

    def _relists(self, name: bytes) -> Relists | None:
        count, total = self._values.get(name + b"_count"), self._values.get(name + b"_sum")
        return None if count is None or total is None else Relists(count, total)


class Api(Protocol):
    """What is asked of a KubeletApi."""

    def get(self, path: str, take: Callable[[bytes], bool], *, seconds: float, max_bytes: int) -> None:
        """Hand over a body piece by piece; see KubeletApi."""


class _Question:
    """One request, in a thread of its own."""

    def __init__(self, api: Api, clock: Clock) -> None:
        self.asked = clock.awake()
        self.ended = threading.Event()
        self.took = 0.0
        self.metrics: PlegMetrics | None = None
        self.error: Exception | None = None
        self._api = api
        self._clock = clock

    def ask(self) -> None:
        """Ask, and fix what came of it."""
        parser = PlegParser()
        try:
            self._api.get(METRICS, parser.feed, seconds=GIVE_UP_SECONDS, max_bytes=MAX_BYTES)
            self.metrics = parser.metrics(self._clock.wall(), self._clock.monotonic())
        except Exception as error:  # noqa: BLE001 - it is raised again where it was asked for
            self.error = error
        self.took = self._clock.awake() - self.asked
        self.ended.set()


class PlegSense:
    """Reads the kubelet's metrics, at most once in `spacing` seconds and never twice at a time. Used by one thread."""

    def __init__(self, api: Api, clock: Clock, spacing: float) -> None:
        self._api = api
        self._clock = clock
        self._spacing = spacing
        self._question: _Question | None = None
        self._asked: float | None = None

    def look(self, seconds: float) -> PlegMetrics | float:
        """Return what the kubelet told, or for how many awake seconds it has not answered, once that is `seconds`.

        Asked again too soon it returns the same once more. Raises KubeletApiError.
        """
        question = self._current()
        while not question.ended.is_set() and (left := seconds - (self._clock.awake() - question.asked)) > 0:
            question.ended.wait(left)
        if not question.ended.is_set():
            return self._clock.awake() - question.asked
        if question.error is not None:
            raise question.error
        if question.metrics is None or question.took > seconds:
            return question.took
        return question.metrics

    def _current(self) -> _Question:
        """Return the question under way or answered just now, or a new one."""
        now = self._clock.monotonic()
        waiting = self._question is not None and not self._question.ended.is_set()
        too_soon = self._asked is not None and now - self._asked < self._spacing
        if self._question is not None and (waiting or too_soon):
            return self._question
        question = self._question = _Question(self._api, self._clock)
        self._asked = now
        try:
            threading.Thread(target=question.ask, name="kubelet-metrics", daemon=True).start()
        except RuntimeError as error:
            question.error = KubeletApiError(f"the kubelet's metrics cannot be asked for: {error}")
            question.ended.set()
        return question
