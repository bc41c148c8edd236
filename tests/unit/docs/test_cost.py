"""The figures of docs/cost.md that follow from the code follow from it; and the DNS probe sends what they count on."""

import gzip

import pytest

from agent.exporters.http import MIN_GZIP_BYTES
from agent.host.dns import Dns
from agent.host.dns_servers import parse_server
from agent.remediation.evidence import MAX_TOTAL_BYTES
from agent.settings import Settings
from tests.lab.dns_servers import DnsMode, DnsServer
from tests.unit.builders import RealClock
from tests.unit.docs.markdown import ROOT

NODES = 5000
SCRAPE_SECONDS = 30
QUERIES_HEALTHY, QUERIES_ODD = 4, 20
"""Queries a look sends to each server: a pair and a control; and four further ones of each."""
DETECTORS = Settings().detectors
COST = (ROOT / "docs/cost.md").read_text()
SCRAPE = (ROOT / "tests/golden/metrics.txt").read_bytes()


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def a_minute(period_seconds: float) -> str:
    return f"{60 / period_seconds:g} a minute"


def of_all(a_look: float, period_seconds: float) -> str:
    return f"{a_look * NODES / period_seconds:,.0f} a second"


def test_queries_of_the_dns_probe() -> None:
    period = DETECTORS.conntrack_dns.period_seconds
    healthy, odd = (f"{each * 60 / period:g} a minute" for each in (QUERIES_HEALTHY, QUERIES_ODD))
    assert row("all is well", healthy, of_all(QUERIES_HEALTHY, period)) in COST
    worst = "a pair has lost one: four further pairs and controls"
    assert row(worst, odd, of_all(QUERIES_ODD, period)) in COST
    assert f"gets {of_all(QUERIES_HEALTHY, period).removesuffix(' a second')} queries a second from {NODES:,}" in COST
    rare = f"8 a minute and node, {of_all(QUERIES_HEALTHY, 30).removesuffix(' a second')} a second"
    assert f"period_seconds: 30}}}}   # {rare}" in COST


@pytest.mark.parametrize(
    ("mode", "queries"),
    [(DnsMode.HEALTHY, QUERIES_HEALTHY), (DnsMode.NXDOMAIN, QUERIES_HEALTHY), (DnsMode.DROPS_SECOND, QUERIES_ODD)],
)
def test_a_look_of_the_dns_probe_sends_so_many_queries(mode: DnsMode, queries: int) -> None:
    settings = DETECTORS.conntrack_dns
    with DnsServer(mode=mode) as server:
        dns = Dns(RealClock(), Settings().dns.name)
        address = parse_server(f"{server.address}:{server.port}")
        (exchange,) = dns.ask((address,), attempt_seconds=1.0, repeats=settings.repeat_pairs)
        assert len(exchange.pairs) == len(exchange.controls)
        server.wait_for_queries(queries)
        assert len(server.received) == queries


def test_what_stays_on_the_node() -> None:
    shim, defunct = DETECTORS.containerd_shim.period_seconds, DETECTORS.defunct_processes.period_seconds
    assert f"| the kubelet's healthz | {a_minute(DETECTORS.kubelet_healthz.period_seconds)} |" in COST
    assert f"| containerd, CRI Version | {a_minute(DETECTORS.container_runtime.period_seconds)} |" in COST
    assert f"| each shim, Connect and State | {a_minute(shim)} |" in COST
    assert f"| {a_minute(defunct)} for zombies, {60 / shim:g} for shims |" in COST
    assert f"| conntrack's counters | {a_minute(DETECTORS.conntrack_dns.period_seconds)} |" in COST


def test_series_and_bytes_of_a_healthy_nodes_scrape() -> None:
    series = sum(1 for line in SCRAPE.splitlines() if line and not line.startswith(b"#"))
    assert len(SCRAPE) >= MIN_GZIP_BYTES
    packed = len(gzip.compress(SCRAPE, compresslevel=1, mtime=0))
    assert row("series, healthy", f"{series}", f"{series * NODES:,}") in COST
    samples = series / SCRAPE_SECONDS
    assert row("samples a second, scraped every 30 s", f"{samples:.1f}", f"{samples * NODES:,.0f}") in COST
    for what, size in (("plain", len(SCRAPE)), ("gzip", packed)):
        fleet = size * NODES / SCRAPE_SECONDS / 2**20
        assert row(f"a scrape, {what}", f"{size / 1024:.1f} KiB", f"{fleet:.1f} MiB a second") in COST


def test_evidence_is_bounded_as_it_says() -> None:
    assert f"evidence of at most {MAX_TOTAL_BYTES >> 20} MiB" in COST


def test_where_a_figure_is_to_come_from_can_be_found() -> None:
    branches = {"kubelet-api", "node-conditions", "prometheus", "image", "memory", "whole-node"}
    marks = {part.partition(" -->")[0] for part in COST.split("<!-- from: ")[1:]}
    assert marks <= branches
