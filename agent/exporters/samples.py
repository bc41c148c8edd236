"""What the detectors' samples add up to, checked and bounded; knows nothing of any exposition format.

A gauge is its latest value. Counters and histograms only ever grow, so every published entry is
heard and added. A sample that breaks its declaration is dropped and logged once; nothing raises into
the thread of the detector that published it.
"""

import bisect
import logging
import math
import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from agent.model import Detector, DetectorState, Metric, MetricKind, Sample
from agent.pipeline.board import Entry
from agent.printable import printable

log = logging.getLogger("nodediag.metrics")

MAX_SERIES = 64
"""Label combinations one metric may have: a last defence, should a detector forget its top K."""
MAX_LABEL = 256
"""Characters of one label value; a Kubernetes name has at most 253."""

Labels: TypeAlias = tuple[str, ...]
_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")


@dataclass(frozen=True, slots=True)
class Total:
    """One accumulated series: a counter's sum, or a histogram's sum with its count per bucket, the last being +Inf."""

    value: float = 0.0
    counts: tuple[int, ...] = ()

    def plus(self, value: float, buckets: tuple[float, ...]) -> "Total":
        """Return this series with one more increment or observation."""
        if not self.counts:
            return Total(self.value + value)
        bucket = bisect.bisect_left(buckets, value)
        counts = (*self.counts[:bucket], self.counts[bucket] + 1, *self.counts[bucket + 1 :])
        return Total(self.value + value, counts)


class Samples:
    """The declared metrics of all detectors and their values. Safe to call from any thread.

    Raises ValueError if a declaration is wrong, or the same name is declared twice or is `reserved`.
    """

    def __init__(self, detectors: Sequence[Detector], reserved: Iterable[str]) -> None:
        self.declared = _declarations(detectors, frozenset(reserved))
        self._lock = threading.Lock()
        self._totals: dict[str, dict[Labels, Total]] = {
            metric.name: {} if metric.labels else {(): _start(metric)}
            for metric in self.declared.values()
            if metric.kind is not MetricKind.GAUGE
        }
        self._last_run: dict[str, float] = {}
        self._dropped = 0
        self._complained: set[tuple[str, str]] = set()

    def hear(self, entry: Entry) -> None:
        """Add what one published entry holds. Called in the detector's thread: never raises, waits for no scrape."""
        try:
            with self._lock:
                self._hear(entry)
        except Exception:
            if self._is_news(entry.status.name, "exception"):
                log.exception("samples could not be added", extra={"detector": entry.status.name})

    def totals(self) -> dict[str, dict[Labels, Total]]:
        """Return a copy of every counter and histogram."""
        with self._lock:
            return {name: dict(series) for name, series in self._totals.items()}

    def last_runs(self) -> dict[str, float]:
        """Return when each detector's last look returned, in seconds since the epoch."""
        with self._lock:
            return dict(self._last_run)

    def dropped(self) -> int:
        """Return how many samples were left out because their metric had too many series."""
        with self._lock:
            return self._dropped

    def leave_out(self, name: str, count: int) -> None:
        """Count samples of a metric that no detector declares and that were left out because it had too many series."""
        if count:
            with self._lock:
                self._drop(name, count)

    def gauges(self, entries: Iterable[Entry]) -> dict[str, dict[Labels, float]]:
        """Return every gauge of these entries; what is wrong or too many is left out."""
        found: dict[str, dict[Labels, float]] = {}
        for sample in (sample for entry in entries for sample in entry.samples):
            metric = self.declared.get(sample.name)
            if metric is None or metric.kind is not MetricKind.GAUGE or _problem(metric, sample):
                continue
            series, labels = found.setdefault(metric.name, {}), _clean(sample.labels)
            if labels in series or len(series) < MAX_SERIES:
                series[labels] = float(sample.value)
        return found

    def _hear(self, entry: Entry) -> None:
        status = entry.status
        if status.last_run_time is not None and status.state is not DetectorState.OVERDUE:
            self._last_run[status.name] = status.last_run_time
        gauges: dict[str, set[Labels]] = {}
        for sample in entry.samples:
            metric = self.declared.get(sample.name)
            problem = _problem(metric, sample)
            if metric is None or problem:
                self._complain(status.name, problem, sample)
            elif metric.kind is not MetricKind.GAUGE:
                self._add(metric, sample)
            elif self._has_room(gauges.setdefault(metric.name, set()), metric, labels := _clean(sample.labels)):
                gauges[metric.name].add(labels)

    def _add(self, metric: Metric, sample: Sample) -> None:
        series, labels = self._totals[metric.name], _clean(sample.labels)
        if self._has_room(series, metric, labels):
            series[labels] = series.get(labels, _start(metric)).plus(float(sample.value), metric.buckets)

    def _has_room(self, series: dict[Labels, Total] | set[Labels], metric: Metric, labels: Labels) -> bool:
        if labels in series or len(series) < MAX_SERIES:
            return True
        self._drop(metric.name, 1)
        return False

    def _drop(self, name: str, count: int) -> None:
        self._dropped += count
        if self._is_news(name, "series"):
            log.error("too many series; the rest is dropped", extra={"metric": name, "limit": MAX_SERIES})

    def _complain(self, detector: str, problem: str, sample: Sample) -> None:
        if self._is_news(detector, problem):
            details = {"detector": detector, "problem": problem, "sample": printable(repr(sample), MAX_LABEL)}
            log.error("a sample was dropped, and so will be others like it", extra=details)

    def _is_news(self, about: str, problem: str) -> bool:
        """Whether this kind of mistake has not been logged yet for this detector or metric."""
        known = (about, problem) in self._complained
        self._complained.add((about, problem))
        return not known


def _declarations(detectors: Sequence[Detector], reserved: frozenset[str]) -> dict[str, Metric]:
    declared: dict[str, Metric] = {}
    for detector in detectors:
        for metric in detector.metrics:
            wrong = _mistake(metric)
            if metric.name in reserved or metric.name in declared:
                wrong = "is declared twice"
            if wrong:
                raise ValueError(f"metric {metric.name!r} of {detector.name} {wrong}")
            declared[metric.name] = metric
    return declared


def _mistake(metric: Metric) -> str | None:
    """Return what is wrong with a declaration, after Prometheus' naming rules."""
    if not all(_NAME.match(name) for name in (metric.name, *metric.labels)) or "le" in metric.labels:
        return "or one of its labels has a name Prometheus does not take"
    if metric.name.endswith("_total") != (metric.kind is MetricKind.COUNTER):
        return "must end in _total if it is a counter, and only then"
    if metric.name.endswith(("_bucket", "_count", "_sum", "_info", "_created")):
        return "must not end as a histogram's series do"
    if bool(metric.buckets) != (metric.kind is MetricKind.HISTOGRAM):
        return "must have buckets if it is a histogram, and only then"
    if list(metric.buckets) != sorted(set(metric.buckets)) or not all(map(math.isfinite, metric.buckets)):
        return "must have finite buckets in rising order"
    return None


def _problem(metric: Metric | None, sample: Sample) -> str:
    """Return what is wrong with a sample, or an empty text. The values may be anything: mypy is not at run time."""
    if metric is None:
        return "is not declared"
    if not isinstance(sample.labels, tuple) or len(sample.labels) != len(metric.labels):
        return "has other labels than declared"
    if not isinstance(sample.value, int | float):
        return "has a value that is no number"
    if metric.kind is not MetricKind.GAUGE and not math.isfinite(sample.value):
        return "adds something that is not finite"
    if metric.kind is MetricKind.COUNTER and sample.value < 0:
        return "lets a counter fall"
    return ""


def _start(metric: Metric) -> Total:
    return Total(0.0, (0,) * (len(metric.buckets) + 1) if metric.kind is MetricKind.HISTOGRAM else ())


def _clean(labels: tuple[str, ...]) -> Labels:
    return tuple(printable(str(value), MAX_LABEL) for value in labels)
