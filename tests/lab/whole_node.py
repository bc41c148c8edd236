"""A node to itself, with the machine's paths and all: for what must stand where Kubernetes' defaults say.

`netns.Node` gives pid 1, network and mounts of its own.  A manifest wants more: `/run/containerd`, `/var/lib/kubelet`
and `/sys/fs/cgroup` are written in it, and they are the machine's.  So this node has a cgroup namespace as well, file
systems of its own over those places, and the test run itself lives in it: seen from there everything is where it is on
a node, pids mean the same to the lab and to what it starts, and the end of pid 1 ends all of it, however it went.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from . import cgroups
from .netns import Node
from .processes import Process, children_of, kill

T = TypeVar("T")

INSIDE = "NODEDIAG_LAB_WHOLE_NODE"
"""Set in the environment of what runs inside, to the node's folder on the machine's disk."""
MACHINE_NETWORK = "NODEDIAG_LAB_MACHINE_NETWORK"
"""The descriptor inherited there of the machine's network namespace: some sysctls are written from it alone."""
NAMESERVER = "10.96.0.10"
ADDRESS = "192.0.2.10"

_CLONE_NEWNET = 0x40000000
_FRESH = ("/run", "/var/lib", "/var/log")
"""Where the node has a file system of its own, in memory."""
_ON_DISK = "/var/lib/containerd"
"""Images are unpacked there; a container that reads their files from memory would not be charged for their pages.

The one folder of containerd's that is made here, since something is mounted on it: with the mode containerd gives it.
"""
_INIT = """
import pathlib, signal
pathlib.Path("/proc/self/comm").write_text("init")
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("ready", flush=True)
while True:
    signal.pause()
"""


def is_inside() -> bool:
    """Tell whether this process runs in a whole node."""
    return INSIDE in os.environ


def in_machine_network(function: Callable[[], T]) -> T:
    """Call a function in the network namespace of the machine, in a thread of its own, and return what it returns.

    Outside of a whole node that is where we are anyway.
    """
    if not is_inside():
        return function()
    outcome: list[T] = []

    def call() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(int(os.environ[MACHINE_NETWORK]), _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        outcome.append(function())

    thread = threading.Thread(target=call, name="lab-machine")
    thread.start()
    thread.join()
    return outcome[0]


class ThisNode(Node):
    """The whole node we are in, for the faults that want a `Node`: nothing has to be entered."""

    def command(self, *argv: str) -> list[str]:
        """Return the command line as it is."""
        return list(argv)

    def make_socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Make a socket here."""
        return socket.socket(family, kind, protocol)


class WholeNode:
    """The node, as a context manager; `run` runs a command in it.

    Without cgroup v1 it refuses to be made (`cgroups.CgroupV1MissingError`).
    """

    def __init__(self) -> None:
        cgroups.require_v1()
        self.base = Path(tempfile.mkdtemp(prefix="ndlab-node-"))
        self.cgroup = f"/nodediag-lab-{secrets.token_hex(4)}"
        self._undo = ExitStack()
        self._init: Process | None = None

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.callback(shutil.rmtree, self.base, ignore_errors=True)
            self._make_cgroup()
            undo.callback(self._remove_cgroup)
            self._launch(undo)
            self._furnish()
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    @property
    def init(self) -> Process:
        """The node's pid 1, seen from outside."""
        if self._init is None:
            raise RuntimeError("the node is not up")
        return self._init

    def run(self, *argv: str) -> int:
        """Run a command in the node, on our own terminal, and return its exit status."""
        with Path("/proc/self/ns/net").open() as network:
            descriptor = network.fileno()
            environment = {
                **os.environ, INSIDE: str(self.base), MACHINE_NETWORK: str(descriptor), "TMPDIR": str(self.base / "tmp")
            }  # fmt: skip
            here = ["env", f"--chdir={Path.cwd()}"]  # entering mounts leads to their root
            command = self._in_cgroup([*self._entering(), *here, *argv])
            return subprocess.run(command, env=environment, check=False, pass_fds=[descriptor]).returncode

    # -- inside ---------------------------------------------------------------

    def _make_cgroup(self) -> None:
        cgroups.make(self.cgroup)
        for tree in cgroups.hierarchies():
            if "cpuset" in tree.controllers:  # nothing may enter before it says where one may run
                for name in ("cpuset.cpus", "cpuset.mems"):
                    (tree.at(self.cgroup) / name).write_text((tree.mount / name).read_text())

    def _remove_cgroup(self) -> None:
        cgroups.kill_members(self.cgroup)
        cgroups.remove(self.cgroup)

    def _launch(self, undo: ExitStack) -> None:
        own = ["--pid", "--net", "--mount", "--cgroup", "--ipc", "--mount-proc"]
        # Whoever made the node may be killed: then the first of these ends, and with it the node.
        unshare = ["setpriv", "--pdeathsig=KILL", "unshare", "--fork", "--kill-child", *own, "--"]
        command = self._in_cgroup([*unshare, sys.executable, "-I", "-S", "-c", _INIT])
        launcher = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        undo.callback(self._end, launcher)
        if launcher.stdout is None or launcher.stdout.readline() != b"ready\n":
            raise RuntimeError("the node's first process did not start")
        (self._init,) = children_of(launcher.pid)

    def _end(self, launcher: subprocess.Popen[bytes]) -> None:
        launcher.kill()
        launcher.wait(10.0)
        if launcher.stdout is not None:
            launcher.stdout.close()
        if self._init is not None:
            kill([self._init])

    def _furnish(self) -> None:
        (self.base / "tmp").mkdir()
        (self.base / "disk").mkdir(mode=0o711)
        (self.base / "resolv.conf").write_text(f"nameserver {NAMESERVER}\n")
        script = [
            "set -e",
            *(f"mount -t tmpfs -o mode=755 tmpfs {place}" for place in _FRESH),
            "mkdir -p /run/lock /var/log/pods " + _ON_DISK,
            "mkdir -m 750 /var/lib/kubelet",  # as the kubelet makes it, which is played here
            f"mount --bind {self.base}/disk {_ON_DISK}",
            f"mount --bind {self.base}/resolv.conf /etc/resolv.conf",
            *_cgroup_mounts(),
            "mount --make-rshared /",  # as systemd has it, among the mounts of this node alone
            "ip link set lo up",
            *(f"ip address add {address}/32 dev lo" for address in (NAMESERVER, ADDRESS)),
        ]
        command = self._in_cgroup([*self._entering(), "sh", "-c", "\n".join(script)])
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"the node could not be furnished: {done.stderr.strip()}")

    def _entering(self) -> list[str]:
        return ["nsenter", f"--target={self.init.pid}", "--pid", "--net", "--mount", "--cgroup", "--ipc", "--"]

    def _in_cgroup(self, argv: list[str]) -> list[str]:
        procs = [str(tree.at(self.cgroup) / "cgroup.procs") for tree in cgroups.hierarchies()]
        entering = 'while [ "$1" != -- ]; do echo $$ >"$1"; shift; done; shift; exec "$@"'
        return ["sh", "-ec", entering, "sh", *procs, "--", *argv]


def _cgroup_mounts() -> list[str]:
    """Mount every hierarchy anew, so that its root is the node's own cgroup, as cgroup_namespaces(7) tells."""
    lines = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        place = before.split(" ")[4]
        if kind == "cgroup2":
            lines += [f"umount {place}", f"mount -t cgroup2 cgroup2 {place}"]
        elif kind == "cgroup":
            wanted = ",".join(word for word in options.split(",") if word not in ("rw", "ro"))
            wanted = f"none,{wanted}" if wanted.startswith("name=") else wanted
            lines += [f"umount {place}", f"mount -t cgroup -o {wanted} cgroup {place}"]
    return lines
