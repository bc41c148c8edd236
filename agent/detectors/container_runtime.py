"""Does containerd itself still answer?

The kubelet notices a stopped containerd after two minutes, and its healthz not at all. So
containerd is asked what a kubelet asks first: CRI's Version, which it answers from memory in 1 ms. Any
gRPC answer counts, an error too: the question is whether the server loop lives. As for the kubelet,
a second connection is opened when the first has waited for a second, and a timeout is certain when
both stay unanswered until the deadline.

When this is harmless: a restart has a gap without a listener, so a refusal is passed over while
the process is young or has just ended, but no longer than the grace. While containerd loads many
shims at its start it may take long; running containers do not need it.

What it does not prove: that containerd can do its work. A hung shim, a full disk or a CRI plugin that
is switched off are not seen here; containerd's lists answer from memory, too.

A restart is not always safe: if a shim is hung, containerd can clean its pod up when it loads it
again and gets no answer. So the message says to look at the shims first.
"""

import errno
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeAlias

from agent.clock import Clock
from agent.detectors.refusals import Refusals, gone, halted, readable, recommended, restarting, where, who
from agent.host.bundles import TASKS
from agent.host.containerd import STATUS_OK, STATUS_UNIMPLEMENTED, RuntimeAnswer, ask_version
from agent.host.exchange import Attempt, Ending, Phase
from agent.host.rights import READ, WRITE, Rights
from agent.host.service import RUNS, Halt, Lifetime, ServiceProcess
from agent.host.units import is_removed
from agent.model import (
    Action,
    CannotSeeError,
    CheckResult,
    DeploymentCause,
    DeploymentFault,
    Finding,
    Metric,
    NotApplicableError,
    ProcessId,
    Target,
    TargetKind,
    Value,
)
from agent.schema import DetectorSettings, setting

UNRESPONSIVE = "ContainerRuntimeUnresponsive"
NAME = "containerd"
TIMEOUT = "CRITimeout"
REFUSED = "RuntimeRefused"

RECHECK_SECONDS = 1.0
"""A containerd that is starting is looked at this often."""

_RIGHTS = Rights()

Attempts: TypeAlias = tuple[Attempt[RuntimeAnswer], ...]


@dataclass(frozen=True, slots=True)
class ContainerRuntimeSettings(DetectorSettings):
    """Settings of the container_runtime detector."""

    period_seconds: float = setting(5.0, "time between two looks; each is jittered by 10 %", minimum=1, maximum=3600)
    deadline_seconds: float = setting(5.0, "how long containerd may take for its answer", minimum=0.1, maximum=60)
    hedge_seconds: float = setting(
        1.0, "no answer for this long: ask a second time on a new connection", minimum=0.05, maximum=60
    )
    restart_grace_seconds: float = setting(
        20.0, "how long a containerd that has just been started may refuse connections", minimum=0, maximum=600
    )
    ended_grace_seconds: float = setting(
        5.0, "how long containerd's process may be gone: a restart has a gap", minimum=0, maximum=600
    )


@dataclass(frozen=True, slots=True)
class Observation:
    """One or two attempts, containerd's process, and for how long connections have been refused (awake seconds).

    `halt`: what keeps the process from running.
    """

    address: str
    attempts: Attempts
    lifetime: Lifetime
    refused_seconds: float
    boot_id: str = ""
    halt: Halt = RUNS


class ContainerRuntimeDetector:
    """Asks containerd over its socket.

    `explicit`: the address was set by a person, so a containerd is expected there. `containerd_process`
    finds its process, `process_age` gives its age in seconds or None once it is gone, `process_cgroup` the cgroup of
    the systemd service that runs it, `halted` what keeps it from running, `boot_id` this boot's UUID. `removed` tells
    whether a unit no longer exists on the node, `denied` why access to a path was denied.
    """

    name: ClassVar[str] = "container_runtime"
    conditions: ClassVar[Mapping[str, Mapping[str, str]]] = {
        UNRESPONSIVE: {
            TIMEOUT: "containerd takes connections or lets them hang, but does not answer in time.",
            REFUSED: "Nothing listens at containerd's socket, or it drops connections without an answer.",
        }
    }
    metrics: ClassVar[tuple[Metric, ...]] = ()

    def __init__(  # noqa: PLR0913 - each is injected by name
        self,
        settings: ContainerRuntimeSettings,
        address: str,
        *,
        explicit: bool,
        clock: Clock,
        state_dir: Path,
        containerd_process: Callable[[], ProcessId | None],
        process_age: Callable[[ProcessId], float | None],
        boot_id: Callable[[], str],
        process_cgroup: Callable[[ProcessId], str] = lambda _: "",
        halted: Callable[[ProcessId], Halt] = lambda _: RUNS,
        removed: Callable[[str], bool] = is_removed,
        denied: Callable[[str, OSError, int], DeploymentFault] = _RIGHTS.path,
    ) -> None:
        self._settings = settings
        self._address = address
        self._explicit = explicit
        self._clock = clock
        self._tasks = state_dir / TASKS
        self._service = ServiceProcess(containerd_process, process_age, clock, process_cgroup)
        self._boot_id = boot_id
        self._halted = halted
        self._removed = removed
        self._denied = denied
        self._refusals = Refusals(clock)
        self._answered = False

    def probe(self) -> Observation:
        """Ask once. Raises NotApplicableError without a trace of a containerd, CannotSeeError if it cannot be asked."""
        self._expect_containerd()
        deadline = self._settings.deadline_seconds
        hedge = min(self._settings.hedge_seconds, deadline / 3)
        attempts = ask_version(self._address, deadline=deadline, hedge=hedge, clock=self._clock)
        first = attempts[0]
        if first.ending is Ending.ERROR:
            raise self._unseen(first)
        failed = first.ending is not Ending.ANSWERED
        self._answered = self._answered or not failed
        life, refused_seconds = self._service.look(urgent=failed), self._refusals.seconds(first.ending)
        halt = self._halted(life.process) if failed and life.process else RUNS
        return Observation(self._address, attempts, life, refused_seconds, self._boot_id(), halt)

    def check(self, seen: Observation) -> CheckResult:
        """Decide. Pure."""
        first = seen.attempts[0]
        match first.ending:
            case Ending.ANSWERED:
                return CheckResult(healthy={UNRESPONSIVE: _healthy(seen)})
            case Ending.TIMEOUT:
                return _suspect(seen, TIMEOUT, _timeout_message(seen), _independent_timeouts(seen.attempts))
            case Ending.REFUSED | Ending.CLOSED:
                excuse = restarting(NAME, seen.lifetime, seen.refused_seconds, self._settings)
                if excuse:
                    return CheckResult(healthy={UNRESPONSIVE: excuse}, recheck_seconds=RECHECK_SECONDS)
                return _suspect(seen, REFUSED, _refused_message(seen), 1)
            case _:
                text = f"what answers at {seen.address} is not gRPC, so hardly containerd: {first.detail}"
                return CheckResult(unknown={UNRESPONSIVE: text})

    def _expect_containerd(self) -> None:
        address = Path(self._address)
        try:
            if _exists(address) or _has_bundles(self._tasks) or (self._explicit and _in_use(address.parent)):
                return
        except PermissionError as error:
            fault = self._denied(str(error.filename), error, READ)
            raise CannotSeeError(f"{error.filename} cannot be read: {fault}", fault) from None
        except OSError as error:
            raise CannotSeeError(f"{error.filename} cannot be looked into: {error.strerror}") from None
        life = self._service.look(urgent=False)
        if (
            process := life.process
        ) is not None:  # a containerd that has lost its socket has the folder still: here, nothing is mounted
            fault = DeploymentFault(
                DeploymentCause.MOUNT,
                str(address.parent),
                f"a containerd runs as pid {process.pid}, but there is no socket at {self._address}",
                f"mount {address.parent} here at the same path, or set containerd.address",
            )
            raise CannotSeeError(str(fault), fault)
        if self._explicit or self._was_here(life):
            return
        raise NotApplicableError(
            f"there is no containerd at {self._address} and no container of it under {self._tasks}; "
            "set containerd.address if one is expected"
        )

    def _unseen(self, attempt: Attempt[RuntimeAnswer]) -> CannotSeeError:
        """The error that says why a connection could not even be tried."""
        if attempt.code not in {errno.EACCES, errno.EPERM}:
            return CannotSeeError(f"{self._address} cannot be queried: {attempt.detail}")
        fault = self._denied(self._address, OSError(attempt.code, os.strerror(attempt.code)), WRITE)
        return CannotSeeError(f"{self._address} cannot be queried: {fault}", fault)

    def _was_here(self, life: Lifetime) -> bool:
        """Whether containerd was on this node, and its unit, if that is known, was not removed since.

        It was if it answered, or if systemd ran it. The name of a process alone proves nothing: docker runs a
        containerd of its own, and `kubelet --version` is a kubelet for a moment.
        """
        seen = self._answered or (life.ended is not None and bool(life.unit))
        return seen and not (life.unit and self._removed(life.unit))


def _exists(path: Path) -> bool:
    """Whether there is something at a path. Raises OSError where that cannot be told, such as PermissionError."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _in_use(folder: Path) -> bool:
    """Whether there is anything in a folder; where nothing is mounted it is empty, or is not there."""
    try:
        return any(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return False


def _has_bundles(tasks: Path) -> bool:
    try:
        return any(any(namespace.iterdir()) for namespace in tasks.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return False


def _independent_timeouts(attempts: Attempts) -> int:
    return sum(1 for attempt in attempts if attempt.ending is Ending.TIMEOUT)


def _suspect(seen: Observation, reason: str, message: str, sightings: int) -> CheckResult:
    process = seen.lifetime.process
    finding = Finding(
        UNRESPONSIVE,
        reason,
        message,
        recommended(Action.RESTART_CONTAINERD, seen.lifetime, seen.halt, refused=reason == REFUSED),
        Target(
            TargetKind.CONTAINERD,
            pid=process.pid if process else None,
            start_time=process.start_time if process else None,
            boot_id=seen.boot_id,
            cgroup="" if process else seen.lifetime.cgroup,
            address=seen.address,
        ),
        values=_values(seen),
        sightings=sightings,
        timed=reason == TIMEOUT,
    )
    return CheckResult((finding,))


def _healthy(seen: Observation) -> str:
    first = seen.attempts[0]
    text = f"{who(NAME, seen.lifetime)} answered in {readable(first.total_seconds)}"
    answer = first.answer
    if answer is None or answer.status == STATUS_OK:
        version = f" ({answer.runtime_name} {answer.runtime_version})" if answer and answer.runtime_version else ""
        return text + version
    if answer.status == STATUS_UNIMPLEMENTED:
        return f"{text}; its CRI is switched off, so it serves no kubelet"
    return f"{text}, with gRPC status {answer.status}: {answer.message}"


_CAUTION = (
    "Before a restart look for hung shims (ContainerdShimHung) and deal with them first: "
    "a containerd that is restarted while a shim is hung can clean that pod up."
)
_SUSPECTS = "It may be stopped, deadlocked or starved; see journalctl -u containerd"
_MEANWHILE = "Meanwhile nothing starts, stops or is exec'd on this node; running containers go on."


def _timeout_message(seen: Observation) -> str:
    first = seen.attempts[0]
    waiting = {
        Phase.CONNECT: "its queue of connections is full",
        Phase.FIRST_BYTE: "the kernel takes the connection, but no byte comes",
        Phase.TOTAL: "an answer began but does not end",
    }[first.waiting_for]
    both = _independent_timeouts(seen.attempts) > 1
    second = seen.attempts[1] if len(seen.attempts) > 1 else None
    other = f" A second connection beside it: {second.ending} after {readable(second.total_seconds)}." if second else ""
    within = readable(first.total_seconds)
    return (
        f"{who(NAME, seen.lifetime)} did not answer CRI Version at {seen.address} within {within}"
        f"{', nor on a second connection' if both else ''}: {waiting}.{'' if both else other} {_MEANWHILE} "
        f"{halted(seen.lifetime, seen.halt) or _SUSPECTS}.{'' if seen.halt.frozen_cgroup else f' {_CAUTION}'}"
    )


def _refused_message(seen: Observation) -> str:
    first, life = seen.attempts[0], seen.lifetime
    what = f"nothing listens at {seen.address} ({first.detail})"
    if first.ending is Ending.CLOSED:
        what = f"{seen.address} drops the connection without an answer ({first.detail})"
    if life.process is not None:
        return f"{what}, although {who(NAME, life)} is running. {_MEANWHILE} See journalctl -u containerd. {_CAUTION}"
    return f"{what} and {gone(NAME, life)}. {_MEANWHILE} {where(NAME, life)}. {_CAUTION}"


def _values(seen: Observation) -> dict[str, Value]:
    first = seen.attempts[0]
    values: dict[str, Value] = {
        "address": seen.address,
        "ending": first.ending.value,
        "phase": first.waiting_for.value,
        "total_seconds": round(first.total_seconds, 6),
        "detail": first.detail or None,
        "process_age_seconds": seen.lifetime.age_seconds,
        "process_state": seen.halt.state or None,
        "frozen_cgroup": seen.halt.frozen_cgroup or None,
        "unit": seen.lifetime.unit or None,
    }
    for second in seen.attempts[1:]:
        values["second_ending"] = second.ending.value
        values["second_total_seconds"] = round(second.total_seconds, 6)
    return {key: value for key, value in values.items() if value is not None}
