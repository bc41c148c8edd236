"""Which unit a process belongs to, and whether a unit was removed from the node."""

from pathlib import Path

import pytest

from agent.host.units import is_removed, service_cgroup, unit_of


@pytest.mark.parametrize(
    ("lines", "cgroup", "unit"),
    [
        (("0::/system.slice/kubelet.service",), "/system.slice/kubelet.service", "kubelet.service"),
        (("0::/system.slice/containerd.service/shims",), "/system.slice/containerd.service", "containerd.service"),
        (
            ("9:name=systemd:/system.slice/kubelet.service", "4:memory:/x.service", "0::/"),
            "/system.slice/kubelet.service",
            "kubelet.service",
        ),
        (("0::/user.slice/user-0.slice/user@0.service/app.slice/k.service/x",), "*", "k.service"),
        (("0::/user.slice/user-0.slice/session-1.scope",), "", ""),
        ((), "", ""),
    ],
)
def test_the_service_is_read_from_the_cgroup(lines: tuple[str, ...], cgroup: str, unit: str) -> None:
    found = service_cgroup(lines)
    assert cgroup in {found, "*"}
    assert unit_of(found) == unit


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("/system.slice", "system.slice"),
        ("/kubepods.slice/kubepods-pod1.slice/cri-containerd-ab.scope", "cri-containerd-ab.scope"),
        ("/kubepods/besteffort/pod1/ab", ""),
        ("/", ""),
        ("", ""),
    ],
)
def test_a_cgroup_that_is_a_units_own_has_its_name(cgroup: str, unit: str) -> None:
    assert unit_of(cgroup) == unit


def test_a_unit_is_removed_once_no_folder_of_systemd_has_its_file(tmp_path: Path) -> None:
    assert not is_removed("kubelet.service", tmp_path), "systemd is not visible here"
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    assert is_removed("kubelet.service", tmp_path)
    file = tmp_path / "usr/lib/systemd/system/kubelet.service"
    file.parent.mkdir(parents=True)
    file.touch()
    assert not is_removed("kubelet.service", tmp_path)
    file.rename(file.with_name("kubelet@.service"))
    assert is_removed("kubelet.service", tmp_path)
    assert not is_removed("kubelet@node-1.service", tmp_path)


def test_a_masked_unit_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    (tmp_path / "etc/systemd/system").mkdir(parents=True)
    (tmp_path / "etc/systemd/system/kubelet.service").symlink_to("/dev/null")
    (tmp_path / "etc/systemd/system/containerd.service").symlink_to("/nowhere")
    assert not is_removed("kubelet.service", tmp_path)
    assert not is_removed("containerd.service", tmp_path)
