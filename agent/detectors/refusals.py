"""A service that does not answer: whether a restart explains it, and what keeps its process from running.

What kubelet_healthz and container_runtime have in common.
"""

from typing import Protocol

from agent.clock import Clock
from agent.durations import measured_duration
from agent.host.exchange import Ending
from agent.host.service import Halt, Lifetime
from agent.model import Action


class Graces(Protocol):
    """For how long a refusal is excused: settings both detectors have."""

    @property
    def restart_grace_seconds(self) -> float:
        """How long a process that has just been started may refuse."""

    @property
    def ended_grace_seconds(self) -> float:
        """How long the process may be gone."""


class Refusals:
    """For how long a service has refused connections without a break, in awake seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since: float | None = None

    def seconds(self, ending: Ending) -> float:
        """Take in how the latest attempt ended."""
        if ending not in (Ending.REFUSED, Ending.CLOSED):
            self._since = None
            return 0.0
        now = self._clock.awake()
        self._since = now if self._since is None else self._since
        return now - self._since


def restarting(name: str, life: Lifetime, refused_seconds: float, graces: Graces) -> str:
    """Say why a refusal is explained by a restart under way; empty if it is not.

    Both graces also end that long after the first refusal: a service that starts again and again is down.
    """
    grace = graces.restart_grace_seconds
    if life.age_seconds is not None and life.age_seconds < grace and refused_seconds < grace:
        age = readable(life.age_seconds)
        return f"{who(name, life)} was started {age} ago and does not accept connections yet"
    if life.process is None and life.ended is not None and refused_seconds < graces.ended_grace_seconds:
        return f"{name}'s process {life.ended.pid} has just ended; its restart is awaited"
    return ""


def halted(life: Lifetime, halt: Halt) -> str:
    """Say what keeps a service's process from running and how it goes on without loss; empty if it runs."""
    pid = life.process.pid if life.process else 0
    if halt.frozen_cgroup:
        whose = f" (unit {life.unit})" if halt.frozen_cgroup == life.cgroup else ""
        return (
            f"Process {pid} is frozen with its cgroup {halt.frozen_cgroup}{whose}. A thaw lets it go on without any "
            "loss; a restart is not needed"
        )
    if halt.state:
        by = "a debugger holds it" if halt.state == "t" else "a signal such as SIGSTOP stopped it"
        more = "detach that" if halt.state == "t" else f"`kill -CONT {pid}` lets it go on"
        return f"Process {pid} is stopped (state {halt.state}): {by}. First {more}; that loses nothing"
    return ""


def gone(name: str, life: Lifetime) -> str:
    """Say what is known of a service that has no process."""
    if life.ended is None:
        return f"there is no single process named {name.removeprefix('the ')}"
    return f"{name}'s process {life.ended.pid} has ended"


def where(name: str, life: Lifetime) -> str:
    """Say where to read why a service without a process does not run; without a known unit, how to find it."""
    if life.unit:
        return f"See systemctl show -p ActiveState,Result {life.unit} and journalctl -u {life.unit}"
    comm = name.removeprefix("the ")
    return f"Which unit runs it is not known here: find it with systemctl list-unit-files '*{comm}*'"


def recommended(restart: Action, life: Lifetime, halt: Halt, *, refused: bool) -> Action:
    """Return the action for a service that a restart can help, if the gate accepts its target as it is.

    Without a process that is the case where the unit that ran it is known and nobody listens.
    """
    if life.process is not None:
        return Action.THAW_CGROUP if halt.frozen_cgroup else restart
    return restart if refused and life.ended is not None and life.unit else Action.NONE


def who(name: str, life: Lifetime) -> str:
    """Name a service with its pid, if that is known."""
    return f"{name} (pid {life.process.pid})" if life.process else name


def readable(seconds: float) -> str:
    """Write a duration for people."""
    return measured_duration(seconds)
