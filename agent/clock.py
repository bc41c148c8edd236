"""Time as this process lives it.

Three clocks, because each answers another question: wall time for people, monotonic time
for schedules, and *awake* time for accusations. Awake time is monotonic time less the time
in which this process could not run (CPU throttling by its cgroup, SIGSTOP, a paused VM).
A peer is called late only when it was late while we were there to hear it.
"""

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """What the senses and the pipeline need to know of time; all in seconds."""

    def wall(self) -> float:
        """Seconds since the epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds that never jump back."""
        ...

    def awake(self) -> float:
        """Monotonic seconds less our own stalls."""
        ...

    def stalled(self) -> float:
        """Seconds this process has stood still since it started."""
        ...


class StallMeter:
    """A clock that notices when this process stood still.

    A thread asks to be woken every `tick` seconds. Each time it wakes late by more than
    `tolerance`, the lateness is a stall. A reader that arrives before the late thread
    counts the running stall too, so nobody can read a time that hides one.
    """

    def __init__(self, tick: float = 0.2, tolerance: float = 0.05) -> None:
        self._tick = tick
        self._tolerance = tolerance
        self._lock = threading.Lock()
        self._stalled = 0.0
        self._awake = 0.0
        self._last_tick = time.monotonic()
        self._measuring = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stall-meter", daemon=True)

    def start(self) -> None:
        """Begin to measure; before this, no stall is noticed."""
        with self._lock:
            self._last_tick = time.monotonic()
            self._measuring = True
        self._thread.start()

    def stop(self) -> None:
        """End the measuring thread; from here on no stall is noticed."""
        with self._lock:
            self._measuring = False
        self._stop.set()

    def wall(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds of CLOCK_MONOTONIC."""
        return time.monotonic()

    def awake(self) -> float:
        """Monotonic seconds less our own stalls. Never goes back, though a stall is known only once it is over."""
        with self._lock:
            now = time.monotonic()
            self._awake = max(self._awake, now - self._stalled - self._running_stall(now))
            return self._awake

    def stalled(self) -> float:
        """Seconds this process has stood still since `start`."""
        with self._lock:
            return self._stalled + self._running_stall(time.monotonic())

    def _running_stall(self, now: float) -> float:
        if not self._measuring:
            return 0.0
        late = now - self._last_tick - self._tick
        return late if late > self._tolerance else 0.0

    def _run(self) -> None:
        while not self._stop.wait(self._tick):
            with self._lock:
                now = time.monotonic()
                self._stalled += self._running_stall(now)
                self._last_tick = now
