"""What in /var/lib/kubelet shows that a kubelet belongs to the node, and what does not."""

import os
from pathlib import Path

import pytest

from agent.host.kubelet_dir import content


def test_no_folder_and_an_empty_one_are_no_kubelet(tmp_path: Path) -> None:
    assert content(tmp_path / "kubelet") is None
    assert content(tmp_path) is None


def test_what_mounts_and_packages_make_is_no_kubelet(tmp_path: Path) -> None:
    (tmp_path / "pki").mkdir()
    (tmp_path / "pods").mkdir()
    (tmp_path / "device-plugins").mkdir()
    (tmp_path / "config.yaml").touch()
    assert content(tmp_path) is None


@pytest.mark.parametrize("name", ["pki/kubelet.crt", "pods/6f0e", "config.yaml", "kubeconfig", "cpu_manager_state"])
def test_what_a_kubelet_leaves_shows_it(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("x")
    assert content(tmp_path) == tmp_path / name.partition("/")[0]


def test_what_may_not_be_read_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path, **_: bool) -> os.stat_result:
        raise PermissionError(13, os.strerror(13), str(path))

    monkeypatch.setattr(Path, "stat", denied)
    assert content(tmp_path) == tmp_path / "config.yaml"
