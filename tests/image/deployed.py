"""A node of the lab with Kubernetes' own paths, and the built image on it as a manifest says."""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from agent.client import Client, ClientTls
from agent.model import Condition, Finding, NodeReport, Status
from tests.lab.containerd import NodeContainerd
from tests.lab.cri import Cri
from tests.lab.dns_servers import DnsServer
from tests.lab.pod_runner import RunningPod
from tests.lab.pod_spec import Manifest
from tests.lab.pods import Container
from tests.lab.supervised import KubeletProcess
from tests.lab.waiting import wait_until

NAMED_SECONDS = 120.0
"""What is not named by then never will be: several agents share two processors here, each at a tenth of one."""
NODE_NAME = "lab-node"
SPARE = 0.25
"""Of the memory limit, never used."""


@dataclass
class ImageNode:
    """The node's parts, healthy. Each agent gets an address of the node for itself, as its manifest binds to it.

    `known` is a container that is there before every agent: whose it was can be told once its bundle is gone.
    """

    containerd: NodeContainerd
    cri: Cri
    kubelet: KubeletProcess
    dns: DnsServer
    known: Container
    _addresses: Iterator[int] = field(default_factory=lambda: iter(range(20, 250)))

    def new_address(self) -> str:
        """Give the node one more address, and return it."""
        address = f"192.0.2.{next(self._addresses)}"
        subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
        return address

    @contextmanager
    def running(
        self,
        manifest: Manifest,
        tls: ClientTls | None = None,
        address: str = "",
        api_server: tuple[str, int] | None = None,
    ) -> Iterator["Deployed"]:
        """Run a pod of the manifest for the body, without waiting for it; with `tls` it is asked over TCP."""
        with RunningPod(self.cri, manifest, NODE_NAME, address or self.new_address(), api_server) as pod:
            yield Deployed(pod, tls)


@dataclass
class Deployed:
    """An agent in its pod, asked over the API: its Unix socket's volume, or with `tls` its address."""

    pod: RunningPod
    tls: ClientTls | None = None

    @property
    def endpoint(self) -> str:
        """Where its API is served, seen from the node."""
        if self.tls is None:
            return f"unix:/proc/{self.pod.process.pid}/root/run/nodediag/nodediag.sock"
        return f"{self.pod.who.node_address}:9798"

    def client(self) -> Client:
        """Return a client of it."""
        return Client(self.endpoint, tls=self.tls)

    def report(self) -> NodeReport:
        """Return what it knows now."""
        with self.client() as client:
            return client.get_node_report()

    def ready(self) -> Self:
        """Wait until it has started within its startupProbe, and is ready."""
        self.pod.await_start()
        self.pod.await_ready()
        return self

    def condition(self, kind: str) -> Condition | None:
        """Return one condition as it stands; None if it is left out."""
        return next((each for each in self.report().conditions if each.type == kind), None)

    def findings(self) -> list[Finding]:
        """Return every confirmed finding."""
        return [active.finding for condition in self.report().conditions for active in condition.findings]

    def found(self, fits: Callable[[Finding], bool], what: str, timeout: float = NAMED_SECONDS) -> Finding:
        """Wait for the finding that fits."""
        return wait_until(lambda: next((each for each in self.findings() if fits(each)), None), timeout, what)

    def unsettled(self) -> dict[str, str]:
        """Return the conditions that are not False, and how they stand."""
        found = (each for each in self.report().conditions if each.status is not Status.FALSE)
        return {each.type: f"{each.status} {each.reason}: {each.message}" for each in found}

    def await_well(self, timeout: float = NAMED_SECONDS) -> None:
        """Wait until every condition is False."""
        wait_until(lambda: not self.unsettled(), timeout, "every condition is False")


def read(path: Path) -> Manifest:
    """Read a manifest's file."""
    return Manifest.parse(path.read_text())


def memory_to_spare(agent: Deployed, overlay: str, *commands: list[str]) -> str:
    """Run commands inside as an on-call does, hold that a quarter of the limit was never used; return the figures."""
    pod, limit, mib = agent.pod, agent.pod.manifest.memory_limit, 1 << 20
    watching = pod.memory_peak()
    slowest = 0.0
    for words in commands:
        began = time.monotonic()
        done = pod.exec(*words)
        slowest = max(slowest, time.monotonic() - began)
        assert done.code == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
    peak = pod.memory_peak()
    told = (
        f"{overlay}: memory at its peak {watching / mib:.1f} MiB through the tour, {peak / mib:.1f} MiB with what an "
        f"on-call runs inside (which took {slowest:.1f} s at most), of {limit / mib:.0f} MiB"
    )
    assert pod.oom_kills() == 0, told
    assert peak <= (1 - SPARE) * limit, told
    return told
