"""When an Event is written for a finding. Pure: told of the time, and of the findings that stand.

One Event per finding, by a name made from the finding's identity: however often the finding comes and goes and the
agent is started again, it is the same object. While the finding stands, the Event is renewed before the API server
drops it (an hour after the last write), and not more often. Nothing is written when a finding goes: the condition
tells. Findings that came and went while the API server was away are not told afterwards; nothing queues.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from agent.exporters.node_conditions.pace import Answer, Budget, Dice, Lane
from agent.model import ActiveFinding, Target

BURST = 10
REFILL_SECONDS = 300.0
"""As client-go limits the events of one source about one object: a burst, then one in five minutes."""
RENEW_SECONDS = 2400.0
"""With its spread at most 48 minutes: before an Event expires, which it does after an hour by default."""
RENEW_SPREAD = 0.2
MAX_KNOWN = 32
"""Findings whose Events are kept in mind. Of more that stand at once, the rest have none; the condition counts them."""
FORGET_SECONDS = 3600.0
"""A finding that is gone is forgotten after this: its Event has expired by then."""

Key: TypeAlias = tuple[str, str, Target]


@dataclass(frozen=True, slots=True)
class Noted:
    """The Event of one finding.

    `due_at`: when it is to be written next. `gone_at`: since when the finding no longer stands. `exists`: the API
    server has it, as far as we know. `count`: how often it was written; None if an agent before us began to count.
    """

    due_at: float
    gone_at: float | None = None
    exists: bool = False
    told: bool = False
    count: int | None = 0


@dataclass(frozen=True, slots=True)
class EventPlan:
    """The Events of the findings that stand, or stood a moment ago. Times in monotonic seconds."""

    min_seconds: float
    lane: Lane
    known: Mapping[Key, Noted] = field(default_factory=dict)

    def seeing(self, findings: Iterable[ActiveFinding], now: float, dice: Dice) -> "EventPlan":
        """Return the plan with the findings that stand now taken in."""
        keys = dict.fromkeys(active.finding.key for active in findings)
        known: dict[Key, Noted] = {}
        for key, noted in self.known.items():
            gone_at = None if key in keys else now if noted.gone_at is None else noted.gone_at
            if gone_at is None or (noted.told and now - gone_at < FORGET_SECONDS):
                known[key] = noted if noted.gone_at == gone_at else replace(noted, gone_at=gone_at)
        for key in keys:
            if key not in known and _make_room(known):
                known[key] = Noted(now + self.min_seconds * dice())
        return replace(self, known=known)

    def next(self, now: float) -> tuple[Key, float] | None:
        """Return the finding whose Event is to be written next, and in how many seconds; None if there is none."""
        standing = {key: noted.due_at for key, noted in self.known.items() if noted.gone_at is None}
        if not standing:
            return None
        key = min(standing, key=standing.__getitem__)
        return key, max(0.0, standing[key] - now, self.lane.wait_seconds(now))

    def after(self, key: Key, answer: Answer, now: float, dice: Dice) -> "EventPlan":
        """Return the plan after the Event of one finding was created, or renewed if it existed.

        One that the API server will not have, perhaps for what is in it, lets the others go first.
        """
        noted = self.known[key]
        if answer.turned:  # the other verb is due, and is paid for like any request
            turned = replace(noted, exists=not noted.exists, count=0 if noted.exists else None)
            lane = replace(self.lane, budget=self.lane.budget.spend(now))
            return replace(self, lane=lane, known={**self.known, key: turned})
        lane = self.lane.after(answer, now, dice)
        if not answer.done:
            postponed = replace(noted, due_at=now + RENEW_SECONDS) if answer.seldom else noted
            return replace(self, lane=lane, known={**self.known, key: postponed})
        count = None if noted.count is None else noted.count + 1
        renewed = now + RENEW_SECONDS * (1 + RENEW_SPREAD * dice())
        written = replace(noted, due_at=renewed, exists=True, told=True, count=count)
        return replace(self, lane=lane, known={**self.known, key: written})

    def pending(self) -> int:
        """How many findings that stand have no Event yet."""
        return sum(not noted.told and noted.gone_at is None for noted in self.known.values())


def event_plan(min_seconds: float, now: float) -> EventPlan:
    """Return the plan of an agent that has just started."""
    return EventPlan(min_seconds, Lane(Budget(BURST, REFILL_SECONDS, at=now)))


def _make_room(known: dict[Key, Noted]) -> bool:
    """Forget the finding that has been gone longest if there are too many; False if all of them stand."""
    if len(known) < MAX_KNOWN:
        return True
    gone = {key: noted.gone_at for key, noted in known.items() if noted.gone_at is not None}
    if not gone:
        return False
    del known[min(gone, key=gone.__getitem__)]
    return True
