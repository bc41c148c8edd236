"""Runs one detector for as long as the agent lives.

Each detector has a thread of its own, because its probe may hang: that is the subject. A
probe that is stuck is not started again; `check_overdue`, called by the supervising loop,
says so on the board while everything else goes on. Exceptions end in the detector's own
status and go no further.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from agent.clock import Clock
from agent.durations import measured_duration
from agent.model import (
    CannotSeeError,
    CheckResult,
    Condition,
    DeploymentFault,
    Detector,
    DetectorState,
    DetectorStatus,
    Finding,
    NotApplicableError,
    Sample,
    Status,
)
from agent.pipeline.board import Board, Entry
from agent.pipeline.conditions import Hysteresis, Thresholds, advance, conclude, unknown
from agent.schema import DetectorSettings

log = logging.getLogger("nodediag.detectors")

CONFIRM_SECONDS = 0.5
"""Pause before a second look at a suspicion."""
MIN_PAUSE_SECONDS = 0.1
"""Pause between two looks at least, whatever a detector asks for."""
CPU_SHARE = 0.05
"""Of one core, for the regular looks of one detector: on a node with tens of thousands of processes a look is dear, and
an agent that is always looking is throttled until it sees nothing. What is doubted is looked at again all the same."""
JITTER = 0.1
"""Share of the period by which looks are spread, so that a fleet does not move in step."""
STALL_TOLERANCE_SECONDS = 1.0
"""A look during which this process stood still for longer accuses nobody by the clock."""
MAX_DISCARDS = 5
"""So many looks thrown away in a row, and what was seen before them is too old to be told."""
MAX_MESSAGE = 500

REASON_STARTING = "Starting"
REASON_CANNOT_SEE = "CannotSee"
REASON_PROBE_FAILED = "ProbeFailed"
REASON_PROBE_OVERDUE = "ProbeOverdue"
REASON_STALLED = "Stalled"


@dataclass(frozen=True, slots=True)
class _Run:
    """A look under way: awake and stalled seconds at its start."""

    awake: float
    stalled: float


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a look came to: a result, or why there is none and the reason its conditions then carry."""

    result: CheckResult | None
    state: DetectorState = DetectorState.OK
    message: str = ""
    reason: str = ""
    fault: DeploymentFault | None = None


@dataclass(frozen=True, slots=True)
class _Wish:
    """What the last look wishes of the next: to confirm or clear what it saw, or to come sooner (see CheckResult)."""

    confirm: bool = False
    recheck: float | None = None
    follow: float | None = None

    def within(self, pause: float, at_least: float) -> float:
        """Return the pause, shortened as wished; `at_least` holds where nothing is left to be decided."""
        regular = max(pause if self.follow is None else min(pause, self.follow), at_least)
        confirm = CONFIRM_SECONDS if self.confirm else None
        sooner = [seconds for seconds in (confirm, self.recheck) if seconds is not None]
        return max(min([regular, *sooner]), MIN_PAUSE_SECONDS)


class Runner:
    """Period, jitter, deadline and isolation for one detector.

    `identify` returns a finding with all that is known now of whose it is, and waits for nothing to become known.
    `denied` says which right the agent lacks where a probe was denied something that it did not expect to be.
    `cpu_seconds` is the CPU time of the calling thread, in which a look is made.
    """

    def __init__(
        self,
        detector: Detector,
        settings: DetectorSettings,
        board: Board,
        clock: Clock,
        identify: Callable[[Finding], Finding] | None = None,
        denied: Callable[[PermissionError], DeploymentFault] | None = None,
        cpu_seconds: Callable[[], float] = time.thread_time,
    ) -> None:
        self.name = detector.name
        self._detector = detector
        self._settings = settings
        self._identify = identify
        self._denied = denied
        self._cpu_seconds = cpu_seconds
        self._cost = 0.0
        self._board = board
        self._clock = clock
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._run: _Run | None = None
        self._memory = Hysteresis()
        self._wish = _Wish()
        self._discarded = 0
        self._discarded_in_a_row = 0
        waiting = "has not looked yet"
        conditions = tuple(unknown(kind, REASON_STARTING, waiting, None, clock.wall()) for kind in detector.conditions)
        board.publish(Entry(DetectorStatus(self.name, DetectorState.STARTING, waiting), conditions))

    @property
    def unsettled(self) -> bool:
        """Whether another look soon would tell more than this one did."""
        return self._wish.confirm or self._wish.recheck is not None

    def start(self) -> None:
        """Look again and again in a thread of its own, until `stop`."""
        threading.Thread(target=self._loop, name=self.name, daemon=True).start()

    def stop(self) -> None:
        """Begin no further look. One that is stuck is left behind."""
        self._stop.set()

    def look(self) -> None:
        """Look once and publish the outcome. Whatever the detector raises ends here."""
        run = _Run(self._clock.awake(), self._clock.stalled())
        with self._lock:
            self._run = run
        began = self._cpu_seconds()
        outcome = self._attempt()
        self._cost = self._cpu_seconds() - began
        with self._lock:
            self._run = None
        duration = self._clock.awake() - run.awake
        stalled = self._clock.stalled() - run.stalled
        result = outcome.result
        if result is None:
            self._conclude_nothing(outcome, duration)
        elif stalled > STALL_TOLERANCE_SECONDS and any(finding.timed for finding in result.findings):
            self._discard(stalled, duration)
        else:
            self._conclude(result, duration)

    def pause_seconds(self) -> float:
        """How long to wait before the next look."""
        jitter = random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - no secret
        return self._wish.within(self._settings.period_seconds * jitter, self._cost / CPU_SHARE)

    def check_overdue(self) -> bool:
        """If the look under way has outlasted its deadline, say so on the board and return True."""
        with self._lock:
            run = self._run
        running = 0.0 if run is None else self._clock.awake() - run.awake
        if run is None or running <= self._settings.timeout_seconds:
            return False
        message = (
            f"a look has not returned for {measured_duration(running)} (limit {self._settings.timeout_seconds:g} s); "
            "what it reads does not answer, and it is not started again meanwhile"
        )
        last_run = self._last().status.last_run_time
        status = DetectorStatus(self.name, DetectorState.OVERDUE, message, running, last_run, self._discarded)
        with self._lock:
            if self._run is not run:  # it has returned just now, and its own word counts
                return False
            self._publish(status, self._all_unknown(REASON_PROBE_OVERDUE, message))
        return True

    def _loop(self) -> None:
        while not self._stop.is_set():
            try:
                self.look()
            except Exception as error:  # the thread must outlive a fault of our own, and must not leave old words
                log.exception("a look could not be concluded", extra={"detector": self.name})
                message = f"{type(error).__name__}: {error}"[:MAX_MESSAGE]
                self._publish(
                    self._status(DetectorState.FAILED, message, 0.0), self._all_unknown(REASON_PROBE_FAILED, message)
                )
            self._stop.wait(self.pause_seconds())

    def _attempt(self) -> _Outcome:
        try:
            result = self._detector.check(self._detector.probe())
            undeclared = {finding.condition for finding in result.findings} - set(self._detector.conditions)
            if undeclared:
                return self._failed(f"found {', '.join(sorted(undeclared))}, which {self.name} does not declare")
        except NotApplicableError as absent:
            return _Outcome(None, DetectorState.NOT_APPLICABLE, str(absent))
        except CannotSeeError as blind:
            return self._blind(str(blind), blind.fault)
        except PermissionError as error:
            fault = self._denied(error) if self._denied else None
            return self._blind(str(fault or error), fault)
        except Exception as error:  # noqa: BLE001 - isolation: a detector may fail in any way
            return self._failed(f"{type(error).__name__}: {error}", error)
        return _Outcome(self._identified(result))

    def _blind(self, message: str, fault: DeploymentFault | None) -> _Outcome:
        """A look that could see nothing; if the agent's deployment is why, that hides every condition."""
        if fault is not None:
            fault = replace(fault, hides=tuple(self._detector.conditions), impairs=())
        reason = fault.cause.reason if fault else REASON_CANNOT_SEE
        return _Outcome(None, DetectorState.FAILED, message, reason, fault)

    def _with_effect(self, fault: DeploymentFault) -> DeploymentFault:
        """Return a fault with what it concerns: any condition of its detector if that does not say which.

        A fault without an effect would have no series in the metrics, and no alert would report it.
        """
        return fault if fault.hides or fault.impairs else replace(fault, impairs=tuple(self._detector.conditions))

    def _identified(self, result: CheckResult) -> CheckResult:
        """Whoever cannot say more about the findings leaves them as they are."""
        if self._identify is None or not result.findings:
            return result
        try:
            return replace(result, findings=tuple(map(self._identify, result.findings)))
        except Exception:
            log.exception("findings could not be identified further", extra={"detector": self.name})
            return result

    def _failed(self, message: str, error: Exception | None = None) -> _Outcome:
        """Note a failure nobody foresaw; logged with its traceback once, not at every look."""
        message = message[:MAX_MESSAGE]
        if message != self._last().status.message:
            log.error("a look failed", extra={"detector": self.name, "failure": message}, exc_info=error)
        return _Outcome(None, DetectorState.FAILED, message, REASON_PROBE_FAILED)

    def _conclude_nothing(self, outcome: _Outcome, duration: float) -> None:
        self._wish = _Wish()
        absent = outcome.state is DetectorState.NOT_APPLICABLE
        if absent:
            self._memory = Hysteresis()
            if self._last().status.state is not DetectorState.NOT_APPLICABLE:
                log.info("nothing to watch", extra={"detector": self.name, "why": outcome.message})
        conditions = () if absent else self._all_unknown(outcome.reason, outcome.message)
        faults = (outcome.fault,) if outcome.fault else ()
        self._publish(self._status(outcome.state, outcome.message, duration), conditions, deployment=faults)

    def _conclude(self, result: CheckResult, duration: float) -> None:
        now = self._clock.wall()
        thresholds = Thresholds(self._settings.failure_threshold, self._settings.success_threshold)
        self._memory = advance(self._memory, result, thresholds, now)
        self._wish = _Wish(self._memory.unsettled(result.unknown), result.recheck_seconds, result.follow_seconds)
        self._discarded_in_a_row = 0
        conditions = tuple(
            conclude(kind, self._memory, result, self._previous(kind), now) for kind in self._detector.conditions
        )
        deployment = tuple(map(self._with_effect, result.deployment))
        self._publish(self._status(DetectorState.OK, "", duration), conditions, result.samples, deployment)

    def _discard(self, stalled: float, duration: float) -> None:
        """Leave every condition as it was and look again: at once, but ever later if that stalls, too."""
        self._wish = _Wish(recheck=CONFIRM_SECONDS * 2**self._discarded_in_a_row)
        self._discarded += 1
        self._discarded_in_a_row = min(self._discarded_in_a_row + 1, MAX_DISCARDS)
        message = f"the last look was thrown away: this process stood still for {measured_duration(stalled)} during it"
        log.warning(message, extra={"detector": self.name})
        last = self._last()
        conditions = last.conditions
        if self._discarded_in_a_row == MAX_DISCARDS:
            conditions = self._all_unknown(REASON_STALLED, f"{message}, and likewise the looks before it")
        self._publish(self._status(DetectorState.OK, message, duration), conditions, deployment=last.deployment)

    def _status(self, state: DetectorState, message: str, duration: float) -> DetectorStatus:
        return DetectorStatus(self.name, state, message, duration, self._clock.wall(), self._discarded)

    def _last(self) -> Entry:
        """Return what stands on the board; something does since this runner was made."""
        entry = self._board.entry(self.name)
        return entry or Entry(DetectorStatus(self.name, DetectorState.STARTING))

    def _previous(self, kind: str) -> Condition | None:
        return next((condition for condition in self._last().conditions if condition.type == kind), None)

    def _all_unknown(self, reason: str, message: str) -> tuple[Condition, ...]:
        now = self._clock.wall()
        return tuple(unknown(kind, reason, message, self._previous(kind), now) for kind in self._detector.conditions)

    def _publish(
        self,
        status: DetectorStatus,
        conditions: tuple[Condition, ...],
        samples: tuple[Sample, ...] = (),
        deployment: tuple[DeploymentFault, ...] = (),
    ) -> None:
        before = [self._previous(condition.type) for condition in conditions]
        # The board first: who reads the log and then asks finds there what the log says.
        self._board.publish(Entry(status, conditions, samples, deployment))
        for condition, previous in zip(conditions, before, strict=True):
            self._log_change(condition, previous)

    def _log_change(self, condition: Condition, before: Condition | None) -> None:
        if before is not None and (before.status, before.reason) == (condition.status, condition.reason):
            return
        log.log(
            logging.WARNING if condition.status is Status.TRUE else logging.INFO,
            "condition changed",
            extra={
                "condition": condition.type,
                "status": condition.status.value,
                "reason": condition.reason,
                "condition_message": condition.message,
            },
        )
