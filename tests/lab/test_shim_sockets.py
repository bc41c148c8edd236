"""The folder of the shims' sockets is containerd's own, and none of it is left by the labs that had it made."""

import stat
from pathlib import Path

import pytest

from tests.lab import marked, shim_sockets
from tests.lab.containerd import Containerd
from tests.lab.containers import running_container

pytestmark = pytest.mark.lab


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "containerd" / "s"
    monkeypatch.setattr(shim_sockets, "SHIM_SOCKETS", place)
    return place


def test_it_has_the_mode_that_its_shims_gave_it() -> None:
    with Containerd() as containerd, running_container(containerd) as container:
        assert container.shim_socket.parent == shim_sockets.SHIM_SOCKETS
        assert stat.S_IMODE(shim_sockets.SHIM_SOCKETS.stat().st_mode) & 0o077 == 0


def test_the_last_lab_takes_away_what_a_shim_has_made_for_any_of_them(folder: Path) -> None:
    shim_sockets.hold("first")
    folder.mkdir(mode=0o600)
    shim_sockets.hold("second")
    shim_sockets.leave("first")
    assert folder.is_dir(), "a shim of the second may be about to make its socket in it"
    shim_sockets.leave("second")
    assert not folder.parent.exists()


def test_what_was_there_before_the_lab_stays(folder: Path) -> None:
    folder.mkdir(parents=True)
    shim_sockets.hold("lab")
    shim_sockets.leave("lab")
    assert folder.is_dir()


def test_nothing_is_noted_where_no_shim_was_started(folder: Path) -> None:
    folder.parent.mkdir()
    shim_sockets.hold("lab")
    shim_sockets.leave("lab")
    folder.mkdir()
    assert not marked.is_marked(folder)


def test_a_lab_that_never_came_leaves_nothing(folder: Path) -> None:
    shim_sockets.leave("lab")
    assert not folder.parent.exists()
