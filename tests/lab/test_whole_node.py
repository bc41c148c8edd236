"""The whole node is a node of its own, and nothing of it is left, however what ran in it ended."""

import re
from pathlib import Path

import pytest

from tests.lab import cgroups
from tests.lab.processes import all_stats
from tests.lab.waiting import wait_until
from tests.lab.whole_node import NAMESERVER, WholeNode, in_machine_network, is_inside

pytestmark = pytest.mark.lab


def run(node: WholeNode, script: str, capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run a script in the node: its exit status, and what it printed."""
    code = node.run("sh", "-c", script)
    return code, capfd.readouterr().out


def test_it_has_pid_1_cgroups_network_and_the_places_of_kubernetes_to_itself(capfd: pytest.CaptureFixture[str]) -> None:
    with WholeNode() as node:
        _, out = run(node, "cat /proc/1/comm; cat /proc/self/cgroup; ls -A /run/lock /var/lib/kubelet", capfd)
        comm, *rest = out.split("\n")
        assert comm == "init"
        assert {line.rpartition(":")[2] for line in rest if re.match(r"\d+:", line)} == {"/"}
        assert not [line for line in rest if line and not line.startswith(("/", *"0123456789"))], "the places are empty"
        _, out = run(node, "ip -o link | cut -d: -f2; cat /etc/resolv.conf; ip -o addr show lo", capfd)
        assert out.startswith(f" lo\nnameserver {NAMESERVER}\n")
        assert f" {NAMESERVER}/32 " in out
    assert not is_inside()
    assert in_machine_network(lambda: 7) == 7


@pytest.mark.parametrize("how", ["exit 3", "kill -KILL $$"])
def test_nothing_of_it_is_left_however_it_ended(how: str, capfd: pytest.CaptureFixture[str]) -> None:
    making = "; ".join(f"mkdir -p {tree.mount}/kubepods/pod1/x" for tree in cgroups.hierarchies())
    with WholeNode() as node:
        own = node.cgroup
        name = node.base.name.replace("-", "")[-15:]
        marked = f"printf {name} >/proc/self/comm; trap '' TERM HUP; while :; do sleep 1; done"
        code, _ = run(node, f'{making}; mount -t tmpfs tmpfs /run/lock; sh -c "{marked}" & {how}', capfd)
        assert code != 0
        wait_until(lambda: _named(name), 5, "what was started there runs on")
        assert all(tree.at(f"{own}/kubepods/pod1/x").is_dir() for tree in cgroups.hierarchies())
    wait_until(lambda: not _named(name), 10, "it has ended with the node")
    assert not node.base.exists()
    assert not [tree.at(own) for tree in cgroups.hierarchies() if tree.at(own).exists()]
    assert str(node.base) not in Path("/proc/self/mountinfo").read_text()


def _named(name: str) -> bool:
    return any(stat.comm == name.encode() for stat in all_stats())
