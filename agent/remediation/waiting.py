"""How the act flow waits: with a bound, and not shortened by our own stalls."""

import time
from collections.abc import Callable
from typing import TypeVar

from agent.acts import RefusalReason, refused
from agent.clock import Clock

T = TypeVar("T")
STANDSTILL_FACTOR = 3
STANDSTILL_SECONDS = 5.0


def pause(clock: Clock, seconds: float, step_seconds: float = 0.1) -> None:
    """Let so much awake time pass. Raises RefusedError if this process stands still for far longer meanwhile."""
    began, until = clock.monotonic(), clock.awake() + seconds
    while (left := until - clock.awake()) > 0:
        if clock.monotonic() - began > seconds * STANDSTILL_FACTOR + STANDSTILL_SECONDS:
            why = "this agent gets too little time to look twice: look at its CPU limit and the load of the node"
            raise refused(RefusalReason.STALLED, why)
        time.sleep(min(left, step_seconds))


def wait_until(look: Callable[[], T], clock: Clock, seconds: float, step_seconds: float = 0.1) -> T:
    """Look again and again until something is seen, for so much awake time at most; return what was seen last."""
    until = clock.awake() + seconds
    while not (seen := look()) and clock.awake() < until:
        time.sleep(step_seconds)
    return seen
