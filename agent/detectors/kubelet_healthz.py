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
from typing import ClassVar

from agent.clock import Clock
from agent.detectors.healthz_findings import (
    FAILING,
    NAME,
    NOT_OK,
    REFUSED,
    SLOW,
    TIMEOUT,
    Attempts,
    Observation,
    finding,
    healthy,
    judge,
    unreadable,
)
from agent.detectors.refusals import Refusals, restarting
from agent.host.exchange import Ending, Phase
from agent.host.kubelet import healthz, is_loopback, url_problem
from agent.host.kubelet_dir import content
from agent.host.service import RUNS, Halt, Lifetime, ServiceProcess
from agent.host.units import is_removed
from agent.model import (
    CannotSeeError,
    CheckResult,
    DeploymentFault,
    Metric,
    MetricKind,
    NotApplicableError,
    ProcessId,
    Sample,
)
from agent.printable import printable
from agent.schema import DetectorSettings, setting

RECHECK_SECONDS = 1.0
"""A kubelet that is starting is looked at this often."""


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


class KubeletHealthzDetector:
    """Asks the kubelet's healthz.

    `explicit`: the URL was set by a person, so something is expected to answer there. `kubelet_process`
    finds the kubelet's process, `process_age` gives its age in seconds or None once it is gone, `process_cgroup` the
    cgroup of the systemd service that runs it, `halted` what keeps it from running, `boot_id` this boot's UUID.
    `network_problem` tells why our network namespace is not the node's, or None; `removed` whether a unit no longer
    exists on the node.
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
        process_cgroup: Callable[[ProcessId], str] = lambda _: "",
        halted: Callable[[ProcessId], Halt] = lambda _: RUNS,
        network_problem: Callable[[], DeploymentFault | None] = lambda: None,
        removed: Callable[[str], bool] = is_removed,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._settings = settings
        self._url = url
        self._explicit = explicit
        self._clock = clock
        self._kubelet_dir = kubelet_dir
        self._service = ServiceProcess(kubelet_process, process_age, clock, process_cgroup)
        self._halted = halted
        self._removed = removed
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
        failed = judge(attempts, self._settings.slow_seconds)[0] is not None
        if failed and is_loopback(self._url) and (elsewhere := self._network_problem()):
            raise CannotSeeError(f"{self._url} cannot be asked from here: {elsewhere}", elsewhere)
        self._answered = self._answered or any(attempt.answer is not None for attempt in attempts)
        life = self._service.look(urgent=failed)
        halt = self._halted(life.process) if failed and life.process else RUNS
        refused_seconds = self._refusals.seconds(attempts[0].ending)
        return Observation(self._url, attempts, life, refused_seconds, self._answered, self._boot_id(), halt)

    def check(self, seen: Observation) -> CheckResult:
        """Decide. Pure."""
        blind = unreadable(seen)
        if blind:
            return CheckResult(unknown={FAILING: blind}, samples=_samples(seen.attempts, None))
        reason, sightings = judge(seen.attempts, self._settings.slow_seconds)
        if reason is None:
            return CheckResult(healthy={FAILING: healthy(seen)}, samples=_samples(seen.attempts, None))
        if reason == REFUSED and (excuse := restarting(NAME, seen.lifetime, seen.refused_seconds, self._settings)):
            samples = _samples(seen.attempts, None)
            return CheckResult(healthy={FAILING: excuse}, samples=samples, recheck_seconds=RECHECK_SECONDS)
        found = finding(seen, reason, sightings, self._settings.slow_seconds)
        return CheckResult((found,), samples=_samples(seen.attempts, reason))

    def _expect_kubelet(self) -> None:
        if self._explicit or "KUBERNETES_SERVICE_HOST" in self._environ or content(self._kubelet_dir):
            return
        life = self._service.look(urgent=False)
        if life.process is None and not self._was_here(life):
            raise NotApplicableError(
                f"there is no kubelet on this machine (no process of that name, nothing of a kubelet's in "
                f"{self._kubelet_dir}, no KUBERNETES_SERVICE_HOST); set kubelet.healthz_url if one is expected"
            )

    def _was_here(self, life: Lifetime) -> bool:
        """Whether the kubelet was on this node, and its unit, if that is known, was not removed since.

        It was if it answered, or if systemd ran it. The name of a process alone proves nothing: docker runs a
        containerd of its own, and `kubelet --version` is a kubelet for a moment.
        """
        seen = self._answered or (life.ended is not None and bool(life.unit))
        return seen and not (life.unit and self._removed(life.unit))


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
