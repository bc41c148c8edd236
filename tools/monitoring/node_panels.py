"""The dashboard's lower half: all there is to know of one node, `$node`."""

from collections.abc import Iterable

from agent.exporters.metrics import PREFIX
from agent.model import Metric, MetricKind
from tools.monitoring.panels import Kind, Panel, Query, Row
from tools.monitoring.rule import JOB

ON = 'node="$node"'
RATE = "[$__rate_interval]"


def node_rows(counted: Iterable[Metric]) -> tuple[Row, ...]:
    """Return the rows about one node; `counted` are the metrics of parts that count for themselves."""
    return (
        Row("$node: conditions", _conditions()),
        Row("$node: shims and processes", _processes()),
        Row("$node: conntrack and DNS", _network()),
        Row("$node: kubelet", _kubelet()),
        Row("$node: requests of the parts that are switched on", tuple(_part(metric) for metric in counted)),
        Row("$node: the agent itself", _agent()),
    )


def _conditions() -> tuple[Panel, ...]:
    true, unknown = (f'sum by (type) (nodediag_condition{{{ON},status="{each}"}})' for each in ("True", "Unknown"))
    failed, overdue = (f"by (detector) (nodediag_detector_{each}{{{ON}}})" for each in ("success", "overdue"))
    return (
        Panel(
            "Conditions",
            Kind.STATES,
            (Query(f"{true} + 2 * {unknown}", "{{type}}"),),
            14,
            10,
            states={0: ("well", "green"), 1: ("WRONG", "red"), 2: ("unknown", "yellow")},
        ),
        Panel(
            "Findings now",
            Kind.TABLE,
            (Query(f"nodediag_findings{{{ON}}} > 0"),),
            10,
            10,
            columns={"type": "Condition", "reason": "Reason", "Value": "Findings"},
        ),
        Panel("Findings", Kind.GRAPH, (Query(f"nodediag_findings{{{ON}}} > 0", "{{type}}: {{reason}}"),), 24, 6),
        Panel(
            "Detectors",
            Kind.STATES,
            (Query(f"1 - min {failed} + max {overdue}", "{{detector}}"),),
            14,
            6,
            description="One that has nothing to watch on this node looks well.",
            states={0: ("well", "green"), 1: ("failed", "orange"), 2: ("overdue", "red")},
        ),
        Panel(
            "Duration of a look",
            Kind.GRAPH,
            (Query(f"nodediag_detector_duration_seconds{{{ON}}}", "{{detector}}"),),
            10,
            6,
            unit="s",
        ),
    )


def _processes() -> tuple[Panel, ...]:
    pings = f"sum by (le) (rate(nodediag_shim_ping_seconds_bucket{{{ON}}}{RATE}))"
    return (
        Panel("Shims by state", Kind.GRAPH, (Query(f"nodediag_shims{{{ON}}}", "{{state}}"),), 8),
        Panel(
            "Shims: answer to Connect",
            Kind.GRAPH,
            tuple(Query(f"histogram_quantile({each}, {pings})", f"quantile {each}") for each in ("0.5", "0.99")),
            8,
            unit="s",
        ),
        Panel(
            "Hung shims: since the last answer",
            Kind.GRAPH,
            (Query(f"nodediag_shim_hung_seconds{{{ON}}}", "{{namespace}}/{{pod}}"),),
            8,
            unit="s",
        ),
        Panel("Zombies", Kind.GRAPH, (Query(f"nodediag_defunct_processes{{{ON}}}", "all"),), 8),
        Panel(
            "Zombies by parent, at most 10",
            Kind.GRAPH,
            (Query(f"nodediag_defunct_processes_by_parent{{{ON}}}", "{{namespace}}/{{pod}} {{comm}} {{pid}}"),),
            8,
            stacked=True,
        ),
        Panel(
            "Processes by state", Kind.GRAPH, (Query(f"nodediag_processes{{{ON}}} > 0", "{{state}}"),), 8, stacked=True
        ),
    )


def _network() -> tuple[Panel, ...]:
    answers = f"sum by (le, mode) (rate(nodediag_dns_probe_seconds_bucket{{{ON}}}{RATE}))"
    return (
        Panel(
            "Conntrack fill",
            Kind.GRAPH,
            (Query(f"nodediag_conntrack_entries{{{ON}}} / (nodediag_conntrack_entries_limit{{{ON}}} > 0)", "fill"),),
            6,
            unit="percentunit",
            top=1,
        ),
        Panel(
            "Conntrack events per second",
            Kind.GRAPH,
            (Query(f'rate(nodediag_conntrack_events_total{{{ON},event!="found"}}{RATE})', "{{event}}"),),
            6,
            description="Without `found`, which dwarfs the others.",
        ),
        Panel(
            "DNS: answers, quantile 0.99",
            Kind.GRAPH,
            (Query(f"histogram_quantile(0.99, {answers})", "{{mode}}"),),
            6,
            unit="s",
        ),
        Panel(
            "DNS: queries lost per second",
            Kind.GRAPH,
            (Query(f"rate(nodediag_dns_probe_lost_total{{{ON}}}{RATE})", "{{mode}}"),),
            6,
            description="Only parallel ones: a race in conntrack. Both: the server, or the way to it.",
        ),
    )


def _kubelet() -> tuple[Panel, ...]:
    return (
        Panel(
            "healthz: phases of the latest look",
            Kind.GRAPH,
            (Query(f"nodediag_kubelet_healthz_phase_seconds{{{ON}}}", "{{phase}}"),),
            12,
            unit="s",
            description="Since the start of the request; a gap where a phase was not reached.",
        ),
        Panel(
            "healthz: looks that failed, per second",
            Kind.GRAPH,
            (Query(f"rate(nodediag_kubelet_healthz_failures_total{{{ON}}}{RATE})", "{{reason}}"),),
            12,
        ),
    )


def _part(metric: Metric) -> Panel:
    """Show a metric as its declaration has it; its part may be switched off, and then there is nothing to see."""
    name, legend = PREFIX + metric.name, " ".join(f"{{{{{label}}}}}" for label in metric.labels) or "all"
    rising = metric.kind is MetricKind.COUNTER
    expr = f"rate({name}{{{ON}}}{RATE})" if rising else f"{name}{{{ON}}}"
    words = metric.name.removesuffix("_total").replace("_", " ")
    return Panel(words + " per second" * rising, Kind.GRAPH, (Query(expr, legend),), 8, description=metric.help)


def _agent() -> tuple[Panel, ...]:
    own = f"{JOB},{ON}"
    return (
        Panel("Memory", Kind.GRAPH, (Query(f"process_resident_memory_bytes{{{own}}}", "resident"),), 6, unit="bytes"),
        Panel("CPU, cores", Kind.GRAPH, (Query(f"rate(process_cpu_seconds_total{{{own}}}{RATE})", "used"),), 6),
        Panel(
            "Stood still",
            Kind.GRAPH,
            (Query(f"rate(nodediag_self_stall_seconds_total{{{ON}}}{RATE})", "share of the time"),),
            6,
            unit="percentunit",
            description="Throttled at its CPU limit, stopped, or on a machine that was paused.",
        ),
        Panel(
            "Looks thrown away",
            Kind.GRAPH,
            (Query(f"increase(nodediag_looks_discarded_total{{{ON}}}{RATE})", "{{detector}}"),),
            6,
            description="Because the agent stood still during them.",
        ),
        Panel(
            "Scrape",
            Kind.GRAPH,
            (Query(f"scrape_duration_seconds{{{own}}}", "duration"),),
            6,
            unit="s",
        ),
        Panel(
            "Series",
            Kind.GRAPH,
            (
                Query(f"scrape_samples_scraped{{{own}}}", "told"),
                Query(f"nodediag_series_dropped_total{{{ON}}}", "samples left out"),
            ),
            6,
        ),
        Panel(
            "Remediations since the agent was started",
            Kind.GRAPH,
            (Query(f"nodediag_remediations_total{{{ON}}}", "{{action}} {{outcome}}"),),
            6,
        ),
        Panel(
            "Versions",
            Kind.TABLE,
            (Query(f"nodediag_build_info{{{ON}}}"),),
            6,
            columns={"version": "nodediag", "python_version": "Python"},
        ),
    )
