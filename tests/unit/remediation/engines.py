"""An engine to test with: real gate, ledger and evidence store, and a scripted remedy."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from agent.acts import Caller, Limits, Refusal, RefusalReason, RefusedError, Remediation, Request
from agent.host.procfs import Procfs
from agent.model import (
    Action,
    ActiveFinding,
    Condition,
    DetectorState,
    DetectorStatus,
    Finding,
    Status,
    Target,
    TargetKind,
)
from agent.pipeline.board import Board, Entry
from agent.remediation.course import Course, Step
from agent.remediation.engine import Engine
from agent.remediation.evidence import EvidenceStore
from agent.remediation.ledger import Ledger
from agent.remediation.remedy import Verification
from agent.remediation.standing import Rules, Standings
from tests.unit.doubles import FakeClock

CONDITION, REASON = "ConntrackDNSRace", "DNSQueriesLost"
TARGET = Target(TargetKind.DNS_SERVER, address="10.96.0.10:53")
OPERATOR = Caller("operator", frozenset(Action))
FIRST = "00000000-0000-4000-8000-000000000001"
SECOND = "00000000-0000-4000-8000-000000000002"
THIRD = "00000000-0000-4000-8000-000000000003"
SOON = 10.0


@dataclass
class ScriptedRemedy:
    """A remedy that notes what is asked of it, and does and sees what the test says."""

    action: ClassVar[Action] = Action.DELETE_CONNTRACK_FLOWS
    targets: ClassVar[tuple[TargetKind, ...]] = (TargetKind.DNS_SERVER,)
    mends: ClassVar[Mapping[str, tuple[str, ...]]] = {CONDITION: (REASON,)}
    does: ClassVar[str] = "plays a script"
    requires: ClassVar[str] = "a script"
    verifies: ClassVar[str] = "the script"
    risk: ClassVar[str] = "none"
    message: str = "it is sick"
    at_confirm: Callable[[], None] = lambda: None
    at_perform: Callable[[], None] = lambda: None
    seen_after: Verification | Exception = field(default_factory=lambda: Verification(True, "it is well again"))
    calls: list[str] = field(default_factory=list)

    @contextmanager
    def confirm(self, target: Target, finding: Finding) -> Iterator["ScriptedRemedy"]:
        assert finding.target == target
        self.calls.append("confirm")
        self.at_confirm()
        try:
            yield self
        finally:
            self.calls.append("close")

    def evidence(self) -> Mapping[str, Any]:
        self.calls.append("evidence")
        return {"pulse": 200}

    def perform(self) -> str:
        self.calls.append("perform")
        self.at_perform()
        return "it was treated"

    def verify(self) -> Verification:
        self.calls.append("verify")
        if isinstance(self.seen_after, Exception):
            raise self.seen_after
        return self.seen_after


def not_confirmed() -> None:
    """Say what a fresh probe says of a healthy target."""
    raise RefusedError(Refusal(RefusalReason.NOT_CONFIRMED, "it is well"))


@dataclass
class Bench:
    """An engine and everything around it; `restarted` gives the next one on the same folder."""

    folder: Path
    rules: Rules = field(
        default_factory=lambda: Rules(
            enabled=True, dry_run=False, max_per_hour=100, limits=dict.fromkeys(Action, Limits(cooldown_seconds=0))
        )
    )
    remedy: ScriptedRemedy = field(default_factory=ScriptedRemedy)
    clock: FakeClock = field(default_factory=FakeClock)
    boot_seconds: float = 5000.0
    reached: Callable[[Step], None] = lambda _: None

    def __post_init__(self) -> None:
        self.board = Board("worker-3", self.clock)
        self.say_sick()
        procfs = Procfs("/proc")
        boot = lambda: (procfs.boot_id(), self.boot_seconds)  # noqa: E731
        self.ledger = Ledger(self.folder, boot, self.clock.wall)
        self.evidence = EvidenceStore(self.folder / "evidence", self.clock.wall)
        standings = Standings(self.rules, self.ledger, self.folder, procfs, ("k8s.io",), os.getpid(), boot)
        remedies = {self.remedy.action: self.remedy}
        course = Course(remedies, self.board, self.evidence, self.ledger, self.clock, lambda: None, self.reached)
        self.engine = Engine(standings, remedies, course, self.ledger, self.clock)
        self.engine.start()

    def restarted(self) -> "Bench":
        self.engine.stop()
        return replace(self)

    def say(self, *findings: Finding) -> None:
        active = tuple(ActiveFinding(each, 1.0) for each in findings)
        status = Status.TRUE if findings else Status.FALSE
        condition = Condition(CONDITION, status, "x", "x", 1.0, active)
        self.board.publish(Entry(DetectorStatus("conntrack_dns", DetectorState.OK), (condition,)))

    def say_sick(self, reason: str = REASON, target: Target = TARGET) -> None:
        self.say(Finding(CONDITION, reason, "it is sick", Action.DELETE_CONNTRACK_FLOWS, target))

    def ask(self, request_id: str = FIRST, caller: Caller = OPERATOR, **how: Any) -> Remediation:
        request = Request(request_id, how.pop("action", self.remedy.action), how.pop("target", TARGET), caller.identity)
        return self.engine.remediate(replace(request, **how), caller, SOON)

    def in_background(self, request_id: str = FIRST, **how: Any) -> Callable[[], Remediation]:
        """Ask in a thread; the function returned waits for the answer."""
        answers: list[Remediation] = []
        thread = threading.Thread(target=lambda: answers.append(self.ask(request_id, **how)))
        thread.start()

        def answer() -> Remediation:
            thread.join(SOON)
            return answers[0]

        return answer


@contextmanager
def held_up(bench: Bench, at: str) -> Iterator[None]:
    """Hold every remediation at `confirm` or `perform` until the body is over; the body begins once one is there."""
    there, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        there.set()
        go_on.wait(SOON)

    setattr(bench.remedy, f"at_{at}", hold)
    answer = bench.in_background()
    assert there.wait(SOON)
    try:
        yield
    finally:
        go_on.set()
        answer()
