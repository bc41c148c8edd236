"""A footprint of a lab while it runs, to prove afterwards that none of it is left.

Only what bears the lab's own names and identities is looked for: other work on
the machine, a second lab too, comes and goes without disturbing the proof.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import cgroups
from .containerd import Containerd
from .processes import Process, all_stats, state_of


@dataclass(frozen=True)
class Footprint:
    """The marks a lab leaves on the machine while it runs."""

    base: Path
    processes: frozenset[Process]
    cgroups: frozenset[str]
    sockets: frozenset[Path]

    def leftovers(self) -> list[str]:
        """Return what is left, one line each.

        A process counts until it is reaped, so this wants to be waited for.
        """
        left = [f"process {p.pid} in state {state_of(p)}" for p in self.processes if state_of(p)]
        left += [f"directory {self.base}"] if self.base.exists() else []
        left += [f"mount {line}" for line in _lines("/proc/self/mountinfo") if str(self.base) in line]
        for path in self.cgroups:
            left += [f"cgroup {tree.at(path)}" for tree in cgroups.hierarchies() if tree.at(path).exists()]
        listening = _lines("/proc/net/unix")
        for socket in self.sockets:
            left += [f"socket file {socket}"] if socket.exists() else []
            left += [f"unix socket {line}" for line in listening if line.endswith(str(socket))]
        left += [f"unix socket {line}" for line in listening if str(self.base) in line]
        left += [f"shim {pid}" for pid in shims_of(self.base)]
        return left


def footprint(containerd: Containerd) -> Footprint:
    """Take the footprint of a running lab, with everything that runs in its cgroups now."""
    paths = containerd.all_cgroups()
    processes = [process for path in paths for process in cgroups.member_processes(path)]
    return Footprint(
        base=containerd.base,
        processes=frozenset([containerd.process, *processes]),
        cgroups=frozenset(paths),
        sockets=frozenset(c.shim_socket for c in containerd.containers.values()),
    )


def shims_of(base: Path) -> list[int]:
    """Return the shims which serve a containerd below this directory."""
    found = []
    for stat in all_stats():
        if stat.comm.startswith(b"containerd-shim") and stat.state not in "ZX":
            try:
                command = Path(f"/proc/{stat.pid}/cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if str(base).encode() in command:
                found.append(stat.pid)
    return found


def _lines(file: str) -> list[str]:
    return Path(file).read_text().splitlines()
