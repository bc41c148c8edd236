"""A folder of settings files: they add up, and no file can undo another in silence."""

from pathlib import Path

import pytest

from agent.settings import SettingsError, load


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def refused(folder: Path) -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        load(folder)
    return caught.value


def test_the_files_of_a_folder_add_up(folder: Path) -> None:
    (folder / "nodediag.yaml").write_text("node_name: worker-3\nremediation: {dry_run: true}\n")
    (folder / "remediation.yaml").write_text("remediation: {enabled: true, max_per_hour: 3}\n")

    loaded = load(folder)

    assert loaded.settings.node_name == "worker-3"
    assert (loaded.settings.remediation.enabled, loaded.settings.remediation.max_per_hour) == (True, 3)
    assert loaded.explicit == {
        "node_name",
        "remediation.dry_run",
        "remediation.enabled",
        "remediation.max_per_hour",
    }


def test_a_setting_in_two_files_is_refused_since_one_would_win_in_silence(folder: Path) -> None:
    (folder / "a.yaml").write_text("remediation:\n  dry_run: true\n")
    (folder / "b.yaml").write_text("\n\nremediation: {dry_run: false}\n")

    assert refused(folder).problems == ["b.yaml line 3: remediation.dry_run: is set twice, first in a.yaml line 2"]


def test_mistakes_of_all_files_are_told_at_once_with_the_file(folder: Path) -> None:
    (folder / "a.yaml").write_text("http: {listn: x}\n")
    (folder / "b.yaml").write_text("nodename: x\n")

    error = refused(folder)

    assert str(error).startswith(f"{folder}: 2 mistakes")
    assert [problem.partition(":")[0] for problem in error.problems] == ["a.yaml line 1", "b.yaml line 1"]


def test_what_does_not_go_together_across_files_names_the_file(folder: Path) -> None:
    (folder / "a.yaml").write_text('grpc: {listen: ""}\n')
    (folder / "b.yaml").write_text("remediation: {enabled: true}\n")

    (problem,) = refused(folder).problems

    assert problem.startswith("b.yaml line 1: remediation.enabled: must be false while grpc.listen is empty")


def test_a_mounted_configmap_is_read_once(folder: Path) -> None:
    """The kubelet mounts a folder `..2026_...` and links to what is in it."""
    (folder / "..2026_11_25").mkdir()
    (folder / "..2026_11_25" / "nodediag.yaml").write_text("node_name: worker-3\n")
    (folder / "..data").symlink_to("..2026_11_25")
    (folder / "nodediag.yaml").symlink_to("..data/nodediag.yaml")
    (folder / ".swap.yaml").write_text("nonsense: 1\n")
    (folder / "notes.txt").write_text("nonsense: 1\n")

    assert load(folder).settings.node_name == "worker-3"


def test_a_file_that_is_no_yaml_is_told_by_its_name(folder: Path) -> None:
    (folder / "good.yaml").write_text("node_name: worker-3\n")
    (folder / "torn.yaml").write_text("node_name: [\n")

    assert str(refused(folder)).startswith(f"{folder}/torn.yaml: 1 mistake")


def test_a_folder_of_very_many_files_is_refused(folder: Path) -> None:
    for number in range(65):
        (folder / f"{number}.yaml").touch()

    assert refused(folder).problems == [
        "has more than 64 files named *.yaml; name a settings file, or a folder of them"
    ]
