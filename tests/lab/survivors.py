"""Processes that outlive their shim: containerd reports their container as exited, and they run on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .containerd import Containerd
from .containers import run_container
from .cri_pods import cri_pod
from .pods import Container, Pod
from .processes import kill
from .shim_faults import processes_without_shim
from .versions import is_at_least
from .waiting import wait_until


@contextmanager
def surviving_processes(containerd: Containerd, pod: Pod | None = None) -> Iterator[Container]:
    """Kill a shim whose container's processes run on, with no bundle and no task; yield that container.

    containerd 2.x does that by itself to the pods of a kubelet (containerd#10727): there it is a CRI pod, and nothing
    but its shim is killed.  1.6 and 1.7 end the processes: there it is made by `processes_without_shim`.
    """
    if not is_at_least(2):
        container = run_container(containerd, pod=pod)
        with processes_without_shim(containerd, container):
            yield container
        return
    with cri_pod(containerd, pod=pod) as (container,):
        kill([container.shim])
        wait_until(lambda: not container.bundle.exists(), 20.0, f"containerd's clean-up of {container.id}")
        yield container
