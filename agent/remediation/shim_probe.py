"""Asks one shim afresh, on a connection of its own, before it is acted on and once more at the last moment."""

import time

from agent.clock import Clock
from agent.host.shims import Outcome, ShimAnswer, ShimQuery, ShimSense

PAUSE_SECONDS = 0.05

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
        """Ask, and listen for so many awake seconds at most; asked again, go on listening for as long once more.

        A shim whose queue of connections is full is tried again until then.
        """
        until = self._clock.awake() + patience_seconds
        while True:
            answer = self._sense.ask([self._query], patience_seconds)[self._query.address]
            silent = answer.outcome is Outcome.WAITING
            long_enough = not silent or answer.waiting_seconds >= patience_seconds
            settled = not silent and not answer.states_waiting
            if settled or (long_enough and self._clock.awake() >= until):
                return answer
            time.sleep(PAUSE_SECONDS)
