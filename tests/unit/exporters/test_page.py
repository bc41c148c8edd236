"""One page, nothing fetched, nothing a stranger wrote taken for markup."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from agent.exporters.page import CONTENT_SECURITY_POLICY, render
from agent.model import NodeReport

VOID = {"meta", "br", "hr", "img", "link", "input"}
ALLOWED = (
    "html head meta title style body header h1 h2 h3 time main section article p dl dt dd ul li span pre div b footer a"
)


class Outline(HTMLParser):
    """Checks that every element is closed in order, and collects what is on the page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.attributes: set[tuple[str, str | None]] = set()
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes.update(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)


def test_a_fault_of_the_deployment_is_on_the_page_and_first(misdeployed_report: NodeReport) -> None:
    text = " ".join(outline(misdeployed_report).text)
    assert 0 < text.index("CAP_DAC_READ_SEARCH is missing") < text.index("ShimUnresponsive")
    assert "has mode 0600" in text
    assert "add DAC_READ_SEARCH to" in text


def outline(report: NodeReport) -> Outline:
    parser = Outline()
    parser.feed(render(report))
    parser.close()
    assert parser.open == []
    return parser


@pytest.mark.parametrize("name", ["report", "healthy_report", "hostile_report"])
def test_the_page_is_well_formed_and_fetches_nothing(name: str, request: pytest.FixtureRequest) -> None:
    seen = outline(request.getfixturevalue(name))
    assert seen.seen <= set(ALLOWED.split())
    assert {value for name, value in seen.attributes if name in {"href", "src"}} == {"/metrics"}
    assert not any(name.startswith("on") or name == "style" for name, _ in seen.attributes)


def test_hostile_text_is_shown_as_text(hostile_report: NodeReport) -> None:
    page = render(hostile_report)
    page.encode()
    assert "<script" not in page
    assert "\x1b" not in page
    assert "\\x1b[31mx\\n</p><script>\\u202e\\xff`$(id)`" in "".join(outline(hostile_report).text)


def test_the_page_tells_what_the_report_tells(report: NodeReport) -> None:
    text = " ".join(" ".join(outline(report).text).split())
    for part in (
        "worker-3",
        "2 things wrong",
        "shop/cart-7d9f4c, container web",
        "9c0e6f0d1a2b in k8s.io",
        "2026-08-01 03:09:40 UTC (3 min ago)",
        "connect timeout 2.0 s",
        "kill -9 4242",
        "2. Only if remediation is disabled on this node: Kill the shim by hand",
        "7 shims, each with its containers",
        "CAP_NET_ADMIN is missing",
        "no trace of a kubelet",
        "ok, 4 s ago, took 12 ms",
    ):
        assert part in text, part


def test_the_commands_of_two_steps_are_never_in_one_block(report: NodeReport) -> None:
    blocks = re.findall(r"<pre>(.*?)</pre>", render(report), re.DOTALL)
    assert len([block for block in blocks if "4242" in block]) == 2
    assert not [block for block in blocks if "nodediag remediate" in block and "kill -9" in block]


def test_the_policy_allows_the_page_its_style_and_nothing_else(report: NodeReport) -> None:
    style = re.search(r"<style>(.*?)</style>", render(report), re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in CONTENT_SECURITY_POLICY
    assert CONTENT_SECURITY_POLICY.startswith("default-src 'none'; ")
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert "url(" not in style[1]


def test_a_phone_reads_it_and_it_stays_fresh(report: NodeReport) -> None:
    page = render(report)
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert '<meta http-equiv="refresh" content="10">' in page
    assert "prefers-color-scheme:dark" in page
