"""The views of the fleet, computed by promtool from some nodes' series."""

import json
from collections.abc import Mapping
from pathlib import Path

from tests.delivery.monitoring.promtool import RULES, STEP, load, on, promtool

AT = 20
"""The scrape at which is looked: ten minutes, so that every window is full."""


def steady(value: float) -> str:
    return " ".join([str(value)] * (AT + 1))


def rising(by: float) -> str:
    return " ".join(str(n * by) for n in range(AT + 1))


def check(series: Mapping[str, str], wanted: Mapping[str, Mapping[str, float]], folder: Path) -> None:
    """Let promtool compute records from series, with every rule; `wanted`: record -> labels -> value, to 4 digits."""
    groups = [{**group, "rules": [r for r in group["rules"] if "record" in r]} for group in load(RULES)["groups"]]
    (folder / "rules.json").write_text(json.dumps({"groups": groups}))
    asked = [
        {
            "expr": f"round({record} * 10000)",
            "eval_time": f"{AT * STEP}s",
            "exp_samples": [{"labels": labels, "value": round(value * 10000)} for labels, value in found.items()],
        }
        for record, found in wanted.items()
    ]
    test = {
        "interval": f"{STEP}s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": asked,
    }
    order = [group["name"] for group in groups]
    file = folder / "test.json"
    file.write_text(
        json.dumps(
            {"rule_files": ["rules.json"], "evaluation_interval": "30s", "group_eval_order": order, "tests": [test]}
        )
    )
    done = promtool("test", "rules", str(file))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_nodes_with_most_hung_shims_are_ten_and_none_without(tmp_path: Path) -> None:
    hung = {on('nodediag_shims{state="hung"}', f"n{count:02}"): steady(count) for count in range(12)}
    stuck = {
        on('nodediag_shims{state="stuck"}', "n01"): steady(20),
        on('nodediag_shims{state="serving"}', "n00"): steady(99),
    }
    top = {f'{{node="n{count:02}"}}': count for count in (11, 10, 9, 8, 7, 6, 5, 4, 3)}
    check(
        hung | stuck,
        {
            "node:nodediag_shims_hung:top10": {'{node="n01"}': 21, **top},
            "state:nodediag_shims:sum": {'{state="hung"}': 66, '{state="stuck"}': 20, '{state="serving"}': 99},
        },
        tmp_path,
    )


def test_a_fleet_at_rest_stores_no_top_nodes(tmp_path: Path) -> None:
    series = {
        on('nodediag_shims{state="hung"}', "a"): steady(0),
        on("nodediag_defunct_processes", "a"): steady(0),
        on('nodediag_dns_probe_lost_total{mode="parallel"}', "a"): steady(4),
        on("nodediag_conntrack_entries", "a"): steady(12),
        on("nodediag_conntrack_entries_limit", "a"): steady(0),
        on("nodediag_kubelet_healthz_seconds_sum", "a"): steady(3),
        on("nodediag_kubelet_healthz_seconds_count", "a"): steady(3),
    }
    check(
        series,
        {
            "node:nodediag_shims_hung:top10": {},
            "node:nodediag_defunct_processes:top10": {},
            "node:nodediag_dns_probe_lost_rate5m:top10": {},
            "node:nodediag_conntrack_fill:top10": {},
            "node:nodediag_kubelet_healthz_mean5m:top10": {},
            "nodediag:nodes_wrong:count": {"{}": 0},
        },
        tmp_path,
    )


def test_what_is_lost_and_how_slow_kubelets_are_is_told_by_node(tmp_path: Path) -> None:
    series = {
        on('nodediag_dns_probe_lost_total{mode="parallel"}', "a"): rising(3),
        on('nodediag_dns_probe_lost_total{mode="sequential"}', "a"): rising(1.5),
        on('nodediag_dns_probe_lost_total{mode="parallel"}', "b"): steady(0),
        on("nodediag_kubelet_healthz_seconds_sum", "a"): rising(30),
        on("nodediag_kubelet_healthz_seconds_count", "a"): rising(3),
        on("nodediag_conntrack_entries", "a"): steady(90),
        on("nodediag_conntrack_entries_limit", "a"): steady(100),
        on("nodediag_defunct_processes", "a"): steady(7),
    }
    check(
        series,
        {
            "node:nodediag_dns_probe_lost_rate5m:top10": {'{node="a"}': 0.15},
            "mode:nodediag_dns_probe_lost:rate5m": {'{mode="parallel"}': 0.1, '{mode="sequential"}': 0.05},
            "node:nodediag_kubelet_healthz_mean5m:top10": {'{node="a"}': 10},
            "node:nodediag_conntrack_fill:top10": {'{node="a"}': 0.9},
            "node:nodediag_defunct_processes:top10": {'{node="a"}': 7},
        },
        tmp_path,
    )


def test_nodes_are_counted_by_condition_and_reason(tmp_path: Path) -> None:
    def condition(node: str, kind: str, status: str) -> dict[str, str]:
        return {
            on(f'nodediag_condition{{type="{kind}",status="{each}"}}', node): steady(float(each == status))
            for each in ("True", "False", "Unknown")
        }

    series = {
        **condition("a", "DNSUnavailable", "True"),
        **condition("a", "PLEGUnhealthy", "True"),
        **condition("b", "DNSUnavailable", "False"),
        **condition("c", "DNSUnavailable", "Unknown"),
        **condition("d", "DNSUnavailable", "False"),
        on('nodediag_findings{type="DNSUnavailable",reason="ServerSlow"}', "a"): steady(3),
        on('nodediag_findings{type="DNSUnavailable",reason="ServerSlow"}', "b"): steady(0),
        'up{job="nodediag",instance="a:9797",node="a"}': steady(1),
        'up{job="nodediag",instance="b:9797",node="b"}': steady(0),
    }
    dns, pleg = 'type="DNSUnavailable"', 'type="PLEGUnhealthy"'
    check(
        series,
        {
            "type_status:nodediag_condition:sum": {
                f'{{status="True",{dns}}}': 1,
                f'{{status="False",{dns}}}': 2,
                f'{{status="Unknown",{dns}}}': 1,
                f'{{status="True",{pleg}}}': 1,
                f'{{status="False",{pleg}}}': 0,
                f'{{status="Unknown",{pleg}}}': 0,
            },
            "type:nodediag_condition_true:ratio": {f"{{{dns}}}": 0.25, f"{{{pleg}}}": 1},
            "type_reason:nodediag_findings:nodes": {f'{{reason="ServerSlow",{dns}}}': 1},
            "nodediag:nodes_wrong:count": {"{}": 1},
            "nodediag:nodes_unknown:count": {"{}": 1},
            "nodediag:up:sum": {"{}": 1},
            "nodediag:up:count": {"{}": 2},
        },
        tmp_path,
    )


def test_quantiles_are_those_of_all_nodes_together(tmp_path: Path) -> None:
    def buckets(node: str, **counts: float) -> dict[str, str]:
        places = {"fast": "0.001", "slow": "2.0", "all": "+Inf"}
        return {
            on(f'nodediag_shim_ping_seconds_bucket{{le="{places[each]}"}}', node): rising(count)
            for each, count in counts.items()
        }

    quiet = {**buckets("a", fast=30, slow=30, all=30), **buckets("b", fast=30, slow=30, all=30)}
    check(
        {**quiet, **buckets("c", fast=0, slow=60, all=60)},
        {
            "nodediag:shim_ping_seconds:quantile5m": {'{quantile="0.5"}': 0.001, '{quantile="0.99"}': 1.96002},
            "le:nodediag_shim_ping_seconds_bucket:rate5m": {'{le="0.001"}': 2, '{le="2.0"}': 4, '{le="+Inf"}': 4},
        },
        tmp_path,
    )
