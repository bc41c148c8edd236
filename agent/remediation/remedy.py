"""What an action is made of.

A Remedy declares what it does, to what, and when; the declarations make docs/actions.md and what ListActions tells.
`confirm` looks afresh at that very target and opens a Case if the fault is there now; the engine then asks the Case for
evidence, to act, and whether it helped. Whatever must not change in between (a pidfd, a cgroup) is held by the Case.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from agent.model import Action, Finding, Target, TargetKind


@dataclass(frozen=True, slots=True)
class Verification:
    """What a look after the act showed. `helped` None: it cannot be told, and the message says why."""

    helped: bool | None
    message: str


class Case(Protocol):
    """A fault that was confirmed just now. Every method is bounded in time; none is called twice."""

    message: str
    """What the fresh probe saw, in a sentence."""

    def evidence(self) -> Mapping[str, Any]:
        """Return what is worth keeping before it is changed, in JSON's types. Raises nothing: what fails is a text."""

    def perform(self) -> str:
        """Do it, and return what was done in a sentence in the past tense. Raises OSError, ActError."""

    def verify(self) -> Verification:
        """Look whether it helped; waits as long as the effect may take."""


class ActError(Exception):
    """The act could not be done, or only in part. The text says what was and what was not."""


class Remedy(Protocol):
    """One action. `does`, `requires`, `verifies` and `risk` are a sentence or two each, for operators."""

    action: ClassVar[Action]
    targets: ClassVar[tuple[TargetKind, ...]]
    mends: ClassVar[Mapping[str, tuple[str, ...]]]
    does: ClassVar[str]
    requires: ClassVar[str]
    verifies: ClassVar[str]
    risk: ClassVar[str]

    def confirm(self, target: Target, finding: Finding) -> AbstractContextManager[Case]:
        """Look at this very target now and open a case; `finding` is the confirmed one on the board.

        Raises RefusedError: INEXACT_TARGET, OTHER_BOOT, TARGET_GONE, TARGET_CHANGED, PROTECTED_PROCESS, NOT_CONFIRMED,
        UNSAFE_NOW, CANNOT_SEE, STALLED.
        """
