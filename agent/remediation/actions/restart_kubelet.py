"""RestartKubelet: ends a kubelet that hangs, refuses or says that it is ill, so that its supervisor starts it again.

One that has ended is started by systemd, where the unit that ran it is known. One whose cgroup is frozen is left alone:
a thaw is all it needs.

Pods go on without a kubelet; probes, new pods and deletions wait for it. What a restart cannot mend is a kubelet that
is only slow (the node lacks CPU), or a URL that is wrong (3xx, 4xx): neither is a ground for it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

from agent.acts import RefusalReason, refused
from agent.clock import Clock
from agent.host.cgroups import Cgroups
from agent.host.exchange import Attempt, Ending
from agent.host.kubelet import HttpAnswer, healthz, is_loopback, place
from agent.host.listeners import Listeners
from agent.host.procfs import Process, Procfs
from agent.model import Action, Finding, Target, TargetKind
from agent.remediation.hands import Grip, held
from agent.remediation.restart_case import (
    ASK_SECONDS,
    RestartableService,
    RestartCase,
    StartCase,
    consistent,
    described,
    fails_twice,
    grown_up,
    has_ended,
    not_confirmed,
    not_frozen,
    refuses,
    times_out,
)
from agent.remediation.restarts import Restarter
from agent.remediation.services import NodeService, Patience, exact, is_ended
from agent.remediation.systemd import Systemd

COMM = "kubelet"
HTTP_OK = 200
HTTP_SERVER_ERROR = 500


class RestartKubelet:
    """The action. `patience` holds the settings of the kubelet_healthz detector; `url` is the one it asks."""

    action: ClassVar[Action] = Action.RESTART_KUBELET
    targets: ClassVar[tuple[TargetKind, ...]] = (TargetKind.KUBELET,)
    mends: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "KubeletHealthzFailing": ("HealthzTimeout", "HealthzRefused", "HealthzNotOK")
    }
    does: ClassVar[str] = (
        "Restarts the kubelet: by systemd over D-Bus where the host's system bus is mounted (SIGKILL if its process "
        "has not ended after 10 s; what systemd counts of its starts is reset before, so that no start limit "
        "keeps it down), else by signals, leaving the start to its supervisor: SIGTERM, and SIGKILL after 5 s; SIGKILL "
        "at once where that is systemd, which need not start again what SIGTERM ended (Restart=on-failure). A kubelet "
        "that has ended is started by systemd. Where systemd does not answer, nothing is done."
    )
    requires: ClassVar[str] = (
        "The process must be named kubelet, live outside of every container and hold the socket its healthz is asked "
        "at (or, if nobody listens, be the only one of that name); healthz must fail afresh in the same way; and "
        "somebody must be seen who starts it again: its systemd service, or a parent other than pid 1; and its cgroup "
        "must not be frozen. Where it has ended, the unit that ran it must be known, loaded and inactive, and neither "
        "masked nor disabled. A unit with RefuseManualStop= or RefuseManualStart= is not restarted, and one with "
        "RefuseManualStart= not started."
    )
    verifies: ClassVar[str] = (
        "A kubelet with a new start time runs within 30 s and answers its healthz with 200 within 30 s more."
    )
    risk: ClassVar[str] = (
        "Containers go on running; until the kubelet is back, probes, new pods and deletions wait. If it does not come "
        "back, the node becomes NotReady and its pods are evicted after some minutes."
    )

    def __init__(  # noqa: PLR0913 - each is injected by name
        self,
        url: str,
        *,
        procfs: Procfs,
        cgroups: Cgroups,
        listeners: Listeners,
        namespaces: tuple[str, ...],
        systemd: Systemd,
        clock: Clock,
        patience: Patience,
        network_problem: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._url = url
        self._procfs = procfs
        self._clock = clock
        self._patience = patience
        self._network_problem = network_problem
        host, port = place(url)
        service = NodeService(COMM, url, lambda: listeners.tcp(host, port), listeners, procfs, namespaces)
        restarter = Restarter(procfs, systemd, patience)
        self._known = RestartableService(service, restarter, self._problem, procfs, cgroups, clock, patience)

    @contextmanager
    def confirm(self, target: Target, finding: Finding) -> Iterator[RestartCase | StartCase]:
        """See Remedy."""
        problem = self._network_problem() if is_loopback(self._url) else None
        if problem:
            raise refused(RefusalReason.CANNOT_SEE, f"{self._url} cannot be asked from here: {problem}")
        if is_ended(target):
            way, attempts = has_ended(target, self._known, self._ask)
            message = f"no kubelet runs, and nothing listens at {self._url}. To be started by {way.text}"
            yield StartCase(message=message, way=way, attempts=attempts, known=self._known)
            return
        with held(exact(target, COMM, self._url, self._procfs), self._procfs) as grip:
            found = self._known.service.identify(grip.process)
            not_frozen(found.process, self._known, COMM)
            way = self._known.restarter.way(found.process)
            attempts = self._failing(finding.reason, found.process, grip)
            consistent(found, self._url, attempts)
            yield RestartCase(
                message=f"kubelet (pid {found.process.pid}) still fails at {self._url}: {described(attempts[0])}, then "
                f"{described(attempts[-1])}. To be restarted by {way.text}",
                found=found,
                grip=grip,
                way=way,
                attempts=attempts,
                known=self._known,
            )

    def _failing(self, reason: str, process: Process, grip: Grip) -> tuple[Attempt[Any], ...]:
        match reason:
            case "HealthzTimeout":
                return times_out(self._ask, self._patience)
            case "HealthzRefused":
                grown_up(process, self._procfs, self._patience)
                return fails_twice(self._ask, refuses, grip, self._patience)
            case "HealthzNotOK":
                return fails_twice(self._ask, _is_ill, grip, self._patience)
            case _:
                raise refused(RefusalReason.NOT_CONFIRMED, f"{reason} is no ground to restart a kubelet")

    def _ask(self, deadline: float, hedge: float) -> tuple[Attempt[HttpAnswer], ...]:
        return healthz(self._url, deadline=deadline, hedge=hedge, clock=self._clock)

    def _problem(self) -> str:
        attempt = self._ask(ASK_SECONDS, 2 * ASK_SECONDS)[0]
        if attempt.ending is Ending.ANSWERED and attempt.answer and attempt.answer.status == HTTP_OK:
            return ""
        status = f" with HTTP {attempt.answer.status}" if attempt.answer else ""
        return f"its healthz {described(attempt)}{status}"


def _is_ill(attempt: Attempt[HttpAnswer]) -> bool:
    """Whether the kubelet itself says so. Raises RefusedError for a 3xx or 4xx, which tell of a wrong URL."""
    status = attempt.answer.status if attempt.answer else 0
    if status >= HTTP_SERVER_ERROR:
        return True
    if status and status != HTTP_OK:
        why = f"HTTP {status} does not say that the kubelet is ill, but that kubelet.healthz_url is wrong"
        raise refused(RefusalReason.NOT_CONFIRMED, why)
    raise not_confirmed((attempt,))
