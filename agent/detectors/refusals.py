"""A service that refuses connections: for how long, and whether a restart of it explains that.

What kubelet_healthz and container_runtime have in common.
"""

from typing import Protocol

from agent.clock import Clock
from agent.host.exchange import Ending
from agent.host.service import Lifetime


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
        return f"{who(name, life)} was started {life.age_seconds:.0f} s ago and does not accept connections yet"
    if life.process is None and life.ended is not None and refused_seconds < graces.ended_grace_seconds:
        return f"{name}'s process {life.ended.pid} has just ended; its restart is awaited"
    return ""


def who(name: str, life: Lifetime) -> str:
    """Name a service with its pid, if that is known."""
    return f"{name} (pid {life.process.pid})" if life.process else name


def readable(seconds: float) -> str:
    """Write a duration for people."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
