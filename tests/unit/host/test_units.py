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


def systemd_at(root: Path, manager: str = "usr/lib/systemd/systemd") -> None:
    """A machine that systemd runs."""
    (root / "run/systemd/system").mkdir(parents=True, exist_ok=True)
    (root / manager).parent.mkdir(parents=True, exist_ok=True)
    (root / manager).touch()


@pytest.mark.parametrize("manager", ["usr/lib/systemd/systemd", "lib/systemd/systemd"])
def test_a_unit_is_removed_once_no_folder_of_systemd_has_its_file(tmp_path: Path, manager: str) -> None:
    assert not is_removed("kubelet.service", tmp_path), "systemd is not visible here"
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    assert not is_removed("kubelet.service", tmp_path), "of the node, /run alone is visible here"
    systemd_at(tmp_path, manager)
    assert is_removed("kubelet.service", tmp_path)
    file = tmp_path / "usr/lib/systemd/system/kubelet.service"
    file.parent.mkdir(parents=True)
    file.touch()
    assert not is_removed("kubelet.service", tmp_path)
    file.rename(file.with_name("kubelet@.service"))
    assert is_removed("kubelet.service", tmp_path)
    assert not is_removed("kubelet@node-1.service", tmp_path)


def test_a_masked_unit_is_not_removed_while_its_file_exists(tmp_path: Path) -> None:
    systemd_at(tmp_path)
    for folder in ("etc/systemd/system", "lib/systemd/system"):
        (tmp_path / folder).mkdir(parents=True)
    mask = tmp_path / "etc/systemd/system/kubelet.service"
    mask.symlink_to("/dev/null")
    (tmp_path / "lib/systemd/system/kubelet.service").touch()
    assert not is_removed("kubelet.service", tmp_path)
    (tmp_path / "lib/systemd/system/kubelet.service").unlink()
    assert is_removed("kubelet.service", tmp_path), "the package is removed and left the mask"
    mask.unlink()
    mask.symlink_to("/nowhere")
    assert not is_removed("kubelet.service", tmp_path), "its destination may not be visible here"
