"""What an agent may have found, for tests of those who ask it to mend something."""

from agent.model import Action, ActiveFinding, Finding, PodRef, Target, TargetKind, Value
from tests.unit.agent_double import NOW

BOOT = "6f1f2b1e-0000-4000-8000-000000000000"
SANDBOX = "9c0e6f0d1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5"
CONTAINER = "4e5f" * 16


def hung_shim(
    pid: int = 4242, container_id: str = SANDBOX, pod: str = "cart-7d9f4c", action: Action = Action.KILL_SHIM
) -> ActiveFinding:
    values: dict[str, Value] = {"containerIds": (container_id, CONTAINER), "unansweredSeconds": 8.1}
    target = Target(TargetKind.SHIM, pid, 987654, BOOT, container_id, "k8s.io", address="unix:///run/s/x")
    message = f"shim {pid} of pod shop/{pod} has not answered for 8 s"
    found = Finding(
        "ContainerdShimHung", "ShimUnresponsive", message, action, target, PodRef("shop", pod, container="web"), values
    )
    return ActiveFinding(found, NOW - 185)


def lazy_parent(pid: int = 777, pod: str = "cart-7d9f4c") -> ActiveFinding:
    target = Target(TargetKind.PROCESS, pid, 55, BOOT, CONTAINER, cgroup="/kubepods/pod1/x")
    message = f"process {pid} (redis-server) does not reap"
    kind = "ExcessiveDefunctProcesses"
    found = Finding(kind, "ParentNotReaping", message, Action.SIGNAL_PARENT, target, PodRef("shop", pod))
    return ActiveFinding(found, NOW - 60)


def silent_kubelet() -> ActiveFinding:
    target = Target(TargetKind.KUBELET, 640, 900, BOOT, address="http://127.0.0.1:10248/healthz")
    found = Finding("KubeletHealthzFailing", "HealthzTimeout", "no answer", Action.RESTART_KUBELET, target)
    return ActiveFinding(found, NOW - 60)


def lost_queries(address: str = "10.96.0.10") -> ActiveFinding:
    target = Target(TargetKind.DNS_SERVER, address=address)
    message = f"DNS server {address} loses queries"
    found = Finding("ConntrackDNSRace", "DNSQueriesLost", message, Action.DELETE_CONNTRACK_FLOWS, target)
    return ActiveFinding(found, NOW - 60)
