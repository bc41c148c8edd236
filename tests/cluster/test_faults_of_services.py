"""Faults of the real kubelet and the real containerd: stopped, killed, throttled."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.cluster.detection import Fault
from tests.cluster.fleet import Fleet
from tests.lab import cgroups
from tests.lab.kubernetes.cluster import Cluster
from tests.lab.processes import Process

THROTTLED = "/nodediag-lab-throttled"
_PERIOD, _QUOTA = 1_000_000, 1_000
"""Microseconds: a thousandth of a processor."""


@contextmanager
def throttled(process: Process) -> Iterator[None]:
    """Leave a process next to no CPU time for the body."""
    tree = next((each for each in cgroups.hierarchies() if "cpu" in each.controllers), None)
    if tree is None:
        tree = cgroups.tracking_hierarchy()
    origin = cgroups.cgroup_of(process.pid, tree)
    cgroups.make(THROTTLED, tree)
    try:
        _limit(tree, _QUOTA)
        (tree.at(THROTTLED) / "cgroup.procs").write_text(str(process.pid))
        yield
    finally:
        _limit(tree, -1)
        (tree.at(origin) / "cgroup.procs").write_text(str(process.pid))
        cgroups.remove(THROTTLED)


def _limit(tree: cgroups.Hierarchy, quota: int) -> None:
    folder = tree.at(THROTTLED)
    if tree.version == 2:
        (folder / "cpu.max").write_text(f"{quota if quota > 0 else 'max'} {_PERIOD}")
        return
    (folder / "cpu.cfs_period_us").write_text(str(_PERIOD))
    (folder / "cpu.cfs_quota_us").write_text(str(quota))


def test_a_stopped_kubelet(well: Fleet, cluster: Cluster) -> None:
    cluster.kubelet.pause()
    try:
        Fault("kubelet stopped").detected(well.shipped)
    finally:
        cluster.kubelet.resume()
    cluster.await_ready()


def test_a_killed_kubelet(well: Fleet, cluster: Cluster) -> None:
    cluster.kubelet.kill()
    try:
        Fault("kubelet killed").detected(well.shipped)
    finally:
        cluster.kubelet.start()
    cluster.kubelet.await_healthy()
    cluster.await_ready()


def test_a_throttled_kubelet(well: Fleet, cluster: Cluster) -> None:
    with throttled(cluster.kubelet.process):
        Fault("kubelet throttled", reasons=("HealthzSlow", "HealthzTimeout")).detected(well.shipped)
    cluster.kubelet.await_healthy()
    cluster.await_ready()


def test_a_stopped_containerd(well: Fleet, cluster: Cluster) -> None:
    cluster.containerd.pause()
    try:
        Fault("containerd stopped").detected(well.shipped)
    finally:
        cluster.containerd.resume()
    cluster.await_ready()


def test_a_killed_containerd(well: Fleet, cluster: Cluster) -> None:
    cluster.containerd.crash()
    try:
        Fault("containerd killed").detected(well.shipped)
    finally:
        cluster.containerd.start()
    cluster.await_ready()
