"""Follows the process behind a service (the kubelet, containerd) without scanning /proc at every look."""

from collections.abc import Callable
from dataclasses import dataclass

from agent.clock import Clock
from agent.model import ProcessId

RESCAN_SECONDS = 10.0
"""A scan of /proc costs 5 ms at 600 processes; without need it is not repeated sooner."""


@dataclass(frozen=True, slots=True)
class Lifetime:
    """The process of a service: the one there is and its age in seconds, or the one that has ended."""

    process: ProcessId | None = None
    age_seconds: float | None = None
    ended: ProcessId | None = None


class ServiceProcess:
    """Follows the process of a service from look to look, and scans /proc only if it must.

    `find` looks for the process, `age` gives its age in seconds or None once it is gone.
    """

    def __init__(
        self, find: Callable[[], ProcessId | None], age: Callable[[ProcessId], float | None], clock: Clock
    ) -> None:
        self._find = find
        self._age = age
        self._clock = clock
        self._process: ProcessId | None = None
        self._ended: ProcessId | None = None
        self._scanned: float | None = None

    def look(self, *, urgent: bool) -> Lifetime:
        """Return the process as it is now; `urgent` scans for it even if that was done just now."""
        if self._process is not None:
            age = self._age(self._process)
            if age is not None:
                return Lifetime(self._process, age)
            self._ended, self._process, urgent = self._process, None, True
        now = self._clock.monotonic()
        if urgent or self._scanned is None or now - self._scanned >= RESCAN_SECONDS:
            self._scanned = now
            self._process = self._find()
        if self._process is None:
            return Lifetime(ended=self._ended)
        self._ended = None
        return Lifetime(self._process, self._age(self._process))
