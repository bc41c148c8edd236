"""Takes requests one at a time: the gate decides, the ledger is written, the course is run, repeats get one answer.

A remediation runs in a thread of its own, so that a caller that hangs up changes nothing: what was begun goes on to its
end and is written down. While one runs, every other request is told to come back.
"""

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from agent.acts import (
    Caller,
    Outcome,
    Refusal,
    RefusalReason,
    RefusedError,
    Remediation,
    RemediationStatus,
    Request,
    refused,
)
from agent.clock import Clock
from agent.model import Action
from agent.remediation import gate, overview
from agent.remediation.course import Course
from agent.remediation.ledger import Ledger, LedgerError
from agent.remediation.remedy import Remedy
from agent.remediation.standing import Standings
from agent.remediation.turnstile import DiskHangsError, Turnstile

log = logging.getLogger("nodediag.remediation")

BUSY_RETRY_SECONDS = 5.0
STOP_SECONDS = 3.0
"""How long a remediation under way may still take when the agent stops; else the next start finds it interrupted."""
MAX_UNWRITTEN = 100
"""Answers the ledger could not take are kept in memory, so that a repeat is not taken for a new request."""
BEFORE_THE_TOKEN = frozenset(
    {
        RefusalReason.DISABLED,
        RefusalReason.ACTION_DISABLED,
        RefusalReason.CALLER_NOT_ALLOWED,
        RefusalReason.WRONG_TARGET_KIND,
        RefusalReason.INEXACT_TARGET,
        RefusalReason.STALE_FENCING_TOKEN,
        RefusalReason.GATE_FAILED,
    }
)
"""Refusals after which the request's fencing token does not count as seen."""
NOT_WORTH_A_ROW = frozenset(
    {
        RefusalReason.DISABLED,
        RefusalReason.CALLER_NOT_ALLOWED,
        RefusalReason.LEDGER_UNUSABLE,
        RefusalReason.BUSY,
        RefusalReason.STOPPING,
    }
)
"""Refusals that are logged and counted, and not listed: they say nothing of the target, and there may be many."""
_STOPPING = Refusal(RefusalReason.STOPPING, "the agent is stopping", BUSY_RETRY_SECONDS)


@dataclass(slots=True)
class _Run:
    """The remediation under way; `over` is set once `result` is there."""

    request: Request
    over: threading.Event = field(default_factory=threading.Event)
    result: Remediation | None = None


class Engine:
    """The only way to act. Where remediation is not enabled it refuses everything and touches no file."""

    def __init__(
        self, standings: Standings, remedies: Mapping[Action, Remedy], course: Course, ledger: Ledger, clock: Clock
    ) -> None:
        self._standings = standings
        self._remedies = remedies
        self._course = course
        self._ledger = ledger
        self._clock = clock
        self._admitting = Turnstile(places=1)
        self._reading = Turnstile()
        self._counting = threading.Lock()
        self._run: _Run | None = None
        self._interrupted_found = False
        self._stopping = False
        self._unwritten: OrderedDict[str, Remediation] = OrderedDict()
        self._tally: Counter[tuple[Action, Outcome]] = Counter()

    # -- for callers ----------------------------------------------------------

    def remediate(self, request: Request, caller: Caller, patience_seconds: float) -> Remediation:
        """Return what came of a request: its own run, a repeat's stored answer, or a refusal (outcome REFUSED).

        Raises TimeoutError if that is not known within `patience_seconds`; it goes on all the same.
        """
        try:
            admitted = self._admit(request, caller)
        except RefusedError as refused:
            return self._refused(request, refused.refusal)
        if isinstance(admitted, Remediation):
            return admitted
        if not admitted.over.wait(patience_seconds) or admitted.result is None:
            raise TimeoutError(f"{request.action} is still under way after {patience_seconds:.0f} s")
        return admitted.result

    def status(self, caller: Caller) -> RemediationStatus:
        """Return every action as it stands now for this caller. Raises DiskHangsError."""
        with self._reading.inside():
            return overview.status(self._remedies.values(), self._standings, caller)

    def find(self, request_id: str) -> Remediation | None:
        """Return one remediation, if it is recorded. Raises LedgerError, DiskHangsError."""
        with self._reading.inside():
            if not self._standings.has_ledger():
                return None
            return self._unwritten.get(request_id) or self._ledger.find(request_id)

    def list(self, limit: int, before: str) -> tuple[tuple[Remediation, ...], str]:
        """Return a page, the latest first, and the token of the next.

        Raises ValueError, LedgerError, DiskHangsError.
        """
        with self._reading.inside():
            return self._ledger.list(limit, before) if self._standings.has_ledger() else ((), "")

    def tally(self) -> Mapping[tuple[Action, Outcome], int]:
        """Return how many remediations had each outcome since this agent was started."""
        with self._counting:
            return dict(self._tally)

    # -- for the supervisor ---------------------------------------------------

    def start(self) -> None:
        """Find what an earlier agent left in the middle, and say so."""
        if not self._standings.rules.enabled:
            return
        try:
            with self._admitting.inside():
                self._find_interrupted()
        except (DiskHangsError, LedgerError) as error:
            log.error("nothing can be mended: no ledger", extra={"why": str(error)})  # noqa: TRY400 - its words say it all

    def stop(self) -> None:
        """Take no further request and give the one under way a moment."""
        self._stopping = True
        run = self._run
        if run is not None and not run.over.wait(STOP_SECONDS):
            log.warning(
                "a remediation is left in the middle; the next start will call it interrupted",
                extra={"request_id": run.request.request_id, "action": run.request.action.value},
            )
        self._ledger.close()

    # -- inside -----------------------------------------------------------------

    def _admit(self, request: Request, caller: Caller) -> _Run | Remediation:
        """Return the run to wait for, or the stored answer of a repeat. Raises RefusedError."""
        if self._stopping:
            raise RefusedError(_STOPPING)
        try:
            with self._admitting.inside():
                earlier = self._earlier(request.request_id)
                if earlier is not None and earlier.request.asks_the_same_as == request.asks_the_same_as:
                    return earlier
                return self._begin(request, caller, earlier.request if earlier else None)
        except DiskHangsError as error:
            raise refused(RefusalReason.BUSY, str(error), BUSY_RETRY_SECONDS) from error
        except LedgerError as error:
            raise refused(RefusalReason.LEDGER_UNUSABLE, str(error)) from error

    def _earlier(self, request_id: str) -> _Run | Remediation | None:
        """Return what there is under this request_id already: under way, or as its answer."""
        run = self._run
        if run is not None and run.request.request_id == request_id:
            return run
        if not self._standings.rules.enabled:
            return None
        self._find_interrupted()
        return self._unwritten.get(request_id) or self._ledger.binding(request_id)

    def _begin(self, request: Request, caller: Caller, known: Request | None) -> _Run:
        self._pass_gate(request, caller, known)
        run = self._run
        if run is not None:
            message = f"{run.request.action} (request {run.request.request_id}) is under way; one thing at a time"
            raise refused(RefusalReason.BUSY, message, BUSY_RETRY_SECONDS)
        begun = Remediation(request, Outcome.RUNNING, "it is under way", self._clock.wall())
        self._ledger.begin(begun)
        self._run = run = _Run(request)
        log.warning("remediation begins", extra=_words(request))
        threading.Thread(target=self._carry_out, args=(run, begun, caller), name="remediation", daemon=True).start()
        return run

    def _pass_gate(self, request: Request, caller: Caller, known: Request | None) -> None:
        """Ask the gate, and remember the fencing token once it has been found good. Raises RefusedError."""
        refusal = self._decide(request, caller, known)
        if refusal is None or refusal.reason not in BEFORE_THE_TOKEN | {RefusalReason.LEDGER_UNUSABLE}:
            self._ledger.raise_token(request.fencing_token)
        if refusal is not None:
            raise RefusedError(refusal)

    def _decide(self, request: Request, caller: Caller, known: Request | None = None) -> Refusal | None:
        remedy = self._remedies.get(request.action)
        return gate.decide(request, self._standings.of(request, caller, remedy, known))

    def _last_word(self, request: Request, caller: Caller) -> Refusal | None:
        """Ask the gate once more, right before the act."""
        if self._stopping:
            return _STOPPING
        try:
            return self._decide(request, caller)
        except LedgerError as error:
            return Refusal(RefusalReason.LEDGER_UNUSABLE, str(error))

    def _carry_out(self, run: _Run, begun: Remediation, caller: Caller) -> None:
        request = run.request
        dry_run = "as was asked" if request.dry_run else ""
        if self._standings.rules.dry_run:
            dry_run = "since the setting remediation.dry_run is on"
        result = self._course.run(begun, lambda: self._last_word(request, caller), dry_run)
        try:
            self._ledger.conclude(result)
        except LedgerError as error:
            log.error("what came of a remediation could not be written down", extra={"why": str(error)})  # noqa: TRY400
            self._unwritten[request.request_id] = result
            while len(self._unwritten) > MAX_UNWRITTEN:
                self._unwritten.popitem(last=False)
        self._told(result)
        run.result = result
        self._run = None
        run.over.set()

    def _refused(self, request: Request, refusal: Refusal) -> Remediation:
        """Note what was refused before anything was begun."""
        now = self._clock.wall()
        refused = Remediation(request, Outcome.REFUSED, refusal.message, now, now, refusal=refusal)
        if refusal.reason not in NOT_WORTH_A_ROW:
            try:
                with self._reading.inside():
                    self._ledger.note_refusal(refused)
            except (DiskHangsError, LedgerError) as error:
                log.warning("a refusal could not be written down", extra={"why": str(error)})
        self._told(refused)
        return refused

    def _told(self, result: Remediation) -> None:
        with self._counting:
            self._tally[result.request.action, result.outcome] += 1
        extra = {**_words(result.request), "outcome": result.outcome.value, "what": result.message}
        log.warning("remediation concluded", extra=extra)

    def _find_interrupted(self) -> None:
        """Once, as soon as the ledger can be read: name what was left in the middle. Raises LedgerError."""
        if self._interrupted_found:
            return
        for left in self._ledger.interrupt():
            with self._counting:
                self._tally[left.request.action, left.outcome] += 1
            extra = {**_words(left.request), "outcome": left.outcome.value, "what": left.message}
            log.error("a remediation was interrupted", extra=extra)
        self._interrupted_found = True


def _words(request: Request) -> dict[str, object]:
    return {
        "request_id": request.request_id,
        "action": request.action.value,
        "target": {name: value for name, value in asdict(request.target).items() if value not in (None, "")},
        "caller": request.caller,
        "dry_run": request.dry_run,
        "reason": request.reason,
    }
