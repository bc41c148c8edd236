"""Processes as the lab sees them: named by pid and start time, signalled by pidfd.

Pids wrap quickly on small machines, so a pid alone may name a stranger by the
time it is signalled.  A pidfd taken first and a start time compared afterwards
cannot.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .waiting import wait_until

_PROC = Path("/proc")


@dataclass(frozen=True)
class Stat:
    """The fields of ``/proc/N/stat`` which the lab uses."""

    pid: int
    comm: bytes
    state: str
    ppid: int
    start_time: int


@dataclass(frozen=True)
class Process:
    """One process for all time: its pid and its start time in clock ticks."""

    pid: int
    start_time: int


def read_stat(pid: int) -> Stat | None:
    """Read one process' stat, or None when it is gone.

    The name may hold anything, blanks and brackets too, so the fields are
    counted from the last closing bracket.
    """
    try:
        text = (_PROC / str(pid) / "stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    opening, closing = text.index(b"("), text.rindex(b")")
    fields = text[closing + 2 :].split()
    return Stat(
        pid=pid,
        comm=text[opening + 1 : closing],
        state=fields[0].decode(),
        ppid=int(fields[1]),
        start_time=int(fields[19]),
    )


def all_stats() -> Iterator[Stat]:
    """Yield every process of this pid namespace."""
    for name in os.listdir(_PROC):  # noqa: PTH208 - plain names, 16,000 of them
        if name.isdigit():
            stat = read_stat(int(name))
            if stat is not None:
                yield stat


def identify(pid: int) -> Process:
    """Return the full identity of a process that is alive now."""
    stat = read_stat(pid)
    if stat is None:
        raise ProcessLookupError(f"no process has pid {pid}")
    return Process(pid, stat.start_time)


def stat_of(process: Process) -> Stat | None:
    """Return the stat of exactly this process, None when it is gone."""
    stat = read_stat(process.pid)
    return stat if stat is not None and stat.start_time == process.start_time else None


def state_of(process: Process) -> str:
    """Return the state letter of exactly this process, or ``""`` when it is gone."""
    stat = stat_of(process)
    return "" if stat is None else stat.state


def has_ended(process: Process) -> bool:
    """Tell whether the process has ended, be it reaped already or not.

    Orphans are reaped by the machine's pid 1 when it pleases; some take seconds.
    """
    return state_of(process) in ("", "X", "Z")


def children_of(pid: int) -> list[Process]:
    """Return the direct children of a process, zombies too."""
    return [Process(s.pid, s.start_time) for s in all_stats() if s.ppid == pid]


def descendants_of(pids: Iterable[int]) -> list[Process]:
    """Return everything below the given processes, from one look at ``/proc``."""
    by_parent: dict[int, list[Stat]] = {}
    for stat in all_stats():
        by_parent.setdefault(stat.ppid, []).append(stat)
    found: list[Process] = []
    queue = list(pids)
    while queue:
        for stat in by_parent.get(queue.pop(), []):
            found.append(Process(stat.pid, stat.start_time))
            queue.append(stat.pid)
    return found


def send_signal(process: Process, number: signal.Signals) -> bool:
    """Signal exactly this process; False when it is gone already."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        if stat_of(process) is None:
            return False
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True


def kill(processes: Iterable[Process], timeout: float = 20.0) -> None:
    """Kill the processes, stopped ones too, and wait until all have ended."""
    doomed = list(processes)
    for process in doomed:
        send_signal(process, signal.SIGKILL)
    wait_until(
        lambda: all(has_ended(process) for process in doomed),
        timeout,
        f"the end of processes {[p.pid for p in doomed]}",
    )
