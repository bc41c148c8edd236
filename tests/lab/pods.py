"""What a pod and its containers are called, by Kubernetes and on the machine."""

from __future__ import annotations

import secrets
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from .processes import Process

KUBERNETES = "k8s.io"
"""The namespace of containerd in which the kubelet's containers are."""


@dataclass(frozen=True)
class Pod:
    """A pod's identity; containers with the same ``sandbox_id`` share one shim.

    ``pids_limit`` goes to the pod's cgroup, where the kubelet's podPidsLimit goes. Where a real kubelet runs,
    ``parent_cgroup`` must be another one: it ends what it does not know below ``/kubepods``.
    """

    name: str = "web-0"
    namespace: str = "default"
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))
    sandbox_id: str = field(default_factory=lambda: secrets.token_hex(32))
    pids_limit: int | None = None
    parent_cgroup: str = "/kubepods/besteffort"

    @property
    def cgroup(self) -> str:
        """The pod's cgroup, in each hierarchy."""
        return f"{self.parent_cgroup}/pod{self.uid}"


@dataclass(frozen=True)
class Mount:
    """A directory of the machine seen inside the container."""

    source: Path
    destination: str
    read_only: bool = False


@dataclass(frozen=True)
class Container:
    """A running container, as it was right after its start."""

    id: str
    namespace: str
    pod: Pod
    name: str
    init: Process
    shim: Process
    bundle: Path
    shim_socket: Path

    @property
    def sandbox_id(self) -> str:
        """The id of the pod's sandbox, by which shims are shared."""
        return self.pod.sandbox_id

    @property
    def pod_name(self) -> str:
        """The pod's name."""
        return self.pod.name

    @property
    def pod_namespace(self) -> str:
        """The pod's namespace in Kubernetes (``namespace`` is containerd's)."""
        return self.pod.namespace

    @property
    def pod_uid(self) -> str:
        """The pod's uid."""
        return self.pod.uid

    @property
    def init_pid(self) -> int:
        """The pid of the container's first process, outside."""
        return self.init.pid

    @property
    def shim_pid(self) -> int:
        """The pid of the shim."""
        return self.shim.pid

    @property
    def cgroup(self) -> str:
        """The container's cgroup, in each hierarchy."""
        return f"{self.pod.cgroup}/{self.id}"

    @property
    def is_sandbox(self) -> bool:
        """Whether it is the pod's sandbox (the pause container)."""
        return self.id == self.pod.sandbox_id
