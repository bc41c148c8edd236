"""The act flow as JSON, for programs: the protos' fields in camelCase, moments in RFC 3339, spans in seconds. Pure."""

import json
from typing import Any

from agent.acts import ActionStatus, Evidence, Refusal, Remediation, RemediationStatus, Request
from agent.exporters.report_json import rfc3339, target_json
from agent.printable import encodable


def dumps(document: object) -> str:
    """Return one JSON document in ASCII, indented; ends with a newline."""
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def status_json(status: RemediationStatus) -> dict[str, Any]:
    """Return how the act flow stands as what `json.dumps` takes."""
    return {
        "enabled": status.enabled,
        "dryRun": status.dry_run,
        "paused": encodable(status.paused),
        "trouble": encodable(status.trouble),
        "highestFencingToken": status.highest_token,
        "maxPerHour": status.max_per_hour,
        "leftThisHour": status.left_this_hour,
        "actions": [_action(each) for each in status.actions],
    }


def _action(action: ActionStatus) -> dict[str, Any]:
    return {
        "action": action.action.value,
        "does": encodable(action.does),
        "requires": encodable(action.requires),
        "risk": encodable(action.risk),
        "targets": [kind.value for kind in action.targets],
        "mends": {encodable(kind): [encodable(each) for each in reasons] for kind, reasons in action.mends.items()},
        "enabled": action.enabled,
        "allowed": action.allowed,
        "cooldownSeconds": action.cooldown_seconds,
        "cooldownLeftSeconds": action.cooldown_left_seconds,
        "maxPerHour": action.max_per_hour,
        "leftThisHour": action.left_this_hour,
    }


def remediation_json(done: Remediation) -> dict[str, Any]:
    """Return a request and what came of it as what `json.dumps` takes."""
    return {
        **_request(done.request),
        "caller": encodable(done.request.caller),
        "outcome": done.outcome.value,
        "message": encodable(done.message),
        "receivedAt": rfc3339(done.received_at),
        "finishedAt": rfc3339(done.finished_at) if done.finished_at else None,
        "acted": done.acted,
        "refusal": None if done.refusal is None else _refusal(done.refusal),
        "evidenceId": encodable(done.evidence_id),
    }


def refused_json(asked: Request, refused: Refusal) -> dict[str, Any]:
    """Return a request that was refused and so is not recorded, in the form of one that is."""
    return {
        **_request(asked),
        "outcome": "refused",
        "message": encodable(refused.message),
        "acted": False,
        "refusal": _refusal(refused),
    }


def evidence_json(stored: Evidence) -> dict[str, Any]:
    """Return what one piece of evidence is as what `json.dumps` takes."""
    return {
        "id": encodable(stored.id),
        "requestId": encodable(stored.request_id),
        "action": encodable(stored.action),
        "createdAt": rfc3339(stored.created_at),
        "size": stored.size,
        "sha256": encodable(stored.sha256),
    }


def _request(asked: Request) -> dict[str, Any]:
    return {
        "requestId": encodable(asked.request_id),
        "action": asked.action.value,
        "target": target_json(asked.target),
        "dryRun": asked.dry_run,
        "fencingToken": asked.fencing_token,
        "reason": encodable(asked.reason),
    }


def _refusal(refused: Refusal) -> dict[str, Any]:
    return {
        "reason": refused.reason.value,
        "message": encodable(refused.message),
        "retrySeconds": refused.retry_seconds,
    }
