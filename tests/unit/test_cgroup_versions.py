"""The mounted cgroup hierarchies decide whether the lab can make a node, before it makes anything."""

from pathlib import Path

import pytest

from tests.lab import cgroups
from tests.lab.cgroups import NODE_CONTROLLERS, CgroupV1MissingError, missing_v1, parse_hierarchies
from tests.lab.whole_node import WholeNode

V2_ALONE = "31 24 0:27 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime - cgroup2 cgroup2 rw,nsdelegate\n"
NAMED = "32 31 0:28 / /sys/fs/cgroup/systemd rw shared:9 - cgroup cgroup rw,xattr,name=systemd\n"


def v1(*hierarchies: str) -> str:
    """Return the lines of mountinfo of hierarchies, each named by its controllers."""
    lines = (
        f"4{number} 31 0:4{number} / /sys/fs/cgroup/{name} rw shared:1{number} - cgroup cgroup rw,{name}\n"
        for number, name in enumerate(hierarchies)
    )
    return "".join(lines)


WITH_SYSTEMD = v1("cpu,cpuacct", "cpuset", "devices", "freezer", "memory", "pids", "net_cls,net_prio")


@pytest.mark.parametrize("v2", ["", V2_ALONE])
def test_nothing_is_missing_with_cgroup_v1(v2: str) -> None:
    assert missing_v1(v2 + NAMED + WITH_SYSTEMD) == []


@pytest.mark.parametrize("mountinfo", ["", V2_ALONE, V2_ALONE + NAMED])
def test_every_controller_is_missing_without_it(mountinfo: str) -> None:
    assert missing_v1(mountinfo) == [*NODE_CONTROLLERS]
    assert missing_v1(mountinfo, ("pids",)) == ["pids"]


def test_a_controller_that_v2_has_is_missing() -> None:
    assert missing_v1(V2_ALONE + v1("cpu,cpuacct", "cpuset", "devices", "freezer", "pids")) == ["memory"]


@pytest.mark.parametrize("flags", ["ro,nosuid", "rw"])
def test_a_hierarchy_that_is_mounted_again_counts_once(flags: str) -> None:
    again = f"60 31 0:43 / /tmp/elsewhere {flags} - cgroup cgroup rw,freezer\n"
    for mountinfo in (WITH_SYSTEMD + again, *((again + WITH_SYSTEMD,) if flags != "rw" else ())):
        found = [tree.mount for tree in parse_hierarchies(mountinfo) if "freezer" in tree.controllers]
        assert found == [Path("/sys/fs/cgroup/freezer")]


def test_a_node_is_refused_before_anything_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cgroups, "missing_v1", lambda *_: ["memory", "pids"])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(CgroupV1MissingError, match=r"for: memory, pids.*systemd\.unified_cgroup_hierarchy=0"):
        WholeNode()
    with pytest.raises(CgroupV1MissingError):
        cgroups.limit_pids("/nodediag-none", 10)
    assert not [*tmp_path.iterdir()]
