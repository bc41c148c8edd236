"""How often the API server may be asked, and how long it is left alone after a failure. Pure.

Every request of a kind, whatever made it due and whatever became of it, is paid for from one budget. So the most that a
node can cost in a day is a sum, not a hope: `burst` and one more for each `refill_seconds`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeAlias

FIRST_BACKOFF_SECONDS = 2.0
MAX_BACKOFF_SECONDS = 300.0
SELDOM_SECONDS = 600.0
"""What time does not mend (a missing right, a wrong name) is tried again this often: somebody may have mended it."""
MAX_RETRY_AFTER_SECONDS = 3600.0
"""A server that asks for more is asked again after this."""
SPREAD = 0.5
"""Every wait is lengthened by a random share of itself up to this, so that a fleet does not come back in step."""
SELDOM_CODES = frozenset({400, 401, 403, 404, 405, 406, 410, 413, 415, 422})

Dice: TypeAlias = Callable[[], float]
"""A random number from 0 up to 1."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request.

    `code` is the HTTP status, 0 if there was no answer; `label` names either for a metric. `problem` is empty if it was
    done. `retry_after` is what the server asked for, in seconds. `seldom`: trying again soon would be no use.
    `turned`: nothing is wrong, but the object exists where it was to be created, or is gone where it was to be patched.
    """

    code: int
    label: str
    problem: str = ""
    retry_after: float | None = None
    seldom: bool = False
    turned: bool = False

    @property
    def done(self) -> bool:
        """Whether the API server has taken it."""
        return not self.problem


@dataclass(frozen=True, slots=True)
class Budget:
    """Requests that may be made: `burst` at once, then one each `refill_seconds`. Times in monotonic seconds."""

    burst: int
    refill_seconds: float
    spent: float = 0.0
    at: float = 0.0

    def wait_seconds(self, now: float) -> float:
        """How long until the next request may be made; 0 if now."""
        return max(0.0, (self._spent(now) + 1 - self.burst) * self.refill_seconds)

    def spend(self, now: float) -> "Budget":
        """Return the budget after one request."""
        return replace(self, spent=self._spent(now) + 1, at=now)

    def _spent(self, now: float) -> float:
        return max(0.0, self.spent - (now - self.at) / self.refill_seconds)


@dataclass(frozen=True, slots=True)
class Lane:
    """One kind of request: its budget, its rest, and its failures in a row."""

    budget: Budget
    min_seconds: float = 0.0
    ready_at: float = field(default=0.0)
    failures: int = 0

    def wait_seconds(self, now: float) -> float:
        """How long until this kind of request may be made; 0 if now."""
        return max(0.0, self.ready_at - now, self.budget.wait_seconds(now))

    def after(self, answer: Answer, now: float, dice: Dice) -> "Lane":
        """Return the lane after a request that was answered now."""
        failures = 0 if answer.done else self.failures + 1
        rest = max(self.min_seconds, backoff_seconds(answer, failures, dice))
        return replace(self, budget=self.budget.spend(now), ready_at=now + rest, failures=failures)


def backoff_seconds(answer: Answer, failures: int, dice: Dice) -> float:
    """How long to leave the server alone: never less than it asked for, and longer with each failure in a row."""
    if answer.done:
        return 0.0
    grown = min(FIRST_BACKOFF_SECONDS * 2.0 ** min(failures - 1, 16), MAX_BACKOFF_SECONDS)
    asked_for = min(answer.retry_after or 0.0, MAX_RETRY_AFTER_SECONDS)
    wait = max(grown, asked_for, SELDOM_SECONDS if answer.seldom else 0.0)
    return float(wait * (1 + SPREAD * dice()))
