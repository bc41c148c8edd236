"""Which container a process belongs to, and whether its cgroup is frozen. cgroup v1, v2 and both at once."""

import errno
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from agent.host.rights import SEARCH, Rights
from agent.model import DeploymentCause, DeploymentFault

NODE_CGROUPS = "/sys/fs/cgroup"
"""Where the hierarchies are mounted on the node itself, wherever they are read from here."""
MAX_CGROUPS = 4096
"""Cgroups below one that are looked into; a container that runs an init system has some dozens."""
MAX_PROCS_BYTES = 1 << 20

_KUBERNETES = re.compile(
    r"kubepods.*?[/-]pod(?P<uid>[^/:]+?)(?:\.slice)?[/:](?:cri-containerd[-:])?"
    r"(?P<container>[0-9a-f]{64})(?:\.scope)?(?=/|$)"
)
"""`pod<uid>/<id>` (cgroupfs driver), `...-pod<uid>.slice/cri-containerd-<id>.scope` (systemd driver), and
`...-pod<uid>.slice:cri-containerd:<id>` (the kubelet uses the systemd driver, containerd does not)."""


_POD = re.compile(r"(?:kubepods-.*-?)?pod[0-9a-f]")
"""The name of a pod's own cgroup, by either driver."""
_UNIT = re.compile(r"\.(?:service|scope|slice)\Z")
"""systemd.unit(5): the types of unit that have a cgroup."""


@dataclass(frozen=True, slots=True)
class CgroupOwner:
    """What a cgroup's path tells: the container's own cgroup and id, and the pod's uid if Kubernetes made it."""

    path: str
    container_id: str
    pod_uid: str = ""


@dataclass(frozen=True, slots=True)
class PidsLimit:
    """A limit of pids, how many of it are used, and the cgroup that has it, as in /proc/N/cgroup."""

    used: int
    limit: int
    cgroup: str

    @property
    def unit(self) -> str:
        """The systemd unit whose cgroup this is, so that the limit is its TasksMax; empty if it is no unit's."""
        name = self.cgroup.rpartition("/")[2]
        return name if _UNIT.search(name) and not self.of_kubernetes else ""

    @property
    def of_kubernetes(self) -> bool:
        """Whether it is the limit of a pod or of one of its containers."""
        return "kubepods" in self.cgroup and any(_POD.match(step) for step in self.cgroup.split("/"))

    @property
    def of_pod(self) -> bool:
        """Whether it is the limit of a whole pod."""
        return is_pods(self.cgroup)


@dataclass(frozen=True, slots=True)
class Freeze:
    """A cgroup that was told to freeze, and what would thaw it: `thawed` written to `switch` in `directory`.

    `path` is the cgroup's as in /proc/N/cgroup, `directory` its directory below fs/cgroup: `freezer/a` or `/a`.
    """

    path: str
    directory: str
    switch: str
    thawed: str


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


def unit(lines: tuple[str, ...]) -> str:
    """Return the systemd unit a process belongs to: the innermost service or scope in its path; empty if in none.

    Where v1 and v2 are side by side, systemd keeps its own tree on v2 or on the named hierarchy `name=systemd`.
    """
    by_controller = paths(lines)
    for path in (by_controller.get("name=systemd", ""), by_controller.get("", "")):
        steps = path.split("/")
        if not any(_POD.match(step) for step in steps):
            found = [step for step in steps if step.endswith((".service", ".scope"))]
            if found:
                return found[-1]
    return ""


def is_pods(path: str) -> bool:
    """Whether a path is exactly the cgroup of a whole pod."""
    return "kubepods" in path and bool(_POD.match(path.rpartition("/")[2]))


def is_own(path: str, container_id: str, namespaces: tuple[str, ...] = ()) -> bool:
    """Whether a path is exactly the cgroup of this one container: no pod's, none above, none below, none of another."""
    root, *steps = path.split("/")
    if root or {"", ".", ".."} & set(steps):
        return False
    found = _owner_of_path(path, namespaces)
    return found is not None and (found.path, found.container_id) == (path, container_id)


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

    def __init__(self, sys: str, rights: Rights | None = None) -> None:
        self._root = f"{sys}/fs/cgroup"
        self._rights = rights or Rights()

    def frozen(self, lines: tuple[str, ...]) -> str:
        """Return the path of the frozen cgroup that holds a process, from its /proc/N/cgroup lines; empty if none does.

        It may be a parent of the process's own: the one that was told to freeze is the one to thaw (see `freeze`).
        Where none up to the pod's was told, the effect decides: freezer.state on v1, `frozen 1` in cgroup.events on v2.
        """
        told = self.freeze(lines)
        if told is not None:
            return told.path
        by_controller = paths(lines)
        v1, v2 = by_controller.get("freezer", ""), by_controller.get("", "")
        if self._read(f"freezer{v1}/freezer.state") in {"FROZEN", "FREEZING"}:
            return v1
        if any("frozen 1" in self._read(f"{mount}{v2}/cgroup.events").split("\n") for mount in ("", "unified")):
            return v2
        return ""

    def freeze(self, lines: tuple[str, ...]) -> Freeze | None:
        """Return the nearest cgroup that was told to freeze and holds a process, up to its pod's; None if none was."""
        return next(self._freezes(lines), None)

    def freezes(self, lines: tuple[str, ...]) -> tuple[Freeze, ...]:
        """Return all cgroups that were told to freeze and hold a process, up to its pod's, the nearest first.

        systemd freezes a slice by telling that to every unit in it, too.
        """
        return tuple(self._freezes(lines))

    def is_told(self, freeze: Freeze) -> bool:
        """Whether a cgroup that was told to freeze still is."""
        told = "freezer.self_freezing" if freeze.switch == "freezer.state" else freeze.switch
        return self._read(f"{freeze.directory}/{told}") == "1"

    def _freezes(self, lines: tuple[str, ...]) -> Iterator[Freeze]:
        """Yield them; v1: freezer.self_freezing (freezer-subsystem.rst), v2: cgroup.freeze (cgroup-v2.rst)."""
        by_controller = paths(lines)
        v1, v2 = by_controller.get("freezer", ""), by_controller.get("", "")
        for mount, path, told, switch, thawed in (
            ("freezer", v1, "freezer.self_freezing", "freezer.state", "THAWED"),
            ("", v2, "cgroup.freeze", "cgroup.freeze", "0"),
            ("unified", v2, "cgroup.freeze", "cgroup.freeze", "0"),
        ):
            for directory in _upwards(path):
                if self._read(f"{mount}{directory}/{told}") == "1":
                    yield Freeze(directory, f"{mount}{directory}", switch, thawed)

    def thaw_file(self, lines: tuple[str, ...]) -> str:
        """Return the file of the node that thaws the cgroup which `freeze` names; empty if there is none.

        It lies in the hierarchy that froze it, which on a node with v1 and v2 side by side may be either.
        """
        told = self.freeze(lines)
        return f"{NODE_CGROUPS}/{told.directory.lstrip('/')}/{told.switch}" if told is not None else ""

    def hidden(self, lines: tuple[str, ...]) -> str:
        """Return why the cgroups of a process cannot be looked into here; empty if they can, or if it is in none."""
        fault = self.fault(lines)
        return str(fault) if fault else ""

    def fault(self, lines: tuple[str, ...]) -> DeploymentFault | None:
        """Return what of the agent's deployment hides the cgroups of a process; None if nothing does.

        A container sees its own cgroup alone where the node's would be, unless those are mounted there (v1), and its
        cgroup namespace names all others by a way out of it (v2; cgroup_namespaces(7)).
        """
        places = [(name.removeprefix("name="), path) for name, path in paths(lines).items() if path != "/"]
        places += [("unified", path) for name, path in places if not name]
        denied: DeploymentFault | None = None
        for mount, path in places:
            folder = f"{self._root}/{mount}{path}"
            try:
                if ".." not in path.split("/") and stat.S_ISDIR(os.stat(folder).st_mode):
                    return None
            except PermissionError as error:
                denied = self._rights.path(folder, error, SEARCH)
            except OSError:
                continue
        if denied or not places:
            return denied
        message = f"{self._root} does not show the node's cgroups here"
        return DeploymentFault(DeploymentCause.MOUNT, self._root, message, "mount the node's")

    def members(self, path: str) -> frozenset[int]:
        """Return the pids in a cgroup and in those below it, over all hierarchies; 0 is one of another pid namespace.

        Empty if no hierarchy has the cgroup. Raises OSError if a list cannot be read or no hierarchy is to be seen.
        """
        steps = path.split("/")
        if ".." in steps:
            raise OSError(errno.EXDEV, "it lies outside of the cgroup namespace this agent runs in", path)
        if steps[0] or {"", "."} & set(steps[1:]):
            raise OSError(errno.EINVAL, "no path of a cgroup", path)
        found: set[int] = set()
        for mount in self._mounts():
            for directory in islice(_tree(f"{self._root}/{mount}{path}"), MAX_CGROUPS):
                found.update(_procs(f"{directory}/cgroup.procs"))
        return frozenset(found)

    def _mounts(self) -> tuple[str, ...]:
        """The hierarchies below fs/cgroup: itself on v2, else one directory each (cgroups(7))."""
        if os.path.exists(f"{self._root}/cgroup.procs"):
            return ("",)
        with os.scandir(self._root) as entries:
            mounts = tuple(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        if not mounts:
            raise OSError(errno.ENOENT, "no cgroup hierarchy is to be seen", self._root)
        return mounts

    def pids(self, lines: tuple[str, ...]) -> PidsLimit | None:
        """Return the most used-up limit of pids that holds for a process, or None if there is none.

        Looked for in its own cgroup and those above, up to the pod's; outside a pod up to the root.
        """
        by_controller = paths(lines)
        v1, v2 = by_controller.get("pids", ""), by_controller.get("", "")
        limits = [
            limit
            for mount, path in (("pids", v1), ("", v2), ("unified", v2))
            for directory in _upwards(path)
            if (limit := self._pids_limit(mount, directory))
        ]
        return max(limits, key=lambda each: each.used / max(1, each.limit), default=None)

    def _pids_limit(self, mount: str, path: str) -> PidsLimit | None:
        limit, current = self._read(f"{mount}{path}/pids.max"), self._read(f"{mount}{path}/pids.current")
        return PidsLimit(int(current), int(limit), path) if limit.isdigit() and current.isdigit() else None

    def _read(self, path: str) -> str:
        if "/../" in f"{path}/":
            return ""
        try:
            with open(f"{self._root}/{path}", "rb", buffering=0) as stream:
                return stream.read(4096).decode(errors="replace").strip()
        except OSError:
            return ""


def _tree(top: str) -> Iterator[str]:
    """A directory and all below it; what vanishes is passed over, what cannot be read is an OSError."""
    todo = [top]
    while todo:
        directory = todo.pop()
        try:
            with os.scandir(directory) as entries:
                todo += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            continue
        yield directory


def _procs(file: str) -> Iterator[int]:
    """The pids of a cgroup.procs. EOPNOTSUPP: a threaded cgroup, whose processes stand in the one above."""
    try:
        with open(file, "rb") as stream:
            words = stream.read(MAX_PROCS_BYTES).split()
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP}:
            return
        raise
    yield from (int(word) for word in words)


def _upwards(path: str) -> list[str]:
    """Return a cgroup path and its parents up to the pod's, without the root: `/a/b` gives `/a/b` and `/a`."""
    parts = [part for part in path.split("/") if part]
    top = next((index for index, part in enumerate(parts) if _POD.match(part)), 0)
    return ["/" + "/".join(parts[:length]) for length in range(len(parts), top, -1)]
