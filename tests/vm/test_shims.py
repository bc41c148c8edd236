"""Shims, pods and their cgroups on systemd and cgroup v2."""

import time

from tests.detections import record, record_outcome
from tests.vm.node import Node, Pod, about

HUNG = "ContainerdShimHung"


def test_a_healthy_node_is_reported_healthy(node: Node) -> None:
    node.pod("guaranteed", "--qos guaranteed")
    node.pod("burstable", "--qos burstable")
    node.pod("cgroupfs", "--cgroupfs")
    assert node.output("stat --file-system --format %T /sys/fs/cgroup") == "cgroup2fs"
    assert "apparmor" in node.output("cat /sys/kernel/security/lsm")
    done = node.nodediag("check")
    assert done.code == 0, done.output
    assert "5 shims" in done.output


def test_a_stopped_shim_is_reported_and_killed_on_request(node: Node) -> None:
    victim, neighbour = node.pods
    stop(node, victim)
    found = node.found(HUNG, about(victim))
    assert (found["pod"]["namespace"], found["pod"]["name"]) == ("shop", victim.name)
    processes = node.output(f"cat {victim.cgroup}/cgroup.procs").split()
    assert str(victim.pid) in processes
    done = node.remediate("KillShim", f"shop/{victim.name}")
    assert done.code == 0, done.output
    assert "verified" in done.output
    record_outcome("KillShim", "shim stopped", "VM", "verified", facts=node.facts)
    assert not any(node.lives(pid) for pid in (victim.shim, *map(int, processes)))
    assert node.lives(neighbour.shim)
    assert node.lives(neighbour.pid)
    assert node.unit("kubelet", "ActiveState") == {"ActiveState": "active"}
    node.wait_until_well()


def stop(node: Node, pod: Pod) -> None:
    node.output(f"kill -STOP {pod.shim}")
    began = time.monotonic()
    node.found(HUNG, about(pod))
    record("shim stopped", "VM", time.monotonic() - began, facts=node.facts)


def test_a_frozen_shim_is_thawed_on_request(node: Node) -> None:
    victim, _ = node.pods
    cgroup = "/sys/fs/cgroup/system.slice/containerd.service/frozen"
    node.output(f"mkdir {cgroup} && echo {victim.shim} >{cgroup}/cgroup.procs && echo 1 >{cgroup}/cgroup.freeze")
    began = time.monotonic()
    found = node.found(HUNG, about(victim))
    record("shim frozen", "VM", time.monotonic() - began, facts=node.facts)
    assert "frozen" in str(found)
    done = node.remediate("ThawCgroup", victim.shim)
    assert done.code == 0, done.output
    record_outcome("ThawCgroup", "shim frozen", "VM", "verified", facts=node.facts)
    assert node.output(f"cat {cgroup}/cgroup.freeze") == "0"
    assert node.lives(victim.shim)
    assert node.lives(victim.pid)
    node.wait_until_well()
