"""The faults of the tour: what is made, and which condition must name it, and whose it must say it is."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

from agent.model import Finding
from tests.image.deployed import ImageNode
from tests.lab import conntrack_faults, shim_faults, zombies
from tests.lab.containers import running_container
from tests.lab.dns_servers import DnsMode
from tests.lab.kubelet_standin import KubeletMode
from tests.lab.pods import Pod
from tests.lab.whole_node import ThisNode

NAMESPACE = "shop"
ZOMBIES = 300


@dataclass(frozen=True)
class Fault:
    """A fault by its name; `pod` is the one it is made to, if it is one of a pod."""

    name: str
    make: Callable[[ImageNode], AbstractContextManager[object]]
    condition: str
    reason: str
    pod: str = ""

    def fits(self, finding: Finding) -> bool:
        """Whether a finding is about this fault."""
        whose = f"{finding.pod.namespace}/{finding.pod.name}" if finding.pod else ""
        return (finding.condition, finding.reason, whose) == (self.condition, self.reason, self.pod)


@contextmanager
def _stopped(node: ImageNode) -> Iterator[None]:
    with running_container(node.containerd, pod=Pod("stopped", NAMESPACE)) as victim, shim_faults.stopped_shim(victim):
        yield


@contextmanager
def _frozen(node: ImageNode) -> Iterator[None]:
    with running_container(node.containerd, pod=Pod("frozen", NAMESPACE)) as victim, shim_faults.frozen_shim(victim):
        yield


@contextmanager
def _orphaned(node: ImageNode) -> Iterator[None]:
    with shim_faults.orphaned_shim(node.containerd, node.known):
        yield


def _zombies(node: ImageNode) -> AbstractContextManager[object]:
    return zombies.zombies_under_container(node.containerd, ZOMBIES, pod=Pod("maker", NAMESPACE))


@contextmanager
def _racing(node: ImageNode) -> Iterator[None]:
    node.dns.set_mode(DnsMode.DROPS_SECOND)
    try:
        yield
    finally:
        node.dns.set_mode(DnsMode.HEALTHY)


@contextmanager
def _kubelet_ill(node: ImageNode) -> Iterator[None]:
    node.kubelet.set_mode(KubeletMode.ERROR_500)
    try:
        yield
    finally:
        node.kubelet.set_mode(KubeletMode.HEALTHY)


@contextmanager
def _paused(node: ImageNode) -> Iterator[None]:
    node.containerd.pause()
    try:
        yield
    finally:
        node.containerd.resume()


def _table_full(node: ImageNode) -> AbstractContextManager[object]:
    return conntrack_faults.table_full(ThisNode())


TOGETHER = (
    Fault("shim orphaned", _orphaned, "ContainerdShimLeaked", "ShimWithoutContainers", "shop/orphaned"),
    Fault("shim stopped", _stopped, "ContainerdShimHung", "ShimUnresponsive", "shop/stopped"),
    Fault("shim frozen", _frozen, "ContainerdShimHung", "ShimUnresponsive", "shop/frozen"),
    Fault(
        "zombies of a parent that does not reap",
        _zombies,
        "ExcessiveDefunctProcesses",
        "ParentNotReaping",
        "shop/maker",
    ),
    Fault("DNS drops one of each pair", _racing, "ConntrackDNSRace", "DNSQueriesLost"),
    Fault("kubelet says 500", _kubelet_ill, "KubeletHealthzFailing", "HealthzNotOK"),
)
"""Those that leave each other alone, in the order in which they can be made: a containerd whose shims hang is slow."""
APART = (
    Fault("containerd stopped", _paused, "ContainerRuntimeUnresponsive", "CRITimeout"),
    Fault("conntrack table full", _table_full, "ConntrackTablePressure", "TableFull"),
)


@contextmanager
def all_together(node: ImageNode) -> Iterator[dict[str, float]]:
    """Hold all of TOGETHER for the body; yield when each was made, in epoch seconds, by its name."""
    made: dict[str, float] = {}
    with ExitStack() as stack:
        for fault in TOGETHER:
            stack.enter_context(fault.make(node))
            made[fault.name] = time.time()
        yield made
