"""A real one-node Kubernetes, and the test run inside of its node.

`pytest tests/cluster` builds the image and Kubernetes' programs (once), makes the node, and runs itself there; what it
leaves behind ends with the node (see `tests.lab.whole_node`).
"""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.deployed import ROOT, Agent
from tests.cluster.fleet import Fleet, running_fleet
from tests.cluster.pods import NAMESPACE
from tests.lab import cgroups
from tests.lab.agent_image import build_image
from tests.lab.kubernetes.binaries import kubernetes_binaries
from tests.lab.kubernetes.cluster import Cluster
from tests.lab.versions import VersionUnavailableError, choose
from tests.lab.whole_node import WholeNode, is_inside

BINARIES = "NODEDIAG_LAB_KUBERNETES"
"""Set in the environment of the run inside, to the folder with Kubernetes' programs."""
NIGHTLY = os.environ.get("NIGHTLY") == "1"
ORDER = (
    "test_shipped", "test_overlays", "test_faults_of_pods", "test_faults_of_services", "test_no_false_finding",
    "test_taken_away",
)  # fmt: skip
"""Requests are counted first: a kubelet that was killed has forgotten what it knew of tokens."""


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Move the whole run into a node of its own, and return how it ended there."""
    if is_inside() or config.option.collectonly:
        return None
    try:
        cgroups.require_v1()
    except cgroups.CgroupV1MissingError as error:
        raise pytest.UsageError(str(error)) from None
    try:
        choose()
    except VersionUnavailableError:
        return None  # every test is skipped or fails with the reason (tests/conftest.py), without a node
    os.environ[BINARIES] = str(kubernetes_binaries())
    build_image()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that the node is taken away
    with WholeNode() as node:
        return node.run(sys.executable, "-m", "pytest", *config.invocation_params.args)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put them into ORDER; the first one waits for the cluster to start."""
    items.sort(key=lambda item: ORDER.index(item.path.stem) if item.path.stem in ORDER else -1)
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.lab)
            item.add_marker(pytest.mark.timeout(1800 if NIGHTLY else 900))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if not is_inside():
        raise RuntimeError("these tests want a node of their own, which `pytest tests/cluster` makes: name that folder")
    with Cluster(Path(os.environ[BINARIES]), tmp_path_factory.mktemp("cluster") / "cluster", print) as running:
        running.kubectl.run("create", "namespace", NAMESPACE)
        yield running


@pytest.fixture(scope="session")
def shipped(cluster: Cluster) -> Iterator[Agent]:
    """deploy/daemonset.yaml as it is, applied as people do, and rolled out."""
    manifest = str(ROOT / "deploy" / "daemonset.yaml")
    cluster.kubectl.run("apply", "--validate=false", "--filename", manifest)
    agent = Agent(cluster.kubectl)
    print(f"deploy/daemonset.yaml: rolled out after {agent.await_rollout():.1f} s")
    yield agent
    cluster.kubectl.run("delete", "--wait=false", "--filename", manifest)


@pytest.fixture(scope="session")
def fleet(cluster: Cluster, shipped: Agent, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The manifest as shipped, and each overlay beside it."""
    with running_fleet(cluster, shipped, tmp_path_factory.mktemp("fleet")) as running:
        yield running


@pytest.fixture
def well(fleet: Fleet) -> Iterator[Fleet]:
    """The fleet on a healthy node, before the test and after it."""
    fleet.await_well()
    yield fleet
    fleet.await_well()
