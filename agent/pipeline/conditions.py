"""From what one look found to what is told: pure hysteresis.

A finding is a suspicion until it was sighted `failure_threshold` times in a row, and it stays
confirmed until `success_threshold` looks in a row no longer show it. Each finding is tracked
on its own, so that a second hung shim is doubted as much as the first was.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from agent.model import ActiveFinding, CheckResult, Condition, Finding, Status, Target

REASON_AS_EXPECTED = "AsExpected"
REASON_NOT_OBSERVED = "NotObserved"
REASON_UNCONFIRMED = "Unconfirmed"
MAX_MESSAGE = 1024

Key: TypeAlias = tuple[str, str, Target]


@dataclass(frozen=True, slots=True)
class Track:
    """One finding followed over several looks; `since` is the wall time of its first sighting."""

    finding: Finding
    since: float
    sightings: int
    absences: int = 0
    confirmed: bool = False


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Looks in a row that confirm, and that clear."""

    failure: int
    success: int


@dataclass(frozen=True, slots=True)
class Hysteresis:
    """What is remembered between two looks of one detector."""

    tracks: Mapping[Key, Track] = field(default_factory=dict)

    def unsettled(self, unseen: Collection[str]) -> bool:
        """Whether another look would confirm a suspicion or clear a finding, if it sees what the last one saw."""
        open_tracks = (track for track in self.tracks.values() if not track.confirmed or track.absences)
        return any(track.finding.condition not in unseen for track in open_tracks)

    def suspicion(self, condition: str) -> Finding | None:
        """Return what one condition is suspected of but not confirmed, if anything."""
        tracks = self.tracks.values()
        return next((t.finding for t in tracks if not t.confirmed and t.finding.condition == condition), None)

    def active(self, condition: str) -> tuple[ActiveFinding, ...]:
        """Confirmed findings of one condition, longest standing first."""
        found = [t for t in self.tracks.values() if t.confirmed and t.finding.condition == condition]
        return tuple(ActiveFinding(t.finding, t.since) for t in sorted(found, key=lambda t: t.since))


def advance(memory: Hysteresis, result: CheckResult, thresholds: Thresholds, now: float) -> Hysteresis:
    """Take in one look. What the look could not see (`result.unknown`) is left as it was."""
    tracks: dict[Key, Track] = {}
    for finding in result.findings:
        before = memory.tracks.get(finding.key)
        tracks[finding.key] = _sighted(before, finding, thresholds, now)
    for key, track in memory.tracks.items():
        if key in tracks:
            continue
        kept = track if track.finding.condition in result.unknown else _absent(track, thresholds)
        if kept is not None:
            tracks[key] = kept
    return Hysteresis(tracks)


def _sighted(before: Track | None, finding: Finding, thresholds: Thresholds, now: float) -> Track:
    if before is None:
        before = Track(finding, since=now, sightings=0)
    sightings = min(before.sightings + finding.sightings, thresholds.failure)
    confirmed = before.confirmed or sightings >= thresholds.failure
    return replace(before, finding=finding, sightings=sightings, absences=0, confirmed=confirmed)


def _absent(track: Track, thresholds: Thresholds) -> Track | None:
    absences = track.absences + 1
    if not track.confirmed or absences >= thresholds.success:
        return None
    return replace(track, absences=absences)


def conclude(
    condition: str, memory: Hysteresis, result: CheckResult, previous: Condition | None, now: float
) -> Condition:
    """State one condition from what is remembered and the latest look.

    A confirmed finding outlives a look that could see nothing only as Unknown: what is no
    longer visible is neither accused nor cleared. Nor is a suspicion a reason to call well
    what was not known to be well before.
    """
    if condition in result.unknown:
        hidden_by = next((fault for fault in result.deployment if condition in fault.hides), None)
        reason = hidden_by.cause.reason if hidden_by else REASON_NOT_OBSERVED
        return unknown(condition, reason, result.unknown[condition], previous, now)
    active = memory.active(condition)
    if active:
        reason = active[0].finding.reason
        return _stated(Condition(condition, Status.TRUE, reason, _joined(active), now, active), previous)
    message = result.healthy.get(condition, "nothing wrong was seen")
    suspicion = memory.suspicion(condition)
    if suspicion is not None:
        message = f"suspected, but not confirmed: {suspicion.message}"
        if previous is None or previous.status is Status.UNKNOWN:
            return unknown(condition, REASON_UNCONFIRMED, message, previous, now)
    return _stated(Condition(condition, Status.FALSE, REASON_AS_EXPECTED, message, now), previous)


def unknown(condition: str, reason: str, message: str, previous: Condition | None, now: float) -> Condition:
    """State that nothing can be said about a condition, and why."""
    return _stated(Condition(condition, Status.UNKNOWN, reason, message, now), previous)


def _joined(active: tuple[ActiveFinding, ...]) -> str:
    messages = [item.finding.message for item in active]
    return messages[0] if len(messages) == 1 else f"{len(messages)} findings: " + "; ".join(messages)


def _stated(condition: Condition, previous: Condition | None) -> Condition:
    """Bound the message, and keep the time of the last transition unless this is one."""
    message = condition.message
    if len(message) > MAX_MESSAGE:
        message = message[: MAX_MESSAGE - 3] + "..."
    same = previous is not None and previous.status is condition.status
    since = previous.last_transition_time if previous and same else condition.last_transition_time
    return replace(condition, message=message, last_transition_time=since)
