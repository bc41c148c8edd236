"""The dashboard's upper half: the whole fleet, from recorded series alone where they grow with it."""

from collections.abc import Iterable

from agent.model import Detector
from tools.monitoring.condition_alerts import runbook
from tools.monitoring.fleet_records import (
    CONDITION_SUM,
    DNS_LOST,
    DNS_QUANTILE,
    FINDING_NODES,
    HEALTHZ_QUANTILE,
    NODES_UNKNOWN,
    NODES_WRONG,
    PING_QUANTILE,
    SHIMS,
    TOP_CONNTRACK,
    TOP_DNS_LOST,
    TOP_HEALTHZ,
    TOP_HUNG,
    TOP_ZOMBIES,
    UP_COUNT,
    UP_SUM,
)
from tools.monitoring.panels import Kind, Panel, Query, Row
from tools.monitoring.rule import DOCS

MOST_ROWS = 100
"""Of a table: a fault of the whole fleet would fill thousands."""


def fleet_rows(detectors: Iterable[type[Detector]]) -> tuple[Row, ...]:
    """Return the rows about all nodes."""
    conditions = {kind: reasons for each in detectors for kind, reasons in each.conditions.items()}
    return (
        Row("Fleet", _overview()),
        Row(
            "Conditions: nodes on which they are True",
            (*(_condition(kind, tuple(reasons.items())) for kind, reasons in conditions.items()), *_details()),
        ),
        Row("Top nodes", _tops()),
        Row("How long things take, over all nodes", _durations()),
    )


def _overview() -> tuple[Panel, ...]:
    firing = 'count(ALERTS{{alertname=~"Nodediag.+",alertstate="firing",severity="{}"}}) or vector(0)'
    return (
        Panel("Agents", Kind.STAT, (Query(UP_SUM, "answer"), Query(UP_COUNT, "there are")), 6, 4),
        Panel("Nodes with something wrong", Kind.STAT, (Query(NODES_WRONG, "nodes"),), 5, 4, bad=1),
        Panel("Nodes that cannot be seen whole", Kind.STAT, (Query(NODES_UNKNOWN, "nodes"),), 5, 4, bad=1),
        Panel("Critical alerts", Kind.STAT, (Query(firing.format("critical"), "firing"),), 4, 4, bad=1),
        Panel("Warnings", Kind.STAT, (Query(firing.format("warning"), "firing"),), 4, 4, bad=1),
    )


def _condition(kind: str, reasons: tuple[tuple[str, str], ...]) -> Panel:
    return Panel(
        kind,
        Kind.STAT,
        (
            Query(f'{CONDITION_SUM}{{type="{kind}",status="True"}}', "True"),
            Query(f'{CONDITION_SUM}{{type="{kind}",status="Unknown"}}', "Unknown"),
        ),
        6,
        4,
        description="\n\n".join(f"**{reason}**: {meaning}" for reason, meaning in reasons),
        bad=1,
        links=(("Runbook", DOCS + runbook(kind)),),
    )


def _details() -> tuple[Panel, ...]:
    return (
        Panel(
            "Nodes by reason",
            Kind.GRAPH,
            (Query(f"{FINDING_NODES} > 0", "{{type}}: {{reason}}"),),
            24,
            stacked=True,
        ),
        Panel(
            "What is wrong now",
            Kind.TABLE,
            (Query(f"topk({MOST_ROWS}, nodediag_findings > 0)"),),
            14,
            10,
            description=f"At most {MOST_ROWS}, those with most findings first.",
            columns={"node": "Node", "type": "Condition", "reason": "Reason", "Value": "Findings"},
        ),
        Panel(
            "What cannot be seen now",
            Kind.TABLE,
            (Query(f'topk({MOST_ROWS}, nodediag_condition{{status="Unknown"}} == 1)'),),
            10,
            10,
            description=f"At most {MOST_ROWS}.",
            columns={"node": "Node", "type": "Condition"},
        ),
    )


def _tops() -> tuple[Panel, ...]:
    node = "{{node}}"
    return (
        Panel("Most hung and stuck shims", Kind.BARS, (Query(TOP_HUNG, node),), 8, bad=1),
        Panel("Most zombies", Kind.BARS, (Query(TOP_ZOMBIES, node),), 8, bad=1000),
        Panel("Most DNS queries lost, per second", Kind.BARS, (Query(TOP_DNS_LOST, node),), 8, bad=0.01),
        Panel("Slowest kubelets: healthz, mean of 5 min", Kind.BARS, (Query(TOP_HEALTHZ, node),), 8, unit="s", bad=3),
        Panel(
            "Fullest conntrack tables", Kind.BARS, (Query(TOP_CONNTRACK, node),), 8, unit="percentunit", bad=0.9, top=1
        ),
        Panel("Shims by state", Kind.GRAPH, (Query(SHIMS, "{{state}}"),), 8),
    )


def _durations() -> tuple[Panel, ...]:
    quantile = "quantile {{quantile}}"
    return (
        Panel("Shims: answer to Connect", Kind.GRAPH, (Query(PING_QUANTILE, quantile),), 6, unit="s"),
        Panel("Kubelets: healthz", Kind.GRAPH, (Query(HEALTHZ_QUANTILE, quantile),), 6, unit="s"),
        Panel("DNS: answers", Kind.GRAPH, (Query(DNS_QUANTILE, "{{mode}} {{quantile}}"),), 6, unit="s"),
        Panel(
            "DNS: queries lost per second",
            Kind.GRAPH,
            (Query(DNS_LOST, "{{mode}}"),),
            6,
            description="Only parallel ones: a race in conntrack. Both: the server, or the way to it.",
        ),
    )
