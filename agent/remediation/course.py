"""The course of one remediation: fresh probe -> evidence -> gate once more -> act -> verify.

What comes here was admitted by the gate. It is asked again at the last moment, because a probe takes seconds, and
meanwhile a newer holder of the lease may have called, or somebody may have paused the node.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from enum import StrEnum

from agent.acts import Outcome, Refusal, RefusalReason, RefusedError, Remediation, Request, refused
from agent.clock import Clock
from agent.durations import measured_duration
from agent.model import Action, CannotSeeError, Finding, Status
from agent.pipeline.board import Board
from agent.remediation.evidence import EvidenceError, EvidenceStore
from agent.remediation.ledger import Ledger, LedgerError
from agent.remediation.remedy import ActError, Case, Remedy

log = logging.getLogger("nodediag.remediation")

STALL_TOLERANCE_SECONDS = 1.0
"""A probe during which this process stood still for longer confirms nothing."""
STALL_RETRY_SECONDS = 2.0


class Step(StrEnum):
    """How far a remediation has come."""

    ADMITTED = "admitted"
    CONFIRMED = "confirmed"
    EVIDENCE_STORED = "evidence stored"
    ABOUT_TO_ACT = "about to act"
    ACTED = "acted"
    VERIFIED = "verified"


class Course:
    """Leads one admitted remediation after the other to its end.

    `pid_problem` tells why the processes seen are not the node's, None if they are; `reached` is told of each step that
    is behind a remediation.
    """

    def __init__(
        self,
        remedies: Mapping[Action, Remedy],
        board: Board,
        evidence: EvidenceStore,
        ledger: Ledger,
        clock: Clock,
        pid_problem: Callable[[], str | None],
        reached: Callable[[Step], None] = lambda _: None,
    ) -> None:
        self._remedies = remedies
        self._board = board
        self._evidence = evidence
        self._ledger = ledger
        self._clock = clock
        self._pid_problem = pid_problem
        self._reached = reached

    def run(self, begun: Remediation, gate: Callable[[], Refusal | None], dry_run: str = "") -> Remediation:
        """Return what came of a remediation that was begun in the ledger. Raises nothing.

        `gate` decides once more right before the act; `dry_run` is why it ends there, empty if it does not.
        """
        self._reached(Step.ADMITTED)
        state = _State(begun)
        try:
            self._lead(state, gate, dry_run)
        except RefusedError as refused:
            state.end(Outcome.REFUSED, refused.refusal.message, refused.refusal)
        except Exception as error:  # a fault of our own must not stay without an answer
            log.exception("a remediation failed as nobody foresaw", extra={"request_id": begun.request.request_id})
            what = f"{type(error).__name__}: {error}"
            done = "it may have been done wholly, in part or not at all" if state.now.acted else "nothing was done"
            state.end(Outcome.FAILED, f"{done}: {what}")
        return replace(state.now, finished_at=self._clock.wall())

    def _lead(self, state: "_State", gate: Callable[[], Refusal | None], dry_run: str) -> None:
        request = state.now.request
        remedy = self._remedies[request.action]
        finding = self._finding(remedy, request)
        hidden = self._pid_problem()
        if hidden:
            raise refused(RefusalReason.CANNOT_SEE, hidden)
        with self._confirmed(remedy, request, finding) as case:
            self._reached(Step.CONFIRMED)
            state.now = replace(state.now, evidence_id=self._store(request, finding, case))
            self._reached(Step.EVIDENCE_STORED)
            _allow(gate())
            if dry_run:
                message = f"nothing was done, {dry_run}; a live run would have acted: {case.message}"
                state.end(Outcome.DRY_RUN, message)
                return
            self._write_down(state)
            self._reached(Step.ABOUT_TO_ACT)
            self._act(state, case)

    def _finding(self, remedy: Remedy, request: Request) -> Finding:
        """Return the confirmed finding that permits this remedy for exactly this target. Raises RefusedError."""
        other = ""
        for condition in self._board.report().conditions:
            if condition.status is not Status.TRUE:
                continue
            for active in condition.findings:
                finding = active.finding
                if finding.target != request.target:
                    continue
                if finding.reason in remedy.mends.get(condition.type, ()):
                    return finding
                other = f"{condition.type} ({finding.reason})"
        mends = "; ".join(f"{kind}: {', '.join(reasons)}" for kind, reasons in remedy.mends.items())
        what = f"what is known about this target is {other}" if other else "no finding is about exactly this target now"
        message = f"{what}; {request.action} needs one of {mends}. Ask for a new report (nodediag report)"
        raise refused(RefusalReason.CONDITION_NOT_TRUE, message)

    @contextmanager
    def _confirmed(self, remedy: Remedy, request: Request, finding: Finding) -> Iterator[Case]:
        """Open the case if the fault is there now, and if we were awake to see it. Raises RefusedError."""
        stalled_before = self._clock.stalled()
        with ExitStack() as stack:
            try:
                case = stack.enter_context(remedy.confirm(request.target, finding))
            except CannotSeeError as error:
                raise refused(RefusalReason.CANNOT_SEE, str(error)) from error
            except OSError as error:
                message = f"the target cannot be looked at: {error.strerror or error}"
                raise refused(RefusalReason.CANNOT_SEE, message) from error
            stalled = self._clock.stalled() - stalled_before
            if stalled > STALL_TOLERANCE_SECONDS:
                stood = measured_duration(stalled)
                message = f"the agent itself stood still for {stood} while it looked, so nothing is confirmed"
                raise refused(RefusalReason.STALLED, message, STALL_RETRY_SECONDS)
            yield case

    def _store(self, request: Request, finding: Finding, case: Case) -> str:
        content = {"probe": case.message, "finding": asdict(finding), "seen": case.evidence()}
        try:
            return self._evidence.store(request, content).id
        except EvidenceError as error:
            raise refused(RefusalReason.EVIDENCE_NOT_STORED, str(error)) from error

    def _write_down(self, state: "_State") -> None:
        try:
            self._ledger.about_to_act(state.now.request.request_id, state.now.evidence_id)
        except LedgerError as error:
            raise refused(RefusalReason.LEDGER_UNUSABLE, str(error)) from error
        state.now = replace(state.now, acted=True)

    def _act(self, state: "_State", case: Case) -> None:
        try:
            done = case.perform()
        except (ActError, OSError) as error:
            state.end(Outcome.FAILED, f"{case.message}. It could not be mended: {error}")
            return
        self._reached(Step.ACTED)
        try:
            seen = case.verify()
        except Exception as error:
            log.exception("what was done could not be verified", extra={"request_id": state.now.request.request_id})
            unseen = f"whether it helped could not be seen: {type(error).__name__}: {error}"
            state.end(Outcome.PERFORMED, f"{done}; {unseen}")
            return
        self._reached(Step.VERIFIED)
        outcomes = {True: Outcome.VERIFIED, False: Outcome.INEFFECTIVE, None: Outcome.PERFORMED}
        state.end(outcomes[seen.helped], f"{done}; {seen.message}")


class _State:
    """The remediation as it stands while it is led."""

    def __init__(self, begun: Remediation) -> None:
        self.now = begun

    def end(self, outcome: Outcome, message: str, refusal: Refusal | None = None) -> None:
        self.now = replace(self.now, outcome=outcome, message=message, refusal=refusal)


def _allow(refusal: Refusal | None) -> None:
    if refusal is not None:
        raise RefusedError(refusal)
