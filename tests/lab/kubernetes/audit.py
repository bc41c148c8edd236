"""The API server's audit log: who requested what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def requests_of(log: Path, user: str) -> list[dict[str, Any]]:
    """Return the requests of a user so far."""
    return [each for each in requests(log) if each["user"].get("username") == user]


def requests(log: Path) -> list[dict[str, Any]]:
    """Return every request so far."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [json.loads(line) for line in lines]
