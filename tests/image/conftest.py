"""The built image in a node of its own, as the manifests say: the test run itself is moved into that node.

`pytest tests/image` builds the image (once, and again when what it is made of has changed), makes the node, and runs
itself there; what it leaves behind ends with the node (see `tests.lab.whole_node`).
"""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import __version__
from tests.image.deployed import ImageNode
from tests.lab import cgroups
from tests.lab.agent_image import ARCHIVE, build_image
from tests.lab.containerd import NodeContainerd
from tests.lab.containers import run_container
from tests.lab.cri import Cri
from tests.lab.dns_servers import DnsServer
from tests.lab.images import import_image, import_pause_image
from tests.lab.pods import Pod
from tests.lab.supervised import KubeletProcess
from tests.lab.versions import VersionUnavailableError, choose
from tests.lab.whole_node import NAMESERVER, WholeNode, is_inside

ROOT = Path(__file__).resolve().parents[2]
KUBELET_PORT = 10248


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
    build_image()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that the node is taken away
    with WholeNode() as node:
        return node.run(sys.executable, "-m", "pytest", *config.invocation_params.args)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of them make real faults, and the first one waits for the image to be unpacked."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.lab)
            item.add_marker(pytest.mark.timeout(200))


@pytest.fixture(scope="session")
def node() -> Iterator[ImageNode]:
    if not is_inside():
        raise RuntimeError("these tests want a node of their own, which `pytest tests/image` makes: name that folder")
    with (
        NodeContainerd() as containerd,
        KubeletProcess(port=KUBELET_PORT) as kubelet,
        DnsServer(NAMESERVER, 53) as dns,
        Cri(containerd.address) as cri,
    ):
        import_pause_image(containerd)
        import_image(containerd, ARCHIVE, f"nodediag:{__version__}")
        known = run_container(containerd, pod=Pod("orphaned", "shop"))
        yield ImageNode(containerd, cri, kubelet, dns, known)
