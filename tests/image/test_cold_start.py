"""On a node that was booted since the image was pulled, its files are read from disk, and their pages are the pod's.

The kernel reads ahead for as long as the limit lets it, and takes such pages back when others are wanted; so the peak
says little there. What is held is that the limit leaves room to work in, for the agent and for who asks it inside.
"""

import time
from collections.abc import Iterator

import pytest

from tests.image.conftest import ROOT
from tests.image.deployed import Deployed, ImageNode, read
from tests.lab.images import forget_pages

MANIFEST = read(ROOT / "deploy" / "daemonset.yaml")
ANSWER_SECONDS = 20.0
"""Of a command in the container, which shares a tenth of a processor with the agent; where it thrashes it takes 40.
Beside another load it may take as much longer as anything else does."""


@pytest.fixture(scope="module")
def cold(node: ImageNode) -> Iterator[Deployed]:
    forget_pages(node.containerd.root)
    with node.running(MANIFEST) as agent:
        agent.ready().await_well()
        yield agent


@pytest.mark.parametrize("words", [["report"], ["check", "--config", "/etc/nodediag"]], ids=lambda words: words[0])
def test_there_is_room_to_be_asked_inside(cold: Deployed, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    done = cold.pod.exec("nodediag", *words)
    took, now, mib = time.monotonic() - began, cold.pod.memory_now(), 1 << 20
    slower = slowdown()
    with capsys.disabled():
        print(
            f"\ncold: nodediag {words[0]} took {took:.1f} s; of {MANIFEST.memory_limit / mib:.0f} MiB, the agent has "
            f"{now.get('rss', now.get('anon', 0)) / mib:.1f} of its own, and files "
            f"{now.get('cache', now.get('file', 0)) / mib:.1f}"
        )
    assert done.code == 0, done.stderr
    assert cold.pod.oom_kills() == 0
    assert took < ANSWER_SECONDS * max(1.0, slower)


def slowdown() -> float:
    """Return how much longer the machine's other load makes a second of processor time take now."""
    began, used = time.monotonic(), time.thread_time()
    while time.thread_time() - used < 1.0:
        pass
    return time.monotonic() - began
