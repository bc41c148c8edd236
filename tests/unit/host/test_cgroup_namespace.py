"""Paths of cgroups told from within a cgroup namespace, put back into the node's own words."""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.host.cgroup_namespace import CgroupNamespace
from agent.host.cgroups import Cgroups, owner
from tests.lab import cgroups
from tests.unit.builders import POD_UID, UNREAL_PID, container_id, kubepods

OWN = f"/kubepods/pod11111111-1111-1111-1111-111111111111/{container_id(1)}"
OTHER = container_id(2)


class Node:
    """A proc and a v2 tree in which our own cgroup lies at `own`, seen from a namespace that begins there."""

    def __init__(self, root: Path, own: str = OWN, init: str = "/../../../init.scope") -> None:
        self.proc, self.sys = root / "proc", root / "sys"
        (self.proc / "1").mkdir(parents=True)
        (self.proc / "1" / "cgroup").write_text(f"0::{init}\n")
        self.add("", "")
        (self.sys / "fs/cgroup/cgroup.controllers").write_text("cpu memory pids\n")
        for number in range(5):
            self.add(f"/kubepods/burstable/pod{number}", "1 2 3")
            self.add(f"/kubepods/podx{number}/{container_id(number + 10)}", f"{os.getpid()}0")
        self.add(own, f"{UNREAL_PID}\n{os.getpid()}\n")

    def add(self, path: str, pids: str) -> None:
        folder = self.sys / f"fs/cgroup{path}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup.procs").write_text(pids)

    def outside(self, *lines: str) -> tuple[str, ...]:
        return CgroupNamespace(str(self.proc), str(self.sys)).outside(lines)


@pytest.mark.parametrize(
    ("seen", "real"),
    [
        ("/", OWN),
        ("/below", f"{OWN}/below"),
        ("/../../../init.scope", "/init.scope"),
        ("/../../../system.slice/containerd.service", "/system.slice/containerd.service"),
        (f"/../../pod{POD_UID}/{OTHER}", f"/kubepods/pod{POD_UID}/{OTHER}"),
        (f"/../../burstable/pod{POD_UID}/{OTHER}", kubepods(OTHER)),
        ("/../../..", "/"),
        ("/../../../..x", "/..x"),
    ],
)
def test_a_path_is_told_as_the_node_tells_it(tmp_path: Path, seen: str, real: str) -> None:
    assert Node(tmp_path).outside("1:name=systemd:/", f"0::{seen}") == ("1:name=systemd:/", f"0::{real}")


def test_a_guaranteed_pod_beside_us_is_known_by_its_pod_and_container(tmp_path: Path) -> None:
    lines = (f"0::/../../pod{POD_UID}/{OTHER}",)
    assert owner(lines) is None, "as it is seen from here, it could be anybody's"
    found = owner(Node(tmp_path).outside(*lines))
    assert found is not None
    assert (found.pod_uid, found.container_id) == (POD_UID, OTHER)


def test_a_frozen_cgroup_outside_of_our_namespace_is_seen(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.add(kubepods(OTHER), "42")
    (node.sys / f"fs/cgroup{kubepods(OTHER)}/cgroup.freeze").write_text("1")
    lines = node.outside(f"0::/../../burstable/pod{POD_UID}/{OTHER}")
    assert Cgroups(str(node.sys)).frozen(lines) == kubepods(OTHER)


@pytest.mark.parametrize("init", ["/init.scope", "/"])
def test_outside_of_a_namespace_nothing_is_changed(tmp_path: Path, init: str) -> None:
    assert Node(tmp_path, init=init).outside("0::/a/b") == ("0::/a/b",)


def test_where_the_nodes_tree_is_not_mounted_the_path_stays_and_is_called_hidden(tmp_path: Path) -> None:
    node = Node(tmp_path, own="/elsewhere/at/anotherdepth/of/it")
    lines = node.outside("0::/../../../system.slice/x.service")
    assert lines == ("0::/../../../system.slice/x.service",)
    assert Cgroups(str(node.sys)).hidden(lines)


@pytest.fixture
def real_cgroup() -> Iterator[tuple[cgroups.Hierarchy, str]]:
    tree = next(each for each in cgroups.hierarchies() if each.version == 2)
    path = f"/nodediag-lab-{secrets.token_hex(4)}/pod{POD_UID}/{container_id(7)}"
    cgroups.make(path, tree)
    try:
        yield tree, path
    finally:
        cgroups.remove(path)


def test_in_a_real_namespace_our_own_cgroup_and_that_of_another_are_told_in_full(
    real_cgroup: tuple[cgroups.Hierarchy, str],
) -> None:
    tree, path = real_cgroup
    program = (
        "import json, os, sys; from agent.host.procfs import Procfs;"
        "from agent.host.cgroup_namespace import CgroupNamespace;"
        "names = CgroupNamespace('/proc', '/sys'); raw, told = Procfs('/proc'), Procfs('/proc', names.outside);"
        "pids = (os.getpid(), int(sys.argv[1]));"
        "print(json.dumps([[next(l for l in p.cgroups(n) if l[:3] == '0::') for n in pids] for p in (raw, told)]))"
    )
    entering = f'echo $$ >"{tree.at(path)}/cgroup.procs"; exec unshare --cgroup -- "$0" -c "$@"'
    with subprocess.Popen(["sleep", "60"]) as neighbour:
        (tree.at(path).parent / "cgroup.procs").write_text(str(neighbour.pid))
        command = ["sh", "-ec", entering, sys.executable, program, str(neighbour.pid)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        neighbour.kill()
    raw, told = json.loads(done.stdout)
    assert raw == ["0::/", "0::/.."]
    assert told == [f"0::{path}", f"0::{path.rpartition('/')[0]}"]
