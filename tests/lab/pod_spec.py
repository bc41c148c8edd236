"""What the kubelet makes of a pod's spec when it asks the runtime for it: CRI's words for Kubernetes' ones.

Pure: a manifest in, messages out (see `cri`).  What the kubelet adds of its own (cgroups by QoS, masked paths, the
oom_score_adj, DNS) is added; a field of the spec that is not understood here is an error, since a test of a manifest
must run all of it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

import yaml

_SUFFIXES = {
    "m": Fraction(1, 1000), "k": Fraction(10**3), "M": Fraction(10**6), "G": Fraction(10**9),
    "Ki": Fraction(2**10), "Mi": Fraction(2**20), "Gi": Fraction(2**30),
}  # fmt: skip
_PERIOD = 100_000
"""Microseconds of a period of the CPU quota, the kubelet's default."""
_LEAST_SHARES = 2
NODE, CONTAINER, POD = 2, 1, 0
"""CRI's modes of a namespace."""
_SECCOMP = {"RuntimeDefault": 0, "Unconfined": 1}
_PROPAGATION = {"None": 0, "HostToContainer": 1, "Bidirectional": 2}
_OOM_SCORES = {"Guaranteed": -997, "BestEffort": 1000}
# The kubelet's own lists for procMount: Default.
_MASKED = (
    "/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
    "/sys/devices/virtual/powercap",
)  # fmt: skip
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

ROOT_CA = "kube-root-ca.crt"
"""The ConfigMap in every namespace of who signed the API server's certificate."""
_ACCESS, _ACCESS_PATH = "kube-api-access", "/var/run/secrets/kubernetes.io/serviceaccount"

_POD_FIELDS = {
    "automountServiceAccountToken", "containers", "dnsPolicy", "enableServiceLinks", "hostNetwork", "hostPID",
    "initContainers", "nodeSelector", "affinity", "priorityClassName", "restartPolicy", "securityContext",
    "serviceAccountName", "terminationGracePeriodSeconds", "tolerations", "volumes",
}  # fmt: skip
_CONTAINER_FIELDS = {
    "args", "command", "env", "image", "imagePullPolicy", "livenessProbe", "name", "ports", "readinessProbe",
    "resources", "securityContext", "startupProbe", "terminationMessagePolicy", "volumeMounts", "workingDir",
}  # fmt: skip
_SECURITY_FIELDS = {
    "allowPrivilegeEscalation", "appArmorProfile", "capabilities", "privileged", "readOnlyRootFilesystem",
    "runAsGroup", "runAsNonRoot", "runAsUser", "seccompProfile",
}  # fmt: skip
_MOUNT_FIELDS = {"mountPath", "mountPropagation", "name", "readOnly", "recursiveReadOnly"}


@dataclass(frozen=True)
class Manifest:
    """The objects of some YAML documents, one DaemonSet among them."""

    objects: tuple[dict[str, Any], ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read YAML documents."""
        return cls(tuple(each for each in yaml.safe_load_all(text) if each))

    def get(self, kind: str) -> dict[str, Any]:
        """Return the only object of a kind."""
        (found,) = (each for each in self.objects if each["kind"] == kind)
        return found

    @property
    def pod(self) -> dict[str, Any]:
        """The spec of the DaemonSet's pods."""
        spec: dict[str, Any] = self.get("DaemonSet")["spec"]["template"]["spec"]
        return spec

    @property
    def container(self) -> dict[str, Any]:
        """The only container of the pod."""
        (container,) = self.pod["containers"]
        found: dict[str, Any] = container
        return found

    @property
    def settings(self) -> dict[str, str]:
        """The settings files by name."""
        files: dict[str, str] = self.get("ConfigMap")["data"]
        return files

    @property
    def capabilities(self) -> tuple[str, ...]:
        """The capabilities the container adds."""
        return tuple(self.container["securityContext"]["capabilities"].get("add", ()))

    @property
    def host_paths(self) -> tuple[str, ...]:
        """The names of the volumes that are paths of the node."""
        return tuple(volume["name"] for volume in self.pod["volumes"] if "hostPath" in volume)

    @property
    def memory_limit(self) -> int:
        """The container's limit in bytes."""
        return int(quantity(self.container["resources"]["limits"]["memory"]))

    def copy(self) -> Self:
        """Return one of its own, to be changed."""
        return type(self)(copy.deepcopy(self.objects))

    def without_capability(self, name: str) -> Self:
        """Return the same manifest, but that the container lacks this capability."""
        changed = self.copy()
        changed.container["securityContext"]["capabilities"]["add"].remove(name)
        return changed

    def without_volume(self, name: str) -> Self:
        """Return the same manifest, but that the container does not mount this volume."""
        changed = self.copy()
        changed.pod["volumes"] = [each for each in changed.pod["volumes"] if each["name"] != name]
        container = changed.container
        container["volumeMounts"] = [each for each in container["volumeMounts"] if each["name"] != name]
        return changed


@dataclass(frozen=True)
class Identity:
    """Who a pod is, and where: what its fieldRefs may ask for."""

    name: str
    namespace: str
    uid: str
    node_name: str
    node_address: str
    api_server: tuple[str, int] = ("10.96.0.1", 443)

    def field(self, path: str) -> str:
        """Return the value of a fieldRef."""
        known = {
            "metadata.name": self.name,
            "metadata.namespace": self.namespace,
            "metadata.uid": self.uid,
            "spec.nodeName": self.node_name,
            "status.hostIP": self.node_address,
            "status.podIP": self.node_address,  # the pods run here are in the node's own network
        }
        return known[path]


def quantity(text: str | float) -> Fraction:
    """Read a Kubernetes quantity: `100m`, `64Mi`, `1`."""
    word = str(text)
    for suffix in sorted(_SUFFIXES, key=len, reverse=True):
        if word.endswith(suffix):
            return Fraction(word.removesuffix(suffix)) * _SUFFIXES[suffix]
    return Fraction(word)


def qos(spec: Mapping[str, Any]) -> str:
    """Return the pod's QoS class: Guaranteed if every container has limits of both kinds and requests no less."""
    wanted: list[bool] = []
    named = False
    for container in [*spec["containers"], *spec.get("initContainers", ())]:
        resources = container.get("resources", {})
        limits, requests = resources.get("limits", {}), resources.get("requests", {})
        named |= bool(limits or requests)
        for kind in ("cpu", "memory"):
            limit = limits.get(kind)
            wanted.append(limit is not None and quantity(requests.get(kind, limit)) == quantity(limit))
    return "Guaranteed" if all(wanted) else "Burstable" if named else "BestEffort"


def pod_cgroup(spec: Mapping[str, Any], uid: str) -> str:
    """Return the pod's cgroup by the cgroupfs driver."""
    above = {"Guaranteed": "", "Burstable": "/burstable", "BestEffort": "/besteffort"}[qos(spec)]
    return f"/kubepods{above}/pod{uid}"


def sandbox_config(manifest: Manifest, who: Identity, log_directory: Path) -> dict[str, Any]:
    """Return the PodSandboxConfig."""
    spec = manifest.pod
    _only(spec, _POD_FIELDS, "pod")
    return {
        "metadata": {"name": who.name, "uid": who.uid, "namespace": who.namespace},
        "log_directory": str(log_directory),
        "labels": {
            **manifest.get("DaemonSet")["spec"]["template"]["metadata"].get("labels", {}),
            "io.kubernetes.pod.name": who.name,
            "io.kubernetes.pod.namespace": who.namespace,
            "io.kubernetes.pod.uid": who.uid,
        },
        "linux": {
            "cgroup_parent": pod_cgroup(spec, who.uid),
            "security_context": {"namespace_options": _namespaces(spec), "seccomp": _seccomp(spec, {})},
        },
    }


def container_config(
    spec: Mapping[str, Any],
    container: Mapping[str, Any],
    who: Identity,
    volumes: Mapping[str, tuple[Path, bool]],
    extra_mounts: Iterable[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Return the ContainerConfig of one container; `volumes` tells where each is, and whether it is read-only."""
    _only(container, _CONTAINER_FIELDS, f"container {container['name']}")
    return {
        "metadata": {"name": container["name"]},
        "image": {"image": container["image"]},
        "command": list(container.get("command", ())),
        "args": list(container.get("args", ())),
        "working_dir": container.get("workingDir", ""),
        "envs": [*_services(who), *({"key": e["name"], "value": _value(e, who)} for e in container.get("env", ()))],
        "mounts": [*(_mount(each, volumes) for each in container.get("volumeMounts", ())), *extra_mounts],
        "labels": {
            "io.kubernetes.container.name": container["name"],
            "io.kubernetes.pod.name": who.name,
            "io.kubernetes.pod.namespace": who.namespace,
            "io.kubernetes.pod.uid": who.uid,
        },
        "log_path": f"{container['name']}.log",
        "linux": {"resources": _resources(spec, container), "security_context": _security(spec, container)},
    }


def with_access(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the pod's spec as the API server admits it: with its token, if it is to have one, where clients look."""
    admitted: dict[str, Any] = copy.deepcopy(dict(spec))
    if not admitted.get("automountServiceAccountToken", True):
        return admitted
    namespace = {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}
    sources = [{"serviceAccountToken": {"path": "token"}}, {"configMap": {"name": ROOT_CA}}, {"downwardAPI": namespace}]
    admitted.setdefault("volumes", []).append({"name": _ACCESS, "projected": {"sources": sources}})
    for container in (*admitted["containers"], *admitted.get("initContainers", ())):
        mounts = container.setdefault("volumeMounts", [])
        mounts.append({"name": _ACCESS, "mountPath": _ACCESS_PATH, "readOnly": True})
    return admitted


def _services(who: Identity) -> list[dict[str, str]]:
    """The API server's address, which every container is told of."""
    host, port = who.api_server
    return [{"key": "KUBERNETES_SERVICE_HOST", "value": host}, {"key": "KUBERNETES_SERVICE_PORT", "value": str(port)}]


def _value(variable: Mapping[str, Any], who: Identity) -> str:
    if "value" in variable:
        return str(variable["value"])
    return who.field(variable["valueFrom"]["fieldRef"]["fieldPath"])


def _mount(mount: Mapping[str, Any], volumes: Mapping[str, tuple[Path, bool]]) -> dict[str, Any]:
    _only(mount, _MOUNT_FIELDS, f"mount {mount['name']}")
    place, read_only = volumes[mount["name"]]
    return {
        "container_path": mount["mountPath"],
        "host_path": str(place),
        "readonly": bool(mount.get("readOnly")) or read_only,
        "propagation": _PROPAGATION[mount.get("mountPropagation", "None")],
    }


def _resources(spec: Mapping[str, Any], container: Mapping[str, Any]) -> dict[str, int]:
    limits = container.get("resources", {}).get("limits", {})
    requests = container.get("resources", {}).get("requests", limits)
    found = {"cpu_period": _PERIOD, "oom_score_adj": _OOM_SCORES[qos(spec)]}
    found["cpu_shares"] = max(_LEAST_SHARES, int(quantity(requests.get("cpu", 0)) * 1024))
    if "cpu" in limits:
        found["cpu_quota"] = int(quantity(limits["cpu"]) * _PERIOD)
    if "memory" in limits:
        found["memory_limit_in_bytes"] = int(quantity(limits["memory"]))
    return found


def _security(spec: Mapping[str, Any], container: Mapping[str, Any]) -> dict[str, Any]:
    pod, own = spec.get("securityContext", {}), container.get("securityContext", {})
    for each in (pod, own):
        _only(each, _SECURITY_FIELDS, "securityContext")
    both = {**pod, **own}
    capabilities = both.get("capabilities", {})
    found: dict[str, Any] = {
        "capabilities": {
            "add_capabilities": list(capabilities.get("add", ())),
            "drop_capabilities": list(capabilities.get("drop", ())),
        },
        "privileged": bool(both.get("privileged")),
        "namespace_options": _namespaces(spec),
        "readonly_rootfs": bool(both.get("readOnlyRootFilesystem")),
        "no_new_privs": both.get("allowPrivilegeEscalation") is False,
        "masked_paths": list(_MASKED),
        "readonly_paths": list(_READ_ONLY),
        "seccomp": _seccomp(spec, own),
    }
    for field, word in (("run_as_user", "runAsUser"), ("run_as_group", "runAsGroup")):
        if word in both:
            found[field] = {"value": both[word]}
    return found


def _namespaces(spec: Mapping[str, Any]) -> dict[str, int]:
    return {
        "network": NODE if spec.get("hostNetwork") else POD,
        "pid": NODE if spec.get("hostPID") else CONTAINER,
        "ipc": POD,
    }


def _seccomp(spec: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, int]:
    profile = own.get("seccompProfile") or spec.get("securityContext", {}).get("seccompProfile")
    return {"profile_type": _SECCOMP[profile["type"]] if profile else _SECCOMP["Unconfined"]}


def _only(found: Mapping[str, Any], known: set[str], where: str) -> None:
    if set(found) - known:
        raise NotImplementedError(f"{where} has fields the lab does not know: {sorted(set(found) - known)}")
