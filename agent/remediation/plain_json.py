"""Whatever was captured, as valid JSON of a bounded size. Nothing is left out without a note.

Texts are cut before entries are left out, and the longest texts first: many short facts say more than one long dump.
"""

import json
import math
import sys
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

_TEXT_LIMITS = (256 * 1024, 64 * 1024, 16 * 1024, 4096, 1024, 256)
_ENTRY_LIMITS = (4096, 512, 64, 8)
_MAX_DEPTH = 16
_MAX_ENTRIES = 20_000
"""Of all lists and mappings together; so a cycle or a flood ends."""
_MAX_KEY = 256
_MAX_INT = 2**64


def dumps_within(limit: int, head: Mapping[str, Any], name: str, content: object) -> bytes:
    """Return indented ASCII JSON of the head, with the content under `name`, in at most `limit` bytes.

    The head is written as it is. Never raises for what the content holds.
    """
    for entries in _ENTRY_LIMITS:
        longest = sys.maxsize
        for text in _TEXT_LIMITS:
            if text >= longest:
                continue  # it would cut nothing
            shortener = _Shortener(text, entries)
            data = _dumps({**head, name: shortener.shorten(content)})
            if len(data) <= limit:
                return data
            longest = shortener.longest
    return _dumps({**head, name: f"[left out: it does not fit into {limit} bytes, however much is cut]"})


def plain(value: object, max_text: int) -> str | int | float | bool | None:
    """Return a single value as JSON knows it, or as text; texts are cut with a note of how much."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and -_MAX_INT < value < _MAX_INT:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    text = _text(value)
    return text if len(text) <= max_text else f"{text[:max_text]}[{len(text) - max_text} more characters left out]"


class _Shortener:
    def __init__(self, max_text: int, max_entries: int) -> None:
        self._max_text = max_text
        self._max_entries = max_entries
        self._left = _MAX_ENTRIES
        self.longest = 0

    def shorten(self, value: object, depth: int = 0) -> Any:  # noqa: ANN401 - any value of JSON
        try:
            if isinstance(value, Mapping):
                return self._mapping(value, depth)
            if isinstance(value, (list, tuple, set, frozenset)):
                return self._sequence(value, depth)
        except Exception as error:  # noqa: BLE001 - one that cannot be walked through must not cost the rest
            return _untold(value, error)
        shown = plain(value, self._max_text)
        self.longest = max(self.longest, len(shown) if isinstance(shown, str) else 0)
        return shown

    def _mapping(self, value: Mapping[Any, Any], depth: int) -> Any:  # noqa: ANN401
        if depth >= _MAX_DEPTH:
            return f"[{len(value)} entries left out: nested too deeply]"
        result: dict[str, Any] = {}
        for key, entry in islice(value.items(), self._take(len(value))):
            name = str(plain(_text(key), _MAX_KEY))
            result[name if name not in result else f"{name} ({len(result)})"] = self.shorten(entry, depth + 1)
        if missing := len(value) - len(result):
            result["..."] = f"[{missing} more entries left out]"
        return result

    def _sequence(self, value: "list[Any] | tuple[Any, ...] | set[Any] | frozenset[Any]", depth: int) -> Any:  # noqa: ANN401
        if depth >= _MAX_DEPTH:
            return f"[{len(value)} entries left out: nested too deeply]"
        entries: Iterable[Any] = sorted(value, key=_text) if isinstance(value, (set, frozenset)) else value
        result = [self.shorten(entry, depth + 1) for entry in islice(entries, self._take(len(value)))]
        if missing := len(value) - len(result):
            result.append(f"[{missing} more entries left out]")
        return result

    def _take(self, wanted: int) -> int:
        """How many entries may be told of so many."""
        taken = min(wanted, self._max_entries, self._left)
        self._left -= taken
        return taken


def _dumps(value: object) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def _text(value: object) -> str:
    r"""Any value as a text that every reader of JSON takes: bytes that are no UTF-8 stand there as \xNN."""
    try:
        if isinstance(value, (bytes, bytearray, memoryview)):
            return bytes(value).decode(errors="backslashreplace")
        if isinstance(value, int):
            return hex(value)  # str() of a very long one is refused
        return _without_surrogates(str(value))
    except Exception as error:  # noqa: BLE001 - what cannot even be told as text must not cost the rest
        return _untold(value, error)


def _without_surrogates(text: str) -> str:
    try:
        return text.encode(errors="surrogateescape").decode(errors="backslashreplace")
    except UnicodeEncodeError:
        return text.encode(errors="backslashreplace").decode()


def _untold(value: object, error: Exception) -> str:
    return f"[a {type(value).__name__} that cannot be told: {type(error).__name__}]"
