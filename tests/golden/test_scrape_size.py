"""What one scrape of a healthy node weighs; the figures of docs/prometheus.md are these, within a tenth."""

import gzip
import re
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from tests.golden.node import Node, NoNetlink

PAGE = Path(__file__).parents[2] / "docs" / "prometheus.md"
TENTH = 0.1
GZIP_LEVEL = 1
"""As `agent.exporters.http` compresses."""

pytestmark = pytest.mark.timeout(30)


def _told(what: str) -> float:
    """Return a figure of the table on the page."""
    row = re.search(rf"^\| {re.escape(what)} \| ([\d,.]+)", PAGE.read_text(), re.MULTILINE)
    assert row, f"{PAGE.name} has no row {what!r}"
    return float(row[1].replace(",", ""))


def test_the_page_tells_the_weight_of_a_scrape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        body = Node(tmp_path, stack).scrape(monkeypatch, NoNetlink())
    series = sum(len(family.samples) for family in parse(body))
    plain, zipped = len(body.encode()) / 1000, len(gzip.compress(body.encode(), GZIP_LEVEL)) / 1000
    measured = {
        "series": series,
        "kB of a scrape": plain,
        "kB with gzip": zipped,
        "million series, 5,000 nodes": series * 5000 / 1e6,
        "samples a second, 5,000 nodes": series * 5000 / 30,
        "MB/s over the network, 5,000 nodes": zipped * 5000 / 30 / 1000,
    }
    assert {what: _told(what) for what in measured} == pytest.approx(measured, rel=TENTH)
