"""The API server's audit log: who requested what."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any


def requests_of(log: Path, user: str) -> list[dict[str, Any]]:
    """Return the requests of a user so far."""
    return [each for each in requests(log) if each["user"].get("username") == user]


def requests(log: Path) -> list[dict[str, Any]]:
    """Return every request so far."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [json.loads(line) for line in lines]


def reviews_of(log: Path, user: str) -> Counter[str]:
    """Return how often the API server was asked to judge a user's token, and its permissions.

    Others ask so on the user's behalf: the kubelet, when the user requests something of it.
    """
    found: Counter[str] = Counter()
    for each in requests(log):
        kind = each.get("objectRef", {}).get("resource")
        if kind == "tokenreviews" and each["responseObject"]["status"].get("user", {}).get("username") == user:
            found["token_review"] += 1
        if kind == "subjectaccessreviews" and each["responseObject"]["spec"].get("user") == user:
            found["subject_access_review"] += 1
    return found
