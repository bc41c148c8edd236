"""What a watch tells, a line each: for people, or one JSON object for programs. Pure."""

import json
from collections.abc import Iterator
from typing import Any

from agent.exporters.report_json import condition_json, rfc3339
from agent.model import Changed, Condition, Event, Gap, Removed, Snapshot
from agent.printable import encodable, printable


def as_text(event: Event, at: float) -> Iterator[str]:
    """Yield lines for a person: time, type, status, reason and message; a snapshot has one for each condition."""
    when = rfc3339(at)
    match event:
        case Snapshot(conditions):
            for condition in conditions:
                yield f"{when} {_stated(condition)}"
        case Changed(condition):
            yield f"{when} {_stated(condition)}"
        case Removed(kind):
            yield f"{when} {printable(kind)} no longer applies: what it watches is not on this node"
        case Gap(missed):
            changes = "1 change was" if missed == 1 else f"{missed} changes were"
            yield f"{when} {changes} left out because this reader was too slow; all conditions follow"


def as_json(event: Event, at: float) -> Iterator[str]:
    """Yield one JSON object in ASCII; `event` says which, and conditions are as in the report."""
    told: dict[str, Any]
    match event:
        case Snapshot(conditions):
            told = {"event": "snapshot", "conditions": [condition_json(condition) for condition in conditions]}
        case Changed(condition):
            told = {"event": "changed", "condition": condition_json(condition)}
        case Removed(kind):
            told = {"event": "removed", "type": encodable(kind)}
        case Gap(missed):
            told = {"event": "gap", "missed": missed}
    yield json.dumps({"receivedAt": rfc3339(at), **told}, allow_nan=False)


def _stated(condition: Condition) -> str:
    kind, reason = printable(condition.type), printable(condition.reason)
    return f"{kind} {condition.status.value} {reason}: {printable(condition.message)}"
