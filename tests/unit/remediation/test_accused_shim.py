"""What a shim's check refuses before anything is read of the shim itself."""

from typing import Any

import pytest

from agent.acts import RefusalReason
from agent.host.procfs import Process
from agent.model import CannotSeeError, NotApplicableError, Target, TargetKind
from agent.remediation.accused_shim import ShimCheck
from tests.unit.builders import RealClock
from tests.unit.remediation.fake_node import refusal


class Unreadable:
    """An inventory that cannot be taken."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def take(self) -> None:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [CannotSeeError("/run/x may not be read"), NotApplicableError("no /run/x"), OSError(5, "I/O error on /run/x")],
)
def test_bundles_that_cannot_be_read_are_refused_as_such(error: Exception) -> None:
    nothing: Any = None
    inventory: Any = Unreadable(error)
    check = ShimCheck(inventory, nothing, nothing, RealClock(), 1.0)
    target = Target(TargetKind.SHIM, 7, 1, container_id="ab")
    seen = refusal(
        lambda: check._served_by(Process(pid=7, comm="containerd-shim", state="S", ppid=1, start_time=1), target)
    )
    assert seen.reason is RefusalReason.CANNOT_SEE
    assert "containerd's bundles cannot be read" in seen.message
    assert "/run/x" in seen.message
