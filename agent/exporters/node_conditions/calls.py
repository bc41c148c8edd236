"""From what is to be done to an HTTP request of the Kubernetes API. Pure.

The answer to the patch of a Node is asked for without the Node: `PartialObjectMetadata` is what client-go's metadata
client asks for, and spares 20 to 100 KB of images and capacities each time.
"""

from dataclasses import dataclass
from urllib.parse import quote

from agent.exporters.node_conditions.bodies import (
    COMPONENT,
    EVENT_NAMESPACE,
    Body,
    event,
    event_name,
    event_patch,
    status_patch,
)
from agent.exporters.node_conditions.plan import Request, WriteStatus

MERGE_PATCH = "application/strategic-merge-patch+json"
JSON = "application/json"
METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
_MANAGER = f"?fieldManager={COMPONENT}"
"""The name under which `kubectl get --show-managed-fields` shows what we wrote."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request. `verb` and `resource` are the words of RBAC; `name` is that of the object, and of the answer's."""

    verb: str
    resource: str
    name: str
    method: str
    path: str
    content_type: str
    body: Body


def call_for(request: Request, node: str, wall: float) -> Call:
    """Return what is sent for a request; `wall` in seconds since the epoch."""
    if isinstance(request, WriteStatus):
        path = f"/api/v1/nodes/{quote(node, safe='')}/status{_MANAGER}"
        return Call("patch", "nodes/status", node, "PATCH", path, MERGE_PATCH, status_patch(request, wall))
    name = event_name(request.finding.finding, node)
    events = f"/api/v1/namespaces/{EVENT_NAMESPACE}/events"
    if request.exists:
        path = f"{events}/{quote(name, safe='')}{_MANAGER}"
        return Call("patch", "events", name, "PATCH", path, MERGE_PATCH, event_patch(request, wall))
    return Call("create", "events", name, "POST", f"{events}{_MANAGER}", JSON, event(request, node, wall))
