"""SignalParent: remind a parent of its ended children with SIGCHLD.

The kernel sends SIGCHLD once per ended child and merges those that come together, so a parent that missed one, or that
reaps one child per signal, keeps the rest until it is told again. A parent that has no handler ignores the signal by
default (signal(7)), which is why this is the mildest thing there is to do to it.
"""

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

from agent.clock import Clock
from agent.model import Action, Finding, Target, TargetKind
from agent.remediation.remedy import Case, Verification
from agent.remediation.waiting import wait_until
from agent.remediation.zombies import Parent, Parents

VERIFY_SECONDS = 5.0


class SignalParent:
    """The remedy."""

    action: ClassVar[Action] = Action.SIGNAL_PARENT
    targets: ClassVar[tuple[TargetKind, ...]] = (TargetKind.PROCESS,)
    mends: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "ExcessiveDefunctProcesses": ("ParentNotReaping", "PidExhaustionAhead")
    }
    does: ClassVar[str] = "Sends SIGCHLD to a container's process that does not reap its ended children."
    requires: ClassVar[str] = (
        "The process is in the same container as when it was reported, is neither stopped nor frozen, and has too many "
        "zombies that are there in two looks a second apart."
    )
    verifies: ClassVar[str] = "Of the zombies seen before, half or more are reaped within 5 s."
    risk: ClassVar[str] = (
        "None known: SIGCHLD is ignored by default, and a process that handles it gets it whenever a child ends. Many "
        "parents do not reap upon it either; then KillParent is the next step."
    )

    def __init__(self, parents: Parents, clock: Clock, verify_seconds: float = VERIFY_SECONDS) -> None:
        self._parents = parents
        self._clock = clock
        self._verify_seconds = verify_seconds

    @contextmanager
    def confirm(self, target: Target, finding: Finding) -> Iterator[Case]:
        """Hold the parent if it does not reap now. Raises RefusedError."""
        with self._parents.confirmed(target, finding) as parent:
            yield _SignalParentCase(parent, self._parents, self._clock, self._verify_seconds)


class _SignalParentCase:
    """One parent that does not reap."""

    def __init__(self, parent: Parent, parents: Parents, clock: Clock, verify_seconds: float) -> None:
        self.message = parent.message
        self._parent = parent
        self._parents = parents
        self._clock = clock
        self._verify_seconds = verify_seconds

    def evidence(self) -> Mapping[str, Any]:
        """Return the parent, whose it is, and its zombies by name."""
        return self._parents.evidence(self._parent)

    def perform(self) -> str:
        """Send SIGCHLD. Raises ActError."""
        self._parent.grip.signal(signal.SIGCHLD)
        return f"sent SIGCHLD to {self._parent.name}"

    def verify(self) -> Verification:
        """Count which of the zombies are left once all are reaped or the time is over."""
        zombies, left = self._parent.zombies, self._parent.zombies

        def reaped() -> bool:
            nonlocal left
            left = self._parents.left(zombies)
            return not left

        try:
            wait_until(reaped, self._clock, self._verify_seconds)
        except OSError as error:
            return Verification(None, f"the zombies cannot be counted any more: {error.strerror or error}")
        gone = len(zombies) - len(left)
        numbers = f"{gone} of {len(zombies)} zombies of {self._parent.name} were reaped"
        if not left:
            return Verification(True, numbers)
        if 2 * len(left) <= len(zombies):
            return Verification(True, f"{numbers} within {self._verify_seconds:g} s, and it is at it still")
        return Verification(
            False,
            f"{numbers} within {self._verify_seconds:g} s: it does not reap when told to. Ask its owners to mend it "
            "(an init such as tini as pid 1); KillParent ends it and with it the zombies",
        )
