"""How lately and how often something was done; pure.

Time is CLOCK_BOOTTIME, never wall time, which can be set. What happened under another boot happened at least as long
ago as this boot began; so right after a boot it counts as just done.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from agent.model import Action

HOUR_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Act:
    """Something that was done, or may have been: `boot_seconds` is CLOCK_BOOTTIME when it was about to be done.

    A negative moment is one before this boot began.
    """

    action: Action
    boot_id: str
    boot_seconds: float


def elapsed(act: Act, boot_id: str, boot_seconds: float) -> float:
    """Return how many seconds ago something was done, at least; 0.0 for what lies ahead of the clock."""
    if not boot_id or act.boot_id != boot_id:
        return max(0.0, boot_seconds)
    return max(0.0, boot_seconds - act.boot_seconds)


def cooldown_left(
    action: Action, cooldown_seconds: float, history: Iterable[Act], boot_id: str, boot_seconds: float
) -> float:
    """Return for how many seconds an action still rests; 0.0 if it does not."""
    ages = [elapsed(act, boot_id, boot_seconds) for act in history if act.action == action]
    return max(0.0, cooldown_seconds - min(ages)) if ages else 0.0


def left_this_hour(
    max_per_hour: int, history: Iterable[Act], boot_id: str, boot_seconds: float, action: Action | None = None
) -> int:
    """Return how often an action, or anything at all on this node if none is named, may still be done this hour."""
    return max(0, max_per_hour - len(ages_this_hour(history, boot_id, boot_seconds, action)))


def ages_this_hour(history: Iterable[Act], boot_id: str, boot_seconds: float, action: Action | None) -> list[float]:
    """Return how long ago, in seconds, each act of the last hour was, the oldest first."""
    mine = (act for act in history if action is None or act.action == action)
    ages = (elapsed(act, boot_id, boot_seconds) for act in mine)
    return sorted((age for age in ages if age < HOUR_SECONDS), reverse=True)
