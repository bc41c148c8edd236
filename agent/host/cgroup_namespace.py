"""The paths of cgroups as the node names them, though read from within a cgroup namespace.

On cgroup v2 the runtime gives every container that is not privileged a cgroup namespace of its own, whatever hostPID
says.  /proc/N/cgroup then tells each path as seen from the container's own cgroup: `/` is that cgroup, and all others
begin with as many `/..` as lead out of it (cgroup_namespaces(7)).  Such a path names nobody's pod and opens no file.
Our own place in the node's tree cannot be asked for; it is the cgroup that lists our pid, in the tree mounted here.
"""

import os
from collections.abc import Iterator
from pathlib import Path

OUT = "/.."
_V2 = "0::"
MAX_CGROUPS = 20_000
"""Looked into before the search is given up; a node has some five for each of its pods, and some hundreds more."""
MAX_BYTES = 1 << 16


class CgroupNamespace:
    """Puts the node's names in place of those seen from here; `proc` and `sys` are the roots of those file systems."""

    def __init__(self, proc: str, sys: str) -> None:
        self._proc = proc
        self._trees = (f"{sys}/fs/cgroup", f"{sys}/fs/cgroup/unified")
        self._own: str | None = None

    def outside(self, lines: tuple[str, ...]) -> tuple[str, ...]:
        """Return the lines of a process's cgroup file with the node's path on the line of v2.

        They are returned as they are outside of a namespace, and where our own place in the tree is not to be found.
        """
        if self._own is None:
            self._own = self._find()
        if not self._own:
            return lines
        return tuple(self._resolved(line) if line.startswith(_V2) else line for line in lines)

    def _resolved(self, line: str) -> str:
        rest, own = line.removeprefix(_V2), self._own or ""
        while rest == OUT or rest.startswith(f"{OUT}/"):
            rest, own = rest.removeprefix(OUT), own.rpartition("/")[0]
        return f"{_V2}{own}{'' if rest == '/' and own else rest}" if own or rest else f"{_V2}/"

    def _find(self) -> str:
        """Return the path of our own cgroup; empty if we are in no namespace, or if it is not to be found."""
        depth = self._depth()
        if not depth:
            return ""
        own = str(os.getpid()).encode()
        for tree in self._trees:
            if not os.path.exists(f"{tree}/cgroup.controllers"):  # on v1 and v2 side by side, v2's lies below
                continue
            for looked, path in enumerate(_at_depth(tree, "", depth)):
                if looked >= MAX_CGROUPS:
                    break
                if own in _members(f"{tree}{path}"):
                    return path
        return ""

    def _depth(self) -> int:
        """How many steps lead out of our namespace to the root, by the place of the node's first process."""
        try:
            lines = Path(f"{self._proc}/1/cgroup").read_text().splitlines()
        except OSError:
            return 0
        return next((line.count(OUT) for line in lines if line.startswith(f"{_V2}{OUT}")), 0)


def _at_depth(tree: str, path: str, depth: int) -> Iterator[str]:
    if not depth:
        yield path
        return
    try:
        with os.scandir(f"{tree}{path}/") as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return
    for name in names:
        yield from _at_depth(tree, f"{path}/{name}", depth - 1)


def _members(directory: str) -> list[bytes]:
    try:
        with open(f"{directory}/cgroup.procs", "rb") as file:
            return file.read(MAX_BYTES).split()
    except OSError:
        return []
