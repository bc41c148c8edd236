"""Real processes in real cgroups of our own, for what ends and thaws them."""

import secrets
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from agent.host.procfs import Procfs
from agent.model import ProcessId
from tests.lab import cgroups
from tests.lab.cgroups import Hierarchy

PROCFS = Procfs("/proc")
TREES = tuple(tree for tree in cgroups.hierarchies() if tree.version == 2 or "freezer" in tree.controllers)
"""The hierarchies of this machine that can freeze: v1's, v2's, or both."""
V1_ALONE = tuple(tree for tree in TREES if tree.version == 1)


@dataclass
class Grove:
    """Cgroups `/<namespace>/<container>`, laid out as containerd does without Kubernetes, in every hierarchy."""

    namespace: str = field(default_factory=lambda: f"nodediag-unit-{secrets.token_hex(4)}")
    stack: ExitStack = field(default_factory=ExitStack)

    def make(self, *names: str) -> str:
        """Make a cgroup below the namespace's own, and return its path."""
        path = "/" + "/".join((self.namespace, *names))
        cgroups.make(path)
        return path

    def sleeper(self, path: str, *trees: Hierarchy, argv: tuple[str, ...] = ("sleep", "1000")) -> ProcessId:
        """Start a process and put it there, in these hierarchies or in all that can freeze."""
        process = subprocess.Popen(argv)
        self.stack.callback(_end, process)
        for tree in trees or TREES:
            (tree.at(path) / "cgroup.procs").write_text(str(process.pid))
        seen = PROCFS.process(process.pid)
        assert seen is not None
        return seen.id


@contextmanager
def grove() -> Iterator[Grove]:
    """Some cgroups for one test; afterwards all in them is thawed, ended and removed."""
    made = Grove()
    try:
        with made.stack:
            yield made
    finally:
        top = f"/{made.namespace}"
        cgroups.kill_members(top)
        cgroups.remove(top)


def v2() -> Hierarchy:
    return cgroups.freezer_hierarchy(2)


def freeze(tree: Hierarchy, path: str) -> Path:
    """Tell a cgroup to freeze, and return the switch that says so."""
    name, word = ("cgroup.freeze", "1") if tree.version == 2 else ("freezer.state", "FROZEN")
    switch = tree.at(path) / name
    switch.write_text(word)
    return switch


def _end(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        process.kill()
    for tree in cgroups.hierarchies():
        for line in PROCFS.cgroups(process.pid):
            path = line.split(":", 2)[2]
            if "nodediag-unit-" in path and tree.at(path).exists():
                cgroups.thaw("/" + path.split("/")[1])
    process.wait(10)
