"""Recording rules: the whole fleet in a few series, so that a dashboard need not read those of every node.

What grows with the fleet is read once a minute here, and never when somebody opens a page.
"""

from tools.monitoring.rule import JOB, Group, Record

WINDOW = "5m"
"""Ten scrapes: one that is lost, or one slow answer, does not show."""
TOP = 10
QUANTILES = ("0.5", "0.99")

UP_SUM, UP_COUNT = "nodediag:up:sum", "nodediag:up:count"
CONDITION_SUM = "type_status:nodediag_condition:sum"
TRUE_SUM = f'{CONDITION_SUM}{{status="True"}}'
TRUE_RATIO = "type:nodediag_condition_true:ratio"
FINDING_NODES = "type_reason:nodediag_findings:nodes"
NODES_WRONG, NODES_UNKNOWN = "nodediag:nodes_wrong:count", "nodediag:nodes_unknown:count"
SHIMS = "state:nodediag_shims:sum"
DNS_LOST = f"mode:nodediag_dns_probe_lost:rate{WINDOW}"
TOP_HUNG = f"node:nodediag_shims_hung:top{TOP}"
TOP_ZOMBIES = f"node:nodediag_defunct_processes:top{TOP}"
TOP_DNS_LOST = f"node:nodediag_dns_probe_lost_rate{WINDOW}:top{TOP}"
TOP_HEALTHZ = f"node:nodediag_kubelet_healthz_mean{WINDOW}:top{TOP}"
TOP_CONNTRACK = f"node:nodediag_conntrack_fill:top{TOP}"
PING_QUANTILE = f"nodediag:shim_ping_seconds:quantile{WINDOW}"
HEALTHZ_QUANTILE = f"nodediag:kubelet_healthz_seconds:quantile{WINDOW}"
DNS_QUANTILE = f"mode:nodediag_dns_probe_seconds:quantile{WINDOW}"


def fleet_group() -> Group:
    """Return the recording rules."""
    return Group(
        "nodediag.fleet",
        "1m",
        "Twice the scrape interval: these are looked at, not acted upon. The costly ones are the three sums over "
        "histograms, which read every bucket of every node.",
        (*_counts(), *_tops(), *_distributions()),
    )


def _counts() -> tuple[Record, ...]:
    return (
        Record(UP_SUM, f"sum(up{{{JOB}}})", "Agents that answer ..."),
        Record(UP_COUNT, f"count(up{{{JOB}}})", "... of so many."),
        Record(CONDITION_SUM, "sum by (type, status) (nodediag_condition)", "Nodes by condition and status."),
        Record(
            TRUE_RATIO,
            f"sum by (type) ({TRUE_SUM}) / sum by (type) ({CONDITION_SUM})",
            "The share of nodes with a condition True, of those that have it at all. From what was just recorded: "
            "adding all nodes up is what costs.",
        ),
        Record(
            FINDING_NODES,
            "count by (type, reason) (nodediag_findings > 0)",
            "Nodes by reason; only where there are any, since to group what is 0 costs as much.",
        ),
        _nodes(NODES_WRONG, "True", "Nodes with any condition True; 0 if there is none."),
        _nodes(NODES_UNKNOWN, "Unknown", "Nodes with any condition Unknown."),
        Record(SHIMS, "sum by (state) (nodediag_shims)", "Shims of the whole fleet by state."),
        Record(
            DNS_LOST,
            f"sum by (mode) (rate(nodediag_dns_probe_lost_total[{WINDOW}]))",
            "Queries the probes lose per second. Parallel ones alone: a race. Both: the server or the way to it.",
        ),
    )


def _nodes(name: str, status: str, why: str) -> Record:
    return Record(name, f'count(max by (node) (nodediag_condition{{status="{status}"}}) == 1) or vector(0)', why)


def _tops() -> tuple[Record, ...]:
    healthz = (
        f"sum by (node) (rate(nodediag_kubelet_healthz_seconds_sum[{WINDOW}])) "
        f"/ sum by (node) (rate(nodediag_kubelet_healthz_seconds_count[{WINDOW}]))"
    )
    return (
        _top(TOP_HUNG, 'sum by (node) (nodediag_shims{state=~"hung|stuck"})', "Where most shims hang."),
        _top(TOP_ZOMBIES, "max by (node) (nodediag_defunct_processes)", "Where most zombies are."),
        _top(
            TOP_DNS_LOST,
            f"sum by (node) (rate(nodediag_dns_probe_lost_total[{WINDOW}]))",
            "Where most queries are lost, per second.",
        ),
        _top(
            TOP_HEALTHZ,
            healthz,
            "Where the kubelet is slowest. The mean counts an answer that never came as the whole deadline; the phases "
            "of the latest look are NaN then.",
        ),
        _top(
            TOP_CONNTRACK,
            "max by (node) (nodediag_conntrack_entries / (nodediag_conntrack_entries_limit > 0))",
            "Where the conntrack table is fullest; a limit of 0 is none.",
        ),
    )


def _top(name: str, expr: str, why: str) -> Record:
    """Record the largest values above 0: of a fleet at rest nothing is stored, and NaN is never the largest."""
    return Record(name, f"topk({TOP}, {expr} > 0)", why)


def _distributions() -> tuple[Record, ...]:
    return (
        *_quantiles(PING_QUANTILE, "nodediag_shim_ping_seconds", ("le",), "How long shims take to answer"),
        *_quantiles(HEALTHZ_QUANTILE, "nodediag_kubelet_healthz_seconds", ("le",), "How long kubelets take to answer"),
        *_quantiles(DNS_QUANTILE, "nodediag_dns_probe_seconds", ("le", "mode"), "How long DNS takes to answer"),
    )


def _quantiles(name: str, histogram: str, labels: tuple[str, ...], why: str) -> tuple[Record, ...]:
    """Add the buckets of all nodes up first: quantiles of nodes cannot be put together afterwards."""
    buckets = f"{'_'.join(labels)}:{histogram}_bucket:rate{WINDOW}"
    return (
        Record(
            buckets, f"sum by ({', '.join(labels)}) (rate({histogram}_bucket[{WINDOW}]))", f"{why}, over all nodes."
        ),
        *(
            Record(
                name,
                f"histogram_quantile({quantile}, {buckets})",
                f"{why}: quantile {quantile}.",
                {"quantile": quantile},
            )
            for quantile in QUANTILES
        ),
    )
