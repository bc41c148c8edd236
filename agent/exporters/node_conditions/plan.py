"""What to send to the API server, and when. Pure: no clock, no dice and no network of its own.

`next` is asked what to do now, with the board as it stands; `told` takes in what became of it. One request at a time;
the conditions come before the Events, and each kind has its own budget and back-off, so that a missing right for one
does not stop the other.
"""

from dataclasses import dataclass
from typing import TypeAlias

from agent.exporters.node_conditions.events import EventPlan, Key, event_plan
from agent.exporters.node_conditions.pace import Answer, Dice
from agent.exporters.node_conditions.status import Seen, StatusPlan, status_plan
from agent.model import ActiveFinding, Status

MIN_PAUSE_SECONDS = 0.01
"""Fractions of a second that are left over by reckoning are not waited for one by one."""
MAX_PAUSE_SECONDS = 60.0
"""Whoever drives the plan asks again after this, whatever happens meanwhile."""


@dataclass(frozen=True, slots=True)
class WriteStatus:
    """Patch the node's conditions with what was seen."""

    seen: Seen


@dataclass(frozen=True, slots=True)
class WriteEvent:
    """Create the Event of a finding, or renew it if it `exists`. `count`: how often it will have been written."""

    finding: ActiveFinding
    exists: bool
    count: int | None


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing to send for so long, unless the board changes."""

    seconds: float


Request: TypeAlias = WriteStatus | WriteEvent
Step: TypeAlias = Request | Pause


class Plan:
    """The plan of one node. Whoever holds it calls it from one thread."""

    def __init__(self, heartbeat_seconds: float, min_seconds: float, *, events: bool, now: float, dice: Dice) -> None:
        self._status: StatusPlan = status_plan(heartbeat_seconds, min_seconds, now)
        self._events: EventPlan | None = event_plan(min_seconds, now) if events else None
        self._dice = dice

    def next(self, seen: Seen, now: float) -> Step:
        """Return what is to be done now; `now` in monotonic seconds."""
        self._status = self._status.seeing(seen, now, self._dice)
        wait = self._status.wait_seconds(now)
        if wait == 0:
            return WriteStatus(seen)
        pauses = [MAX_PAUSE_SECONDS] if wait is None else [MAX_PAUSE_SECONDS, wait]
        if self._events is not None:
            findings = {active.finding.key: active for active in _findings(seen)}
            self._events = self._events.seeing(findings.values(), now, self._dice)
            due = self._events.next(now)
            if due is not None and due[1] == 0:
                noted = self._events.known[due[0]]
                return WriteEvent(findings[due[0]], noted.exists, None if noted.count is None else noted.count + 1)
            if due is not None:
                pauses.append(due[1])
        return Pause(max(min(pauses), MIN_PAUSE_SECONDS))

    def told(self, request: Request, answer: Answer, now: float) -> None:
        """Take in what became of a request."""
        if isinstance(request, WriteStatus):
            self._status = self._status.after(request.seen, answer, now, self._dice)
        elif self._events is not None:
            self._events = self._events.after(_key(request), answer, now, self._dice)

    def pending(self, seen: Seen) -> int:
        """How many conditions and findings the API server has not been told of as they stand."""
        return self._status.pending(seen) + (self._events.pending() if self._events is not None else 0)


def _findings(seen: Seen) -> list[ActiveFinding]:
    return [active for each in seen.conditions if each.status is Status.TRUE for active in each.findings]


def _key(request: WriteEvent) -> Key:
    return request.finding.finding.key
