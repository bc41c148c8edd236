"""Asks one shim afresh, on a connection of its own, before it is acted on and once more at the last moment."""

import time

from agent.clock import Clock
from agent.host.shims import Outcome, ShimAnswer, ShimQuery, ShimSense

QUEUE_FULL_PAUSE_SECONDS = 0.1

STATUS_NAMES = {0: "UNKNOWN", 1: "CREATED", 2: "RUNNING", 3: "STOPPED", 4: "PAUSED", 5: "PAUSING"}
"""containerd.v1.types.Status"""
PAUSED, PAUSING = 4, 5


class ShimProbe:
    """A conversation with one shim, to be closed: what is unanswered stays open in between."""

    def __init__(self, query: ShimQuery, clock: Clock) -> None:
        self._query = query
        self._clock = clock
        self._sense = ShimSense(clock)

    def close(self) -> None:
        """Hang up."""
        self._sense.ask((), 0)

    def ask(self, patience_seconds: float) -> ShimAnswer:
        """Ask, and wait for so many awake seconds at most, counted from when a question was first put.

        A shim whose queue of connections is full is tried again until then.
        """
        while True:
            answer = self._sense.ask([self._query], patience_seconds)[self._query.address]
            if answer.outcome is not Outcome.WAITING or answer.waiting_seconds >= patience_seconds:
                return answer
            time.sleep(QUEUE_FULL_PAUSE_SECONDS)
