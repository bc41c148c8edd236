"""The faults an agent must name at default settings, and what it must say of each."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from tests.e2e.conftest import LabNode
from tests.lab import shim_faults, zombies
from tests.lab.dns_servers import DnsMode
from tests.lab.kubelet_standin import KubeletMode
from tests.lab.pods import Container, Pod
from tests.lab.survivors import surviving_processes
from tests.lab.versions import is_at_least

BRED_POD = Pod(name="zombie-maker", namespace="shop")
STUCK_POD = Pod(name="stuck", namespace="shop")
SURVIVORS = "shim killed, containers live on" if is_at_least(2) else "processes without shim"
"""On 2.x the fault is the real one, containerd#10727; before that the lab imitates what is left by it."""


@dataclass(frozen=True)
class Fault:
    """A fault, the condition and reason that must name it, and what the message must mention."""

    name: str
    make: Callable[[LabNode], AbstractContextManager[str]]
    condition: str
    reason: str
    clears_after: str = "the fault"


def _shim(
    maker: Callable[[Container], AbstractContextManager[object]],
) -> Callable[[LabNode], AbstractContextManager[str]]:
    @contextmanager
    def make(node: LabNode) -> Iterator[str]:
        pod = node.pods[0]
        with maker(pod):
            yield f"shim {pod.shim_pid} of pod {pod.pod_namespace}/{pod.pod_name}"

    return make


def _spent(maker: Callable[..., AbstractContextManager[object]]) -> Callable[[LabNode], AbstractContextManager[str]]:
    @contextmanager
    def make(node: LabNode) -> Iterator[str]:
        pod = node.fresh_pod()
        with maker(node.containerd, pod):
            yield f"pod {pod.pod_namespace}/{pod.pod_name}"

    return make


@contextmanager
def _surviving(node: LabNode) -> Iterator[str]:
    with surviving_processes(node.containerd, node.survivor) as container:
        yield f"pod {container.pod_namespace}/{container.pod_name}"


@contextmanager
def _stuck(node: LabNode) -> Iterator[str]:
    with shim_faults.stuck_state(node.containerd, STUCK_POD) as container:
        yield f"{container.pod_namespace}/{container.pod_name}"


def _zombies(count: int) -> Callable[[LabNode], AbstractContextManager[str]]:
    @contextmanager
    def make(node: LabNode) -> Iterator[str]:
        with zombies.zombies_under_container(node.containerd, count, pod=BRED_POD) as breeder:
            yield str(breeder.process.pid)

    return make


def _kubelet(mode: KubeletMode, seconds: float | None = None) -> Callable[[LabNode], AbstractContextManager[str]]:
    @contextmanager
    def make(node: LabNode) -> Iterator[str]:
        node.kubelet.set_mode(mode, seconds=seconds)
        try:
            yield "kubelet"
        finally:
            node.kubelet.set_mode(KubeletMode.HEALTHY)

    return make


def _dns(mode: DnsMode, delay: float | None = None) -> Callable[[LabNode], AbstractContextManager[str]]:
    @contextmanager
    def make(node: LabNode) -> Iterator[str]:
        node.dns.set_mode(mode, delay=delay)
        try:
            yield node.dns.address
        finally:
            node.dns.set_mode(DnsMode.HEALTHY)

    return make


@contextmanager
def _containerd_stopped(node: LabNode) -> Iterator[str]:
    node.containerd.pause()
    try:
        yield "containerd"
    finally:
        node.containerd.resume()


@contextmanager
def _containerd_killed(node: LabNode) -> Iterator[str]:
    node.containerd.crash()
    try:
        yield "containerd"
    finally:
        node.containerd.start()


HUNG, LEAKED = "ContainerdShimHung", "ContainerdShimLeaked"
ZOMBIES, KUBELET = "ExcessiveDefunctProcesses", "KubeletHealthzFailing"
RACE, DNS, RUNTIME = "ConntrackDNSRace", "DNSUnavailable", "ContainerRuntimeUnresponsive"

LANES = ((HUNG, LEAKED, ZOMBIES, RUNTIME), (KUBELET,), (RACE, DNS))
"""Conditions whose faults may be there at the same time as those of the other lanes."""

FAULTS = (
    Fault("shim stopped", _shim(shim_faults.stopped_shim), HUNG, "ShimUnresponsive"),
    Fault("shim frozen", _shim(shim_faults.frozen_shim), HUNG, "ShimUnresponsive"),
    Fault("shim's State stuck", _stuck, HUNG, "ShimOperationStuck"),
    Fault("shim killed, bundle left", _spent(shim_faults.dead_shim_with_bundle), LEAKED, "ShimDead"),
    Fault("shim orphaned", _spent(shim_faults.orphaned_shim), LEAKED, "ShimWithoutContainers"),
    Fault(
        "shim without live container", _spent(shim_faults.shim_without_live_container), LEAKED, "ShimWithoutContainers"
    ),
    Fault(SURVIVORS, _surviving, LEAKED, "ProcessesWithoutShim"),
    Fault("zombies of a parent that does not reap", _zombies(500), ZOMBIES, "ParentNotReaping"),
    Fault("kubelet never answers", _kubelet(KubeletMode.NEVER), KUBELET, "HealthzTimeout"),
    Fault("kubelet trickles", _kubelet(KubeletMode.TRICKLE_BODY), KUBELET, "HealthzTimeout"),
    Fault("kubelet late", _kubelet(KubeletMode.LATE, 5.0), KUBELET, "HealthzSlow"),
    Fault("kubelet refuses", _kubelet(KubeletMode.REFUSE), KUBELET, "HealthzRefused"),
    Fault("kubelet says 500", _kubelet(KubeletMode.ERROR_500), KUBELET, "HealthzNotOK"),
    Fault("DNS drops one of each pair", _dns(DnsMode.DROPS_SECOND), RACE, "DNSQueriesLost"),
    Fault("DNS silent", _dns(DnsMode.SILENT), DNS, "ServerUnreachable"),
    Fault("DNS not listening", _dns(DnsMode.CLOSED), DNS, "ServerUnreachable"),
    Fault("DNS slow", _dns(DnsMode.SLOW, 1.5), DNS, "ServerSlow"),
    Fault("containerd stopped", _containerd_stopped, RUNTIME, "CRITimeout"),
    Fault("containerd killed", _containerd_killed, RUNTIME, "RuntimeRefused"),
)
