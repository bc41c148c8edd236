"""Leaves alone for a while what a security module has denied: each attempt would write an audit record on the node.

The denial is repeated from memory meanwhile. What a missing capability denies is not recorded by the kernel, so it is
tried each time, and a right that was added is noticed at once.
"""

import threading
import time
from collections.abc import Callable, Hashable

from agent.model import DeploymentCause, DeploymentFault

RETRY_SECONDS = 60.0
"""Between two attempts at what was denied."""
MAX_KEPT = 4096
CONFINEMENT = frozenset({DeploymentCause.APPARMOR, DeploymentCause.SELINUX})
"""What a security module denies."""
RECORDED = frozenset({DeploymentCause.APPARMOR, DeploymentCause.SELINUX, DeploymentCause.PERMISSION})
"""What writes an audit record, or may."""


class Backoff:
    """Remembers denials by key; safe to use from several threads."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._denied: dict[Hashable, tuple[float, DeploymentFault]] = {}

    def held_off(self, key: Hashable) -> DeploymentFault | None:
        """Return the denial because of which something is not to be tried now; None if it is to be tried."""
        with self._lock:
            at, fault = self._denied.get(key, (0.0, None))
            if fault is None or self._monotonic() - at < RETRY_SECONDS:
                return fault
            del self._denied[key]
            return None

    def note(self, key: Hashable, fault: DeploymentFault) -> DeploymentFault:
        """Remember a denial if trying again would be recorded; return it."""
        if fault.cause in RECORDED:
            with self._lock:
                if len(self._denied) >= MAX_KEPT:
                    self._denied.clear()
                self._denied[key] = (self._monotonic(), fault)
        return fault
