"""Processes that outlive their shim: containerd reports their container as exited, and they run on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from . import cgroups
from .containerd import Containerd
from .containers import delete_container, run_container
from .cri_pods import cri_pod
from .pods import Container, Pod
from .processes import kill
from .shim_faults import processes_without_shim
from .versions import is_at_least
from .waiting import wait_until


@contextmanager
def container_that_may_survive(containerd: Containerd, pod: Pod | None = None) -> Iterator[Container]:
    """Run a container for `surviving_processes`: one of a CRI pod on 2.x, since no other one survives there."""
    if is_at_least(2):
        with cri_pod(containerd, pod=pod) as (container,):
            yield container
        return
    container = run_container(containerd, pod=pod)
    try:
        yield container
    finally:
        if container.id in containerd.containers:
            delete_container(containerd, container)


@contextmanager
def surviving_processes(containerd: Containerd, container: Container) -> Iterator[Container]:
    """Kill the shim of a `container_that_may_survive`, whose processes then run on with no bundle and no task.

    containerd 2.x does that by itself to the pods of a kubelet (containerd#10727): there nothing but the shim is
    killed.  1.6 and 1.7 end the processes: there it is imitated by `processes_without_shim`.
    """
    if not is_at_least(2):
        with processes_without_shim(containerd, container):
            yield container
        return
    kill([container.shim])
    wait_until(lambda: not container.bundle.exists(), 20.0, f"containerd's clean-up of {container.id}")
    try:
        yield container
    finally:
        cgroups.kill_members(container.cgroup)
