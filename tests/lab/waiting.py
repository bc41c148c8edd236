"""The one way in which the lab waits: for an event, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_FIRST_PAUSE = 0.001
_LONGEST_PAUSE = 0.05


class LabTimeoutError(AssertionError):
    """What the lab waited for did not happen in time."""


def wait_until(predicate: Callable[[], T | None], timeout: float, what: str) -> T:
    """Poll ``predicate`` until it is true and return what it returned.

    The pauses grow from one to fifty milliseconds: most events of the lab come
    at once, and the late ones must not cost the processor that makes them.
    """
    deadline = time.monotonic() + timeout
    pause = _FIRST_PAUSE
    while True:
        answer = predicate()
        if answer:
            return answer
        if time.monotonic() >= deadline:
            raise LabTimeoutError(f"not within {timeout:g} s: {what} (last seen: {answer!r})")
        time.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE)
