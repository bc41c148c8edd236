"""Does the kubelet answer, and how long does it take?

`/healthz` on port 10248 is the kubelet's own word, without credentials and without traffic to the
API server. Timed in phases it tells more than yes or no: a kubelet that is stopped or deadlocked
still gets its connections accepted, by the kernel, and then sends nothing; one that is gone
refuses; one that is starved answers late. Recorded healthy answers took 1 ms, 0.13 s at worst,
while containerd was stopped, too; so 3 s is far outside what a working kubelet does.

The deadline is 10 s, as operators use it, and the fault is to be named within 15: there is no time
to look twice in a row. So a second connection is opened when the first has waited for a second; a
timeout is certain when both stay unanswered. Two slow answers that arrive at the same moment
come from one pause of the kubelet and count as one sighting.

When this is harmless: during a restart the kubelet refuses for some seconds, so a refusal is
passed over while its process is young or has just ended, but no longer than the grace: a kubelet in
a crash loop is always young. A configured healthzPort: 0 switches healthz off; the message says so.

What it does not prove: anything about the runtime below. On port 10248 only `ping` is checked;
neither PLEG nor the sync loop nor containerd is in it, and all stayed 200 with containerd stopped.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import ClassVar, TypeAlias

from agent.clock import Clock
from agent.detectors.refusals import Refusals, readable, restarting, who
from agent.host.exchange import LINGER_SECONDS, Attempt, Ending, Phase
from agent.host.kubelet import HttpAnswer, failing_checks, healthz, is_loopback, url_problem
from agent.host.service import Lifetime, ServiceProcess
from agent.model import (
    Action,
    CannotSeeError,
    CheckResult,
    Finding,
    Metric,
    MetricKind,
    NotApplicableError,
    ProcessId,
    Sample,
    Target,
    TargetKind,
    Value,
)
from agent.printable import printable
from agent.schema import DetectorSettings, setting

FAILING = "KubeletHealthzFailing"
NAME = "the kubelet"
TIMEOUT = "HealthzTimeout"
REFUSED = "HealthzRefused"
NOT_OK = "HealthzNotOK"
SLOW = "HealthzSlow"

HTTP_OK = 200
HTTP_SERVER_ERROR = 500
RECHECK_SECONDS = 1.0
"""A kubelet that is starting is looked at this often."""
NEW_SECONDS = 600.0
"""For this long a restart is told in the message of a kubelet that is well."""

Attempts: TypeAlias = tuple[Attempt[HttpAnswer], ...]


@dataclass(frozen=True, slots=True)
class KubeletHealthzSettings(DetectorSettings):
    """Settings of the kubelet_healthz detector."""

    period_seconds: float = setting(3.0, "time between two looks; each is jittered by 10 %", minimum=1, maximum=3600)
    deadline_seconds: float = setting(
        10.0, "how long the kubelet may take for its whole answer", minimum=0.1, maximum=60
    )
    hedge_seconds: float = setting(
        1.0, "no answer for this long: ask a second time on a new connection", minimum=0.05, maximum=60
    )
    slow_seconds: float = setting(3.0, "an answer that takes longer is slow; 1 ms is usual", minimum=0.01, maximum=60)
    restart_grace_seconds: float = setting(
        20.0, "how long a kubelet that has just been started may refuse connections", minimum=0, maximum=600
    )
    ended_grace_seconds: float = setting(
        5.0, "how long the kubelet's process may be gone: a restart has a gap", minimum=0, maximum=600
    )


@dataclass(frozen=True, slots=True)
class Observation:
    """One or two attempts, the kubelet's process, and for how long connections have been refused (awake seconds).

    `answered_before`: this URL has answered since the agent was started.
    """

    url: str
    attempts: Attempts
    lifetime: Lifetime
    refused_seconds: float
    answered_before: bool = False
    boot_id: str = ""


class KubeletHealthzDetector:
    """Asks the kubelet's healthz.

    `explicit`: the URL was set by a person, so something is expected to answer there. `kubelet_process`
    finds the kubelet's process, `process_age` gives its age in seconds or None once it is gone, `boot_id` this
    boot's UUID.
    `network_problem` tells why our network namespace is not the node's, or None.
    """

    name: ClassVar[str] = "kubelet_healthz"
    conditions: ClassVar[Mapping[str, Mapping[str, str]]] = {
        FAILING: {
            TIMEOUT: "The kubelet accepts connections or lets them hang, but does not answer its healthz in time.",
            REFUSED: "Nothing listens at the kubelet's healthz address, or it drops connections without an answer.",
            NOT_OK: "The kubelet's healthz answers something other than 200; the failing checks are named.",
            SLOW: "The kubelet's healthz answers 200, but far too late.",
        }
    }
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "kubelet_healthz_seconds",
            MetricKind.HISTOGRAM,
            "Time to the kubelet's whole healthz answer, or to the deadline if there was none.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0),
        ),
        Metric(
            "kubelet_healthz_phase_seconds",
            MetricKind.GAUGE,
            "Time from the start of the latest healthz request to the end of each phase; NaN if it was not reached.",
            ("phase",),
        ),
        Metric(
            "kubelet_healthz_failures_total",
            MetricKind.COUNTER,
            "Looks at the kubelet's healthz that failed, unconfirmed ones included.",
            ("reason",),
        ),
    )

    def __init__(  # noqa: PLR0913 - each is injected by name
        self,
        settings: KubeletHealthzSettings,
        url: str,
        *,
        explicit: bool,
        clock: Clock,
        kubelet_dir: Path,
        kubelet_process: Callable[[], ProcessId | None],
        process_age: Callable[[ProcessId], float | None],
        boot_id: Callable[[], str],
        network_problem: Callable[[], str | None] = lambda: None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._settings = settings
        self._url = url
        self._explicit = explicit
        self._clock = clock
        self._kubelet_dir = kubelet_dir
        self._service = ServiceProcess(kubelet_process, process_age, clock)
        self._boot_id = boot_id
        self._network_problem = network_problem
        self._environ = environ
        self._refusals = Refusals(clock)
        self._answered = False

    def probe(self) -> Observation:
        """Ask once. Raises NotApplicableError without a trace of a kubelet, CannotSeeError if it cannot be asked."""
        self._expect_kubelet()
        problem = url_problem(self._url)
        if problem:
            raise CannotSeeError(f"kubelet.healthz_url {problem} (it is {printable(self._url, 120)})")
        deadline = self._settings.deadline_seconds
        hedge = min(self._settings.hedge_seconds, deadline / 3)
        attempts = healthz(self._url, deadline=deadline, hedge=hedge, clock=self._clock)
        failed = _judge(attempts, self._settings.slow_seconds)[0] is not None
        if failed and is_loopback(self._url) and (problem := self._network_problem()):
            raise CannotSeeError(f"{self._url} cannot be asked from here: {problem}")
        self._answered = self._answered or any(attempt.answer is not None for attempt in attempts)
        life = self._service.look(urgent=failed)
        refused_seconds = self._refusals.seconds(attempts[0].ending)
        return Observation(self._url, attempts, life, refused_seconds, self._answered, self._boot_id())

    def check(self, seen: Observation) -> CheckResult:
        """Decide. Pure."""
        blind = _unreadable(seen)
        if blind:
            return CheckResult(unknown={FAILING: blind}, samples=_samples(seen.attempts, None))
        reason, sightings = _judge(seen.attempts, self._settings.slow_seconds)
        if reason is None:
            return CheckResult(healthy={FAILING: _healthy(seen)}, samples=_samples(seen.attempts, None))
        if reason == REFUSED and (excuse := restarting(NAME, seen.lifetime, seen.refused_seconds, self._settings)):
            samples = _samples(seen.attempts, None)
            return CheckResult(healthy={FAILING: excuse}, samples=samples, recheck_seconds=RECHECK_SECONDS)
        finding = self._finding(seen, reason, sightings)
        return CheckResult((finding,), samples=_samples(seen.attempts, reason))

    def _expect_kubelet(self) -> None:
        if self._explicit or "KUBERNETES_SERVICE_HOST" in self._environ or self._kubelet_dir.exists():
            return
        if self._service.look(urgent=False).process is None:
            raise NotApplicableError(
                f"there is no kubelet on this machine (no process of that name, no {self._kubelet_dir}, no "
                "KUBERNETES_SERVICE_HOST); set kubelet.healthz_url if one is expected"
            )

    def _finding(self, seen: Observation, reason: str, sightings: int) -> Finding:
        process = seen.lifetime.process
        return Finding(
            FAILING,
            reason,
            _MESSAGES[reason](seen, sightings, self._settings),
            _action(seen, reason),
            Target(
                TargetKind.KUBELET,
                pid=process.pid if process else None,
                start_time=process.start_time if process else None,
                boot_id=seen.boot_id,
                address=seen.url,
            ),
            values=_values(seen),
            sightings=sightings,
            timed=reason in (TIMEOUT, SLOW),
        )


def _judge(attempts: Attempts, slow: float) -> tuple[str | None, int]:
    """Return what is wrong, if anything, and how many independent sightings of it the attempts hold."""
    first, second = attempts[0], attempts[1] if len(attempts) > 1 else None
    match first.ending:
        case Ending.TIMEOUT:
            return TIMEOUT, 2 if second and second.ending is Ending.TIMEOUT else 1
        case Ending.REFUSED | Ending.CLOSED:
            return REFUSED, 1
        case Ending.ANSWERED | Ending.TOO_LARGE if first.answer and first.answer.status != HTTP_OK:
            return NOT_OK, 1
        case Ending.ANSWERED if first.total_seconds >= slow:
            return SLOW, 2 if second and _slow_by_itself(first, second, slow) else 1
        case _:
            return None, 0


def _slow_by_itself(first: Attempt[HttpAnswer], second: Attempt[HttpAnswer], slow: float) -> bool:
    """Whether the second attempt was slow too, and not merely released by the same moment as the first."""
    together = second.ending is Ending.ANSWERED and abs(second.ended - first.ended) <= LINGER_SECONDS
    return second.total_seconds >= slow and not together


def _unreadable(seen: Observation) -> str | None:
    """Return why the attempts say nothing about the kubelet, or None."""
    first = seen.attempts[0]
    match first.ending:
        case Ending.ERROR:
            return f"{seen.url} could not be asked: {first.detail}"
        case Ending.MALFORMED:
            return f"what answers at {seen.url} is not HTTP, so hardly the kubelet: {first.detail}"
        case Ending.TOO_LARGE if first.answer is None or first.answer.status == HTTP_OK:
            return f"what answers at {seen.url} is hardly the kubelet's healthz: {first.detail}"
        case _:
            return None


def _healthy(seen: Observation) -> str:
    first, age = seen.attempts[0], seen.lifetime.age_seconds
    new = f"; it was started {age:.0f} s ago" if age is not None and age < NEW_SECONDS else ""
    return f"{who(NAME, seen.lifetime)} answered its healthz in {readable(first.total_seconds)}{new}"


def _timeout_message(seen: Observation, sightings: int, _: KubeletHealthzSettings) -> str:
    first = seen.attempts[0]
    waiting = {
        Phase.CONNECT: "not even the connection is accepted",
        Phase.FIRST_BYTE: "the connection is accepted (at least by the kernel), but no byte comes",
        Phase.TOTAL: f"the answer began after {readable(first.first_byte_seconds or 0.0)} but does not end",
    }[first.waiting_for]
    second = seen.attempts[1] if len(seen.attempts) > 1 else None
    other = ""
    if second and sightings == 1:
        other = f" A second connection beside it: {second.ending} after {readable(second.total_seconds)}."
    return (
        f"{who(NAME, seen.lifetime)} did not answer {seen.url} within {first.total_seconds:.0f} s"
        f"{', nor on a second connection' if sightings > 1 else ''}: {waiting}.{other} "
        f"It may be stopped, deadlocked or starved; see {_state_path(seen.lifetime)}journalctl -u kubelet. "
        "A restart of the kubelet leaves containers running."
    )


def _refused_message(seen: Observation, _: int, __: KubeletHealthzSettings) -> str:
    first, life = seen.attempts[0], seen.lifetime
    what = f"nothing listens at {seen.url} ({first.detail})"
    if first.ending is Ending.CLOSED:
        what = f"{seen.url} drops the connection without an answer ({first.detail})"
    if life.process is not None:
        since = "" if life.age_seconds is None else f" for {life.age_seconds:.0f} s"
        return (
            f"{what}, although {who(NAME, life)} has been running{since}. See journalctl -u kubelet; if its "
            "configuration has another healthzPort or healthzBindAddress, set kubelet.healthz_url."
        )
    gone = (
        f"the kubelet's process {life.ended.pid} has ended"
        if life.ended
        else "there is no single process named kubelet"
    )
    return f"{what} and {gone}. See systemctl show -p ActiveState,Result kubelet and journalctl -u kubelet."


def _not_ok_message(seen: Observation, _: int, __: KubeletHealthzSettings) -> str:
    answer = seen.attempts[0].answer
    status, body = (answer.status, answer.body) if answer else (0, b"")
    failing = failing_checks(body)
    if failing:
        said = f"failing checks: {', '.join(failing)}"
        return f"{who(NAME, seen.lifetime)} says it is not well (HTTP {status}); {said}. See journalctl -u kubelet."
    said = printable(body.strip(), 80) or "(nothing)"
    hint = "See journalctl -u kubelet." if _is_sick(seen) else "Is kubelet.healthz_url right?"
    return f"{seen.url} answers HTTP {status} and names no failing check; it says: {said}. {hint}"


def _slow_message(seen: Observation, _: int, settings: KubeletHealthzSettings) -> str:
    first = seen.attempts[0]
    first_byte = "" if first.first_byte_seconds is None else f" (first byte after {readable(first.first_byte_seconds)})"
    return (
        f"{who(NAME, seen.lifetime)} is well by its own word, but took {readable(first.total_seconds)} to say "
        f"so{first_byte}; 1 ms is usual, the limit is {settings.slow_seconds:g} s. It, or the node, is probably short "
        "of CPU: see /proc/pressure/cpu and the cpu.stat of the kubelet's cgroup."
    )


_MESSAGES: Mapping[str, Callable[[Observation, int, KubeletHealthzSettings], str]] = {
    TIMEOUT: _timeout_message,
    REFUSED: _refused_message,
    NOT_OK: _not_ok_message,
    SLOW: _slow_message,
}


def _action(seen: Observation, reason: str) -> Action:
    """Recommend a restart where there is a process to restart and a restart can help.

    A port that never answered may be another one or switched off (healthzPort: 0): no fault of the kubelet.
    """
    helps = reason == TIMEOUT or (reason == REFUSED and seen.answered_before) or (reason == NOT_OK and _is_sick(seen))
    there = seen.lifetime.process or seen.lifetime.ended
    return Action.RESTART_KUBELET if helps and there else Action.NONE


def _is_sick(seen: Observation) -> bool:
    """Whether a not-200 is the kubelet's word on itself; a 3xx or 4xx means that the URL is wrong."""
    answer = seen.attempts[0].answer
    return answer is not None and answer.status >= HTTP_SERVER_ERROR


def _values(seen: Observation) -> dict[str, Value]:
    first = seen.attempts[0]
    values: dict[str, Value] = {
        "url": seen.url,
        "ending": first.ending.value,
        "phase": first.waiting_for.value,
        "connect_seconds": first.connect_seconds,
        "first_byte_seconds": first.first_byte_seconds,
        "total_seconds": first.total_seconds,
        "detail": first.detail or None,
        "process_age_seconds": seen.lifetime.age_seconds,
    }
    if first.answer:
        values["status_code"] = first.answer.status
        values["failing_checks"] = failing_checks(first.answer.body)
    for second in seen.attempts[1:]:
        values["second_ending"] = second.ending.value
        values["second_total_seconds"] = second.total_seconds
    return {
        key: round(value, 6) if isinstance(value, float) else value
        for key, value in values.items()
        if value is not None
    }


def _samples(attempts: Attempts, reason: str | None) -> tuple[Sample, ...]:
    first = attempts[0]
    timeout = first.ending is Ending.TIMEOUT
    reached = {
        Phase.CONNECT: first.connect_seconds,
        Phase.FIRST_BYTE: first.first_byte_seconds,
        Phase.TOTAL: first.total_seconds if timeout or first.answer else None,
    }
    phases = tuple(
        Sample("kubelet_healthz_phase_seconds", nan if value is None else value, (phase.value,))
        for phase, value in reached.items()
    )
    failures = tuple(
        Sample("kubelet_healthz_failures_total", float(reason == each), (each,))
        for each in (TIMEOUT, REFUSED, NOT_OK, SLOW)
    )
    took = (Sample("kubelet_healthz_seconds", first.total_seconds),) if timeout or first.answer else ()
    return took + phases + failures


def _state_path(life: Lifetime) -> str:
    return f"/proc/{life.process.pid}/status and " if life.process else ""
