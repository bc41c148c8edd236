"""The whole scrape of a fixture node: what it says, whether promtool takes it, and that it does not grow.

tests/golden/metrics.txt is the scrape of a node with one hung shim and one process that does not reap. After
a wanted change, write it anew with UPDATE_GOLDEN=1 and read the difference.
"""

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from tests.golden.node import CART, WEB, BusyNetlink, Node, NoNetlink

GOLDEN = Path(__file__).with_name("metrics.txt")
OURS_ALONE = re.compile(r"(# \w+ )?process_|nodediag_build_info\{")
"""Lines that differ from machine to machine: about the very process that runs the tests."""
MAX_SERIES = 200
"""On a healthy node, whatever its load."""

pytestmark = pytest.mark.timeout(30)
MakeNode = Callable[..., Node]


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[MakeNode]:
    with ExitStack() as stack:

        def make(hung: frozenset[str] = frozenset()) -> Node:
            root = tmp_path / str(len(list(tmp_path.iterdir())))
            root.mkdir()
            return Node(root, stack, hung)

        yield make


@pytest.fixture
def sick(make_node: MakeNode) -> Node:
    node = make_node(hung=frozenset({WEB.name.name}))
    node.add_zombies(CART.inits[list(CART.inits)[1]], 40)
    node.use_up_pids(CART, 470)
    return node


def series(body: str) -> Counter[str]:
    """Count the series of every family."""
    return Counter({family.name: len(family.samples) for family in parse(body)})


def test_the_whole_scrape_is_the_golden_one(sick: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    body = sick.scrape(monkeypatch, NoNetlink())
    told = "".join(line for line in body.splitlines(keepends=True) if not OURS_ALONE.match(line))
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(told)
    assert told == GOLDEN.read_text()


def test_promtool_finds_nothing_to_say(sick: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    promtool = shutil.which("promtool")
    assert promtool, "Debian's prometheus is not installed"
    body = sick.scrape(monkeypatch, NoNetlink())
    done = subprocess.run(
        [promtool, "check", "metrics"], input=body, text=True, capture_output=True, timeout=20, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_series_do_not_grow_with_what_they_count(make_node: MakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    healthy = series(make_node().scrape(monkeypatch, NoNetlink()))
    crowd = make_node()
    for number in range(44):
        crowd.add_pod(number, hung=number % 2 == 0, zombies=2)
    grown = series(crowd.scrape(monkeypatch, BusyNetlink()))
    assert healthy.total() <= MAX_SERIES
    healthy.pop("nodediag_deployment_fault")  # there only where netlink is denied
    assert healthy - grown == Counter()
    assert grown - healthy == {"nodediag_defunct_processes_by_parent": 10 - 1, "nodediag_shim_hung_seconds": 20}
