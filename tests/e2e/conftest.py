"""A node of the lab: containerd with some pods, a kubelet, a DNS server, and the agent watching them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.agent_process import AgentProcess
from tests.lab.containerd import Containerd
from tests.lab.containers import run_containers
from tests.lab.dns_servers import DnsServer
from tests.lab.kubelet_standin import KubeletStandin
from tests.lab.pods import Container, Pod
from tests.lab.supervised import KubeletProcess
from tests.lab.survivors import container_that_may_survive
from tests.lab.waiting import wait_until

POD_COUNT = 8


@dataclass
class LabNode:
    """Everything an agent watches, and an agent at default settings that watches it."""

    containerd: Containerd
    kubelet: KubeletStandin
    dns: DnsServer
    pods: list[Container]
    survivor: Container
    """Of a pod that the agent has seen alive: whose it was is not known from a cgroup alone."""
    agent: AgentProcess

    def fresh_pod(self) -> Container:
        """Return a pod no test has spent yet."""
        return self.pods.pop()


def settings_for(containerd: Containerd, kubelet: KubeletStandin | KubeletProcess, dns: DnsServer) -> dict[str, Any]:
    """Return settings that only say where things are; all else is default."""
    return {
        "containerd": {"address": str(containerd.address), "state_dir": str(containerd.state_dir)},
        "kubelet": {"healthz_url": kubelet.url},
        "dns": {"servers": [dns_address(dns)]},
    }


def dns_address(server: DnsServer) -> str:
    """Return a DNS server's address as the settings write it."""
    return f"{server.address}:{server.port}"


@pytest.fixture(scope="package")
def lab_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabNode]:
    folder: Path = tmp_path_factory.mktemp("node")
    with (
        Containerd() as containerd,
        KubeletStandin() as kubelet,
        DnsServer() as dns,
        container_that_may_survive(containerd, Pod(name="survivor", namespace="shop")) as survivor,
    ):
        pods = run_containers(containerd, POD_COUNT)
        with AgentProcess(folder, settings_for(containerd, kubelet, dns)) as agent:
            wait_until(agent.all_well, 15, "a healthy node is found to be healthy")
            yield LabNode(containerd, kubelet, dns, pods, survivor, agent)
