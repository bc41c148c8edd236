"""One machine for all tests of a kernel; each test begins at its snapshot of a healthy node."""

from collections.abc import Generator, Iterator

import pytest

from tests.vm.image import kernel
from tests.vm.node import Node, booted

TEST_SECONDS = 900
HEALTHY = "healthy"
PODS = ("web-0", "web-1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.timeout(TEST_SECONDS))


@pytest.fixture(scope="session")
def healthy_node() -> Iterator[Node]:
    with booted(kernel()) as node:
        node.pods = [node.pod(name) for name in PODS]
        node.wait_until_well()
        node.machine.save(HEALTHY)
        yield node


@pytest.fixture
def node(healthy_node: Node) -> Node:
    healthy_node.machine.restore(HEALTHY)
    return healthy_node


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    node = getattr(item, "funcargs", {}).get("node")
    if report.when == "call" and report.failed and isinstance(node, Node):
        report.sections.append(("the node", node.description()))
    return report
