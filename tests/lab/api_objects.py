"""A Node and Events as an API server keeps them: what it would refuse, and how it merges a patch.

The rules are those of the Kubernetes API: a strategic merge patch merges `conditions` by `type`, where `$patch: delete`
takes an entry away; an Event of core/v1 without an eventTime about something without a namespace stands in `default`.
Stricter than a real one, which takes almost any text in an Event of core/v1 (1.20, tried with each of these): the
bounds are those of events.k8s.io/v1; what is related has a name and, if any, a uid that the API gave; and a field that
nobody would miss is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
CONDITION = {"type", "status", "reason", "message", "lastTransitionTime", "lastHeartbeatTime"}
EVENT = {
    "apiVersion", "kind", "metadata", "involvedObject", "reason", "message", "type", "source", "reportingComponent",
    "reportingInstance", "firstTimestamp", "lastTimestamp", "count",
}  # fmt: skip
EVENT_PATCH = {"message", "lastTimestamp"}
MAX_TEXT, MAX_WORD = 1024, 128
"""Characters of a note, and of a reason and of who reports, in an Event of events.k8s.io/v1."""
MAX_COUNT = 2**31 - 1
UID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class RefusedError(Exception):
    """What an API server would answer 400 or 422 to."""


def node(name: str) -> dict[str, Any]:
    """Return a Node as `kubectl get node -o json` shows it, with the conditions of three others."""
    beat, since = "2026-11-25T21:58:04Z", "2026-11-20T06:11:40Z"

    def stated(kind: str, status: str, reason: str, message: str) -> dict[str, str]:
        times = {"lastHeartbeatTime": beat, "lastTransitionTime": since}
        return {**times, "message": message, "reason": reason, "status": status, "type": kind}

    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"},
            "creationTimestamp": "2026-11-20T06:11:40Z",
            "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"},
            "name": name,
            "resourceVersion": "1",
            "uid": "1e1c4a50-6a0c-4a6e-8f4e-5d2d4a2b8a11",
        },
        "spec": {"podCIDR": "10.244.3.0/24", "podCIDRs": ["10.244.3.0/24"]},
        "status": {
            "addresses": [{"address": "10.0.0.7", "type": "InternalIP"}, {"address": name, "type": "Hostname"}],
            "allocatable": {"cpu": "3920m", "memory": "15021Mi", "pods": "110"},
            "capacity": {"cpu": "4", "memory": "16021Mi", "pods": "110"},
            "conditions": [
                stated("NetworkUnavailable", "False", "CiliumIsUp", "Cilium is running on this node"),
                stated("KernelDeadlock", "False", "KernelHasNoDeadlock", "kernel has no deadlock"),
                stated("KubeletUnhealthy", "False", "KubeletIsHealthy", "kubelet on the node is functioning properly"),
                stated(
                    "MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"
                ),
                stated("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
                stated("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
                stated("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            "images": [{"names": ["registry.k8s.io/pause:3.10"], "sizeBytes": 318731}],
            "nodeInfo": {
                "architecture": "amd64",
                "bootID": "6f1f2b1e-0000-4000-8000-000000000000",
                "containerRuntimeVersion": "containerd://2.1.4",
                "kernelVersion": "6.12.48+deb13-amd64",
                "kubeProxyVersion": "",
                "kubeletVersion": "v1.34.2",
                "machineID": "3f0f8f1c2b1e4000800000000000000a",
                "operatingSystem": "linux",
                "osImage": "Debian GNU/Linux 13 (trixie)",
                "systemUUID": "3f0f8f1c-2b1e-4000-8000-00000000000a",
            },
        },
    }


def merge_status(document: dict[str, Any], patch: Any) -> None:
    """Apply the patch of a Node's status to the Node. Raises RefusedError, and then nothing was changed."""
    changes = _exactly(_exactly(patch, "patch", {"status"})["status"], "status", {"conditions"})["conditions"]
    if not isinstance(changes, list) or not changes:
        raise RefusedError("conditions is no list, or empty")
    for change in changes:
        _check_condition(change)
    kinds = [change["type"] for change in changes]
    if len(set(kinds)) != len(kinds):
        raise RefusedError("a type stands twice in the patch")
    merged = {each["type"]: each for each in document["status"]["conditions"]}
    for change in changes:
        if change.get("$patch") == "delete":
            merged.pop(change["type"], None)
        else:
            merged[change["type"]] = {**merged.get(change["type"], {}), **change}
    document["status"]["conditions"] = list(merged.values())


def check_event(event: Any, namespace: str, node_name: str) -> str:
    """Return the name of an Event that is to be created. Raises RefusedError."""
    related = {"related"} if isinstance(event, dict) and "related" in event else set()
    _exactly(event, "event", EVENT | related)
    if (event["apiVersion"], event["kind"], event["type"], event["count"]) != ("v1", "Event", "Warning", 1):
        raise RefusedError("is no new Event of core/v1")
    metadata = _exactly(event["metadata"], "metadata", {"name", "namespace"})
    about = {"apiVersion": "v1", "kind": "Node", "name": node_name, "uid": node_name}
    if event["involvedObject"] != about or (namespace, metadata["namespace"]) != ("default", "default"):
        raise RefusedError("is not about this Node, or not in the namespace of events about nodes")
    if event["source"] != {"component": "nodediag", "host": node_name}:
        raise RefusedError("does not say where it comes from")
    if related:
        _check_related(event["related"])
    _check_name(metadata["name"])
    _check_text("message", event["message"])
    for key in ("reason", "reportingInstance"):
        _check_text(key, event[key], MAX_WORD)
    for key in ("firstTimestamp", "lastTimestamp"):
        _check_time(key, event[key])
    return str(metadata["name"])


def merge_event(event: dict[str, Any], patch: Any) -> None:
    """Apply the patch of an Event. Raises RefusedError, and then nothing was changed."""
    counted = {"count"} if isinstance(patch, dict) and "count" in patch else set()
    _exactly(patch, "patch", EVENT_PATCH | counted)
    _check_text("message", patch["message"])
    _check_time("lastTimestamp", patch["lastTimestamp"])
    if counted and (type(patch["count"]) is not int or not 2 <= patch["count"] <= MAX_COUNT):
        raise RefusedError(f"count is {patch['count']!r}")
    event.update(patch)


def _check_condition(change: Any) -> None:
    if isinstance(change, dict) and "$patch" in change:
        _exactly(change, "deletion", {"type", "$patch"})
        if change["$patch"] != "delete":
            raise RefusedError(f"$patch is {change['$patch']!r}")
        return
    _exactly(change, "condition", CONDITION)
    if change["status"] not in {"True", "False", "Unknown"}:
        raise RefusedError(f"status is {change['status']!r}")
    for key in ("type", "reason", "message"):
        _check_text(key, change[key])
    for key in ("lastTransitionTime", "lastHeartbeatTime"):
        _check_time(key, change[key])


def _exactly(found: Any, what: str, keys: set[str]) -> Mapping[str, Any]:
    if not isinstance(found, dict) or set(found) != keys:
        had = sorted(found) if isinstance(found, dict) else type(found).__name__
        raise RefusedError(f"{what} has {had}, not {sorted(keys)}")
    return found


def _check_related(related: Any) -> None:
    uid = {"uid"} if isinstance(related, dict) and "uid" in related else set()
    _exactly(related, "related", {"apiVersion", "kind", "namespace", "name"} | uid)
    if not (related["namespace"] and related["name"]) or (uid and not UID.fullmatch(related["uid"])):
        raise RefusedError(f"is related to {related}, which is no object of the API")


def _check_text(key: str, text: Any, longest: int = MAX_TEXT) -> None:
    if not isinstance(text, str) or not text or len(text) > longest or not text.isprintable():
        raise RefusedError(f"{key} is {text!r:.100}")


def _check_time(key: str, text: Any) -> None:
    if not isinstance(text, str) or not TIME.fullmatch(text):
        raise RefusedError(f"{key} is {text!r:.100}, no time in whole seconds and UTC")


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or len(name) > 253 or not SUBDOMAIN.fullmatch(name):
        raise RefusedError(f"{name!r:.300} cannot be the name of an object")
