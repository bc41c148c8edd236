"""What an older kernel makes of packets that race for their conntrack entry."""

import json
import os
from collections.abc import Iterator

import pytest

from tests.lab.waiting import wait_until
from tests.vm.image import KernelMissingError, old_kernel
from tests.vm.node import FOUND_SECONDS, READY_SECONDS, Node, booted

RACE, PRESSURE = "ConntrackDNSRace", "ConntrackTablePressure"
CLASHES = 20


@pytest.fixture(scope="module")
def old_node() -> Iterator[Node]:
    try:
        kernel = old_kernel()
    except KernelMissingError as error:
        if os.environ.get("STRICT") == "1":
            raise
        pytest.skip(f"kernel 5.10: {error}")
    with booted(kernel) as node:
        node.wait_until_well()
        yield node


def test_on_kernel_5_10_resolved_clashes_are_reported_as_no_loss(old_node: Node) -> None:
    assert old_node.output("uname -r").startswith("5.10.")
    rises = json.loads(old_node.output(f"python3 /opt/guest/clash.py {CLASHES}", READY_SECONDS))
    assert rises["clash_resolve"] >= CLASHES, rises
    assert (rises["insert_failed"], rises["drop"]) == (0, 0), rises
    message = wait_until(lambda: _with_clashes(old_node), FOUND_SECONDS, "the agent counts the clashes")
    assert "nothing is lost" in message
    assert {old_node.statuses()[name] for name in (RACE, PRESSURE)} == {"False"}


def _with_clashes(node: Node) -> str | None:
    conditions = node.report().get("conditions", [])
    (message,) = [str(each["message"]) for each in conditions if each["type"] == RACE]
    return message if "clashes resolved by the kernel" in message else None
