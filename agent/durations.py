"""How durations and moments are written for people: one place, so that nothing reads `0 s` because it was rounded."""

import math
from datetime import UTC, datetime

MINUTE = 60.0
HOUR = 60 * MINUTE
DAY = 24 * HOUR
MILLISECOND = 0.001
_SHORTEST = 1e-5
"""Below this a number says nothing to a person."""
_SPANS = (
    (2 * HOUR, (MINUTE, "min"), (1.0, "s")),
    (2 * DAY, (HOUR, "h"), (MINUTE, "min")),
    (100 * DAY, (DAY, "d"), (HOUR, "h")),
)
"""Up to which span which two units are used."""


def duration(seconds: float) -> str:
    """A span in the one or two units a person would use: `3.2 ms`, `2.5 s`, `3 min 20 s`, `2 d 4 h`.

    Only what is exactly nothing, such as a setting of 0, is `0 s`.
    """
    if not math.isfinite(seconds):
        return "without end" if seconds > 0 else "not known"
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds < 0.9995:
        return _short(seconds)
    if seconds < 2 * MINUTE:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    for limit, (unit, word), (part, part_word) in _SPANS:
        if seconds < limit:
            whole, rest = divmod(round(seconds / part), round(unit / part))
            return f"{whole:,} {word} {rest} {part_word}" if rest else f"{whole:,} {word}"
    return f"{seconds / DAY:,.0f} d"


def measured_duration(seconds: float) -> str:
    """The same for what was measured: a clock or a rounding that gave 0 hides something shorter than it can show."""
    return duration(seconds) if seconds else "under 1 ms"


def rounded(seconds: float) -> float:
    """A measured span for programs: tenths from a second on, below it microseconds, so that no short one becomes 0."""
    return round(seconds, 1 if abs(seconds) >= 1 else 6)


def moment(seconds: float) -> str:
    """Seconds since the epoch as `2026-08-01 03:12:45 UTC`."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _short(seconds: float) -> str:
    if 0 < seconds < _SHORTEST:
        return "under 0.01 ms"
    return f"{seconds / MILLISECOND:.3g} ms" if seconds else "0 s"
