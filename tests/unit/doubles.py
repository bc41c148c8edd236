"""What several unit tests stand on: a clock that is moved by hand, a detector that plays a script, findings."""

import threading
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from agent.host.rights import Capability, Held, Rights
from agent.model import Action, CheckResult, DeploymentCause, DeploymentFault, Finding, Metric, Target, TargetKind
from agent.pipeline.board import Board
from agent.pipeline.runner import Runner
from agent.schema import DetectorSettings

SICK, DIRTY = "NodeSick", "NodeDirty"
CLEAN = CheckResult(healthy={SICK: "feels well", DIRTY: "is clean"})


class FakeClock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.stall = 0.0

    def wall(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    def awake(self) -> float:
        return self.time - self.stall

    def stalled(self) -> float:
        return self.stall

    def pass_time(self, seconds: float) -> None:
        self.time += seconds

    def stand_still(self, seconds: float) -> None:
        self.time += seconds
        self.stall += seconds


Step = CheckResult | Exception | Callable[[], CheckResult]


class Script:
    """A detector whose looks are written down; the last one repeats."""

    name: ClassVar[str] = "scripted"
    conditions: ClassVar[Mapping[str, Mapping[str, str]]] = {SICK: {"Fever": "too hot"}, DIRTY: {"Mud": "too wet"}}
    metrics: ClassVar[tuple[Metric, ...]] = ()

    def __init__(self, *steps: Step) -> None:
        self.steps = list(steps)
        self.probes = 0

    def probe(self) -> CheckResult:
        self.probes += 1
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if isinstance(step, Exception):
            raise step
        return step() if callable(step) else step

    def check(self, seen: Any) -> CheckResult:
        assert isinstance(seen, CheckResult)
        return seen


class Stuck(Script):
    """A detector whose probe does not return before it is released."""

    name: ClassVar[str] = "stuck"

    def __init__(self, *steps: Step) -> None:
        super().__init__(*steps or (CLEAN,))
        self.inside = threading.Event()
        self.release = threading.Event()

    def probe(self) -> CheckResult:
        result = super().probe()
        self.inside.set()
        self.release.wait()
        return result


def finding(
    condition: str = SICK,
    *,
    pid: int = 7,
    start_time: int = 1,
    sightings: int = 1,
    timed: bool = False,
    text: str = "",
) -> Finding:
    return Finding(
        condition=condition,
        reason={SICK: "Fever", DIRTY: "Mud"}.get(condition, "Odd"),
        message=text or f"{pid} has a fever",
        recommended_action=Action.NONE,
        target=Target(TargetKind.PROCESS, pid=pid, start_time=start_time),
        sightings=sightings,
        timed=timed,
    )


def sick(**how: Any) -> CheckResult:
    """A look with one finding."""
    return CheckResult(findings=(finding(**how),))


def runner_of(detector: Script, board: Board, clock: Any, **settings: Any) -> Runner:
    return Runner(detector, DetectorSettings(**settings), board, clock)


ALL_CAPABILITIES = (1 << 41) - 1


class HeldRights(Rights):
    """Rights that are as told: of root with these capabilities, or all but some, and this confinement."""

    def __init__(self, held: Held) -> None:
        super().__init__()
        self.now = held

    def held(self) -> Held:
        return self.now


def rights_without(*missing: Capability, uid: int = 0, apparmor: str = "", selinux: str = "") -> HeldRights:
    """Return the rights of somebody who holds every capability but these."""
    lacking = sum(1 << capability for capability in missing)
    return HeldRights(Held(uid, frozenset(), ALL_CAPABILITIES & ~lacking, apparmor, selinux))


def denied_fault(text: str = "denied") -> DeploymentFault:
    """Return a fault of the deployment, with this message."""
    return DeploymentFault(DeploymentCause.NAMESPACE, "hostPID", text, "set hostPID: true")
