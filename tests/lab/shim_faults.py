"""The faults of shims: stopped, frozen, stuck, dead, orphaned, gone from over their processes.

Where a fault needs containerd not to clean up after itself, containerd is held
with SIGSTOP for the moment, what it would clean up is put out of its sight, and
it is let go again: during the body it runs and answers.
"""

from __future__ import annotations

import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from . import cgroups
from .containerd import Containerd
from .containers import delete_container, run_container
from .pods import Container, Pod
from .processes import kill, send_signal, stat_of, state_of
from .shim_ping import connect_answers, state_answers
from .waiting import wait_until

_STOPPED = "T"


@contextmanager
def stopped_shim(container: Container) -> Iterator[Container]:
    """SIGSTOP the container's shim.  It is continued on exit, unless somebody has killed it."""
    send_signal(container.shim, signal.SIGSTOP)
    try:
        wait_until(lambda: state_of(container.shim) == _STOPPED, 5.0, f"shim {container.shim_pid} stopped")
        yield container
    finally:
        send_signal(container.shim, signal.SIGCONT)
        wait_until(lambda: state_of(container.shim) != _STOPPED, 5.0, f"shim {container.shim_pid} continued")


@contextmanager
def frozen_shim(container: Container, cgroup_version: int | None = None) -> Iterator[Path]:
    """Freeze the container's shim in a cgroup of its own; yield that cgroup's directory.

    The v1 freezer is used where it is mounted, else v2's, unless ``cgroup_version`` says which.
    """
    with cgroups.frozen(container.shim, cgroup_version) as directory:
        yield directory


@contextmanager
def stuck_state(containerd: Containerd, pod: Pod | None = None) -> Iterator[Container]:
    """Run a container whose shim answers ``Connect`` but not ``State``.

    Its runc hangs in ``kill``, and the shim holds the container's lock while
    runc runs.  The signal is a harmless one, so that on exit, when runc is let
    go, the container is healthy again before it is removed.
    """
    place = containerd.base / f"stuck-{secrets.token_hex(4)}"
    place.mkdir()
    gate, waiting = place / "gate", place / "waiting"
    wrapper = place / "runc"
    wrapper.write_text(_HANGING_RUNC.format(gate=gate, waiting=waiting, runc=shutil.which("runc")))
    wrapper.chmod(0o755)
    container = run_container(containerd, pod=pod, runc_binary=wrapper)
    gate.touch()
    command = containerd.ctr_command(
        "tasks", "kill", "--signal", "SIGWINCH", container.id, namespace=container.namespace
    )
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as killer:
        try:
            wait_until(waiting.exists, 10.0, "runc hanging in kill")
            yield container
        finally:
            gate.unlink()
            with suppress(subprocess.TimeoutExpired):
                killer.wait(10.0)
            killer.kill()
    if not has_shim(container):
        bury(containerd, container)
        return
    wait_until(lambda: state_answers(container.shim_socket, container.id), 10.0, "State answered again")
    delete_container(containerd, container)


@contextmanager
def dead_shim_with_bundle(containerd: Containerd, container: Container) -> Iterator[Container]:
    """Kill the shim and its container, but leave the bundle in place.

    Only the dead bundle is left to be seen: no process, no cgroup member.
    """
    _lose_shim(containerd, container, keep_processes=False, keep_bundle=True)
    try:
        yield container
    finally:
        bury(containerd, container)


@contextmanager
def processes_without_shim(containerd: Containerd, container: Container) -> Iterator[Container]:
    """Kill the shim and let its container's processes live on, with no bundle and no task.

    An imitation, for containerd 1.6 and 1.7, which end the processes of a container whose shim was killed.  2.x leaves
    those of a CRI pod running by itself (containerd#10727); `surviving_processes` makes whichever the version has.
    """
    _lose_shim(containerd, container, keep_processes=True, keep_bundle=False)
    try:
        yield container
    finally:
        bury(containerd, container)


@contextmanager
def orphaned_shim(containerd: Containerd, container: Container, *, keep_processes: bool = True) -> Iterator[Container]:
    """Take the bundle away from under a living shim, which goes on answering."""
    _require_own_shim(containerd, container)
    shutil.rmtree(container.bundle)
    if not keep_processes:
        kill([container.init])
    try:
        wait_until(lambda: connect_answers(container.shim_socket, container.id), 5.0, "the orphaned shim's answer")
        yield container
    finally:
        bury(containerd, container)


@contextmanager
def shim_without_live_container(containerd: Containerd, container: Container) -> Iterator[Container]:
    """End the container's process: its shim stays, with a stopped task that nobody deletes."""
    kill([container.init])
    try:
        wait_until(lambda: stat_of(container.init) is None, 10.0, f"shim {container.shim_pid} reaping its container")
        yield container
    finally:
        bury(containerd, container)


def has_shim(container: Container) -> bool:
    """Tell whether the container's shim is the process it was, and alive."""
    stat = stat_of(container.shim)
    return stat is not None and stat.state not in "ZX"


def bury(containerd: Containerd, container: Container) -> None:
    """Remove all that is left of a container and of its shim, in whatever state they are."""
    if not any(c is not container and c.shim == container.shim for c in containerd.containers.values()):
        send_signal(container.shim, signal.SIGCONT)
        with suppress(ProcessLookupError):
            kill([container.shim])
    cgroups.kill_members(container.cgroup)
    wait_until(lambda: not containerd.has_task(container.id, container.namespace), 20.0, f"end of task {container.id}")
    containerd.ctr("containers", "delete", container.id, namespace=container.namespace, check=False)
    shutil.rmtree(container.bundle, ignore_errors=True)
    shutil.rmtree(containerd.runc_root / container.namespace / container.id, ignore_errors=True)
    cgroups.remove(container.cgroup)
    containerd.forget(container)


def _lose_shim(containerd: Containerd, container: Container, *, keep_processes: bool, keep_bundle: bool) -> None:
    _require_own_shim(containerd, container)
    hidden = containerd.base / f"hidden-{secrets.token_hex(4)}"
    hidden.mkdir()
    bundle, runc_state = container.bundle, containerd.runc_root / container.namespace / container.id
    containerd.pause()
    try:
        # Without the bundle containerd's clean-up cannot start; without runc's
        # state it would not know what to kill.
        bundle.rename(hidden / "bundle")
        runc_state.rename(hidden / "runc")
        kill([container.shim])
        if not keep_processes:
            cgroups.kill_members(container.cgroup)
    finally:
        containerd.resume()
    wait_until(
        lambda: not containerd.has_task(container.id, container.namespace),
        20.0,
        f"containerd's clean-up after the shim of {container.id}",
    )
    if not keep_processes:
        cgroups.remove(container.cgroup)
    if keep_bundle:
        (hidden / "bundle").rename(bundle)
    shutil.rmtree(hidden)


def _require_own_shim(containerd: Containerd, container: Container) -> None:
    others = [c.id for c in containerd.containers.values() if c.shim == container.shim and c is not container]
    if others:
        raise ValueError(f"container {container.id} shares its shim with {others}")


_HANGING_RUNC = """#!/bin/sh
# runc, which hangs in `kill` for as long as the gate exists.
for argument in "$@"; do
    if [ "$argument" = kill ] && [ -e "{gate}" ]; then
        : >"{waiting}"
        while [ -e "{gate}" ]; do sleep 0.1; done
        rm -f "{waiting}"
    fi
done
exec {runc} "$@"
"""
