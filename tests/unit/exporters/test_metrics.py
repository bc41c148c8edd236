"""What Prometheus scrapes: true, bounded and valid, whatever a detector hands over."""

import importlib
import logging
import math
import re
import shutil
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, ClassVar

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from agent.clock import Clock
from agent.exporters.metrics import OWN, Metrics
from agent.exporters.samples import MAX_SERIES, Samples
from agent.model import (
    Condition,
    DeploymentCause,
    DeploymentFault,
    DetectorState,
    DetectorStatus,
    Metric,
    MetricKind,
    NodeReport,
    Sample,
    Status,
)
from agent.pipeline.board import Board, Entry
from agent.settings import DetectorsSettings

NAME = "containerd_shim"
OK = DetectorStatus(NAME, DetectorState.OK, "", 0.25, 1000.0)


class Watch:
    name: ClassVar[str] = NAME
    conditions: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "ContainerdShimHung": {"ShimUnresponsive": "...", "ShimOperationStuck": "..."}
    }
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("shims", MetricKind.GAUGE, "Shims by state.", ("state",)),
        Metric("events_total", MetricKind.COUNTER, "Events.", ("event",)),
        Metric("looks_total", MetricKind.COUNTER, "Looks."),
        Metric("ping_seconds", MetricKind.HISTOGRAM, "Duration of a ping.", (), (0.001, 0.01, 1.0)),
    )

    def probe(self) -> Any:
        raise NotImplementedError

    def check(self, seen: Any) -> Any:
        raise NotImplementedError


def watch(*metrics: Metric) -> Watch:
    class Other(Watch):
        pass

    Other.metrics = metrics
    return Other()


@pytest.fixture
def metrics(board: Board, clock: Clock) -> Metrics:
    return Metrics(board, clock, [Watch()], "1.2.3")


def scrape(metrics: Metrics) -> dict[str, float]:
    """Return `name{label=value}` to value from the text format, labels in alphabetical order."""
    body, _ = metrics.expose()
    found = {}
    for family in parse_text(body.decode()):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            key = f"{sample.name}{{{labels}}}" if labels else sample.name
            assert key not in found, f"{key} twice"
            found[key] = sample.value
    return found


def publish(
    board: Board, *samples: Sample, status: DetectorStatus = OK, conditions: tuple[Condition, ...] = ()
) -> None:
    board.publish(Entry(status, conditions, samples))


def test_gauges_are_the_latest_and_vanish_with_what_they_measure(board: Board, metrics: Metrics) -> None:
    publish(board, Sample("shims", 7, ("serving",)), Sample("shims", 1, ("hung",)))
    publish(board, Sample("shims", 6, ("serving",)))
    told = scrape(metrics)
    assert told["nodediag_shims{state=serving}"] == 6
    assert "nodediag_shims{state=hung}" not in told
    publish(board, status=replace(OK, state=DetectorState.FAILED))
    assert not any(key.startswith("nodediag_shims") for key in scrape(metrics))


def test_counters_add_up_over_looks_that_fail_in_between(board: Board, metrics: Metrics) -> None:
    assert scrape(metrics)["nodediag_looks_total"] == 0
    publish(board, Sample("events_total", 3, ("drop",)), Sample("looks_total", 1))
    publish(board, status=replace(OK, state=DetectorState.FAILED))
    publish(board, Sample("events_total", 2, ("drop",)), Sample("looks_total", 1))
    told = scrape(metrics)
    assert told["nodediag_events_total{event=drop}"] == 5
    assert told["nodediag_looks_total"] == 2


def test_histograms_count_every_observation_once(board: Board, metrics: Metrics) -> None:
    assert scrape(metrics)["nodediag_ping_seconds_count"] == 0
    publish(board, *(Sample("ping_seconds", value) for value in (0.0005, 0.001, 0.5, 30.0)))
    publish(board, Sample("ping_seconds", 0.002))
    told = scrape(metrics)
    buckets = {bound: told[f"nodediag_ping_seconds_bucket{{le={bound}}}"] for bound in ("0.001", "0.01", "1.0", "+Inf")}
    assert buckets == {"0.001": 2, "0.01": 3, "1.0": 4, "+Inf": 5}
    assert told["nodediag_ping_seconds_count"] == 5
    assert told["nodediag_ping_seconds_sum"] == pytest.approx(30.5035)


def test_a_condition_has_one_series_per_status(board: Board, metrics: Metrics, report: NodeReport) -> None:
    true = report.conditions[0]
    publish(board, conditions=(true,))
    told = scrape(metrics)
    states = [told[f"nodediag_condition{{status={status},type=ContainerdShimHung}}"] for status in Status]
    assert states == [1, 0, 0]
    assert told["nodediag_findings{reason=ShimUnresponsive,type=ContainerdShimHung}"] == 1
    assert told["nodediag_findings{reason=ShimOperationStuck,type=ContainerdShimHung}"] == 0
    publish(board, conditions=(replace(true, status=Status.UNKNOWN, findings=()),))
    told = scrape(metrics)
    assert told["nodediag_condition{status=Unknown,type=ContainerdShimHung}"] == 1
    assert not any(key.startswith("nodediag_findings") for key in told)


def test_a_fault_of_the_deployment_has_a_series_per_condition_and_goes_with_it(board: Board, metrics: Metrics) -> None:
    fault = DeploymentFault(DeploymentCause.MOUNT, "/x", "no mount", "mount it", ("NodeSick",), ("NodeDirty",))
    board.publish(Entry(OK, deployment=(fault,)))
    faults = {key: value for key, value in scrape(metrics).items() if key.startswith("nodediag_deployment_fault{")}
    labels = "cause=mount,detector=containerd_shim,effect={},subject=/x,type={}"
    assert faults == {
        f"nodediag_deployment_fault{{{labels.format('hides', 'NodeSick')}}}": 1,
        f"nodediag_deployment_fault{{{labels.format('impairs', 'NodeDirty')}}}": 1,
    }
    board.publish(Entry(OK))
    assert not any(key.startswith("nodediag_deployment_fault{") for key in scrape(metrics))


@pytest.mark.parametrize(
    ("state", "success", "overdue"),
    [
        (DetectorState.STARTING, None, 0),
        (DetectorState.OK, 1, 0),
        (DetectorState.NOT_APPLICABLE, 1, 0),
        (DetectorState.FAILED, 0, 0),
        (DetectorState.OVERDUE, 0, 1),
    ],
)
def test_how_a_detector_is_doing(
    board: Board, metrics: Metrics, state: DetectorState, success: float | None, overdue: float
) -> None:
    publish(board, status=DetectorStatus(NAME, state, "", 0.5, 123.0, 4))
    told = scrape(metrics)
    label = f"{{detector={NAME}}}"
    assert told.get(f"nodediag_detector_success{label}") == success
    assert told[f"nodediag_detector_overdue{label}"] == overdue
    assert told[f"nodediag_detector_duration_seconds{label}"] == 0.5
    assert told[f"nodediag_looks_discarded_total{label}"] == 4


def test_an_overdue_look_is_no_last_run(board: Board, metrics: Metrics) -> None:
    publish(board)
    publish(board, status=DetectorStatus(NAME, DetectorState.OVERDUE, "", 60.0, 5000.0))
    assert scrape(metrics)[f"nodediag_detector_last_run_timestamp_seconds{{detector={NAME}}}"] == 1000.0


def test_itself(metrics: Metrics) -> None:
    told = scrape(metrics)
    assert told["nodediag_self_stall_seconds_total"] == 1.5
    assert any(re.match(r"nodediag_build_info{python_version=3\..*,version=1\.2\.3}$", key) for key in told)
    assert told["process_resident_memory_bytes"] > 1_000_000
    assert told["process_cpu_seconds_total"] > 0
    assert told["process_open_fds"] > 0


def test_two_have_nothing_in_common(board: Board, clock: Clock) -> None:
    first = Metrics(board, clock, [Watch()], "1")
    other_board = Board("other", clock)
    second = Metrics(other_board, clock, [Watch()], "1")
    publish(board, Sample("looks_total", 1))
    assert scrape(first)["nodediag_looks_total"] == 1
    assert scrape(second)["nodediag_looks_total"] == 0


BAD: tuple[Any, ...] = (
    Sample("never_declared", 1),
    Sample("shims", 1),
    Sample("shims", 1, ("a", "b")),
    Sample("shims", None, ("a",)),  # type: ignore[arg-type]
    Sample("shims", 1, "a"),  # type: ignore[arg-type]
    Sample("looks_total", -1),
    Sample("looks_total", math.nan),
    Sample("ping_seconds", math.inf),
    Sample("ping_seconds", "1"),  # type: ignore[arg-type]
)


@pytest.mark.parametrize("bad", BAD, ids=repr)
def test_a_bad_sample_is_dropped_alone_and_logged_once(
    board: Board, metrics: Metrics, bad: Sample, caplog: pytest.LogCaptureFixture
) -> None:
    before = set(scrape(metrics))
    for _ in range(3):
        publish(board, bad, Sample("events_total", 1, ("good",)))
    told = scrape(metrics)
    assert told["nodediag_events_total{event=good}"] == 3
    assert told["nodediag_looks_total"] == told["nodediag_ping_seconds_count"] == 0
    assert set(told) - before - {"nodediag_events_total{event=good}"} == {key for key in told if "detector=" in key}
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_what_is_no_sample_at_all_does_not_raise_into_the_detector(
    board: Board, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        board.publish(Entry(OK, (), (None,)))  # type: ignore[arg-type]
    assert len(caplog.records) == 1
    board.publish(Entry(OK, (), (Sample("looks_total", 1),)))
    assert scrape(metrics)["nodediag_looks_total"] == 1


@pytest.mark.parametrize("name", ["shims", "events_total"])
def test_series_are_bounded_and_the_rest_is_counted(
    board: Board, metrics: Metrics, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    publish(board, *(Sample(name, 1, (f"value {number}",)) for number in range(MAX_SERIES + 36)))
    told = scrape(metrics)
    kept = [key for key in told if key.startswith(f"nodediag_{name}{{")]
    assert len(kept) == MAX_SERIES
    assert told["nodediag_series_dropped_total"] == 36
    assert len(caplog.records) == 1
    publish(board, Sample(name, 1, ("value 0",)))
    assert scrape(metrics)["nodediag_series_dropped_total"] == 36


def test_faults_of_the_deployment_are_bounded_over_all_detectors_and_the_rest_is_counted(
    board: Board, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    def faults(detector: str, number: int) -> Entry:
        each = (DeploymentFault(DeploymentCause.MOUNT, f"/{n}", "", "", ("NodeSick",)) for n in range(number))
        return Entry(DetectorStatus(detector, DetectorState.OK), deployment=tuple(each))

    board.publish(faults(NAME, MAX_SERIES))
    assert scrape(metrics)["nodediag_series_dropped_total"] == 0
    board.publish(faults("conntrack_dns", 3))
    told = scrape(metrics)
    assert sum(key.startswith("nodediag_deployment_fault{") for key in told) == MAX_SERIES
    assert told["nodediag_series_dropped_total"] == 3
    assert len(caplog.records) == 1
    board.publish(faults(NAME, 1))
    told = scrape(metrics)
    assert sum(key.startswith("nodediag_deployment_fault{") for key in told) == 4
    assert told["nodediag_series_dropped_total"] == 3


HOSTILE = ("a\nb", 'quote " and \\', "\udcff\ud800", "\x1b[2J\r\0", "}{=,# EOF\n# EOF", "", "x" * 100_000, "\u202e")


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
def test_hostile_label_values_are_valid_exposition(board: Board, metrics: Metrics, accept: str) -> None:
    publish(board, *(Sample("shims", 1, (value,)) for value in HOSTILE))
    body, _ = metrics.expose(accept)
    parse = parse_openmetrics if accept else parse_text
    families = {family.name: family for family in parse(body.decode())}
    values = [sample.labels["state"] for sample in families["nodediag_shims"].samples]
    assert len(values) == len(HOSTILE)
    assert all(value.isprintable() and len(value) <= 256 for value in values)
    assert "\\xff\\ud800" in values


def test_two_names_that_look_alike_stay_one_series(board: Board, metrics: Metrics) -> None:
    publish(board, Sample("shims", 1, ("\n",)), Sample("shims", 2, ("\\n",)))
    assert scrape(metrics)["nodediag_shims{state=\\n}"] == 2


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; version=0.0.4"),
        ("*/*", "text/plain; version=0.0.4"),
        ("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5", "application/openmetrics-text"),
        ("application/openmetrics-text; version=x", "text/plain"),
        ("application/openmetrics-text; version=1.0.0\r\n X-Evil: 1", "text/plain"),
        ("application/openmetrics-text; version=2.0.0\r\n X-Evil: 1", "application/openmetrics-text"),
        (",;=,;;", "text/plain"),
    ],
)
def test_content_negotiation(metrics: Metrics, accept: str, content_type: str) -> None:
    body, told = metrics.expose(accept)
    assert told.startswith(content_type)
    assert "\n" not in told
    assert body.endswith(b"# EOF\n") is ("openmetrics" in told)


@pytest.mark.parametrize(
    "wrong",
    [
        Metric("a_total", MetricKind.GAUGE, "Help."),
        Metric("a", MetricKind.COUNTER, "Help."),
        Metric("a_count", MetricKind.GAUGE, "Help."),
        Metric("A b", MetricKind.GAUGE, "Help."),
        Metric("a", MetricKind.GAUGE, "Help.", ("b-c",)),
        Metric("a", MetricKind.HISTOGRAM, "Help.", ("le",), (1.0,)),
        Metric("a", MetricKind.HISTOGRAM, "Help."),
        Metric("a", MetricKind.HISTOGRAM, "Help.", (), (2.0, 1.0)),
        Metric("a", MetricKind.HISTOGRAM, "Help.", (), (1.0, math.inf)),
        Metric("a", MetricKind.GAUGE, "Help.", (), (1.0,)),
        *OWN,
    ],
    ids=repr,
)
def test_wrong_declarations_are_refused_at_the_start(board: Board, clock: Clock, wrong: Metric) -> None:
    with pytest.raises(ValueError, match=wrong.name):
        Metrics(board, clock, [watch(wrong)], "1")


def test_one_name_belongs_to_one_detector(board: Board, clock: Clock) -> None:
    with pytest.raises(ValueError, match="declared twice"):
        Metrics(board, clock, [watch(*Watch.metrics), watch(Watch.metrics[0])], "1")


def test_scrapes_and_detectors_do_not_disturb_each_other(board: Board, metrics: Metrics) -> None:
    def look() -> None:
        for _ in range(300):
            publish(board, Sample("looks_total", 1), Sample("ping_seconds", 0.5), Sample("shims", 1, ("serving",)))

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        told = scrape(metrics)
        assert told["nodediag_ping_seconds_bucket{le=+Inf}"] == told["nodediag_ping_seconds_count"]
    told = scrape(metrics)
    assert told["nodediag_looks_total"] == told["nodediag_ping_seconds_count"] == 2400


class Counting:
    """A part that counts for itself, under names of its own."""

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("calls_total", MetricKind.COUNTER, "Calls.", ("code",)),
        Metric("waiting", MetricKind.GAUGE, "What waits."),
    )

    def __init__(self) -> None:
        self.calls = [Sample("calls_total", 3, ("200",)), Sample("waiting", 2)]

    def samples(self) -> list[Sample]:
        return self.calls


def test_a_part_that_counts_for_itself_is_told_as_it_stands(board: Board, clock: Clock) -> None:
    part = Counting()
    metrics = Metrics(board, clock, [Watch()], "1.2.3", meters=[part])
    assert scrape(metrics)["nodediag_calls_total{code=200}"] == 3
    part.calls = [Sample("calls_total", 5, ("200",)), *(Sample("calls_total", 1, (str(n),)) for n in range(1000))]
    told = scrape(metrics)
    assert told["nodediag_calls_total{code=200}"] == 5, "it has added up by itself"
    assert "nodediag_waiting" not in told
    assert sum(key.startswith("nodediag_calls_total") for key in told) <= MAX_SERIES


def test_no_detector_has_a_name_of_a_part_that_counts_for_itself(board: Board, clock: Clock) -> None:
    with pytest.raises(ValueError, match="is declared twice"):
        Metrics(board, clock, [watch(Counting.metrics[1])], "1.2.3", meters=[Counting()])


def test_promtool_finds_nothing_to_say(board: Board, metrics: Metrics, report: NodeReport) -> None:
    promtool = shutil.which("promtool")
    assert promtool, "Debian's prometheus is not installed"
    publish(
        board,
        *(Sample("shims", 1, (value,)) for value in HOSTILE),
        Sample("events_total", 1, ("drop",)),
        Sample("ping_seconds", 0.002),
        conditions=report.conditions,
    )
    body, _ = metrics.expose()
    done = subprocess.run([promtool, "check", "metrics"], input=body, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_every_metric_has_a_sentence_of_help(metrics: Metrics) -> None:
    body, _ = metrics.expose()
    for family in parse_text(body.decode()):
        assert family.documentation.endswith("."), family.name


def test_what_the_real_detectors_declare_fits_together() -> None:
    detectors = []
    for setting in fields(DetectorsSettings):
        module = importlib.import_module(f"agent.detectors.{setting.name}")
        detectors += [thing for thing in vars(module).values() if getattr(thing, "name", None) == setting.name]
    declared = Samples(detectors, {metric.name for metric in OWN}).declared
    assert {"shims", "defunct_processes", "conntrack_events_total", "kubelet_healthz_seconds"} <= set(declared)
    assert all(metric.help.endswith(".") for metric in declared.values())
