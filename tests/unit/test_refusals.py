"""The catalogue of refusals is whole, and the page made of it can be read."""

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import ClassVar

import grpc
import pytest

from agent.acts import REFUSAL_CODES, REFUSALS, RefusalReason
from agent.model import Action, Finding, Target, TargetKind
from agent.remediation.remedy import Case
from tools.generate_docs import actions


class Shout:
    """A remedy for the page."""

    action: ClassVar[Action] = Action.KILL_PARENT
    targets: ClassVar[tuple[TargetKind, ...]] = (TargetKind.PROCESS, TargetKind.CONTAINER)
    mends: ClassVar[Mapping[str, tuple[str, ...]]] = {"TooQuiet": ("Asleep", "Bored"), "TooLoud": ("Drums",)}
    does: ClassVar[str] = "Shouts | loudly\nat it."
    requires: ClassVar[str] = "A voice."
    verifies: ClassVar[str] = "It looks up."
    risk: ClassVar[str] = "It may shout back."

    def confirm(self, target: Target, finding: Finding) -> AbstractContextManager[Case]:
        raise NotImplementedError


class Whisper(Shout):
    """One that comes first in the model's order."""

    action: ClassVar[Action] = Action.KILL_SHIM


@pytest.mark.parametrize("reason", RefusalReason)
def test_every_refusal_has_a_sentence_and_a_code_of_grpc(reason: RefusalReason) -> None:
    sentence = REFUSALS[reason]
    assert re.fullmatch(r"[A-Z][^|\n]{20,150}\.", sentence)
    assert grpc.StatusCode[REFUSAL_CODES[reason]] is not grpc.StatusCode.OK


def test_only_what_passes_by_itself_may_be_tried_again() -> None:
    again = {reason for reason, code in REFUSAL_CODES.items() if code in {"UNAVAILABLE", "RESOURCE_EXHAUSTED"}}
    assert again == {
        RefusalReason.COOLING_DOWN,
        RefusalReason.BUDGET_SPENT,
        RefusalReason.BUSY,
        RefusalReason.STALLED,
        RefusalReason.STOPPING,
    }


def test_the_page_has_a_row_for_each_action_in_the_order_of_the_model() -> None:
    rows = [line for line in actions((Shout, Whisper)) if line.startswith("| `K")]
    assert rows == [
        f"| `{name}` | Shouts \\| loudly at it. | `process`, `container` "
        "| TooQuiet: `Asleep`, `Bored`<br>TooLoud: `Drums` | A voice. | It looks up. | It may shout back. |"
        for name in ("KillShim", "KillParent")
    ]


def test_the_page_has_a_row_for_each_refusal() -> None:
    told = [line.split("`")[1] for line in actions(()) if line.startswith("| `")]
    assert told == [reason.value for reason in RefusalReason]
