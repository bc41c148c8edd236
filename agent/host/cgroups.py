"""Which container a process belongs to, and whether its cgroup is frozen. cgroup v1, v2 and both at once."""

import re
from dataclasses import dataclass

_KUBERNETES = re.compile(
    r"kubepods.*?[/-]pod(?P<uid>[^/:]+?)(?:\.slice)?[/:](?:cri-containerd[-:])?"
    r"(?P<container>[0-9a-f]{64})(?:\.scope)?(?=/|$)"
)
"""`pod<uid>/<id>` (cgroupfs driver), `...-pod<uid>.slice/cri-containerd-<id>.scope` (systemd driver), and
`...-pod<uid>.slice:cri-containerd:<id>` (the kubelet uses the systemd driver, containerd does not)."""


_POD = re.compile(r"(?:kubepods-.*-?)?pod[0-9a-f]")
"""The name of a pod's own cgroup, by either driver."""


@dataclass(frozen=True, slots=True)
class CgroupOwner:
    """What a cgroup's path tells: the container's own cgroup and id, and the pod's uid if Kubernetes made it."""

    path: str
    container_id: str
    pod_uid: str = ""


def paths(lines: tuple[str, ...]) -> dict[str, str]:
    """Map controller names to paths from the lines of /proc/N/cgroup; v2 has the name `""` (cgroups(7))."""
    found: dict[str, str] = {}
    for line in lines:
        parts = line.split(":", 2)
        if len(parts) == 3:
            for controller in parts[1].split(","):
                found[controller] = parts[2]
    return found


def owner(lines: tuple[str, ...], namespaces: tuple[str, ...] = ()) -> CgroupOwner | None:
    """Return the container a process belongs to, or None if its cgroups name none of containerd's.

    Known layouts: those of Kubernetes (see _KUBERNETES) and containerd's own default `/<namespace>/<id>` for the
    namespaces given. What a container made below its own cgroup still belongs to it, whatever it is called. A zombie
    on cgroup v1 keeps its path on the `0::` line only, so every line is looked at.
    """
    found = (_owner_of_path(path, namespaces) for path in dict.fromkeys(paths(lines).values()))
    return next((owner for owner in found if owner is not None), None)


def _owner_of_path(path: str, namespaces: tuple[str, ...]) -> CgroupOwner | None:
    kubernetes = _KUBERNETES.search(path)
    if kubernetes:
        return CgroupOwner(path[: kubernetes.end()], kubernetes["container"], kubernetes["uid"].replace("_", "-"))
    for namespace in namespaces:
        prefix = f"/{namespace}/"
        container_id = path.removeprefix(prefix).partition("/")[0]
        if path.startswith(prefix) and container_id:
            return CgroupOwner(prefix + container_id, container_id)
    return None


class Cgroups:
    """Reads below one sysfs root's fs/cgroup, whichever versions are mounted there."""

    def __init__(self, sys: str) -> None:
        self._root = f"{sys}/fs/cgroup"

    def frozen(self, lines: tuple[str, ...]) -> str:
        """Return the path of the frozen cgroup that holds a process, from its /proc/N/cgroup lines; empty if none does.

        It may be a parent of the process's own: the one that was told to freeze is the one to thaw. v1:
        freezer.self_freezing, and freezer.state for the effect (freezer-subsystem.rst); v2: cgroup.freeze, and
        `frozen 1` in cgroup.events (cgroup-v2.rst).
        """
        by_controller = paths(lines)
        v1, v2 = by_controller.get("freezer", ""), by_controller.get("", "")
        for mount, path, switch in (
            ("freezer", v1, "freezer.self_freezing"),
            ("", v2, "cgroup.freeze"),
            ("unified", v2, "cgroup.freeze"),
        ):
            for directory in _upwards(path):
                if self._read(f"{mount}{directory}/{switch}") == "1":
                    return directory
        if self._read(f"freezer{v1}/freezer.state") in {"FROZEN", "FREEZING"}:
            return v1
        if any("frozen 1" in self._read(f"{mount}{v2}/cgroup.events").split("\n") for mount in ("", "unified")):
            return v2
        return ""

    def pids(self, lines: tuple[str, ...]) -> tuple[int, int] | None:
        """Return (pids.current, pids.max) of the most used-up limit of a process's pod, or None if there is none.

        Looked for in its own cgroup and those above, up to the pod's; outside a pod up to the root.
        """
        by_controller = paths(lines)
        v1, v2 = by_controller.get("pids", ""), by_controller.get("", "")
        limits = [
            limit
            for mount, path in (("pids", v1), ("", v2), ("unified", v2))
            for directory in _upwards(path)
            if (limit := self._pids_limit(f"{mount}{directory}"))
        ]
        return max(limits, key=lambda pair: pair[0] / max(1, pair[1]), default=None)

    def _pids_limit(self, directory: str) -> tuple[int, int] | None:
        limit, current = self._read(f"{directory}/pids.max"), self._read(f"{directory}/pids.current")
        return (int(current), int(limit)) if limit.isdigit() and current.isdigit() else None

    def _read(self, path: str) -> str:
        if "/../" in f"{path}/":
            return ""
        try:
            with open(f"{self._root}/{path}", "rb", buffering=0) as stream:
                return stream.read(4096).decode(errors="replace").strip()
        except OSError:
            return ""


def _upwards(path: str) -> list[str]:
    """Return a cgroup path and its parents up to the pod's, without the root: `/a/b` gives `/a/b` and `/a`."""
    parts = [part for part in path.split("/") if part]
    top = next((index for index, part in enumerate(parts) if _POD.match(part)), 0)
    return ["/" + "/".join(parts[:length]) for length in range(len(parts), top, -1)]
