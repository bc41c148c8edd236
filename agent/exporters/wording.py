"""How measured values and moments are said to a person. Pure; units follow from the key's suffix."""

import math
import re

from agent.durations import DAY, HOUR, MINUTE, duration, measured_duration, moment
from agent.model import Value
from agent.printable import printable

MAX_MOMENT = 253_402_300_800.0
"""The year 10000, which has no date here."""
MAX_TEXT = 256
"""Characters of one measured text."""
_UNITS = (
    "_timestamp_seconds",
    "_seconds_ago",
    "_seconds",
    "_bytes",
    "_ratio",
    "_percent",
    "_per_second",
    "_per_minute",
    "_per_hour",
)
_RATES = {"_per_second": "/s", "_per_minute": "/min", "_per_hour": "/h"}
_IDENTITIES = ("pid", "ppid", "start_time", "port", "inode", "code")
"""Numbers that name something: no thousands separators."""
_HUMP = re.compile(r"(?<=[a-z0-9])([A-Z])")
_FULL_ID = re.compile(r"[0-9a-f]{64}\Z")
_ACRONYMS = {"pid", "ppid", "dns", "udp", "tcp", "cri", "pleg", "http", "oom", "cpu", "uid", "ip"}


def ago(then: float, now: float) -> str:
    """How long before `now` it was, in one unit: `3 min ago`."""
    gone = now - then
    if gone < 2:
        return "just now"
    for limit, unit, word in ((90, 1, "s"), (90 * MINUTE, MINUTE, "min"), (36 * HOUR, HOUR, "h")):
        if gone < limit:
            return f"{gone / unit:.0f} {word} ago"
    return f"{gone / DAY:.0f} d ago"


def measured(key: str, value: Value, now: float | None = None) -> tuple[str, str]:
    """Name and text of one value of a finding: (`connect`, `2.0 s`) for `connect_seconds` or `connectSeconds`, 2.0.

    With `now`, a moment is shown with how long ago it was.
    """
    key = snake(key)
    suffix = next((unit for unit in _UNITS if key.endswith(unit) and key != unit), "")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number:
        return _words(key), _plain(value)
    name = _words(key.removesuffix(suffix))
    if suffix == "_timestamp_seconds":
        return name, _moment(float(value), now)  # type: ignore[arg-type]
    return name, _number(key, suffix, float(value) if suffix else value)  # type: ignore[arg-type]


def _moment(then: float, now: float | None) -> str:
    if not math.isfinite(then) or not 0 <= then < MAX_MOMENT:
        return "not known"
    return moment(then) if now is None else f"{moment(then)} ({ago(then, now)})"


def snake(key: str) -> str:
    """Return a key of a finding's values as `oldest_seconds`, also if it was `oldestSeconds`."""
    return _HUMP.sub(r"_\1", key).lower()


def short_id(text: str) -> str:
    """Return a container id of 64 hex digits as its first 12, as crictl shows it; any other text as it is."""
    return text[:12] if _FULL_ID.match(text) else text


def _words(key: str) -> str:
    return " ".join(part.upper() if part in _ACRONYMS else part for part in printable(key).split("_") if part)


def _plain(value: Value) -> str:
    if value is None:
        return "not known"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(printable(short_id(item), MAX_TEXT) for item in value) or "none"
    return printable(short_id(str(value)), MAX_TEXT) or "(empty)"


def _number(key: str, suffix: str, value: float) -> str:
    if suffix in {"_seconds", "_seconds_ago"}:
        if suffix == "_seconds_ago":
            return f"{duration(value)} ago" if value else "just now"
        return measured_duration(value)
    if not math.isfinite(value):
        return "without end" if value > 0 else "not known"
    if suffix == "_bytes":
        return _bytes(value)
    if suffix in {"_ratio", "_percent"}:
        return f"{value * (100 if suffix == '_ratio' else 1):.3g} %"
    names_something = any(key == name or key.endswith(f"_{name}") for name in _IDENTITIES)
    return f"{value:.0f}" if names_something else _count(value) + _RATES.get(suffix, "")


def _count(value: float) -> str:
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _bytes(value: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
