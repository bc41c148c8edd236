"""Zombies to order: many at once, a slow leak, and the harmless kind that is reaped.

They are bred by a small C program (``breeder.c``), as pid 1 of a container or
outside of any, and stay its direct children: a parent that does not reap, as
behind an exec probe that times out.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .containerd import Containerd
from .containers import delete_container, run_container
from .pods import Container, Mount, Pod
from .processes import Process, Stat, all_stats, identify
from .rootfs import compile_static
from .waiting import wait_until

REDIS_CLI = b"redis-cli"
HOSTILE_NAMES = (b"a) Z 1 1 1", b"new\nline", b'quo"te\\', b"\xff\xfe bad utf8", b"((()))) R 1")
"""Names a workload may choose to lead a parser astray."""

_SOURCE = Path(__file__).with_name("breeder.c")
_LONGEST_NAME = 15
_SPARE_PIDS = 2000


@dataclass(frozen=True)
class Breeder:
    """A process which breeds zombies when told to; ``container`` is None outside of any."""

    process: Process
    control: Path
    container: Container | None = None

    def breed(self, count: int, name: bytes = REDIS_CLI) -> None:
        """Add that many zombies now."""
        pid_max = int(Path("/proc/sys/kernel/pid_max").read_text())
        if count > pid_max - _SPARE_PIDS:
            raise ValueError(f"{count} zombies do not fit into a pid_max of {pid_max}")
        self._command(f"breed {count} {_hex(name)}", count)

    def leak(self, per_second: float, name: bytes = REDIS_CLI, lifetime: float | None = None) -> None:
        """Breed at this rate from now on, each to be reaped after ``lifetime`` seconds or never; 0 stops."""
        rate, life = round(per_second * 1000), -1 if lifetime is None else round(lifetime * 1000)
        self._command(f"rate {rate} {life} {_hex(name)}", rate)

    def reap(self) -> None:
        """Reap every zombie."""
        self._command("reap", None)

    def heed_sigchld(self) -> None:
        """Reap every zombie whenever a SIGCHLD comes from now on; those there are wait for one."""
        self._command("heed", None)

    def zombies(self) -> list[Stat]:
        """Return the zombies there are, as ``/proc`` shows them."""
        return [s for s in all_stats() if s.ppid == self.process.pid and s.state == "Z"]

    def _command(self, line: str, expected: int | None) -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(60.0)
            connection.connect(str(self.control))
            connection.sendall(line.encode())
            done, error = (int(word) for word in connection.recv(64).split())
        if error or (expected is not None and done != expected):
            raise RuntimeError(f"breeder: {line!r}: {done} done: {os.strerror(error)}")


@contextmanager
def breeder_container(
    containerd: Containerd,
    *,
    pod: Pod | None = None,
    name: str = "redis",
    pids_limit: int | None = None,
    user: int = 0,
) -> Iterator[Breeder]:
    """Run a container whose pid 1 breeds zombies and never reaps."""
    place = containerd.base / f"b{secrets.token_hex(4)}"
    place.mkdir()
    os.chown(place, user, user)
    program = containerd.rootfs / "bin" / "breeder"
    if not program.exists():
        compile_static(_SOURCE, program)
    container = run_container(
        containerd,
        pod=pod,
        name=name,
        argv=("/bin/breeder", "/control/s"),
        pids_limit=pids_limit,
        user=user,
        mounts=[Mount(place, "/control")],
    )
    try:
        wait_until((place / "s").exists, 10.0, "the breeder's socket")
        yield Breeder(container.init, place / "s", container)
    finally:
        delete_container(containerd, container)


@contextmanager
def plain_breeder() -> Iterator[Breeder]:
    """Run a breeder outside of any container."""
    place = Path(tempfile.mkdtemp(prefix="ndlab-"))
    try:
        compile_static(_SOURCE, place / "breeder")
        with subprocess.Popen([place / "breeder", place / "s"]) as process:
            try:
                wait_until((place / "s").exists, 10.0, "the breeder's socket")
                yield Breeder(identify(process.pid), place / "s")
            finally:
                process.kill()
    finally:
        shutil.rmtree(place)


@contextmanager
def zombies_of(breeder: Breeder, count: int, name: bytes = REDIS_CLI) -> Iterator[Breeder]:
    """Hold that many zombies under the breeder; all of them are reaped on exit."""
    before = len(breeder.zombies())
    try:
        breeder.breed(count, name)
        wait_until(lambda: len(breeder.zombies()) >= before + count, 30.0, f"{count} zombies")
        yield breeder
    finally:
        _clear(breeder)


@contextmanager
def zombies_under_container(
    containerd: Containerd, count: int, name: bytes = REDIS_CLI, *, pod: Pod | None = None, user: int = 0
) -> Iterator[Breeder]:
    """Run a container with that many zombies under its pid 1."""
    with breeder_container(containerd, pod=pod, user=user) as breeder, zombies_of(breeder, count, name):
        yield breeder


@contextmanager
def plain_zombies(count: int, name: bytes = REDIS_CLI) -> Iterator[Breeder]:
    """Hold that many zombies under a process outside of any container."""
    with plain_breeder() as breeder, zombies_of(breeder, count, name):
        yield breeder


@contextmanager
def slow_leak(breeder: Breeder, per_second: float, name: bytes = REDIS_CLI) -> Iterator[Breeder]:
    """Let zombies grow at a steady rate; they are all reaped on exit."""
    breeder.leak(per_second, name)
    try:
        yield breeder
    finally:
        _clear(breeder)


@contextmanager
def reaping_parent(
    breeder: Breeder, per_second: float, name: bytes = REDIS_CLI, lifetime: float = 0.5
) -> Iterator[Breeder]:
    """The control: short-lived zombies come and go, each reaped within ``lifetime`` seconds."""
    breeder.leak(per_second, name, lifetime)
    try:
        yield breeder
    finally:
        _clear(breeder)


def _clear(breeder: Breeder) -> None:
    # The body may have ended the breeder, and with it all its zombies.
    try:
        breeder.leak(0)
        breeder.reap()
    except (ConnectionError, FileNotFoundError):
        return
    wait_until(lambda: not breeder.zombies(), 30.0, "the zombies reaped")


def _hex(name: bytes) -> str:
    if not 0 < len(name) <= _LONGEST_NAME or b"\0" in name:
        raise ValueError(f"not a process name: {name!r}")
    return name.hex()
