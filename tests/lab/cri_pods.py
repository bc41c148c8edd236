"""Pods as the kubelet requests them: over CRI, each container with a pid namespace of its own (mode CONTAINER).

containerd treats these differently from what `ctr run` starts (see `containers`): the sandbox is an object of its own,
and 2.x does not end the containers' processes after their shim was killed (see `survivors`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from . import cgroups
from .containerd import PAUSE_IMAGE, Containerd
from .containers import shim_address
from .cri import Cri
from .images import import_pause_image
from .pod_spec import CONTAINER, NODE
from .pods import KUBERNETES, Container, Pod
from .processes import identify, stat_of
from .waiting import wait_until

_OWN_PIDS = {"network": NODE, "pid": CONTAINER}
"""The node's network needs no CNI plugin; the pids are the kubelet's default (shareProcessNamespace: false)."""
_EXITED = 2
"""CRI's ContainerState of a container whose process has ended, as far as the runtime knows."""
_FOREVER = ("/bin/sleep", "1000000000")


@contextmanager
def cri_pod(
    containerd: Containerd, names: Sequence[str] = ("app",), *, pod: Pod | None = None, argv: Sequence[str] = _FOREVER
) -> Iterator[list[Container]]:
    """Run a pod of the named containers for the body; yield them without the sandbox, whose shim they share."""
    pod = pod or Pod()
    if not containerd.cri:
        raise ValueError("this containerd has no CRI: make it with cri=True")
    if PAUSE_IMAGE not in containerd.ctr("images", "ls", "-q").stdout.split():
        import_pause_image(containerd)
    containerd.adopt_cgroup(pod.cgroup)
    with Cri(containerd.address) as cri:
        sandbox = _sandbox(pod)
        sandbox_id = cri.call("RunPodSandbox", config=sandbox).pod_sandbox_id
        containers: list[Container] = []
        try:
            for name in names:
                container_id = _start(cri, sandbox_id, sandbox, name, argv)
                containers.append(_container(containerd, replace(pod, sandbox_id=sandbox_id), container_id, name))
                containerd.adopt(containers[-1])
            yield containers
        finally:
            for container in containers:
                cgroups.kill_members(container.cgroup)  # what containerd no longer knows of
            cri.call("StopPodSandbox", pod_sandbox_id=sandbox_id)
            # 2.x reports containers as running for a while after their shim has ended, and then removes none.
            wait_until(lambda: all(_has_exited(cri, each) for each in containers), 30.0, "CRI reports them as exited")
            cri.call("RemovePodSandbox", pod_sandbox_id=sandbox_id)
            for container in containers:
                containerd.forget(container)


def _sandbox(pod: Pod) -> dict[str, Any]:
    return {
        "metadata": {"name": pod.name, "uid": pod.uid, "namespace": pod.namespace},
        "linux": {"cgroup_parent": pod.cgroup, "security_context": {"namespace_options": _OWN_PIDS}},
    }


def _start(cri: Cri, sandbox_id: str, sandbox: dict[str, Any], name: str, argv: Sequence[str]) -> str:
    config = {
        "metadata": {"name": name},
        "image": {"image": PAUSE_IMAGE},
        "command": list(argv),
        "linux": {"security_context": {"namespace_options": _OWN_PIDS}},
    }
    created = cri.call("CreateContainer", pod_sandbox_id=sandbox_id, config=config, sandbox_config=sandbox)
    cri.call("StartContainer", container_id=created.container_id)
    return str(created.container_id)


def _has_exited(cri: Cri, container: Container) -> bool:
    return bool(cri.call("ContainerStatus", container_id=container.id).status.state == _EXITED)


def _container(containerd: Containerd, pod: Pod, container_id: str, name: str) -> Container:
    bundle = containerd.bundle(container_id)
    init = identify(int((bundle / "init.pid").read_text()))
    stat = stat_of(init)
    if stat is None:
        raise RuntimeError(f"the container's process {init.pid} ended at once")
    return Container(
        id=container_id,
        namespace=KUBERNETES,
        pod=pod,
        name=name,
        init=init,
        shim=identify(stat.ppid),
        bundle=bundle,
        shim_socket=shim_address(bundle),
    )
