"""Containers as Kubernetes runs them: by pod, annotated, in the pod's cgroup.

The kubelet's naming is kept to the letter (64 hex digits for ids, the cgroupfs
driver's ``/kubepods/besteffort/pod<uid>/<id>``, CRI's annotations), because
that is all from which an agent on the node can tell whose a process is.
No kubelet runs here, so its part (a pod's cgroup, the annotations that CRI
derives) is played; the lane tests/cluster has the real one.  Bundles, sockets,
their folders and modes are containerd's and runc's own.
"""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from . import cgroups
from .containerd import Containerd
from .pods import KUBERNETES, Container, Mount, Pod
from .processes import Process, Stat, identify, stat_of
from .waiting import wait_until

_FOREVER = ("/bin/sleep", "1000000000")
_CRI = "io.kubernetes.cri."
_CAPABILITIES = ("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SETGID", "CAP_SETUID")


def run_container(
    containerd: Containerd,
    *,
    pod: Pod | None = None,
    name: str = "app",
    argv: Sequence[str] = _FOREVER,
    container_id: str | None = None,
    namespace: str = KUBERNETES,
    pids_limit: int | None = None,
    runc_binary: Path | None = None,
    mounts: Sequence[Mount] = (),
    extra_annotations: dict[str, str] | None = None,
    user: int = 0,
) -> Container:
    """Start one container and wait until its process runs.

    Without ``pod`` it gets a pod of its own.  With ``container_id`` equal to the
    pod's sandbox id it becomes the pod's sandbox.
    """
    pod = pod or Pod()
    if pod.pids_limit is not None:
        cgroups.require_v1(("pids",))
    container_id = container_id or secrets.token_hex(32)
    spec = _spec(containerd, pod, container_id, name, argv, pids_limit, mounts)
    spec["process"]["user"] = {"uid": user, "gid": user}
    spec["annotations"].update(extra_annotations or {})
    config = containerd.base / f"{container_id}.json"
    config.write_text(json.dumps(spec))
    containerd.adopt_cgroup(pod.cgroup)
    if pod.pids_limit is not None:
        cgroups.limit_pids(pod.cgroup, pod.pids_limit)
    options = ["--null-io", "--runc-root", str(containerd.runc_root)]
    if runc_binary is not None:
        options += ["--runc-binary", str(runc_binary)]
    containerd.ctr("run", "--detach", *options, "--config", str(config), container_id, namespace=namespace, timeout=60)
    bundle = containerd.bundle(container_id, namespace)
    init = identify(int((bundle / "init.pid").read_text()))
    # `ctr run` comes back while runc is still about to become the command.
    stat = wait_until(lambda: _started(init), 10.0, f"start of {argv[0]} in {container_id}")
    container = Container(
        id=container_id,
        namespace=namespace,
        pod=pod,
        name=name,
        init=init,
        shim=identify(stat.ppid),
        bundle=bundle,
        shim_socket=shim_address(bundle),
    )
    containerd.adopt(container)
    return container


def shim_address(bundle: Path) -> Path:
    """Return where a bundle's shim listens: 2.x writes it to `bootstrap.json`, 1.x to `address`."""
    with suppress(FileNotFoundError):
        return Path(json.loads((bundle / "bootstrap.json").read_text())["address"].removeprefix("unix://"))
    return Path((bundle / "address").read_text().removeprefix("unix://"))


def run_pod(
    containerd: Containerd,
    names: Sequence[str] = ("app", "sidecar"),
    *,
    pod: Pod | None = None,
    namespace: str = KUBERNETES,
) -> list[Container]:
    """Start a pod: its sandbox first, then the named containers, all under one shim."""
    pod = pod or Pod()
    sandbox = run_container(containerd, pod=pod, name="", container_id=pod.sandbox_id, namespace=namespace)
    return [sandbox, *(run_container(containerd, pod=pod, name=name, namespace=namespace) for name in names)]


def run_containers(containerd: Containerd, count: int, *, name_prefix: str = "web") -> list[Container]:
    """Start many pods of one container, a few at a time."""
    pods = [Pod(name=f"{name_prefix}-{number}") for number in range(count)]
    with ThreadPoolExecutor(max_workers=4) as pool:
        return list(pool.map(lambda pod: run_container(containerd, pod=pod), pods))


@contextmanager
def running_container(containerd: Containerd, **options: Any) -> Iterator[Container]:
    """Hold a container running for the body; ``options`` are those of ``run_container``."""
    container = run_container(containerd, **options)
    try:
        yield container
    finally:
        delete_container(containerd, container)


def exec_in(
    containerd: Containerd, container: Container, *argv: str, timeout: float = 20.0, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a command inside, as an exec probe does, and wait for its end."""
    name = f"exec-{secrets.token_hex(4)}"
    return containerd.ctr(
        "tasks", "exec", "--exec-id", name, *fifos_of(containerd), container.id, *argv,
        namespace=container.namespace, timeout=timeout, check=check,
    )  # fmt: skip


def fifos_of(containerd: Containerd) -> tuple[str, str]:
    """Return the option of an exec by which its pipes are in the lab's folder, and not left in /run/containerd/fifo."""
    fifos = containerd.base / "fifo"
    fifos.mkdir(exist_ok=True)
    return "--fifo-dir", str(fifos)


def delete_container(containerd: Containerd, container: Container, timeout: float = 30.0) -> None:
    """Kill and remove a container, whatever is left of it."""
    containerd.ctr(
        "tasks", "delete", "--force", container.id, namespace=container.namespace, timeout=timeout, check=False
    )
    cgroups.kill_members(container.cgroup)
    containerd.ctr("containers", "delete", container.id, namespace=container.namespace, check=False)
    wait_until(lambda: not container.bundle.exists(), timeout, f"removal of the bundle {container.bundle}")
    cgroups.remove(container.cgroup)
    containerd.forget(container)


def _started(init: Process) -> Stat | None:
    stat = stat_of(init)
    if stat is None:
        raise RuntimeError(f"the container's process {init.pid} ended at once")
    return None if stat.comm.startswith(b"runc:") else stat


def _spec(
    containerd: Containerd,
    pod: Pod,
    container_id: str,
    name: str,
    argv: Sequence[str],
    pids_limit: int | None,
    mounts: Sequence[Mount],
) -> dict[str, Any]:
    resources: dict[str, Any] = {"devices": [{"allow": False, "access": "rwm"}]}
    if pids_limit is not None:
        resources["pids"] = {"limit": pids_limit}
    capabilities = {name: list(_CAPABILITIES) for name in ("bounding", "effective", "permitted")}
    return {
        "ociVersion": "1.0.2",
        "process": {
            "args": list(argv),
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": capabilities,
            "noNewPrivileges": True,
        },
        "root": {"path": str(containerd.rootfs), "readonly": True},
        "hostname": pod.name,
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev"]},
            *(_bind(mount) for mount in mounts),
        ],
        "annotations": _annotations(pod, container_id, name),
        "linux": {
            "cgroupsPath": f"{pod.cgroup}/{container_id}",
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")],
            "resources": resources,
        },
    }


def _bind(mount: Mount) -> dict[str, Any]:
    options = ["bind", "ro" if mount.read_only else "rw"]
    return {"destination": mount.destination, "type": "bind", "source": str(mount.source), "options": options}


def _annotations(pod: Pod, container_id: str, name: str) -> dict[str, str]:
    annotations = {
        f"{_CRI}sandbox-id": pod.sandbox_id,
        f"{_CRI}sandbox-name": pod.name,
        f"{_CRI}sandbox-namespace": pod.namespace,
        f"{_CRI}sandbox-uid": pod.uid,
    }
    if container_id == pod.sandbox_id:
        return {**annotations, f"{_CRI}container-type": "sandbox"}
    return {
        **annotations,
        f"{_CRI}container-type": "container",
        f"{_CRI}container-name": name,
        f"{_CRI}image-name": "localhost/nodediag-lab/busybox:latest",
    }
