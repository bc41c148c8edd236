"""A service that is ill or has ended: probed afresh before it is started again, and watched until it is well.

What RestartKubelet and RestartContainerd share of confirming, performing and verifying.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.acts import RefusalReason, RefusedError, refused
from agent.clock import Clock
from agent.durations import measured_duration
from agent.host.cgroups import Cgroups
from agent.host.exchange import Attempt, Ending
from agent.host.procfs import Process, Procfs
from agent.model import ProcessId, Target
from agent.printable import printable
from agent.remediation.hands import Grip
from agent.remediation.process_evidence import process_evidence
from agent.remediation.remedy import ActError, Verification
from agent.remediation.restarts import Restarter, Way
from agent.remediation.services import Identified, NodeService, Patience, exact_unit
from agent.remediation.waiting import wait_until

ASK_SECONDS = 2.0
"""A service that has just been started is asked for so long at a time."""


Ask = Callable[[float, float], tuple[Attempt[Any], ...]]
"""Asks a service with a deadline and a hedge (see `host.exchange.converse`)."""


def times_out(ask: Ask, patience: Patience) -> tuple[Attempt[Any], ...]:
    """Ask; both attempts must go unanswered for as long as the detector waits. Raises RefusedError NOT_CONFIRMED."""
    attempts = ask(patience.deadline, min(patience.hedge, patience.deadline / 3))
    if [attempt.ending for attempt in attempts] != [Ending.TIMEOUT] * 2:
        raise not_confirmed(attempts)
    return attempts


def fails_twice(
    ask: Ask, fails: Callable[[Attempt[Any]], bool], grip: Grip, patience: Patience
) -> tuple[Attempt[Any], ...]:
    """Ask twice, a little apart; both must fail, and the process live. Raises NOT_CONFIRMED, TARGET_GONE."""
    hedge = min(patience.hedge, patience.deadline / 3)
    first = ask(patience.deadline, hedge)
    if not fails(first[0]):
        raise not_confirmed(first)
    if grip.ended(patience.recheck):
        raise refused(RefusalReason.TARGET_GONE, f"process {grip.process.pid} has just ended by itself")
    second = ask(patience.deadline, hedge)
    if not fails(second[0]):
        raise not_confirmed(second)
    return first + second


def refuses(attempt: Attempt[Any]) -> bool:
    """Whether nobody listens, or the connection was dropped without an answer."""
    return attempt.ending in {Ending.REFUSED, Ending.CLOSED}


def grown_up(process: Process, procfs: Procfs, patience: Patience) -> None:
    """Make sure that a process had the time to start. Raises RefusedError NOT_CONFIRMED, TARGET_GONE."""
    age = procfs.age_seconds(process.id)
    if age is None:
        raise refused(RefusalReason.TARGET_GONE, f"process {process.pid} is gone")
    if age < patience.restart_grace:
        ago = measured_duration(age)
        why = f"process {process.pid} was started {ago} ago and may not listen yet; it is left to start"
        raise refused(RefusalReason.NOT_CONFIRMED, why)


def consistent(found: Identified, address: str, attempts: tuple[Attempt[Any], ...]) -> None:
    """Make sure that who was asked is who was identified. Raises RefusedError CANNOT_SEE.

    Where no socket is seen, but a connection was taken, somebody listens whom we do not see: the address has another
    name there, or is in another network namespace.
    """
    if not found.sockets and any(attempt.ending is not Ending.REFUSED for attempt in attempts):
        why = f"{address} takes connections, but who listens there is not to be seen in this network namespace"
        raise refused(RefusalReason.CANNOT_SEE, f"{why}, so process {found.process.pid} is not known to be it")


def not_confirmed(attempts: tuple[Attempt[Any], ...]) -> RefusedError:
    """Say how a service behaves now instead of the way it was accused of."""
    told = "; ".join(described(attempt) for attempt in attempts)
    if any(attempt.ending is Ending.ERROR for attempt in attempts):
        return refused(RefusalReason.CANNOT_SEE, f"it could not be asked: {told}")
    return refused(RefusalReason.NOT_CONFIRMED, f"asked afresh it does not show this fault now: {told}")


def described(attempt: Attempt[Any]) -> str:
    """Return how an attempt ended, in a few words."""
    detail = f" ({attempt.detail})" if attempt.detail else ""
    return f"{attempt.ending} after {measured_duration(attempt.total_seconds)}{detail}"


def told(attempt: Attempt[Any]) -> dict[str, Any]:
    """Return an attempt as evidence; times in seconds, null for a phase that was not reached."""
    return {
        "ending": attempt.ending.value,
        "waitingFor": attempt.waiting_for.value,
        "connectSeconds": attempt.connect_seconds,
        "firstByteSeconds": attempt.first_byte_seconds,
        "totalSeconds": attempt.total_seconds,
        "detail": attempt.detail,
        "answer": printable(repr(attempt.answer), 1000) if attempt.answer is not None else None,
    }


@dataclass(frozen=True, slots=True)
class RestartableService:
    """What an action that restarts a service knows from the beginning.

    `problem` asks the service once and returns what is wrong with its answer, empty if it is well.
    """

    service: NodeService
    restarter: Restarter
    problem: Callable[[], str]
    procfs: Procfs
    cgroups: Cgroups
    clock: Clock
    patience: Patience


class _Service:
    """What both cases share: a service that is to run and to be well afterwards."""

    __slots__ = ()

    known: RestartableService
    way: Way
    before: frozenset[ProcessId]
    aftermath: Callable[[], str]

    def verify(self) -> Verification:
        """Wait for the successor, for its answer, and look at what else must be as it was."""
        name, patience = self.known.service.comm, self.known.patience
        came = wait_until(self._successor, self.known.clock, patience.successor)
        if came is None:
            why = f"no new process of {name} was seen within {patience.successor:g} s"
            more = self.known.restarter.why_it_did_not_come_back(name, self.way)
            return Verification(helped=False, message=f"{why}. {more}")
        problem = self._unwell()
        if problem:
            why = f"{name} was started again, but after {patience.answer:g} s it is not well: {problem}"
            more = self.known.restarter.why_it_did_not_come_back(name, self.way)
            return Verification(helped=False, message=f"{why}. {more}")
        now = self._successor() or came
        started = f"{name} runs anew as process {now.process.pid} (start time {now.process.start_time}) and answers"
        if harm := self.aftermath():
            return Verification(helped=False, message=f"{started}, but {harm}")
        return Verification(helped=True, message=started)

    def _successor(self) -> Identified | None:
        return self.known.service.successor(self.before)

    def _unwell(self) -> str:
        """Ask until the service is well, for as long as it may take; return what was wrong at last, empty if well."""
        last = "it was not asked"

        def well() -> bool:
            nonlocal last
            last = self.known.problem()
            return not last

        return "" if wait_until(well, self.known.clock, self.known.patience.answer) else last


@dataclass(slots=True)
class RestartCase(_Service):
    """A sick service, held by its pidfd (a Case).

    `aftermath` returns what is wrong beyond the service itself. `extra` is evidence only the action knows.
    """

    message: str
    found: Identified
    grip: Grip
    way: Way
    attempts: tuple[Attempt[Any], ...]
    known: RestartableService
    aftermath: Callable[[], str] = lambda: ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    before: frozenset[ProcessId] = frozenset()

    def evidence(self) -> Mapping[str, Any]:
        """Return the process, how it answered, who listens, and how it would be restarted."""
        return {
            "process": process_evidence(self.known.procfs, self.known.cgroups, self.grip.process.pid),
            "attempts": [told(attempt) for attempt in self.attempts],
            "listening": {"address": self.known.service.address, "inodes": sorted(self.found.sockets)},
            "restartBy": self.way.text,
            "unit": _unit(self.way),
            **self.extra,
        }

    def perform(self) -> str:
        """End the service's process, so that it is started again."""
        try:
            self.before = self.known.service.everybody()
            return self.known.restarter.restart(self.grip, self.way)
        except RefusedError as error:
            raise ActError(f"nothing was done: {error}") from None


@dataclass(slots=True)
class StartCase(_Service):
    """A service whose process has ended, and the unit that ran it (a Case). The fields are those of RestartCase."""

    message: str
    way: Way
    attempts: tuple[Attempt[Any], ...]
    known: RestartableService
    aftermath: Callable[[], str] = lambda: ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    before: frozenset[ProcessId] = frozenset()

    def evidence(self) -> Mapping[str, Any]:
        """Return how its address answered, and what systemd reports of the unit."""
        return {
            "attempts": [told(attempt) for attempt in self.attempts],
            "restartBy": self.way.text,
            "unit": _unit(self.way),
            **self.extra,
        }

    def perform(self) -> str:
        """Start the unit."""
        try:
            self.before = self.known.service.everybody()
        except RefusedError as error:
            raise ActError(f"nothing was done: {error}") from None
        return self.known.restarter.start(self.way)


def has_ended(target: Target, known: RestartableService, ask: Ask) -> tuple[Way, tuple[Attempt[Any], ...]]:
    """Make sure that a service has ended and that its unit may be started; say how. Raises RefusedError."""
    service, patience = known.service, known.patience
    unit = exact_unit(target, service.comm, service.address, known.procfs)
    service.none_lives()
    attempts = ask(patience.deadline, min(patience.hedge, patience.deadline / 3))
    if not refuses(attempts[0]):
        raise not_confirmed(attempts)
    return known.restarter.way_to_start(unit), attempts


def not_frozen(process: Process, known: RestartableService, kind: str) -> None:
    """Make sure that a restart is not asked of a service that is only frozen. Raises RefusedError UNSAFE_NOW."""
    if frozen := known.cgroups.frozen(known.procfs.cgroups(process.pid)):
        raise refused(
            RefusalReason.UNSAFE_NOW,
            f"process {process.pid} is held by the frozen cgroup {frozen}: a thaw lets it go on without any loss, and "
            f"a restart would not. Thaw it: nodediag remediate ThawCgroup --target {kind}",
        )


def _unit(way: Way) -> dict[str, Any] | None:
    unit = way.unit
    return {"name": unit.name, "mainPid": unit.main_pid, "killMode": unit.kill_mode} if unit else None
