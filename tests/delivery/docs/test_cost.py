"""The figures of docs/cost.md that follow from the code follow from it; and the DNS probe sends what they count on."""

import gzip
import re

import pytest

from agent.exporters.http import MIN_GZIP_BYTES
from agent.exporters.node_conditions import events, status
from agent.host.dns import Dns
from agent.host.dns_conversation import Fate
from agent.host.dns_servers import parse_server
from agent.host.kubelet_calls import ALLOWED_SECONDS, REVIEWED_SECONDS
from agent.remediation.evidence import MAX_TOTAL_BYTES
from agent.settings import Settings
from tests.delivery.docs.markdown import ROOT
from tests.lab.dns_servers import DnsMode, DnsServer
from tests.unit.builders import RealClock

NODES = 5000
DAY = 24 * 3600.0
SCRAPE_SECONDS = 30
STATUS_BUDGET, EVENTS_BUDGET = (status.BURST, status.REFILL_SECONDS), (events.BURST, events.REFILL_SECONDS)
QUERIES_HEALTHY, QUERIES_ODD = 4, 20
"""Queries a look sends to each server: a pair and a control; and four further ones of each."""
DETECTORS = Settings().detectors
COST = (ROOT / "docs/cost.md").read_text()
SCRAPE = b"".join(
    line
    for line in (ROOT / "tests/golden/metrics.txt").read_bytes().splitlines(keepends=True)
    if not line.startswith(b"nodediag_deployment_fault{")  # an agent that is deployed as it should be has none
)


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def a_minute(period_seconds: float) -> str:
    return f"{60 / period_seconds:g} a minute"


def of_all(a_look: float, period_seconds: float) -> str:
    return f"{a_look * NODES / period_seconds:,.0f} a second"


def test_requests_to_the_api_server() -> None:
    assert row("`kubelet-api`: TokenReview by the kubelet", *_at_most(REVIEWED_SECONDS)) in COST
    access = "`kubelet-api`: SubjectAccessReview by the kubelet, for each of `/pods` and `/metrics`"
    assert row(access, *_at_most(ALLOWED_SECONDS)) in COST
    longest = Settings().node_conditions.heartbeat_seconds
    mean = longest * (1 + status.EARLIEST) / 2
    quiet = (f"{DAY / mean:.0f} a day, at most {DAY / longest / status.EARLIEST:.0f}", f"{NODES / mean:.1f} a second")
    assert row("`node-conditions`: patches of the node's status, all quiet", *quiet) in COST
    assert row("`node-conditions`: an Event, for each finding that stands", *_at_most(events.RENEW_SECONDS)) in COST
    patches, written = (burst + DAY / refill for burst, refill in (STATUS_BUDGET, EVENTS_BUDGET))
    worst = (f"{patches:,.0f} patches and {written:.0f} Events", f"{(patches + written) * NODES / DAY:.0f} a second")
    assert row("`node-conditions`: the worst day there can be", *worst) in COST


def _at_most(seconds: float) -> tuple[str, str]:
    return f"at most {DAY / seconds:.0f} a day", f"{NODES / seconds:.1f} a second"


def test_queries_of_the_dns_probe() -> None:
    period = DETECTORS.conntrack_dns.period_seconds
    healthy, odd = (f"{each * 60 / period:g} a minute" for each in (QUERIES_HEALTHY, QUERIES_ODD))
    assert row("all is well", healthy, of_all(QUERIES_HEALTHY, period)) in COST
    worst = "a pair has lost one: four further pairs and controls"
    assert row(worst, odd, of_all(QUERIES_ODD, period)) in COST
    assert f"gets {of_all(QUERIES_HEALTHY, period).removesuffix(' a second')} queries a second from {NODES:,}" in COST
    rare = f"8 a minute and node, {of_all(QUERIES_HEALTHY, 30).removesuffix(' a second')} a second"
    assert f"period_seconds: 30}}}}   # {rare}" in COST


@pytest.mark.parametrize("mode", [DnsMode.HEALTHY, DnsMode.NXDOMAIN])
def test_a_look_at_a_server_that_answers_sends_so_many_queries(mode: DnsMode) -> None:
    assert queries_of_a_look(mode) == QUERIES_HEALTHY


def test_a_look_at_a_server_that_loses_some_sends_no_more_than_that() -> None:
    assert QUERIES_HEALTHY * (1 + DETECTORS.conntrack_dns.repeat_pairs) == QUERIES_ODD
    assert QUERIES_HEALTHY < queries_of_a_look(DnsMode.DROPS_SECOND) <= QUERIES_ODD


def queries_of_a_look(mode: DnsMode) -> int:
    """How many queries a server of this kind gets from one look."""
    with DnsServer(mode=mode) as server:
        dns = Dns(RealClock(), Settings().dns.name)
        address = parse_server(f"{server.address}:{server.port}")
        (exchange,) = dns.ask((address,), attempt_seconds=0.5, repeats=DETECTORS.conntrack_dns.repeat_pairs)
        sent = sum(query.fate is not Fate.UNSENT for each in (*exchange.pairs, *exchange.controls) for query in each)
        server.wait_for_queries(sent)
        return len(server.received)


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
    parts = {"memory", "whole-node"}
    marks = {part.partition(" -->")[0] for part in COST.split("<!-- from: ")[1:]}
    assert marks <= parts


def test_what_the_manifest_asks_for_and_what_the_image_takes() -> None:
    manifest = (ROOT / "deploy/base/daemonset.yaml").read_text()
    found = re.search(r"limits:\s+cpu: (\d+)m\s+memory: (\d+)Mi", manifest)
    assert found
    cpu, memory = map(int, found.groups())
    assert row("memory, asked for by the manifest", f"{memory}Mi", f"{memory * NODES / 1024:.1f} GiB") in COST
    assert row("CPU, asked for by the manifest", f"{cpu}m", f"{cpu * NODES / 1000:.0f} cores") in COST
    image = re.search(r"is (\S+) MiB to pull and (\S+) MiB on disk", (ROOT / "docs/image.md").read_text())
    told = re.search(r"\| (\S+) MiB to pull, (\S+) MiB on disk \|", COST)
    assert image
    assert told
    assert [float(each) for each in told.groups()] == pytest.approx([float(each) for each in image.groups()], rel=0.05)
