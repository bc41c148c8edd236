"""16,018 zombies, as one node had them, under the manifest's own limits of CPU and memory.

To read their stat is to have the kernel make an inode and an entry for each, which it charges to the pod and takes back
when something else is wanted. So the peak is told here; what is held is that the agent's own memory leaves a quarter of
the limit, that nothing is ended for want of memory, and that the parent is named and no look is overdue.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from agent.model import DetectorState, Finding, NodeReport
from tests.image.conftest import ROOT
from tests.image.deployed import SPARE, Deployed, ImageNode, read
from tests.lab import zombies
from tests.lab.pods import Pod

MANIFEST = read(ROOT / "deploy" / "daemonset.yaml")
MANY = 16_018
NAMED_SECONDS = 240.0
"""Seen: 25 s. To read all of /proc once takes three seconds at a tenth of a processor, and zombies must have lasted."""


@dataclass
class Seen:
    """The agent, what it found, and all it told then."""

    agent: Deployed
    finding: Finding
    report: NodeReport


@pytest.fixture(scope="module")
def seen(node: ImageNode) -> Iterator[Seen]:
    with ExitStack() as stack:
        agent = stack.enter_context(node.running(MANIFEST))
        agent.ready().await_well()
        stack.enter_context(zombies.zombies_under_container(node.containerd, MANY, pod=Pod("server", "shop")))
        finding = agent.found(lambda each: each.values.get("zombies") == MANY, "all of them are told of", NAMED_SECONDS)
        yield Seen(agent, finding, agent.report())


def test_they_are_named_with_the_parent_that_does_not_reap_and_its_pod(seen: Seen) -> None:
    assert (seen.finding.condition, seen.finding.reason) == ("ExcessiveDefunctProcesses", "ParentNotReaping")
    assert seen.finding.pod is not None
    assert (seen.finding.pod.namespace, seen.finding.pod.name) == ("shop", "server")


def test_no_look_is_overdue_and_nothing_else_is_accused(seen: Seen) -> None:
    assert {each.name for each in seen.report.detectors if each.state is DetectorState.OVERDUE} == set()
    assert {active.finding.condition for each in seen.report.conditions for active in each.findings} == {
        "ExcessiveDefunctProcesses"
    }


def test_the_agents_own_memory_leaves_a_quarter_of_the_limit(seen: Seen, capsys: pytest.CaptureFixture[str]) -> None:
    pod, limit, mib = seen.agent.pod, MANIFEST.memory_limit, 1 << 20
    now = pod.memory_now()
    own = now.get("rss", now.get("anon", 0))
    with capsys.disabled():
        print(
            f"\n{MANY:,} zombies: {own / mib:.1f} MiB of the agent's own, {pod.memory_peak() / mib:.1f} MiB at the "
            f"peak with what the kernel keeps for it, of {limit / mib:.0f} MiB"
        )
    assert pod.oom_kills() == 0
    assert own <= (1 - SPARE) * limit
