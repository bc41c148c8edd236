"""Cgroups in every mounted hierarchy at once: v1, v2, or both side by side.

A cgroup which the lab makes carries the lab's mark (see ``marked``), so that one
of the machine's own is never removed, however empty it is.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from . import marked
from .processes import Process, identify, kill
from .waiting import wait_until

NODE_CONTROLLERS = ("cpu", "cpuset", "devices", "freezer", "memory", "pids")
"""Those that a kubelet and runc use in a node with cgroup v1."""


class CgroupV1MissingError(RuntimeError):
    """This machine has no cgroup v1 hierarchy for a controller that is needed."""


@dataclass(frozen=True)
class Hierarchy:
    """One mounted cgroup tree."""

    mount: Path
    version: int
    controllers: frozenset[str]

    def at(self, path: str) -> Path:
        """Return the directory of the cgroup ``path`` (``/kubepods/...``) in this tree."""
        return self.mount / path.lstrip("/")


def require_v1(controllers: Sequence[str] = NODE_CONTROLLERS) -> None:
    """Raise CgroupV1MissingError, which says what to do, if one of these controllers has no cgroup v1 hierarchy here.

    With cgroup v2 they would have to be enabled from the root down (`cgroup.subtree_control`), by cgroups without
    processes of their own; the lab does not do that.
    """
    missing = missing_v1(Path("/proc/self/mountinfo").read_text(), controllers)
    if missing:
        raise CgroupV1MissingError(
            f"This needs cgroup v1, and no cgroup v1 hierarchy is mounted on this machine for: {', '.join(missing)}. "
            "Debian 12 boots with cgroup v1 by the kernel parameter systemd.unified_cgroup_hierarchy=0."
        )


def missing_v1(mountinfo: str, controllers: Sequence[str] = NODE_CONTROLLERS) -> list[str]:
    """Return those of the controllers that have no cgroup v1 hierarchy, by the text of a mountinfo file."""
    mounted = {name for tree in parse_hierarchies(mountinfo) if tree.version == 1 for name in tree.controllers}
    return [name for name in controllers if name not in mounted]


def hierarchies() -> list[Hierarchy]:
    """List the cgroup trees mounted here, each once."""
    return parse_hierarchies(Path("/proc/self/mountinfo").read_text())


def parse_hierarchies(mountinfo: str) -> list[Hierarchy]:
    """Read them from mountinfo (proc_pid_mountinfo(5)), each by the first place where it can be written.

    A test beside this one may mount a hierarchy once more, read-only and for a moment.
    """
    found: dict[str, Hierarchy] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        _, _, device, _, mount, flags = before.split(" ")[:6]
        if "ro" in flags.split(","):
            continue
        if kind == "cgroup2":
            found.setdefault(device, Hierarchy(Path(mount), 2, frozenset()))
        elif kind == "cgroup":
            found.setdefault(device, Hierarchy(Path(mount), 1, frozenset(options.split(","))))
    return list(found.values())


def tracking_hierarchy() -> Hierarchy:
    """Return the tree in which the lab keeps count of its processes: v2 where there is one."""
    trees = hierarchies()
    for tree in trees:
        if tree.version == 2:
            return tree
    for tree in trees:
        if "pids" in tree.controllers:
            return tree
    raise RuntimeError("neither cgroup2 nor the pids controller is mounted")


def freezer_hierarchy(version: int | None = None) -> Hierarchy:
    """Return the tree that can freeze: the v1 freezer where it is mounted, else v2."""
    trees = hierarchies()
    if version != 2:
        for tree in trees:
            if "freezer" in tree.controllers:
                return tree
    if version != 1:
        for tree in trees:
            if tree.version == 2:
                return tree
    raise RuntimeError(f"no hierarchy can freeze (version asked for: {version or 'any'})")


def make(path: str, tree: Hierarchy | None = None) -> None:
    """Make the cgroup ``path`` in one tree or in all, marking each directory that is new."""
    for each in [tree] if tree else hierarchies():
        marked.make_directory(each.at(path))


def limit_pids(path: str, limit: int) -> None:
    """Limit the number of processes in the cgroup; `require_v1` says before it is made whether that is possible."""
    require_v1(("pids",))
    files = [tree.at(path) / "pids.max" for tree in hierarchies()]
    for file in files:
        if file.exists():
            file.write_text(str(limit))
            return
    raise RuntimeError(f"no pids controller governs {path}")


def members(path: str) -> set[int]:
    """Return the pids in the cgroup and all below it, in whichever tree they are seen."""
    pids: set[int] = set()
    for tree in hierarchies():
        for directory, _, _ in os.walk(tree.at(path)):
            # A group that vanishes while it is read has no members.
            with suppress(FileNotFoundError), suppress_vanished():
                pids.update(int(p) for p in (Path(directory) / "cgroup.procs").read_text().split())
    return pids


@contextmanager
def suppress_vanished() -> Iterator[None]:
    """Pass over the error which the kernel gives for a cgroup removed while open."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise


def member_processes(path: str) -> list[Process]:
    """Return the members with their start times; pid 0 (a stranger to our namespace) is left out."""
    found = []
    for pid in members(path) - {0}:
        with suppress(ProcessLookupError):
            found.append(identify(pid))
    return found


def kill_members(*paths: str, timeout: float = 20.0) -> None:
    """Thaw the cgroups, kill all that is in them, and wait until they are empty."""

    def emptied() -> bool:
        for path in paths:
            thaw(path)
        kill([process for path in paths for process in member_processes(path)], timeout)
        return not any(members(path) for path in paths)

    wait_until(emptied, timeout, f"cgroups {paths} empty")


def remove(path: str, timeout: float = 10.0) -> None:
    """Remove the emptied cgroup with all below it, then its parents if they are the lab's and empty."""
    for tree in hierarchies():
        top = tree.at(path)
        for directory, _, _ in os.walk(top, topdown=False):
            wait_until(lambda d=directory: _rmdir(Path(d)), timeout, f"removal of cgroup {directory}")  # type: ignore[misc]
        marked.remove_if_empty(top.parent)


def _rmdir(directory: Path) -> bool:
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        raise
    return True


def thaw(path: str) -> None:
    """Thaw the cgroup and every one below it, in every tree that can freeze."""
    for tree in hierarchies():
        for directory, _, _ in os.walk(tree.at(path)):
            with suppress(FileNotFoundError), suppress_vanished():
                if tree.version == 2 and (Path(directory) / "cgroup.freeze").exists():
                    (Path(directory) / "cgroup.freeze").write_text("0")
                elif "freezer" in tree.controllers:
                    (Path(directory) / "freezer.state").write_text("THAWED")


def cgroup_of(pid: int, tree: Hierarchy) -> str:
    """Return the path of the process' cgroup in the given tree."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if tree.version == 2 and controllers == "":
            return path
        if tree.version == 1 and controllers and set(controllers.split(",")) <= tree.controllers:
            return path
    raise LookupError(f"process {pid} is in no cgroup of {tree.mount}")


@contextmanager
def frozen(process: Process, version: int | None = None, timeout: float = 10.0) -> Iterator[Path]:
    """Hold one process in a frozen cgroup of its own; yield the cgroup's directory."""
    tree = freezer_hierarchy(version)
    origin = cgroup_of(process.pid, tree)
    path = f"/nodediag-lab-frozen-{secrets.token_hex(4)}"
    make(path, tree)
    directory = tree.at(path)
    try:
        (directory / "cgroup.procs").write_text(str(process.pid))
        if tree.version == 2:
            (directory / "cgroup.freeze").write_text("1")
            events = directory / "cgroup.events"
            wait_until(lambda: "frozen 1" in events.read_text(), timeout, f"{path} frozen")
        else:
            state = directory / "freezer.state"
            state.write_text("FROZEN")
            wait_until(lambda: state.read_text().strip() == "FROZEN", timeout, f"{path} frozen")
        yield directory
    finally:
        thaw(path)
        for pid in members(path):
            with suppress(ProcessLookupError):
                (tree.at(origin) / "cgroup.procs").write_text(str(pid))
        remove(path)
