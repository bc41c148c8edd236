"""Runs a DaemonSet's pod on the lab's containerd the way a kubelet would: volumes, sandbox, containers, probes.

The kubelet's part is played, so that a manifest can be tried out with and without each of its rights in seconds; the
lane tests/cluster has the real one. What containerd makes of it (sandbox, mounts, capabilities, seccomp) is its own.
"""

from __future__ import annotations

import http.client
import secrets
import shutil
import time
import uuid
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from . import cgroups
from .cri import Cri
from .pod_spec import Identity, Manifest, container_config, pod_cgroup, quantity, sandbox_config, with_access
from .pod_volumes import Volumes
from .processes import Process, identify
from .waiting import wait_until

RUNNING, EXITED = 1, 2
PODS = Path("/var/lib/kubelet/pods")
_LOGS = Path("/var/log/pods")
_TASKS = Path("/run/containerd/io.containerd.runtime.v2.task/k8s.io")


@dataclass(frozen=True)
class Executed:
    """What a command in the container printed, and how it ended."""

    code: int
    stdout: str
    stderr: str


class RunningPod:
    """A pod of the manifest's DaemonSet, as a context manager; it is gone from the node afterwards."""

    def __init__(
        self, cri: Cri, manifest: Manifest, node_name: str, node_address: str, api_server: tuple[str, int] | None = None
    ) -> None:
        namespace = manifest.get("DaemonSet")["metadata"]["namespace"]
        name = f"{manifest.get('DaemonSet')['metadata']['name']}-{secrets.token_hex(3)}"
        self.manifest = manifest
        self.who = Identity(name, namespace, str(uuid.uuid4()), node_name, node_address)
        if api_server:
            self.who = replace(self.who, api_server=api_server)
        self.container_id = ""
        self._cri = cri
        self._cgroup = pod_cgroup(manifest.pod, self.who.uid)
        self._dir = PODS / self.who.uid
        self._logs = _LOGS / f"{namespace}_{name}_{self.who.uid}"
        self._volumes: dict[str, tuple[Path, bool]] = {}
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            self._start(undo)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            print(self.log()[-6000:])
        self._undo.close()

    # -- what is asked of it ----------------------------------------------------

    @property
    def process(self) -> Process:
        """The container's first process."""
        return identify(int((_TASKS / self.container_id / "init.pid").read_text()))

    def volume_at(self, mount_path: str) -> Path:
        """Return where on the node that is which the container sees at a mount's path."""
        name = next(e["name"] for e in self.manifest.container["volumeMounts"] if e["mountPath"] == mount_path)
        return self._volumes[name][0]

    def log(self) -> str:
        """Return what the container has written, without what the runtime puts before each line."""
        with suppress(FileNotFoundError):
            lines = (self._logs / f"{self.manifest.container['name']}.log").read_text(errors="replace").splitlines()
            return "\n".join(line.split(" ", 3)[-1] for line in lines)
        return ""

    def status(self) -> Any:
        """Return CRI's status of the container."""
        return self._cri.call("ContainerStatus", container_id=self.container_id).status

    def exec(self, *command: str, timeout: int = 60) -> Executed:
        """Run a command in the container, as `kubectl exec` does. Raises grpc.RpcError if it takes too long."""
        request = {"container_id": self.container_id, "cmd": list(command), "timeout": timeout}
        done = self._cri.call("ExecSync", within=timeout + 5.0, **request)
        return Executed(done.exit_code, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))

    def probe(self, name: str) -> bool:
        """Make one of the container's HTTP probes once, as the kubelet does."""
        return self._probe(self.manifest.container[name]["httpGet"])

    def await_start(self) -> float:
        """Probe as the startupProbe says until it succeeds; return the seconds it took.

        Fails when the kubelet would restart the container: its failureThreshold is used up, or it has ended.
        """
        probe = self.manifest.container["startupProbe"]
        budget = probe.get("initialDelaySeconds", 0) + probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3)
        began = time.monotonic()
        self._await(lambda: self._probe(probe["httpGet"]), budget, "its startupProbe succeeds")
        return time.monotonic() - began

    def await_ready(self, timeout: float = 30.0) -> None:
        """Wait until the readinessProbe succeeds."""
        self._await(lambda: self.probe("readinessProbe"), timeout, "its readinessProbe succeeds")

    def memory_peak(self) -> int:
        """Return the most bytes the container's cgroup ever had, page cache and all (memory.peak, v1 max_usage)."""
        return int(self._memory_file("memory.max_usage_in_bytes", "memory.peak").read_text())

    def memory_now(self) -> dict[str, int]:
        """Return memory.stat's figures."""
        words = (line.split() for line in self._memory_file("memory.stat", "memory.stat").read_text().splitlines())
        return {name: int(value) for name, value in words}

    def oom_kills(self) -> int:
        """Return how often the kernel ended something in the container's cgroup for want of memory."""
        lines = self._memory_file("memory.oom_control", "memory.events").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))

    def cpu_stat(self) -> dict[str, int]:
        """Return cpu.stat's figures: periods, and those in which it was throttled."""
        tree = next(each for each in cgroups.hierarchies() if "cpu" in each.controllers or each.version == 2)
        lines = (tree.at(f"{self._cgroup}/{self.container_id}") / "cpu.stat").read_text().splitlines()
        return {name: int(value) for name, value in (line.split() for line in lines)}

    # -- inside -----------------------------------------------------------------

    def _start(self, undo: ExitStack) -> None:
        spec, volumes = with_access(self.manifest.pod), Volumes(self._dir, self._objects(), self.who.namespace)
        undo.callback(shutil.rmtree, self._dir, ignore_errors=True)
        undo.callback(shutil.rmtree, self._logs, ignore_errors=True)
        undo.callback(volumes.unmount)
        self._volumes = {volume["name"]: volumes.make(volume) for volume in spec.get("volumes", ())}
        self._logs.mkdir(parents=True)
        self._make_cgroup(undo)
        sandbox = sandbox_config(self.manifest, self.who, self._logs)
        sandbox_id = self._cri.call("RunPodSandbox", config=sandbox).pod_sandbox_id
        undo.callback(self._remove, sandbox_id)
        for container in (*spec.get("initContainers", ()), *spec["containers"]):
            config = container_config(spec, container, self.who, self._volumes, self._own_mounts(container["name"]))
            created = self._cri.call(
                "CreateContainer", pod_sandbox_id=sandbox_id, config=config, sandbox_config=sandbox
            )
            self._cri.call("StartContainer", container_id=created.container_id)
            self.container_id = created.container_id
            if container in spec.get("initContainers", ()):
                wait_until(lambda: self.status().state == EXITED, 60.0, f"the end of {container['name']}")
                if self.status().exit_code != 0:
                    raise RuntimeError(f"init container {container['name']} exited {self.status().exit_code}")

    def _remove(self, sandbox_id: str) -> None:
        self._cri.call("StopPodSandbox", pod_sandbox_id=sandbox_id)
        self._cri.call("RemovePodSandbox", pod_sandbox_id=sandbox_id)

    def _objects(self) -> dict[tuple[str, str], Mapping[str, Any]]:
        kinds = ("ConfigMap", "Secret")
        return {
            (each["kind"], each["metadata"]["name"]): each for each in self.manifest.objects if each["kind"] in kinds
        }

    def _make_cgroup(self, undo: ExitStack) -> None:
        """Make the pod's cgroup, limited to the sum of its containers, as the kubelet does."""
        cgroups.make(self._cgroup)
        undo.callback(cgroups.remove, self._cgroup)
        limits = [container.get("resources", {}).get("limits", {}) for container in self.manifest.pod["containers"]]
        memory = int(sum(quantity(each["memory"]) for each in limits))
        quota = int(sum(quantity(each["cpu"]) for each in limits) * 100_000)
        for tree in cgroups.hierarchies():
            directory = tree.at(self._cgroup)
            if "memory" in tree.controllers:
                (directory / "memory.limit_in_bytes").write_text(str(memory))
            if "cpu" in tree.controllers:
                (directory / "cpu.cfs_quota_us").write_text(str(quota))

    def _own_mounts(self, name: str) -> list[dict[str, Any]]:
        """The files the kubelet mounts into every container."""
        hosts, termination = self._dir / "etc-hosts", self._dir / "containers" / name / "termination-log"
        hosts.parent.mkdir(parents=True, exist_ok=True)
        hosts.write_text("127.0.0.1\tlocalhost\n")
        termination.parent.mkdir(parents=True, exist_ok=True)
        termination.touch(mode=0o666)
        return [
            {"container_path": "/etc/hosts", "host_path": str(hosts)},
            {"container_path": "/dev/termination-log", "host_path": str(termination)},
        ]

    def _probe(self, get: Mapping[str, Any]) -> bool:
        ports = {each["name"]: each["containerPort"] for each in self.manifest.container.get("ports", ())}
        port = ports.get(get["port"], get["port"])
        connection = http.client.HTTPConnection(get.get("host") or self.who.node_address, int(port), timeout=1.0)
        try:
            connection.request("GET", get["path"])
            return 200 <= connection.getresponse().status < 400
        except OSError:
            return False
        finally:
            connection.close()

    def _await(self, probe: Any, timeout: float, what: str) -> None:
        def succeeds() -> bool:
            if self.status().state != RUNNING:
                status = self.status()
                raise AssertionError(f"the container ended ({status.exit_code} {status.reason}): {self.log()[-3000:]}")
            return bool(probe())

        wait_until(succeeds, timeout, what)

    def _memory_file(self, v1: str, v2: str) -> Path:
        for tree in cgroups.hierarchies():
            directory = tree.at(f"{self._cgroup}/{self.container_id}")
            for name in (v1, v2):
                if (directory / name).exists():
                    return directory / name
        raise RuntimeError(f"no memory controller governs {self._cgroup}")
