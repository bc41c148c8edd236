"""Reports as they come from real nodes, and one from a node whose workloads mean harm."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from agent.model import (
    Action,
    ActiveFinding,
    Condition,
    DeploymentCause,
    DeploymentFault,
    DetectorState,
    DetectorStatus,
    Finding,
    NodeReport,
    PodRef,
    Status,
    Target,
    TargetKind,
    Value,
)
from agent.pipeline.board import Board

NOW = 1785553965.25  # 2026-08-01 03:12:45 UTC
CONTAINER = "9c0e6f0d1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5"
HOSTILE = "\x1b[31mx\n</p><script>\u202e\udcff`$(id)`"


class FixedClock:
    """Wall time stands at NOW, and this process has stood still for 1.5 s."""

    def wall(self) -> float:
        return NOW

    def monotonic(self) -> float:
        return 100.0

    def awake(self) -> float:
        return 98.5

    def stalled(self) -> float:
        return 1.5


def hung_shim(index: int = 0) -> ActiveFinding:
    values: Mapping[str, Value] = {
        "connect_timeout_seconds": 2.0,
        "process_state": "D (disk sleep)",
        "wchan": "futex_do_wait",
        "freezer_state": "FROZEN",
        "containers": ("web", "istio-proxy"),
    }
    finding = Finding(
        condition="ContainerdShimHung",
        reason="ShimUnresponsive",
        message="the shim of shop/cart-7d9f4c (pid 4242) does not answer: Connect timed out after 2 s",
        recommended_action=Action.KILL_SHIM,
        target=Target(
            TargetKind.SHIM,
            pid=4242 + index,
            start_time=987654,
            boot_id="6f1f2b1e-0000-4000-8000-000000000000",
            container_id=CONTAINER,
            containerd_namespace="k8s.io",
        ),
        pod=PodRef("shop", "cart-7d9f4c", "0a1b2c3d-0000-4000-8000-000000000000", "web"),
        values=values,
    )
    return ActiveFinding(finding, NOW - 185)


def lazy_parent(comm: str = "server_readines") -> ActiveFinding:
    finding = Finding(
        condition="ExcessiveDefunctProcesses",
        reason="ParentNotReaping",
        message=f"pid 777 (redis-server) has 16,018 zombies, mostly [{comm}]: an exec probe leaves them",
        recommended_action=Action.KILL_PARENT,
        target=Target(TargetKind.PROCESS, pid=777, start_time=55, cgroup="/kubepods/burstable/pod1/abc"),
        pod=PodRef("data", "redis-0", container="redis"),
        values={"zombies": 16018, "oldest_seconds": 93784.0, "growth_per_minute": 6.0, "most_frequent_comm": comm},
    )
    return ActiveFinding(finding, NOW - 86400 * 3)


@pytest.fixture
def report() -> NodeReport:
    """Two conditions True, some False, two Unknown for one reason, a detector that does not apply."""
    since = NOW - 185
    blind = "cannot read conntrack: Operation not permitted (CAP_NET_ADMIN is missing)"
    return NodeReport(
        node_name="worker-3",
        observed_at=NOW,
        conditions=(
            Condition("ContainerdShimHung", Status.TRUE, "ShimUnresponsive", "a shim hangs", since, (hung_shim(),)),
            Condition(
                "ContainerdShimLeaked", Status.FALSE, "AsExpected", "7 shims, each with its containers", NOW - 86400
            ),
            Condition(
                "ExcessiveDefunctProcesses",
                Status.TRUE,
                "ParentNotReaping",
                "zombies",
                NOW - 86400 * 3,
                (lazy_parent(),),
            ),
            Condition("ConntrackDNSRace", Status.UNKNOWN, "CannotSee", blind, since),
            Condition("ConntrackTablePressure", Status.UNKNOWN, "CannotSee", blind, since),
            Condition("DNSUnavailable", Status.FALSE, "AsExpected", "10.96.0.10 answers in 1.2 ms", NOW - 86400),
        ),
        detectors=(
            DetectorStatus("containerd_shim", DetectorState.OK, "", 0.012, NOW - 4),
            DetectorStatus(
                "defunct_processes",
                DetectorState.OK,
                "the last look was thrown away: this process stood still for 3.0 s during it",
                0.02,
                NOW - 5,
                1,
            ),
            DetectorStatus("conntrack_dns", DetectorState.FAILED, blind, 0.001, NOW - 2),
            DetectorStatus(
                "kubelet_healthz", DetectorState.NOT_APPLICABLE, "no trace of a kubelet on this node", 0.0, NOW - 1
            ),
        ),
    )


@pytest.fixture
def healthy_report(report: NodeReport) -> NodeReport:
    well = tuple(c for c in report.conditions if c.status is Status.FALSE)
    return replace(report, conditions=well, detectors=report.detectors[:1])


@pytest.fixture
def misdeployed_report(report: NodeReport) -> NodeReport:
    """The same from an agent that lacks a capability."""
    fault = DeploymentFault(
        DeploymentCause.CAPABILITY,
        "CAP_DAC_READ_SEARCH",
        "Permission denied: the agent needs CAP_DAC_READ_SEARCH, because /run/containerd/s has mode 0600",
        "add DAC_READ_SEARCH to securityContext.capabilities.add of the agent's container",
        hides=("ContainerdShimLeaked",),
        impairs=("ContainerdShimHung",),
    )
    return replace(report, deployment=(fault,))


@pytest.fixture
def hostile_report(report: NodeReport) -> NodeReport:
    """Every text that a workload, a file or a server can choose is HOSTILE."""
    finding = replace(
        hung_shim().finding,
        condition=HOSTILE,
        reason=HOSTILE,
        message=HOSTILE,
        target=Target(TargetKind.CONTAINER, 4242, 1, HOSTILE, HOSTILE, HOSTILE, f"/{HOSTILE}", HOSTILE),
        pod=PodRef(HOSTILE, HOSTILE, HOSTILE, HOSTILE),
        values={HOSTILE: HOSTILE, "list": (HOSTILE,), "end_seconds": float("inf"), "odd_ratio": float("nan")},
    )
    findings = tuple(ActiveFinding(replace(finding, recommended_action=action), NOW - 60) for action in Action)
    conditions = (
        Condition("ContainerdShimHung", Status.TRUE, HOSTILE, HOSTILE, NOW, findings * 2),
        Condition("DNSUnavailable", Status.FALSE, HOSTILE, HOSTILE, NOW),
        Condition("ConntrackDNSRace", Status.UNKNOWN, HOSTILE, HOSTILE, NOW),
    )
    detectors = tuple(DetectorStatus(f"{HOSTILE}{state}", state, f"{HOSTILE} {state}", 1.0) for state in DetectorState)
    fault = DeploymentFault(DeploymentCause.APPARMOR, HOSTILE, HOSTILE, HOSTILE, (HOSTILE,), (HOSTILE,))
    return NodeReport(HOSTILE, NOW, conditions, detectors, (fault,))


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock()


@pytest.fixture
def board(clock: FixedClock) -> Board:
    return Board("worker-3", clock)
