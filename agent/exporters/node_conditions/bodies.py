"""The objects that are sent: this node's conditions and the Events of its findings. Pure.

Conditions are a list merged by `type` (the API's `patchMergeKey`), so a patch names ours and leaves every other, such
as the kubelet's Ready, as it is; `$patch: delete` takes away one of ours that does not apply to this node.

Events are those of core/v1, not of events.k8s.io/v1: `count` and `lastTimestamp` may be patched and are shown by every
kubectl, and one rule of RBAC suffices; both APIs show the same objects. They are about the Node, with its name for a
uid as the kubelet writes it, and so stand in the namespace `default`, where events about nodes belong; the pod, if
there is one, is `related`. An Event about the pod itself would need the right to write into every namespace.
"""

import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeAlias

from agent.exporters.node_conditions.plan import WriteEvent, WriteStatus
from agent.model import Condition, Finding, PodRef
from agent.printable import printable

COMPONENT = "nodediag"
EVENT_NAMESPACE = "default"
MAX_MESSAGE = 1024
"""Characters of a message; also what events.k8s.io/v1 allows in a note."""
MAX_REASON = 128
"""Characters of a reason, and of a reporting instance."""
MAX_NAME = 253
"""Characters of an object's name (RFC 1123 subdomain)."""
MAX_SECONDS = 253402300799
"""The last second of the year 9999: RFC 3339 has four digits for a year."""
_UID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""A uid that the API server gave. What the node knows of a static pod is a hash of its configuration instead (32 digits
without dashes); the mirror pod in the API has a uid of its own, which the kubelet does not list."""

Body: TypeAlias = Mapping[str, Any]


def status_patch(request: WriteStatus, wall: float) -> Body:
    """Return the strategic merge patch of the node's status; `wall` in seconds since the epoch."""
    conditions = [_condition(each, wall) for each in request.seen.conditions]
    deleted = [{"type": kind, "$patch": "delete"} for kind in request.seen.absent]
    return {"status": {"conditions": conditions + deleted}}


def event(request: WriteEvent, node: str, wall: float) -> Body:
    """Return the whole Event of a finding, to be created."""
    finding = request.finding.finding
    body: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": event_name(finding, node), "namespace": EVENT_NAMESPACE},
        "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": node, "uid": node},
        "reason": printable(finding.reason, MAX_REASON),
        "message": _message(finding),
        "type": "Warning",
        "source": {"component": COMPONENT, "host": node},
        "reportingComponent": COMPONENT,
        "reportingInstance": printable(node, MAX_REASON),
        "firstTimestamp": rfc3339(request.finding.since),
        "lastTimestamp": rfc3339(wall),
        "count": 1,
    }
    if finding.pod is not None and finding.pod.named:
        body["related"] = _reference(finding.pod)
    return body


def event_patch(request: WriteEvent, wall: float) -> Body:
    """Return the patch that renews an Event. Where somebody before us counted, the count is left as it is."""
    count = {} if request.count is None else {"count": request.count}
    return {"message": _message(request.finding.finding), "lastTimestamp": rfc3339(wall), **count}


def event_name(finding: Finding, node: str) -> str:
    """Return the one name of a finding's Event: the same for the same finding, whichever agent writes it."""
    digest = hashlib.sha256(repr(finding.key).encode(errors="surrogateescape")).hexdigest()[:16]
    return f"{node[: MAX_NAME - len(digest) - 1].rstrip('.-')}.{digest}"


def rfc3339(seconds: float) -> str:
    """Seconds since the epoch as Kubernetes writes a time: whole seconds, in UTC."""
    return datetime.fromtimestamp(min(max(0, int(seconds)), MAX_SECONDS), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _reference(pod: PodRef) -> Body:
    """Return the reference to a pod. A uid that is none of the API's is left out, since it would find no object."""
    named = {"namespace": pod.namespace, "name": pod.name, **({"uid": pod.uid} if _UID.fullmatch(pod.uid) else {})}
    return {"apiVersion": "v1", "kind": "Pod", **{key: printable(value, MAX_NAME) for key, value in named.items()}}


def _condition(condition: Condition, wall: float) -> Body:
    return {
        "type": condition.type,
        "status": condition.status.value,
        "reason": printable(condition.reason, MAX_REASON),
        "message": printable(condition.message, MAX_MESSAGE),
        "lastTransitionTime": rfc3339(condition.last_transition_time),
        "lastHeartbeatTime": rfc3339(wall),
    }


def _message(finding: Finding) -> str:
    return printable(f"{finding.condition}: {finding.message}", MAX_MESSAGE)
