"""When this node's conditions are written. Pure: told of the time, and of what stands on the board.

A write carries all of them, and deletes those of ours that do not apply, so no write depends on the one before: what a
dead predecessor left, or somebody else wrote over, is put right by the next one. What is not yet told is not kept in a
queue; there is only how things stand now, and the last that the API server has taken.

A change is a new status or reason. Findings and measured values change at every look and come along with the next
write.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from agent.exporters.node_conditions.pace import Answer, Budget, Dice, Lane
from agent.model import Condition, Status

BURST = 10
REFILL_SECONDS = 60.0
"""Conditions that flap are written ten times, then once a minute."""
EARLIEST = 0.8
"""A heartbeat comes after this share of its period at the earliest, and after the whole at the latest."""
START_SECONDS = 60.0
"""So long the first looks are waited for, so that a restart of the agent is not seen as a spell of Unknown."""

Standing: TypeAlias = Mapping[str, tuple[Status, str] | None]
"""Status and reason by type; None for a type of ours that does not apply to this node."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The board at one moment. `absent`: types of ours that no detector reports. `waiting`: one has not looked yet."""

    conditions: tuple[Condition, ...] = ()
    absent: tuple[str, ...] = ()
    waiting: bool = False

    @property
    def standing(self) -> Standing:
        """What makes a change."""
        return {each.type: (each.status, each.reason) for each in self.conditions} | dict.fromkeys(self.absent)


@dataclass(frozen=True, slots=True)
class StatusPlan:
    """What was written last, and when the next write is due. Times in monotonic seconds.

    `change_at` is when the change that was noticed is to be written: a random moment within `min_seconds`, in which
    further changes join it, and a fault of the whole fleet does not reach the API server at one moment.
    """

    heartbeat_seconds: float
    min_seconds: float
    began: float
    lane: Lane
    told: Standing = field(default_factory=dict)
    heartbeat_at: float | None = None
    change_at: float | None = None

    def seeing(self, seen: Seen, now: float, dice: Dice) -> "StatusPlan":
        """Return the plan with what is seen now taken in."""
        if seen.standing == self.told or (seen.waiting and now < self.began + START_SECONDS):
            return replace(self, change_at=None)
        if self.change_at is not None:
            return self
        return replace(self, change_at=now + self.min_seconds * dice())

    def wait_seconds(self, now: float) -> float | None:
        """How long until the next write is due; 0 if now, None if nothing is to be written yet."""
        moments = [at for at in (self.change_at, self.heartbeat_at) if at is not None]
        return max(min(moments) - now, self.lane.wait_seconds(now), 0.0) if moments else None

    def after(self, seen: Seen, answer: Answer, now: float, dice: Dice) -> "StatusPlan":
        """Return the plan after the write of what was `seen`."""
        lane = self.lane.after(answer, now, dice)
        if not answer.done:
            return replace(self, lane=lane)
        heartbeat = now + self.heartbeat_seconds * (EARLIEST + (1 - EARLIEST) * dice())
        return replace(self, lane=lane, told=seen.standing, heartbeat_at=heartbeat, change_at=None)

    def pending(self, seen: Seen) -> int:
        """How many conditions the API server has not been told of as they stand."""
        return sum(kind not in self.told or self.told[kind] != stands for kind, stands in seen.standing.items())


def status_plan(heartbeat_seconds: float, min_seconds: float, now: float) -> StatusPlan:
    """Return the plan of an agent that has just started."""
    lane = Lane(Budget(BURST, REFILL_SECONDS, at=now), min_seconds)
    return StatusPlan(heartbeat_seconds, min_seconds, now, lane)
