"""The feed: tells watchers of conditions as they change, and waits for none of them.

A change is a new status, a new reason or another set of findings, not every newly measured value. Each
watcher has a queue of its own, bounded; a watcher that does not keep up loses its queue, and is told how
much it has missed and how things stand now. So a detector's thread never waits for a reader, and a reader
costs the same whether it reads or not.
"""

import threading
from collections import deque
from collections.abc import Collection, Iterator
from typing import Self, TypeAlias

from agent.model import Changed, Condition, Event, Gap, Removed, Snapshot, Status, Target
from agent.pipeline.board import Board, Entry

MAX_QUEUED = 64
"""Changes that wait for one watcher."""
MAX_WATCHERS = 16

Told: TypeAlias = tuple[Status, str, frozenset[tuple[str, str, Target]]]
"""What makes a condition another than before: status, reason and the findings' keys."""


class TooManyWatchersError(Exception):
    """There are as many watchers as there may be."""


class Feed:
    """Tells the watchers of one board. Made before the first detector looks, it misses nothing."""

    def __init__(self, board: Board, max_watchers: int = MAX_WATCHERS, max_queued: int = MAX_QUEUED) -> None:
        self._board = board
        self._max_watchers = max_watchers
        self._max_queued = max_queued
        self._lock = threading.Lock()
        self._known: dict[str, dict[str, Condition]] = {}
        self._watchers: set[Watcher] = set()
        self._missed = 0
        self._closed = False
        board.subscribe(self._hear)
        for entry in board.entries():
            self._hear(entry)

    @property
    def closed(self) -> bool:
        """Whether nothing will be told any more."""
        return self._closed

    @property
    def missed(self) -> int:
        """How many changes slow watchers were not told of, all together."""
        return self._missed

    def watch(self, types: Collection[str] = ()) -> "Watcher":
        """Return a new watcher of these types of conditions, of all if none are named. Raises TooManyWatchersError."""
        with self._lock:
            if len(self._watchers) >= self._max_watchers:
                raise TooManyWatchersError(f"there are {self._max_watchers} watchers already, and no more may be")
            watcher = Watcher(self, self._lock, frozenset(types), self._max_queued)
            if self._closed:
                watcher.end()
            else:
                self._watchers.add(watcher)
            return watcher

    def close(self) -> None:
        """End every watcher, and all that come."""
        with self._lock:
            self._closed = True
            for watcher in self._watchers:
                watcher.end()
            self._watchers.clear()

    def forget(self, watcher: "Watcher") -> None:
        """Tell a watcher nothing any more; its place is free again."""
        with self._lock:
            self._watchers.discard(watcher)
            watcher.end()

    def snapshot(self, types: frozenset[str]) -> Snapshot:
        """Return the conditions of these types as they were told last. The caller holds the lock."""
        conditions = (condition for known in self._known.values() for condition in known.values())
        return Snapshot(tuple(each for each in conditions if not types or each.type in types))

    def _hear(self, entry: Entry) -> None:
        """Take in what a detector says. Two may speak at once; what counts is what stands on the board."""
        with self._lock:
            latest = self._board.entry(entry.status.name) or entry
            before = self._known.get(latest.status.name, {})
            now = {condition.type: condition for condition in latest.conditions}
            self._known[latest.status.name] = now
            for event in _events(before, now):
                self._missed += sum(watcher.offer(event) for watcher in self._watchers)


class Watcher:
    """One reader's place: iterate to be told. The first event is a snapshot. Iteration ends with `close`."""

    def __init__(self, feed: Feed, lock: threading.Lock, types: frozenset[str], max_queued: int) -> None:
        self._feed = feed
        self._lock = lock
        self._awaited = threading.Condition(lock)
        self._types = types
        self._max_queued = max_queued
        self._queue: deque[Event] = deque()
        self._missed = 0
        self._due = True
        self._ended = False

    def __iter__(self) -> Iterator[Event]:
        """Tell every event as it comes, until closed."""
        while (event := self._next()) is not None:
            yield event

    def __enter__(self) -> Self:
        """Use it for a while."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give its place back."""
        self.close()

    def close(self) -> None:
        """Give the place back, and end the iteration wherever it waits."""
        self._feed.forget(self)

    def offer(self, event: Changed | Removed) -> int:
        """Queue an event if it is watched; return how many are lost by that. The caller holds the lock."""
        kind = event.condition.type if isinstance(event, Changed) else event.type
        if self._types and kind not in self._types:
            return 0
        if self._due and not self._missed:
            return 0  # nothing was read yet, and the snapshot to come will tell it
        lost = 0
        if self._missed:
            lost = 1
        elif len(self._queue) >= self._max_queued:
            lost = len(self._queue) + 1
            self._queue.clear()
            self._due = True
        else:
            self._queue.append(event)
        self._missed += lost
        self._awaited.notify_all()
        return lost

    def end(self) -> None:
        """Tell nothing any more. The caller holds the lock."""
        self._ended = True
        self._queue.clear()
        self._awaited.notify_all()

    def _next(self) -> Event | None:
        """Wait for the next event; None once closed."""
        with self._lock:
            self._awaited.wait_for(lambda: self._ended or self._due or self._queue)
            if self._ended:
                return None
            if self._missed:
                gap, self._missed = Gap(self._missed), 0
                return gap
            if self._due:
                self._due = False
                return self._feed.snapshot(self._types)
            return self._queue.popleft()


def _events(before: dict[str, Condition], now: dict[str, Condition]) -> Iterator[Changed | Removed]:
    yield from (Removed(kind) for kind in before if kind not in now)
    for kind, condition in now.items():
        if kind not in before or _told(before[kind]) != _told(condition):
            yield Changed(condition)


def _told(condition: Condition) -> Told:
    return (condition.status, condition.reason, frozenset(active.finding.key for active in condition.findings))
