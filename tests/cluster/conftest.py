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

from tests.lab.agent_image import build_image
from tests.lab.kubernetes.binaries import kubernetes_binaries
from tests.lab.kubernetes.cluster import Cluster
from tests.lab.versions import VersionUnavailableError, choose
from tests.lab.whole_node import WholeNode, is_inside

BINARIES = "NODEDIAG_LAB_KUBERNETES"
"""Set in the environment of the run inside, to the folder with Kubernetes' programs."""


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Move the whole run into a node of its own, and return how it ended there."""
    if is_inside() or config.option.collectonly:
        return None
    try:
        choose()
    except VersionUnavailableError:
        return None  # every test is skipped or fails with the reason (tests/conftest.py), without a node
    os.environ[BINARIES] = str(kubernetes_binaries())
    build_image()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that the node is taken away
    with WholeNode() as node:
        return node.run(sys.executable, "-m", "pytest", *config.invocation_params.args)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first one waits for the cluster to start."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.lab)
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if not is_inside():
        raise RuntimeError("these tests want a node of their own, which `pytest tests/cluster` makes: name that folder")
    with Cluster(Path(os.environ[BINARIES]), tmp_path_factory.mktemp("cluster") / "cluster", print) as running:
        yield running
