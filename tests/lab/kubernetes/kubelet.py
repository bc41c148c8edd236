"""The kubelet, registered with the API server, on the node's containerd."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from pathlib import Path

from tests.lab.kubernetes.pki import Pki
from tests.lab.kubernetes.service import Service
from tests.lab.waiting import wait_until
from tests.lab.whole_node import ADDRESS, NAMESERVER

HEALTHZ_PORT = 10248
_HEALTHZ = f"http://127.0.0.1:{HEALTHZ_PORT}/healthz"
_HEALTHY_SECONDS = 90.0
_SYSCTLS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
"""What a kubelet wants. They are the whole machine's, so the node shows the kubelet files with these values instead."""


class Kubelet(Service):
    """The kubelet as a service; `await_healthy` waits for its healthz."""

    def __init__(self, binaries: Path, folder: Path, pki: Pki, node: str, runtime: Path) -> None:
        configuration = folder / "kubelet.json"
        configuration.write_text(json.dumps(_configuration(pki)))
        self._sysctls = folder / "sysctl"
        argv = [
            str(binaries / "kubelet"), f"--config={configuration}", f"--kubeconfig={pki.kubeconfig('kubelet')}",
            "--container-runtime=remote", f"--container-runtime-endpoint=unix://{runtime}",
            f"--hostname-override={node}", f"--node-ip={ADDRESS}",
            "--root-dir=/var/lib/kubelet", "--cert-dir=/var/lib/kubelet/pki",
        ]  # fmt: skip
        super().__init__("kubelet", argv, folder)

    def furnish(self) -> None:
        """Mount files with the values a kubelet wants over the sysctls that have others, in this mount namespace."""
        for name, value in _SYSCTLS.items():
            there = Path("/proc/sys", name)
            if there.read_text().strip() != value:
                shown = self._sysctls / name
                shown.parent.mkdir(parents=True, exist_ok=True)
                shown.write_text(f"{value}\n")
                subprocess.run(["mount", "--bind", str(shown), str(there)], check=True)

    def await_healthy(self, timeout: float = _HEALTHY_SECONDS) -> None:
        """Wait until its healthz answers 200."""
        wait_until(self._is_healthy, timeout, "the kubelet is healthy")

    def _is_healthy(self) -> bool:
        self.check()
        try:
            with urllib.request.urlopen(_HEALTHZ, timeout=3) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False


def _configuration(pki: Pki) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": ADDRESS,
        "port": 10250,
        "readOnlyPort": 0,
        "healthzBindAddress": "127.0.0.1",
        "healthzPort": HEALTHZ_PORT,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(pki.file("ca.crt"))},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "clusterDNS": [NAMESERVER],
        "clusterDomain": "cluster.local",
        "enforceNodeAllocatable": ["pods"],
        "evictionHard": {"nodefs.available": "1%"},
        "failSwapOn": False,
        # It must not set sysctls, which are the machine's (see `furnish`); with this it ends if one is not as wanted.
        "protectKernelDefaults": True,
    }
