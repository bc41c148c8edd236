"""The board: the one place where the latest word of every detector stands.

Writers replace, readers take a snapshot; nobody waits for a probe. Listeners are told of
every result in the writer's thread and must not block.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from agent.clock import Clock
from agent.model import Condition, DeploymentFault, DetectorState, DetectorStatus, NodeReport, Sample
from agent.pipeline.deployment import merged

log = logging.getLogger("nodediag.board")

Listener: TypeAlias = Callable[["Entry"], None]


@dataclass(frozen=True, slots=True)
class Entry:
    """What one detector last said. A look that failed has no samples: an old value is not the present one."""

    status: DetectorStatus
    conditions: tuple[Condition, ...] = ()
    samples: tuple[Sample, ...] = ()
    deployment: tuple[DeploymentFault, ...] = ()


class Board:
    """In-memory snapshot of the node, bounded by the number of detectors."""

    def __init__(self, node_name: str, clock: Clock) -> None:
        self._node_name = node_name
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}
        self._listeners: list[Listener] = []

    def subscribe(self, listener: Listener) -> None:
        """Tell `listener` of every entry published from now on."""
        with self._lock:
            self._listeners.append(listener)

    def publish(self, entry: Entry) -> None:
        """Replace what the entry's detector said before, and tell the listeners.

        A listener that raises is logged and passed over: it must not end the detector it listens to.
        """
        with self._lock:
            self._entries[entry.status.name] = entry
            listeners = tuple(self._listeners)
        for listener in listeners:
            try:
                listener(entry)
            except Exception:
                log.exception("a listener failed", extra={"detector": entry.status.name})

    def entry(self, detector: str) -> Entry | None:
        """Return the latest entry of one detector."""
        with self._lock:
            return self._entries.get(detector)

    def entries(self) -> tuple[Entry, ...]:
        """Return the latest entry of every detector, in the order they were first published."""
        with self._lock:
            return tuple(self._entries.values())

    def waiting(self) -> tuple[str, ...]:
        """Return the detectors that have not looked yet; the board is fresh once there are none."""
        statuses = (entry.status for entry in self.entries())
        return tuple(status.name for status in statuses if status.state is DetectorState.STARTING)

    def report(self) -> NodeReport:
        """Return the whole node as it is known now."""
        entries = self.entries()
        return NodeReport(
            node_name=self._node_name,
            observed_at=self._clock.wall(),
            conditions=tuple(condition for entry in entries for condition in entry.conditions),
            detectors=tuple(entry.status for entry in entries),
            deployment=merged(fault for entry in entries for fault in entry.deployment),
        )
