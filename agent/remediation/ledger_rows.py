"""A remediation as a row of the ledger, and back. What comes back is not trusted: anybody may have edited the file."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from agent.acts import MAX_REASON, Outcome, Refusal, RefusalReason, Remediation, Request
from agent.model import Action, Target, TargetKind

MAX_MESSAGE = 2048
MAX_REQUEST_ID = 64
MAX_CALLER = 2048
MAX_TARGET = 16 * 1024
MAX_EVIDENCE_ID = 64
_LAST_MOMENT = 253402300799.0
"""The end of the year 9999: what a timestamp of the API can hold."""


def to_row(remediation: Remediation) -> dict[str, str | int | float]:
    """Return the columns of a remediation, those of the act left out.

    Messages are clipped. Raises ValueError if what tells a request from another (id, target, caller) is too long to be
    kept whole.
    """
    request, refusal = remediation.request, remediation.refusal
    return {
        "request_id": _whole("request_id", request.request_id, MAX_REQUEST_ID),
        "action": request.action.value,
        "target": _whole("target", json.dumps(asdict(request.target)), MAX_TARGET),
        "caller": _whole("caller", request.caller, MAX_CALLER),
        "dry_run": int(request.dry_run),
        "fencing_token": request.fencing_token,
        "reason": clipped(request.reason, MAX_REASON),
        "outcome": remediation.outcome.value,
        "message": clipped(remediation.message, MAX_MESSAGE),
        "refusal": "" if refusal is None else _refusal_text(refusal),
        "received_at": remediation.received_at,
        "finished_at": remediation.finished_at,
        "evidence_id": _whole("evidence_id", remediation.evidence_id, MAX_EVIDENCE_ID),
    }


def from_row(row: Mapping[str, Any]) -> Remediation:
    """Read a row. Raises ValueError if it is none of ours."""
    try:
        return Remediation(
            request=Request(
                request_id=_text(row["request_id"], MAX_REQUEST_ID),
                action=Action(row["action"]),
                target=_target(json.loads(_text(row["target"], MAX_TARGET))),
                caller=_text(row["caller"], MAX_CALLER),
                dry_run=_flag(row["dry_run"]),
                fencing_token=_int(row["fencing_token"]),
                reason=_text(row["reason"], MAX_REASON),
            ),
            outcome=Outcome(row["outcome"]),
            message=_text(row["message"], MAX_MESSAGE),
            received_at=_moment(row["received_at"]),
            finished_at=_moment(row["finished_at"]),
            acted=_flag(row["acted"]),
            refusal=_refusal(_text(row["refusal"], MAX_TARGET)),
            evidence_id=_text(row["evidence_id"], MAX_EVIDENCE_ID),
        )
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def clipped(text: str, limit: int) -> str:
    """Return a text in at most so many characters, all of which can be written as UTF-8."""
    written = text.encode(errors="backslashreplace").decode()
    return written if len(written) <= limit else written[: limit - 3] + "..."


def _whole(what: str, text: str, limit: int) -> str:
    if len(text) > limit:
        raise ValueError(f"the {what} is too long to be recorded: {len(text)} characters, {limit} at most")
    return text.encode(errors="backslashreplace").decode()[:limit]


def _refusal_text(refusal: Refusal) -> str:
    retry, message = refusal.retry_seconds, clipped(refusal.message, MAX_MESSAGE)
    return json.dumps({"reason": refusal.reason.value, "message": message, "retry_seconds": retry}, ensure_ascii=False)


def _refusal(text: str) -> Refusal | None:
    if not text:
        return None
    said = json.loads(text)
    retry = said["retry_seconds"]
    seconds = None if retry is None else _finite(retry)
    return Refusal(RefusalReason(said["reason"]), _text(said["message"], MAX_MESSAGE), seconds)


def _target(said: dict[str, Any]) -> Target:
    return Target(
        TargetKind(said["kind"]),
        pid=_int_or_none(said["pid"]),
        start_time=_int_or_none(said["start_time"]),
        boot_id=_text(said["boot_id"], MAX_TARGET),
        container_id=_text(said["container_id"], MAX_TARGET),
        containerd_namespace=_text(said["containerd_namespace"], MAX_TARGET),
        cgroup=_text(said["cgroup"], MAX_TARGET),
        address=_text(said["address"], MAX_TARGET),
    )


def _text(value: object, limit: int) -> str:
    if not isinstance(value, str) or len(value) > limit:
        raise ValueError(f"no text of at most {limit} characters")
    return value


def _int(value: object) -> int:
    if type(value) is not int:
        raise ValueError("no whole number")
    return value


def _int_or_none(value: object) -> int | None:
    return None if value is None else _int(value)


def _flag(value: object) -> bool:
    if value not in (0, 1):
        raise ValueError("neither 0 nor 1")
    return bool(value)


def _finite(value: object) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        raise ValueError("no finite number")
    return float(value)  # type: ignore[arg-type]


def _moment(value: object) -> float:
    seconds = _finite(value)
    if not 0.0 <= seconds <= _LAST_MOMENT:
        raise ValueError("no moment since 1970")
    return seconds
