"""What Prometheus sees: the board and what the detectors' samples add up to, put into its formats.

Each scrape is made from the latest entries; a gauge vanishes when its detector could not see. The
series are bounded: their labels come from fixed sets or a detector's top K (see `samples` for the
last limit). The only module that imports prometheus_client.
"""

import itertools
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from agent.clock import Clock
from agent.exporters.printable import printable
from agent.exporters.samples import MAX_LABEL, MAX_SERIES, Labels, Samples, Total
from agent.model import Condition, Detector, DetectorState, DetectorStatus, Metric, MetricKind, Status
from agent.pipeline.board import Board, Entry

PREFIX = "nodediag_"

HELP: Mapping[str, str] = {
    "condition": "1 for the status a condition has now, 0 for the other two; True means that something is wrong.",
    "findings": "Confirmed findings of a condition now, by reason; absent while nothing can be said about it.",
    "detector_duration_seconds": "Duration of a detector's last look, or of the one under way if that is overdue.",
    "detector_success": "1 if the last look succeeded or what it watches is absent, 0 if it failed or is overdue.",
    "detector_overdue": "1 while a look of this detector has not returned within its time limit.",
    "detector_last_run_timestamp_seconds": "When a look of this detector last returned, in seconds since the epoch.",
    "looks_discarded_total": "Looks thrown away because the agent itself stood still during them.",
    "series_dropped_total": f"Samples left out because their metric had {MAX_SERIES} series already.",
    "self_stall_seconds_total": "Time in which the agent could not run: CPU throttling, SIGSTOP, a paused machine.",
    "build_info": "Always 1; the versions of the agent and of its Python.",
}
"""The metrics nodediag has whatever the detectors declare; names without prefix."""


_FINE = frozenset({DetectorState.OK, DetectorState.NOT_APPLICABLE})
"""Absent is not failed."""


class Metrics(Collector):
    """Collector and exposition for one board. Subscribes to it and owns its registry: no global state.

    Raises ValueError if what the detectors declare is wrong or contradictory.
    """

    def __init__(self, board: Board, clock: Clock, detectors: Sequence[Detector], version: str) -> None:
        self._board = board
        self._clock = clock
        self._version = version
        self._reasons = {kind: tuple(reasons) for d in detectors for kind, reasons in d.conditions.items()}
        self._samples = Samples(detectors, HELP)
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        board.subscribe(self._samples.hear)

    def expose(self, accept: str = "") -> tuple[bytes, str]:
        """Return (body, content type) in the form the Accept header prefers: OpenMetrics or Prometheus text."""
        try:
            encode, content_type = choose_encoder(" ".join(accept.split()))
        except (ValueError, TypeError):  # a version that is no version
            encode, content_type = choose_encoder("")
        return encode(self._registry), content_type

    def collect(self) -> Iterator[Family]:
        """Yield every metric as it stands now; the registry calls this at each scrape."""
        entries = self._board.entries()
        yield from self._condition_families(entries)
        yield from self._detector_families([entry.status for entry in entries])
        yield _counter("series_dropped_total", self._samples.dropped())
        yield _counter("self_stall_seconds_total", self._clock.stalled())
        yield _gauge("build_info", ("version", "python_version"), {(self._version, platform.python_version()): 1})
        for name, totals in self._samples.totals().items():
            yield _total_family(self._samples.declared[name], totals)
        for name, values in self._samples.gauges(entries).items():
            metric = self._samples.declared[name]
            yield _gauge(name, metric.labels, values, metric.help)

    def _condition_families(self, entries: Iterable[Entry]) -> Iterator[Family]:
        states: dict[Labels, float] = {}
        findings: dict[Labels, float] = {}
        for condition in (condition for entry in entries for condition in entry.conditions):
            for status in Status:
                states[condition.type, status.value] = float(condition.status is status)
            if condition.status is not Status.UNKNOWN:
                for reason, count in self._count_reasons(condition).items():
                    findings[condition.type, reason] = count
        yield _gauge("condition", ("type", "status"), states)
        yield _gauge("findings", ("type", "reason"), findings)

    def _count_reasons(self, condition: Condition) -> dict[str, int]:
        """Count findings by reason; the declared reasons are there also when there are none."""
        counts = dict.fromkeys(self._reasons.get(condition.type, ()), 0)
        for active in condition.findings:
            reason = printable(active.finding.reason, MAX_LABEL)
            if reason in counts or len(counts) < MAX_SERIES:
                counts[reason] = counts.get(reason, 0) + 1
        return counts

    def _detector_families(self, detectors: Sequence[DetectorStatus]) -> Iterator[Family]:
        ended = self._samples.last_runs()
        durations = {d.name: d.duration_seconds for d in detectors if d.duration_seconds is not None}
        successes = {d.name: float(d.state in _FINE) for d in detectors if d.state is not DetectorState.STARTING}
        yield _by_detector("detector_duration_seconds", durations)
        yield _by_detector("detector_success", successes)
        yield _by_detector("detector_overdue", {d.name: float(d.state is DetectorState.OVERDUE) for d in detectors})
        yield _by_detector("detector_last_run_timestamp_seconds", ended)
        name = "looks_discarded_total"
        discarded = CounterMetricFamily(PREFIX + name, HELP[name], labels=("detector",))
        for detector in detectors:
            discarded.add_metric((detector.name,), detector.discarded)
        yield discarded


def _gauge(name: str, labels: Labels, values: Mapping[Labels, float], text: str | None = None) -> Family:
    family = GaugeMetricFamily(PREFIX + name, text or HELP[name], labels=labels)
    for values_of_labels, value in values.items():
        family.add_metric(values_of_labels, value)
    return family


def _by_detector(name: str, values: Mapping[str, float]) -> Family:
    return _gauge(name, ("detector",), {(detector,): value for detector, value in values.items()})


def _counter(name: str, value: float) -> Family:
    return CounterMetricFamily(PREFIX + name, HELP[name], value=value)


def _total_family(metric: Metric, totals: Mapping[Labels, Total]) -> Family:
    if metric.kind is MetricKind.COUNTER:
        counter = CounterMetricFamily(PREFIX + metric.name, metric.help, labels=metric.labels)
        for labels, total in totals.items():
            counter.add_metric(labels, total.value)
        return counter
    histogram = HistogramMetricFamily(PREFIX + metric.name, metric.help, labels=metric.labels)
    bounds = [*map(str, metric.buckets), "+Inf"]
    for labels, total in totals.items():
        buckets = list(zip(bounds, itertools.accumulate(total.counts), strict=True))
        histogram.add_metric(labels, buckets, total.value)
    return histogram
