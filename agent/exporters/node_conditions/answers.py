"""What became of a request, in words for whoever has to mend it. Pure."""

import json
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from agent.exporters.node_conditions.calls import Call
from agent.exporters.node_conditions.pace import SELDOM_CODES, Answer
from agent.printable import printable

MAX_ANSWER = 2 << 20
"""Bytes of an answer; etcd takes no object larger than 1.5 MiB."""
MAX_TOLD = 300
"""Characters of a stranger's text."""
_CODES = frozenset({200, 201, 400, 401, 403, 404, 409, 413, 415, 422, 429, 500, 502, 503, 504})
"""Codes with a label of their own; others are counted together by their hundred."""
_TURNS = frozenset({("create", "events", 409), ("patch", "events", 404)})
"""An Event that is there already, or is no longer: see `Answer.turned`."""
_GROUP = '""'


def answered(call: Call, status: int, headers: Mapping[str, str], body: bytes) -> Answer:
    """Return what an answer means."""
    label = str(status) if status in _CODES else f"{status // 100}xx"
    if 200 <= status < 300:
        problem = _not_our_object(call, body)
        return Answer(0, "unreadable", problem) if problem else Answer(status, label)
    if (call.verb, call.resource, status) in _TURNS:
        return Answer(status, label, f"{call.verb} was the wrong verb", turned=True)
    seldom = status in SELDOM_CODES or 300 <= status < 400
    retry_after = None if seldom else _retry_after(headers.get("Retry-After", ""))
    return Answer(status, label, f"{_refused(call, status)}{_own_words(body)}", retry_after, seldom)


def unanswered(error: Exception) -> Answer:
    """Return what the lack of an answer means."""
    label, what = _kind(error)
    return Answer(0, label, f"{what}: {printable(f'{type(error).__name__}: {error}', MAX_TOLD)}")


def _refused(call: Call, status: int) -> str:
    """Say what a status means here, and what would mend it."""
    if status == 401:
        return "the API server does not know our token (401); is the service account deleted, or another cluster's?"
    if status == 403:
        resource, _, sub = call.resource.partition("/")
        right = f"apiGroups: [{_GROUP}], resources: [{resource}{'/' if sub else ''}{sub}], verbs: [{call.verb}]"
        where = " in the namespace default" if resource == "events" else ""
        return f"our service account may not {call.verb} {call.resource} (403); its role{where} lacks: {{{right}}}"
    if status == 404 and call.resource == "nodes/status":
        return (
            f"there is no Node {printable(call.name, MAX_TOLD)} (404); node_name or NODE_NAME must be the Node's name"
        )
    if status == 429:
        return "the API server is busy (429)"
    if 300 <= status < 400:
        return f"the API server sends us elsewhere ({status}), where our token is not sent"
    return f"the API server refuses to {call.verb} {call.resource} ({status})"


def _own_words(body: bytes) -> str:
    """Return the `message` of a Kubernetes Status, if the body is one."""
    told = _object(body).get("message")
    return f"; it says: {printable(told, MAX_TOLD)}" if isinstance(told, str) and told else ""


def _not_our_object(call: Call, body: bytes) -> str:
    """Return what is wrong with the answer to a request that was accepted: it must be the object of that name."""
    if len(body) > MAX_ANSWER:
        return f"the answer is larger than {MAX_ANSWER} bytes"
    metadata = _object(body).get("metadata")
    if isinstance(metadata, dict) and metadata.get("name") == call.name:
        return ""
    return f"something that is no API server answers: not {call.resource} of the name {printable(call.name, MAX_TOLD)}"


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(body) if len(body) <= MAX_ANSWER else None
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _retry_after(text: str) -> float | None:
    """Seconds of a Retry-After header, which has a number of them or a date (RFC 9110, 10.2.3); None if it has none."""
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def _kind(error: BaseException | None) -> tuple[str, str]:
    """Return a label and words for an error, looking through what the library wraps it in."""
    seen = 0
    while error is not None and seen < 8:
        if isinstance(error, ssl.SSLCertVerificationError):
            return "certificate", "the API server's certificate is not signed by the CA file, or is another's"
        if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
            return "timeout", "the API server does not answer in time"
        error, seen = error.__cause__ or error.__context__ or _wrapped(error), seen + 1
    return "unreachable", "the API server cannot be reached"


def _wrapped(error: BaseException) -> BaseException | None:
    first = error.args[-1] if error.args else None
    return first if isinstance(first, BaseException) else None
