"""What is written to is the one file of the one cgroup that was opened; everything else is refused."""

from pathlib import Path

import pytest

from agent.remediation import cgroup_switch
from agent.remediation.remedy import ActError
from tests.unit.remediation.sleepers import grove, v2


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "fs/cgroup"
    (root / "freezer/a/b").mkdir(parents=True)
    (root / "freezer/freezer.state").write_text("root")
    (root / "freezer/a/b/freezer.state").write_text("FROZEN")
    return root


def write(root: Path, directory: str, name: str = "freezer.state") -> None:
    with cgroup_switch.opened(str(root.parent.parent), directory, name) as switch:
        switch.turn("THAWED")


def test_the_named_cgroup_is_written_to(root: Path) -> None:
    write(root, "freezer/a/b")
    assert (root / "freezer/a/b/freezer.state").read_text() == "THAWED"


@pytest.mark.parametrize("directory", ["freezer", "freezer/", "", "/", "freezer/a/../b", "freezer/./a", "../cgroup/a"])
def test_a_root_and_a_path_that_is_no_plain_one_are_refused(root: Path, directory: str) -> None:
    with pytest.raises(OSError, match="not a cgroup below a hierarchy's root"):
        write(root, directory)
    assert (root / "freezer/freezer.state").read_text() == "root"


def test_a_link_is_not_followed(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "freezer.state").write_text("theirs")
    (root / "freezer/link").symlink_to(outside)
    (root / "freezer/a/freezer.state").symlink_to(outside / "freezer.state")
    for directory in ("freezer/link", "freezer/a"):
        with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
            write(root, directory)
    assert (outside / "freezer.state").read_text() == "theirs"


def test_the_mounts_of_v1_are_not_taken_for_cgroups_of_v2(root: Path) -> None:
    """`/freezer` on v2 is below fs/cgroup what the freezer's root is on v1."""
    with pytest.raises(OSError, match="cgroup v2 is not mounted there"):
        write(root, "/freezer")
    (root / "cgroup.procs").write_text("")
    write(root, "/freezer")


def test_no_file_is_made_where_there_is_none(root: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write(root, "freezer/a/b", "cgroup.kill")
    assert not (root / "freezer/a/b/cgroup.kill").exists()


def test_a_cgroup_that_went_away_after_it_was_opened_is_told() -> None:
    with grove() as ours:
        path = ours.make("web")
        mount = str(v2().mount).removeprefix("/sys/fs/cgroup").removeprefix("/")
        with cgroup_switch.opened("/sys", f"{mount}{path}", "cgroup.freeze") as switch:
            v2().at(path).rmdir()
            v2().at(path).mkdir()  # one of the same name is not the same
            with pytest.raises(ActError, match=r"cgroup.freeze of cgroup .*/web was not written: the cgroup is gone"):
                switch.turn("1")
            assert "frozen 0" in (v2().at(path) / "cgroup.events").read_text()


def test_each_obstacle_says_what_would_help() -> None:
    assert "mount /sys/fs/cgroup writable" in cgroup_switch.why_not(OSError(30, "Read-only file system"))
    assert "Permission denied" in cgroup_switch.why_not(OSError(13, "Permission denied"))
    assert cgroup_switch.why_not(OSError(19, "No such device")) == "the cgroup is gone"
    assert cgroup_switch.why_not(OSError(5, "Input/output error")) == "Input/output error"
