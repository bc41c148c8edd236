"""Pods for the cluster, made by the kubelet from what kubectl applies, and their processes on the node."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab.containerd import PAUSE_IMAGE
from tests.lab.kubernetes.cluster import Cluster
from tests.lab.processes import Process, identify, read_stat

NAMESPACE = "shop"
SLEEP = "trap 'exit 0' TERM; while true; do sleep 1000 & wait $!; done"
"""Ends at once on SIGTERM, and reaps nothing but its own sleep."""
_BUNDLES = Path("/run/containerd/io.containerd.runtime.v2.task/k8s.io")
_ANNOTATION = "io.kubernetes.cri."


def container(name: str = "app", script: str = SLEEP, **fields: Any) -> dict[str, Any]:
    """Return a container of busybox that runs a shell script."""
    command = ["/bin/sh", "-c", script]
    return {"name": name, "image": PAUSE_IMAGE, "imagePullPolicy": "Never", "command": command, **fields}


def pod_spec(*containers: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return the spec of a pod, by default of one container that sleeps."""
    spec = {"automountServiceAccountToken": False, "terminationGracePeriodSeconds": 3, "enableServiceLinks": False}
    return {**spec, "containers": list(containers or (container(),)), **fields}


def pod(name: str, *containers: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return a pod."""
    metadata = {"name": name, "namespace": NAMESPACE, "labels": {"app": name}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod_spec(*containers, **fields)}


@contextmanager
def running_pod(
    cluster: Cluster, name: str, *containers: dict[str, Any], ready: bool = True, **fields: Any
) -> Iterator[str]:
    """Run a pod for the body, and delete it; yield `namespace/name`."""
    made = pod(name, *containers, **fields)
    cluster.kubectl.apply(made)
    try:
        if ready:
            cluster.kubectl.await_phase(name, NAMESPACE)
        yield f"{NAMESPACE}/{name}"
    finally:
        cluster.kubectl.delete(made)


@dataclass(frozen=True)
class Task:
    """A container of a pod as containerd runs it."""

    id: str
    pod: str
    container: str
    init: Process
    shim: Process


def tasks(of_pod: str) -> list[Task]:
    """Return the tasks of a pod (`namespace/name`), its sandbox (whose `container` is empty) among them."""
    found = []
    for bundle in _BUNDLES.iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it ends right now
            annotations = json.loads((bundle / "config.json").read_text())["annotations"]
            words = {key.removeprefix(_ANNOTATION): value for key, value in annotations.items()}
            if f"{words.get('sandbox-namespace')}/{words.get('sandbox-name')}" != of_pod:
                continue
            init = identify(int((bundle / "init.pid").read_text()))
            stat = read_stat(init.pid)
            if stat is not None:
                name = words.get("container-name", "")
                found.append(Task(bundle.name, of_pod, name, init, identify(stat.ppid)))
    return found


def shim_of(of_pod: str) -> Process:
    """Return the shim of a pod's sandbox; its containers have the same one."""
    (shim,) = {task.shim for task in tasks(of_pod)}
    return shim
