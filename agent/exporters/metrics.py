"""What Prometheus sees: the board and what the detectors' samples add up to, put into its formats.

Each scrape is made from the latest entries; a gauge vanishes when its detector could not see. The
series are bounded: their labels come from fixed sets or a detector's top K (see `samples` for the
last limit). The only module that imports prometheus_client.
"""

import itertools
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from agent.acts import Outcome
from agent.clock import Clock
from agent.exporters.samples import MAX_LABEL, MAX_SERIES, Labels, Samples, Total
from agent.model import Action, Condition, Detector, DetectorState, DetectorStatus, Meter, Metric, MetricKind, Status
from agent.pipeline.board import Board, Entry
from agent.printable import printable

PREFIX = "nodediag_"

OWN: tuple[Metric, ...] = (
    Metric(
        "condition",
        MetricKind.GAUGE,
        "1 for the status a condition has now, 0 for the other two; True means that something is wrong.",
        ("type", "status"),
    ),
    Metric(
        "findings",
        MetricKind.GAUGE,
        "Confirmed findings of a condition now, by reason; absent while nothing can be said about it.",
        ("type", "reason"),
    ),
    Metric(
        "deployment_fault",
        MetricKind.GAUGE,
        "Whether a fault of the agent's own deployment hides (effect=hides) or impairs (effect=impairs) a condition; "
        "absent where there is none.",
        ("detector", "type", "cause", "subject", "effect"),
    ),
    Metric(
        "detector_duration_seconds",
        MetricKind.GAUGE,
        "Duration of a detector's last look, or of the one under way if that is overdue.",
        ("detector",),
    ),
    Metric(
        "detector_success",
        MetricKind.GAUGE,
        "1 if the last look succeeded or what it watches is absent, 0 if it failed or is overdue.",
        ("detector",),
    ),
    Metric(
        "detector_overdue",
        MetricKind.GAUGE,
        "1 while a look of this detector has not returned within its time limit.",
        ("detector",),
    ),
    Metric(
        "detector_last_run_timestamp_seconds",
        MetricKind.GAUGE,
        "When a look of this detector last returned, in seconds since the epoch.",
        ("detector",),
    ),
    Metric(
        "looks_discarded_total",
        MetricKind.COUNTER,
        "Looks thrown away because the agent itself stood still during them.",
        ("detector",),
    ),
    Metric(
        "series_dropped_total",
        MetricKind.COUNTER,
        f"Samples left out because their metric had {MAX_SERIES} series already.",
    ),
    Metric(
        "remediations_total",
        MetricKind.COUNTER,
        "Requests to mend something, by action and by what came of them; since this agent was started.",
        ("action", "outcome"),
    ),
    Metric(
        "self_stall_seconds_total",
        MetricKind.COUNTER,
        "Time in which the agent could not run: CPU throttling, SIGSTOP, a paused machine.",
    ),
    Metric(
        "build_info",
        MetricKind.GAUGE,
        "Always 1; the versions of the agent and of its Python.",
        ("version", "python_version"),
    ),
)
"""The metrics nodediag has whatever the detectors declare."""

_OWN = {metric.name: metric for metric in OWN}

_FINE = frozenset({DetectorState.OK, DetectorState.NOT_APPLICABLE})
"""Absent is not failed."""


class Metrics(Collector):
    """Collector and exposition for one board. Subscribes to it and owns its registry: no global state.

    `remediations` tells how many had each outcome, `meters` are the parts that count for themselves. Raises ValueError
    if what the detectors declare is wrong or contradictory.
    """

    def __init__(
        self,
        board: Board,
        clock: Clock,
        detectors: Sequence[Detector],
        version: str,
        remediations: Callable[[], Mapping[tuple[Action, Outcome], int]] = dict,
        meters: Sequence[Meter] = (),
    ) -> None:
        self._board = board
        self._clock = clock
        self._version = version
        self._remediations = remediations
        self._meters = meters
        self._reasons = {kind: tuple(reasons) for d in detectors for kind, reasons in d.conditions.items()}
        self._samples = Samples(detectors, [*_OWN, *(metric.name for meter in meters for metric in meter.metrics)])
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        board.subscribe(self._samples.hear)
        board.subscribe(self._count_left_out)

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
        yield _gauge(_OWN["deployment_fault"], dict.fromkeys(_deployment_faults(entries)[:MAX_SERIES], 1.0))
        yield from self._detector_families([entry.status for entry in entries])
        yield _counter("series_dropped_total", {(): self._samples.dropped()})
        yield _counter("remediations_total", {(a.value, o.value): n for (a, o), n in self._remediations().items()})
        yield _counter("self_stall_seconds_total", {(): self._clock.stalled()})
        yield _gauge(_OWN["build_info"], {(self._version, platform.python_version()): 1})
        for name, totals in self._samples.totals().items():
            yield _total_family(self._samples.declared[name], totals)
        for name, values in self._samples.gauges(entries).items():
            yield _gauge(self._samples.declared[name], values)
        for meter in self._meters:
            yield from _meter_families(meter)

    def _count_left_out(self, entry: Entry) -> None:
        """Count the faults of the deployment that one published entry has and that no scrape will show."""
        left_out = _deployment_faults(self._board.entries())[MAX_SERIES:]
        detector = entry.status.name
        self._samples.leave_out("deployment_fault", sum(1 for labels in left_out if labels[0] == detector))

    def _condition_families(self, entries: Iterable[Entry]) -> Iterator[Family]:
        states: dict[Labels, float] = {}
        findings: dict[Labels, float] = {}
        for condition in (condition for entry in entries for condition in entry.conditions):
            for status in Status:
                states[condition.type, status.value] = float(condition.status is status)
            if condition.status is not Status.UNKNOWN:
                for reason, count in self._count_reasons(condition).items():
                    findings[condition.type, reason] = count
        yield _gauge(_OWN["condition"], states)
        yield _gauge(_OWN["findings"], findings)

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
        yield _counter("looks_discarded_total", {(detector.name,): detector.discarded for detector in detectors})


def _deployment_faults(entries: Iterable[Entry]) -> list[Labels]:
    """Return the labels of every series of these entries, each once, in the order of the board."""
    return list(
        dict.fromkeys(
            (entry.status.name, kind, fault.cause.value, printable(fault.subject, MAX_LABEL), effect)
            for entry in entries
            for fault in entry.deployment
            for effect, types in (("hides", fault.hides), ("impairs", fault.impairs))
            for kind in types
        )
    )


def _gauge(metric: Metric, values: Mapping[Labels, float]) -> Family:
    family = GaugeMetricFamily(PREFIX + metric.name, metric.help, labels=metric.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def _by_detector(name: str, values: Mapping[str, float]) -> Family:
    return _gauge(_OWN[name], {(detector,): value for detector, value in values.items()})


def _counter(name: str, values: Mapping[Labels, float]) -> Family:
    metric = _OWN[name]
    family = CounterMetricFamily(PREFIX + metric.name, metric.help, labels=metric.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def _meter_families(meter: Meter) -> Iterator[Family]:
    found: dict[str, dict[Labels, float]] = {metric.name: {} for metric in meter.metrics}
    for sample in meter.samples():
        series = found[sample.name]
        if len(series) < MAX_SERIES:
            series[tuple(printable(label, MAX_LABEL) for label in sample.labels)] = sample.value
    for metric in meter.metrics:
        family = CounterMetricFamily if metric.kind is MetricKind.COUNTER else GaugeMetricFamily
        told = family(PREFIX + metric.name, metric.help, labels=metric.labels)
        for labels, value in found[metric.name].items():
            told.add_metric(labels, value)
        yield told


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
