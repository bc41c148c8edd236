"""What an answer of the kubelet's healthz means and what is said of it: kubelet_healthz' judgement and findings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from agent.detectors.refusals import gone, halted, readable, recommended, where, who
from agent.host.exchange import LINGER_SECONDS, Attempt, Ending, Phase
from agent.host.kubelet import HttpAnswer, failing_checks
from agent.host.service import RUNS, Halt, Lifetime
from agent.model import Action, Finding, Target, TargetKind, Value
from agent.printable import printable

FAILING = "KubeletHealthzFailing"
NAME = "the kubelet"
TIMEOUT = "HealthzTimeout"
REFUSED = "HealthzRefused"
NOT_OK = "HealthzNotOK"
SLOW = "HealthzSlow"

_SUSPECTS = "It may be stopped, deadlocked or starved; see {state}journalctl -u kubelet"

HTTP_OK = 200
HTTP_SERVER_ERROR = 500
NEW_SECONDS = 600.0
"""For this long a restart is told in the message of a kubelet that is well."""

Attempts: TypeAlias = tuple[Attempt[HttpAnswer], ...]


@dataclass(frozen=True, slots=True)
class Observation:
    """One or two attempts, the kubelet's process, and for how long connections have been refused (awake seconds).

    `answered_before`: this URL has answered since the agent was started. `halt`: what keeps the process from running.
    """

    url: str
    attempts: Attempts
    lifetime: Lifetime
    refused_seconds: float
    answered_before: bool = False
    boot_id: str = ""
    halt: Halt = RUNS


def judge(attempts: Attempts, slow_seconds: float) -> tuple[str | None, int]:
    """Return what is wrong, if anything, and how many independent sightings of it the attempts hold."""
    first, second = attempts[0], attempts[1] if len(attempts) > 1 else None
    match first.ending:
        case Ending.TIMEOUT:
            return TIMEOUT, 2 if second and second.ending is Ending.TIMEOUT else 1
        case Ending.REFUSED | Ending.CLOSED:
            return REFUSED, 1
        case Ending.ANSWERED | Ending.TOO_LARGE if first.answer and first.answer.status != HTTP_OK:
            return NOT_OK, 1
        case Ending.ANSWERED if first.total_seconds >= slow_seconds:
            return SLOW, 2 if second and _slow_by_itself(first, second, slow_seconds) else 1
        case _:
            return None, 0


def _slow_by_itself(first: Attempt[HttpAnswer], second: Attempt[HttpAnswer], slow_seconds: float) -> bool:
    """Whether the second attempt was slow too, and not merely released by the same moment as the first."""
    together = second.ending is Ending.ANSWERED and abs(second.ended - first.ended) <= LINGER_SECONDS
    return second.total_seconds >= slow_seconds and not together


def unreadable(seen: Observation) -> str | None:
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


def healthy(seen: Observation) -> str:
    """Return what is said of a kubelet that answers as it should."""
    first, age = seen.attempts[0], seen.lifetime.age_seconds
    new = f"; it was started {readable(age)} ago" if age is not None and age < NEW_SECONDS else ""
    return f"{who(NAME, seen.lifetime)} answered its healthz in {readable(first.total_seconds)}{new}"


def finding(seen: Observation, reason: str, sightings: int, slow_seconds: float) -> Finding:
    """Return the finding for a reason that `judge` has told."""
    process = seen.lifetime.process
    return Finding(
        FAILING,
        reason,
        _MESSAGES[reason](seen, sightings, slow_seconds),
        _action(seen, reason),
        Target(
            TargetKind.KUBELET,
            pid=process.pid if process else None,
            start_time=process.start_time if process else None,
            boot_id=seen.boot_id,
            cgroup="" if process else seen.lifetime.cgroup,
            address=seen.url,
        ),
        values=_values(seen),
        sightings=sightings,
        timed=reason in (TIMEOUT, SLOW),
    )


def _timeout_message(seen: Observation, sightings: int, _: float) -> str:
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
        f"{who(NAME, seen.lifetime)} did not answer {seen.url} within {readable(first.total_seconds)}"
        f"{', nor on a second connection' if sightings > 1 else ''}: {waiting}.{other} "
        f"{halted(seen.lifetime, seen.halt) or _SUSPECTS.format(state=_state_path(seen.lifetime))}. "
        "A restart of the kubelet leaves containers running."
    )


def _refused_message(seen: Observation, _: int, __: float) -> str:
    first, life = seen.attempts[0], seen.lifetime
    what = f"nothing listens at {seen.url} ({first.detail})"
    if first.ending is Ending.CLOSED:
        what = f"{seen.url} drops the connection without an answer ({first.detail})"
    if life.process is not None:
        since = "" if life.age_seconds is None else f" for {readable(life.age_seconds)}"
        return (
            f"{what}, although {who(NAME, life)} has been running{since}. See journalctl -u kubelet; if its "
            "configuration has another healthzPort or healthzBindAddress, set kubelet.healthz_url."
        )
    return f"{what} and {gone(NAME, life)}. {where(NAME, life)}."


def _not_ok_message(seen: Observation, _: int, __: float) -> str:
    answer = seen.attempts[0].answer
    status, body = (answer.status, answer.body) if answer else (0, b"")
    failing = failing_checks(body)
    if failing:
        said = f"failing checks: {', '.join(failing)}"
        return f"{who(NAME, seen.lifetime)} says it is not well (HTTP {status}); {said}. See journalctl -u kubelet."
    said = printable(body.strip(), 80) or "(nothing)"
    hint = "See journalctl -u kubelet." if _is_sick(seen) else "Is kubelet.healthz_url right?"
    return f"{seen.url} answers HTTP {status} and names no failing check; it says: {said}. {hint}"


def _slow_message(seen: Observation, _: int, slow_seconds: float) -> str:
    first = seen.attempts[0]
    first_byte = "" if first.first_byte_seconds is None else f" (first byte after {readable(first.first_byte_seconds)})"
    return (
        f"{who(NAME, seen.lifetime)} is well by its own word, but took {readable(first.total_seconds)} to say "
        f"so{first_byte}; 1 ms is usual, the limit is {slow_seconds:g} s. It, or the node, is probably short "
        "of CPU: see /proc/pressure/cpu and the cpu.stat of the kubelet's cgroup."
    )


_MESSAGES: Mapping[str, Callable[[Observation, int, float], str]] = {
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
    if not helps:
        return Action.NONE
    return recommended(Action.RESTART_KUBELET, seen.lifetime, seen.halt, refused=reason == REFUSED)


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
        "process_state": seen.halt.state or None,
        "frozen_cgroup": seen.halt.frozen_cgroup or None,
        "unit": seen.lifetime.unit or None,
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


def _state_path(life: Lifetime) -> str:
    return f"/proc/{life.process.pid}/status and " if life.process else ""
