"""Does the kubelet still notice what its containers do?

PLEG (pod lifecycle event generator) lists every pod and container from the runtime once a second and tells the kubelet
what has changed. Where that stands still, no container that ended is restarted and no pod turns ready, while
everything that runs runs on; after 3 min without a list the kubelet calls its node NotReady for that ("PLEG is not
healthy"), if it is not NotReady for another reason before. Here it is reported earlier, from the kubelet's own
metrics: since when no list has succeeded, how long lists took between two looks, and whether events were thrown away
because nobody took them.

When this is harmless: a list takes long while a node starts with a hundred pods, so what counts is the mean between
two looks, half a minute apart. A step of the wall clock makes a list look old, so it must be as old at the second look
and the same one. A kubelet with evented PLEG lists every 5 min only, and its own limit is 10 min.

What it does not prove: anything about shims. A hung shim is not in these lists (containerd answers them from memory),
so PLEG is well while its pod is not. An old mark may also mean that the kubelet's sync loop stands still, which
renews it. And `/metrics` hangs for the whole node while a single shim or containerd is stopped: that no answer comes
accuses nobody and makes the condition Unknown; ContainerdShimHung, ContainerRuntimeUnresponsive and
KubeletHealthzFailing tell which it is.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from agent.durations import duration, measured_duration, moment, rounded
from agent.host.kubelet import KubeletApiError
from agent.host.pleg import PlegMetrics, PlegSense, Relists
from agent.model import (
    Action,
    CannotSeeError,
    CheckResult,
    Finding,
    Metric,
    NotApplicableError,
    Target,
    TargetKind,
    Value,
)
from agent.schema import DetectorSettings, setting

UNHEALTHY = "PLEGUnhealthy"
RELIST_SLOW = "RelistSlow"
EVENTS_DISCARDED = "EventsDiscarded"

KUBELET_LIMIT_SECONDS = 180.0
"""relistThreshold of the generic PLEG (pkg/kubelet/kubelet.go): older than this, and the node is NotReady."""
EVENTED_LIMIT_SECONDS = 600.0
"""The same for evented PLEG, which lists every 300 s."""
WHOLE_SECONDS = 1.0
"""The kubelet's mark of its last list is in whole seconds, rounded down: an age below this is no more exact."""
SPACING = 0.85
"""Share of the period that lies between two requests at least: the period is jittered by a tenth."""
MAX_PERIODS = 3
"""Between two looks that are compared: what happened in a longer gap may be over."""
MAX_DISCARDS = 128
"""Rises of the counter that are remembered."""


@dataclass(frozen=True, slots=True)
class KubeletPlegSettings(DetectorSettings):
    """Settings of the kubelet_pleg detector."""

    period_seconds: float = setting(
        30.0,
        "time between two looks, each one request for the kubelet's /metrics, jittered by 10 %; up to 120 s they cost "
        "the API server a TokenReview in 2 min and a SubjectAccessReview in 5 min",
        minimum=30,
        maximum=3600,
    )
    timeout_seconds: float = setting(
        40.0, "a look still running after this long is shown as overdue", minimum=0.1, maximum=3600
    )
    deadline_seconds: float = setting(
        10.0, "how long the kubelet may take for its metrics; 0.1 s is usual", minimum=0.1, maximum=60
    )
    stale_seconds: float = setting(
        90.0,
        "no list of containers has succeeded for this long: PLEG stands still; the kubelet's own limit is 180",
        minimum=10,
        maximum=3600,
    )
    slow_seconds: float = setting(
        10.0,
        "lists that take this long in the mean between two looks are slow; 0.1 s is usual",
        minimum=0.5,
        maximum=600,
    )
    min_discarded: int = setting(1, "so many events thrown away are too many", minimum=1, maximum=1000000)
    discard_seconds: float = setting(
        300.0, "for how long events that were thrown away are counted", minimum=30, maximum=86400
    )


@dataclass(frozen=True, slots=True)
class Observation:
    """One look: the metrics, or for how many seconds there was no answer; and the metrics of the look before.

    `discarded` counts the events thrown away lately.
    """

    latest: PlegMetrics | None
    unanswered_seconds: float = 0.0
    before: PlegMetrics | None = None
    discarded: float = 0.0
    boot_id: str = ""


class KubeletPlegDetector:
    """Reads the kubelet's metrics. `sense` is None where the kubelet's API is not to be asked."""

    name: ClassVar[str] = "kubelet_pleg"
    conditions: ClassVar[Mapping[str, Mapping[str, str]]] = {
        UNHEALTHY: {
            RELIST_SLOW: "The kubelet lists its containers too slowly or not at all, so it notices late what they do.",
            EVENTS_DISCARDED: "The kubelet threw changes of containers away, because it did not get round to them.",
        }
    }
    metrics: ClassVar[tuple[Metric, ...]] = ()

    def __init__(
        self, settings: KubeletPlegSettings, sense: PlegSense | None, url: str, boot_id: Callable[[], str]
    ) -> None:
        self._settings = settings
        self._sense = sense
        self._url = url
        self._boot_id = boot_id
        self._latest: PlegMetrics | None = None
        self._before: PlegMetrics | None = None
        self._discards: deque[tuple[float, float]] = deque(maxlen=MAX_DISCARDS)

    def probe(self) -> Observation:
        """Ask once. Raises NotApplicableError without the kubelet's API, CannotSeeError if that lets nobody in."""
        if self._sense is None:
            raise NotApplicableError("kubelet.api_url is not set, so the kubelet's metrics are not read")
        try:
            seen = self._sense.look(self._settings.deadline_seconds)
        except KubeletApiError as error:
            raise CannotSeeError(str(error), error.fault) from None
        if isinstance(seen, float):
            return Observation(None, seen, self._latest)
        if seen is not self._latest:
            self._before, self._latest = self._latest, seen
            self._note_discards(seen)
        return Observation(
            seen, 0.0, self._comparable(seen), sum(count for _, count in self._discards), self._boot_id()
        )

    def check(self, seen: Observation) -> CheckResult:
        """Decide. Pure."""
        latest = seen.latest
        if latest is None:
            return CheckResult(unknown={UNHEALTHY: self._no_answer(seen)})
        if latest.last_seen is None:
            text = f"what answers at {self._url} tells nothing of PLEG, so it is hardly a kubelet's /metrics"
            return CheckResult(unknown={UNHEALTHY: text})
        age = _age(latest)
        stale = age >= self._stale_limit(latest)
        if stale and seen.before is None:
            text = (
                f"the last list of containers was {duration(age)} old at {_read_at(latest)}; the next reading shows "
                "whether it is still the last one"
            )
            return CheckResult(unknown={UNHEALTHY: text})
        return CheckResult(tuple(self._findings(seen, latest, age)), healthy={UNHEALTHY: _healthy(seen, latest, age)})

    def _findings(self, seen: Observation, latest: PlegMetrics, age: float) -> Iterator[Finding]:
        mean = _mean_duration(seen)
        stands = seen.before is not None and seen.before.last_seen == latest.last_seen
        if stands and age >= self._stale_limit(latest):
            yield self._finding(RELIST_SLOW, _stale_message(latest, age), seen)
        elif mean is not None and mean >= self._settings.slow_seconds:
            yield self._finding(RELIST_SLOW, _slow_message(mean, self._settings.slow_seconds), seen)
        if seen.discarded >= self._settings.min_discarded:
            yield self._finding(EVENTS_DISCARDED, _discard_message(seen, self._settings.discard_seconds), seen)

    def _finding(self, reason: str, message: str, seen: Observation) -> Finding:
        target = Target(TargetKind.KUBELET, boot_id=seen.boot_id, address=self._url)
        values = {key: value for key, value in _values(seen).items() if value is not None}
        return Finding(UNHEALTHY, reason, message, Action.NONE, target, values=values, sightings=2)

    def _stale_limit(self, latest: PlegMetrics) -> float:
        limit = self._settings.stale_seconds
        return max(limit, EVENTED_LIMIT_SECONDS) if latest.evented else limit

    def _no_answer(self, seen: Observation) -> str:
        last = f"the last reading is of {_read_at(seen.before)}" if seen.before else "there is no earlier reading"
        return (
            f"GET {self._url}/metrics has not been answered for {duration(seen.unanswered_seconds)}; {last}. That says "
            "nothing about PLEG: the kubelet's metrics hang for the whole node while a single shim is stopped, while "
            "containerd is, and while the kubelet is: see ContainerdShimHung, ContainerRuntimeUnresponsive and "
            "KubeletHealthzFailing. No further request is sent meanwhile"
        )

    def _comparable(self, latest: PlegMetrics) -> PlegMetrics | None:
        """Return the metrics of the look before, unless they are old, or the kubelet was restarted since."""
        before = self._before
        if before is None or latest.monotonic - before.monotonic > MAX_PERIODS * self._settings.period_seconds:
            return None
        if _fell(before.durations, latest.durations) or _fell(before.intervals, latest.intervals):
            return None
        return before

    def _note_discards(self, latest: PlegMetrics) -> None:
        before = self._before
        if before is not None and latest.discarded is not None:
            rise = latest.discarded - (before.discarded or 0.0)  # a counter that fell has begun anew
            lost = rise if rise >= 0 else latest.discarded
            if lost > 0:
                self._discards.append((latest.monotonic, lost))
        while self._discards and latest.monotonic - self._discards[0][0] > self._settings.discard_seconds:
            self._discards.popleft()


def _fell(before: Relists | None, latest: Relists | None) -> bool:
    return before is not None and (latest is None or latest.count < before.count or latest.sum < before.sum)


def _mean(latest: Relists | None, before: Relists | None) -> float | None:
    """Return the mean of what came to a histogram between two looks; None if nothing did."""
    if latest is None or before is None or latest.count <= before.count:
        return None
    return (latest.sum - before.sum) / (latest.count - before.count)


def _mean_duration(seen: Observation) -> float | None:
    return _mean(seen.latest.durations, seen.before.durations) if seen.latest and seen.before else None


def _age(latest: PlegMetrics) -> float:
    """How old the last list was when the metrics were read; 0 if the clock was set back since."""
    return max(0.0, latest.wall - latest.last_seen) if latest.last_seen is not None else 0.0


def _read_at(metrics: PlegMetrics) -> str:
    return moment(metrics.wall)


def _healthy(seen: Observation, latest: PlegMetrics, age: float) -> str:
    old = duration(age) if age >= WHOLE_SECONDS else "under 1 s"
    text = f"the last list of containers was {old} old at {_read_at(latest)}"
    mean = _mean_duration(seen)
    if mean is not None:
        return f"{text}, and lists took {measured_duration(mean)} in the mean since the reading before"
    return text if seen.before else f"{text}; how long lists take is known from the next reading on"


_WHERE = (
    "Look whether containerd answers (ContainerRuntimeUnresponsive), then at its log (journalctl -u containerd), at "
    "the disk of its state and at the number of containers; if `crictl ps` takes as long, it is the runtime."
)


def _stale_message(latest: PlegMetrics, age: float) -> str:
    """Only what the reading shows: whether the node is NotReady, and for which reason, is not in these metrics."""
    limit = EVENTED_LIMIT_SECONDS if latest.evented else KUBELET_LIMIT_SECONDS
    own = f'of {duration(limit)} ("PLEG is not healthy")'
    compared = "That is past the kubelet's own limit" if age > limit else "The kubelet has its own limit,"
    return (
        f"the kubelet had not listed its containers for {duration(age)} when its metrics were read at "
        f"{_read_at(latest)}: it notices neither that one has ended nor that one is ready; what runs goes on. "
        f"{compared} {own}; whether the node is Ready is not known here. {_WHERE}"
    )


def _slow_message(mean: float, limit: float) -> str:
    return (
        f"the kubelet's lists of its containers took {duration(mean)} in the mean since the reading before (limit "
        f"{duration(limit)}, 0.1 s is usual): it notices that late what containers do. {_WHERE}"
    )


def _discard_message(seen: Observation, window: float) -> str:
    return (
        f"the kubelet threw {seen.discarded:.0f} changes of containers away in the last {duration(window)}, since its "
        "queue of a thousand was full: pods may be shown and restarted late. It, or the node, is probably short of "
        "CPU: see /proc/pressure/cpu and the cpu.stat of the kubelet's cgroup."
    )


def _values(seen: Observation) -> dict[str, Value]:
    latest, before = seen.latest, seen.before
    if latest is None or latest.last_seen is None:
        return {}
    mean = _mean_duration(seen)
    interval = _mean(latest.intervals, before.intervals) if before else None
    relists = latest.durations.count - before.durations.count if before and before.durations and latest.durations else 0
    return {
        "read_timestamp_seconds": latest.wall,
        "last_relist_timestamp_seconds": latest.last_seen,
        "last_relist_age_seconds": rounded(_age(latest)),
        "relists": int(relists) if before else None,
        "mean_relist_seconds": None if mean is None else rounded(mean),
        "mean_interval_seconds": None if interval is None else rounded(interval),
        "discarded_events": int(seen.discarded) or None,
        "evented": latest.evented or None,
    }
