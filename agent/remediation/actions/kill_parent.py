"""KillParent: end a parent that does not reap, so that its zombies fall to a reaper that does.

The escalation of SignalParent. SIGTERM first, so that a server may put its affairs in order; SIGKILL once the grace is
over. The first process of a container ignores every signal it has no handler for, also from outside, except SIGKILL
and SIGSTOP (pid_namespaces(7)), so for many containers only SIGKILL does anything. When such a process ends, the kernel
ends all others of the container and reaps them itself.
"""

import signal
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

from agent.clock import Clock
from agent.host.procfs import Zombie
from agent.model import Action, Finding, Target, TargetKind
from agent.remediation.remedy import Case, Verification
from agent.remediation.waiting import wait_until
from agent.remediation.zombies import Parent, Parents

GRACE_SECONDS = 5.0
"""Between SIGTERM and SIGKILL."""
VERIFY_SECONDS = 10.0


class KillParent:
    """The remedy."""

    action: ClassVar[Action] = Action.KILL_PARENT
    targets: ClassVar[tuple[TargetKind, ...]] = (TargetKind.PROCESS,)
    mends: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "ExcessiveDefunctProcesses": ("ParentNotReaping", "PidExhaustionAhead")
    }
    does: ClassVar[str] = (
        "Ends a container's process that does not reap its ended children: SIGTERM, and SIGKILL if it is still there "
        "5 s later."
    )
    requires: ClassVar[str] = (
        "Try SignalParent first. The process is in the same container as when it was reported, is neither stopped nor "
        "frozen, and has too many zombies that are there in two looks a second apart."
    )
    verifies: ClassVar[str] = "The process is gone and so are the zombies it had, within 10 s."
    risk: ClassVar[str] = (
        "The process ends, and what it was doing is lost. If it is the container's pid 1, the whole container ends and "
        "the kubelet starts it anew if its restartPolicy says so; if it is the sandbox's (pause, with a shared process "
        "namespace), the whole pod. If it is not pid 1, its zombies fall to that pid 1, which may not reap either."
    )

    def __init__(
        self,
        parents: Parents,
        clock: Clock,
        grace_seconds: float = GRACE_SECONDS,
        verify_seconds: float = VERIFY_SECONDS,
    ) -> None:
        self._parents = parents
        self._clock = clock
        self._grace_seconds = grace_seconds
        self._verify_seconds = verify_seconds

    @contextmanager
    def confirm(self, target: Target, finding: Finding) -> Iterator[Case]:
        """Hold the parent if it does not reap now. Raises RefusedError."""
        with self._parents.confirmed(target, finding) as parent:
            yield _KillParentCase(parent, self._parents, self._clock, self._grace_seconds, self._verify_seconds)


class _KillParentCase:
    """One parent that does not reap."""

    def __init__(
        self, parent: Parent, parents: Parents, clock: Clock, grace_seconds: float, verify_seconds: float
    ) -> None:
        self._parent = parent
        self._parents = parents
        self._clock = clock
        self._grace_seconds = grace_seconds
        self._verify_seconds = verify_seconds
        outlook = (
            "a shim started it, so it is most likely the container's pid 1: the container ends with it, and the "
            "kubelet starts it anew"
            if parent.shim_child
            else "its zombies fall to the container's pid 1"
        )
        self.message = f"{parent.message}; {outlook}"

    def evidence(self) -> Mapping[str, Any]:
        """Return the parent, whose it is, and its zombies by name."""
        return self._parents.evidence(self._parent)

    def perform(self) -> str:
        """Send SIGTERM and, after the grace, SIGKILL. Raises ActError."""
        grip = self._parent.grip
        grip.signal(signal.SIGTERM)
        if grip.ended(self._grace_seconds):
            return f"ended {self._parent.name} with SIGTERM"
        grip.signal(signal.SIGKILL)
        return f"sent SIGKILL to {self._parent.name}, which had not ended {self._grace_seconds:g} s after SIGTERM"

    def verify(self) -> Verification:
        """Look for the parent and for its zombies until both are gone or the time is over."""
        left = self._parent.zombies
        state = self._parent.process.state

        def all_gone() -> bool:
            nonlocal left, state
            left = self._parents.left(self._parent.zombies)
            state = self._parents.state(self._parent.process.id)
            return not left and not state

        try:
            if wait_until(all_gone, self._clock, self._verify_seconds):
                return Verification(True, f"{self._parent.name} is gone and its {self._count} zombies are reaped")
        except OSError as error:
            return Verification(None, f"the processes of this node cannot be listed: {error.strerror or error}")
        return Verification(False, self._what_is_left(left, state))

    @property
    def _count(self) -> int:
        return len(self._parent.zombies)

    def _what_is_left(self, left: tuple[Zombie, ...], state: str) -> str:
        after = f"after {self._verify_seconds:g} s"
        if state and state != "Z":
            return (
                f"{self._parent.name} is still there {after}, in state {state}: the kernel does not let it go. Look at "
                f"/proc/{self._parent.process.pid}/stack and the node's disks"
            )
        if state:
            above = self._parents.named(self._parent.process.ppid)
            return (
                f"{self._parent.name} has ended, but its own parent {above} has not reaped it {after}, and "
                f"{len(left)} of {self._count} zombies are left: look whether that one hangs"
            )
        reaper, count = Counter(zombie.ppid for zombie in left).most_common(1)[0]
        return (
            f"{self._parent.name} is gone, but {len(left)} of {self._count} zombies are left {after}: {count} of them "
            f"now belong to process {self._parents.named(reaper)}, which does not reap them either; it is the one to "
            "mend (wait for it to be reported)"
        )
