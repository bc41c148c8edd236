"""Runs a command and fails if the machine is not as before: `python -m tools.leaves_no_trace COMMAND...`.

What is compared: mounts, cgroups of every hierarchy, network links, packet filter rules, sysctls, files where the tests
may leave some (named network namespaces are files in /run), names of Unix sockets, and the processes that the command
started. All of the machine is compared, and lanes run side by side: so within such a run only the outermost compares.
"""

import fcntl
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatch
from pathlib import Path
from typing import TextIO
from uuid import uuid4

MARK = "NODEDIAG_LEAVES_NO_TRACE"
"""Set in the environment of the command, by which its processes are known; in that of a lane, that it is compared."""
LOCK = Path("/run/lock/nodediag-leaves-no-trace")
"""Held by each outermost run: what another one has just made cannot be told from what is left."""
SETTLED_SECONDS = 20.0
"""What ends with the command may take a moment: containerd removes bundles, and the kernel removes namespaces."""
PAUSE_SECONDS = 0.5
PLACES = {
    "/run": ("*",),
    "/var/lib": ("kubelet", "nodediag", "containerd", "cni", "etcd", "calico"),
    "/var/log": ("pods", "containers", "kubernetes", "nodediag"),
    "/etc": ("cni", "containerd", "kubernetes", "nodediag", "resolv.conf"),
    "/dev/shm": ("nodediag*", "ndlab*"),  # noqa: S108 - looked at, not used
    tempfile.gettempdir(): ("nodediag*", "ndlab*"),
}
"""Where a part of a node may leave files, and by which names; installing a package makes others."""
DEPTH = 3
KEPT = ("/run/lock", "/run/mount", "/run/xtables.lock", "/run/containers", "/run/libpod")
"""What util-linux, iptables and buildah make for themselves wherever they are run."""
OF_SYSTEMD = ("/run/credentials", "/run/log", "/run/systemd", "/run/udev", "/run/user")
"""Where files, sockets and mounts come and go with services, devices and logins, on a machine with systemd."""
CGROUPS_OF_SYSTEMD = ("init.scope", "system.slice", "user.slice")
"""In the root of a hierarchy; where the cgroups of services and logins are."""
BUS_CLIENT = re.compile(r"@[0-9a-f]+/bus/")
"""The name that a client of sd-bus gives its socket."""
SYSCTLS = (
    "kernel/core_pattern",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/pid_max",
    "kernel/threads-max",
    "net/ipv4/conf",
    "net/ipv4/ip_forward",
    "net/netfilter",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
)
"""Those that the lab or a kubelet may write."""
VOLATILE = ("net/netfilter/nf_conntrack_count",)
LASTING = ("links", "rules", "sysctls")
"""What must also be there still. Of the others, what another program had made before may go meanwhile."""
RULES = (("iptables-save",), ("ip6tables-save",), ("nft", "list", "ruleset"))


@dataclass(frozen=True)
class Machine:
    """What is there, one line each."""

    mounts: frozenset[str]
    cgroups: frozenset[str]
    links: frozenset[str]
    rules: frozenset[str]
    sysctls: frozenset[str]
    files: frozenset[str]
    sockets: frozenset[str]

    def differences(self, before: "Machine") -> Iterator[str]:
        """Yield what has come and what has gone since, one line each."""
        for each in fields(self):
            was, now = getattr(before, each.name), getattr(self, each.name)
            yield from (f"{each.name}: left {line}" for line in sorted(now - was))
            if each.name in LASTING:
                yield from (f"{each.name}: gone {line}" for line in sorted(was - now))


def main() -> None:
    """Run the command, compare, and exit as the command did, or with 1 if it left something."""
    command = sys.argv[1:]
    if MARK in os.environ:
        os.execvp(command[0], command)  # noqa: S606 - the command that was given
    code, left = run(command)
    for line in left:
        print(f"{' '.join(command)} has left a trace: {line}", file=sys.stderr)  # noqa: T201
    sys.exit(code or (1 if left else 0))


def run(command: list[str], seconds: float = SETTLED_SECONDS) -> tuple[int, list[str]]:
    """Run the command; return its exit status and what it left, as `settled` does."""
    mark = str(uuid4())
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with LOCK.open("w") as lock:
        beside, before = not _locked(lock, fcntl.LOCK_EX), machine()
        fcntl.flock(lock, fcntl.LOCK_SH)
        code = subprocess.run(command, env={**os.environ, MARK: mark}, check=False).returncode  # noqa: S603
        if not beside and _locked(lock, fcntl.LOCK_EX):
            return code, settled(before, mark, seconds)
    print("Another run of the tests is on this machine: only the processes of this one are compared.", file=sys.stderr)  # noqa: T201
    return code, settled(None, mark, seconds)


def _locked(lock: TextIO, how: int) -> bool:
    """Whether the lock could be had: not if another run holds it."""
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def settled(before: Machine | None, mark: str, seconds: float = SETTLED_SECONDS) -> list[str]:
    """Wait until nothing is different; return what still is after the time that this may take.

    Without `before` only processes count.
    """
    deadline = time.monotonic() + seconds
    while True:
        left = [f"processes: left {each}" for each in processes(mark)]
        left += machine().differences(before) if before else ()
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(PAUSE_SECONDS)


def machine(places: Mapping[str, tuple[str, ...]] = PLACES) -> Machine:
    """Return what is there now."""
    return Machine(
        mounts=frozenset(_mounts()),
        cgroups=frozenset(_cgroups()),
        links=frozenset(os.listdir("/sys/class/net")),  # noqa: PTH208 - names
        rules=frozenset(_rules()),
        sysctls=frozenset(_sysctls()),
        files=frozenset(path for place, names in places.items() for path in _below(place, names, DEPTH)),
        sockets=frozenset(_sockets()),
    )


def processes(mark: str) -> Iterator[str]:
    """Yield the processes that have this mark in their environment: those that the command started."""
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and mark.encode() in (folder / "environ").read_bytes():
                yield f"{folder.name} {(folder / 'comm').read_text().strip()}"
        except OSError:
            continue  # it has ended, or is a zombie


def _mounts() -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if not is_below(before.split()[4], OF_SYSTEMD):
            yield f"{before.split()[4]} ({after.split()[0]})"


def _cgroups() -> Iterator[str]:
    roots = {line.split()[0] for line in _mounts() if line.endswith(("(cgroup)", "(cgroup2)"))}
    for root in roots:
        yield from cgroups_below(root)


def cgroups_below(root: str) -> Iterator[str]:
    """Yield the cgroups of a hierarchy, without those of systemd's services and logins."""
    for folder, below, _ in os.walk(root):
        yield folder
        if folder == root:
            below[:] = (name for name in below if name not in CGROUPS_OF_SYSTEMD)


def is_below(path: str, folders: tuple[str, ...]) -> bool:
    """Whether the path is one of these folders or in one of them."""
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


def _rules() -> Iterator[str]:
    for command in RULES:
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        except FileNotFoundError:
            continue
        yield from (
            f"{command[0]}: {line}" for line in done.stdout.splitlines() if line.startswith(("-", "\t", "table"))
        )


def _sysctls() -> Iterator[str]:
    root = Path("/proc/sys")
    for path in (each for name in SYSCTLS for each in (root / name, *(root / name).rglob("*"))):
        key = str(path.relative_to(root))
        try:
            if key not in VOLATILE and path.is_file():
                yield f"{key} = {path.read_text().strip()}"
        except OSError:
            continue  # it can only be written, or its interface has gone


def _below(place: str, names: tuple[str, ...], depth: int) -> Iterator[str]:
    try:
        found = [*os.scandir(place)]
    except OSError:
        return
    for entry in found:
        if is_below(entry.path, KEPT + OF_SYSTEMD) or not any(fnmatch(entry.name, name) for name in names):
            continue
        yield entry.path
        if depth > 1 and entry.is_dir(follow_symlinks=False):
            yield from _below(entry.path, ("*",), depth - 1)


def _sockets() -> Iterator[str]:
    lines = (line.split(maxsplit=7) for line in Path("/proc/net/unix").read_text().splitlines()[1:])
    names = (words[7] for words in lines if len(words) == 8)
    return (
        name for name in names if not name.startswith(f"{tempfile.gettempdir()}/pytest-of-") and not _is_systemds(name)
    )


def _is_systemds(socket: str) -> bool:
    return is_below(socket, OF_SYSTEMD) or BUS_CLIENT.match(socket) is not None


if __name__ == "__main__":
    main()
