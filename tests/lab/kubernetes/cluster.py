"""The whole one-node cluster, started inside of a whole node."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from agent import __version__
from tests.lab.agent_image import ARCHIVE
from tests.lab.containerd import NodeContainerd
from tests.lab.dns_servers import DnsServer
from tests.lab.images import import_image, import_pause_image
from tests.lab.kubernetes.control_plane import ControlPlane
from tests.lab.kubernetes.kubectl import Kubectl
from tests.lab.kubernetes.kubelet import Kubelet
from tests.lab.kubernetes.network import furnish_cni, furnish_network
from tests.lab.waiting import wait_until
from tests.lab.whole_node import NAMESERVER, is_inside

NODE_NAME = "worker-1"
KUBECONFIG = "pki/admin.kubeconfig"
"""Where the administrator's is in the cluster's folder."""
_READY_SECONDS = 120.0
KUBECTL = Path(sys.executable).parent / "kubectl"
"""PyPI's, as the tests of deploy/ use it: Debian's 1.20 does not know the components of the overlays."""


class Cluster:
    """A Kubernetes of one node, as a context manager; when it is entered, the node is Ready and has the agent's image.

    `binaries` is what `tools/get-kubernetes` prints; logs, keys and etcd's data are in `folder`, which is made;
    `progress` is called with a line for each step.
    """

    def __init__(self, binaries: Path, folder: Path, progress: Callable[[str], None] = lambda _: None) -> None:
        if not is_inside():
            raise RuntimeError("a cluster wants a node to itself: see tests.lab.whole_node")
        folder.mkdir()
        self.folder = folder
        self.containerd = NodeContainerd()
        self.control_plane = ControlPlane(binaries, self.folder, NODE_NAME)
        pki = self.control_plane.pki
        self.kubelet = Kubelet(binaries, self.folder, pki, NODE_NAME, self.containerd.address)
        self.kubectl = Kubectl(KUBECTL, pki.kubeconfig("admin"))
        self.dns = DnsServer(NAMESERVER, 53)
        self._progress = progress
        self._began = time.monotonic()
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            furnish_network()
            furnish_cni(self.containerd.base / "cni-bin", self.containerd.base / "cni-conf")
            undo.enter_context(self.containerd)
            self._tell("containerd answers")
            with ThreadPoolExecutor(1) as pool:
                importing = pool.submit(self._import_images)
                undo.enter_context(self.control_plane)
                self._tell("the API server is ready")
                undo.enter_context(self.dns)
                importing.result()
            self._tell("the images are imported")
            self.kubelet.furnish()
            undo.enter_context(self.kubelet)
            self.kubelet.await_healthy()
            self.await_ready()
            self._tell(f"node {NODE_NAME} is Ready")
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def await_ready(self, status: str = "True", timeout: float = _READY_SECONDS) -> None:
        """Wait until the node's own condition Ready has this status."""
        wait_until(lambda: self._ready() == status, timeout, f"node {NODE_NAME}: Ready={status}")

    def _ready(self) -> str:
        self.kubelet.check()
        for node in self.kubectl.items("nodes"):
            for condition in node["status"].get("conditions", []):
                if condition["type"] == "Ready":
                    return str(condition["status"])
        return ""

    def _import_images(self) -> None:
        import_pause_image(self.containerd)
        import_image(self.containerd, ARCHIVE, f"nodediag:{__version__}")

    def _tell(self, what: str) -> None:
        self._progress(f"{what} (after {time.monotonic() - self._began:.0f} s)")
