"""What `nodediag config` prints can be used as a settings file."""

from pathlib import Path

import pytest
import yaml

from agent.cli.config import WIDTH, as_yaml
from agent.cli.parser import parse
from agent.settings import Loaded, Settings, describe, load

CHANGED = """
node_name: "wörker-😀"
http: {listen: "[::1]:9797"}
containerd: {namespaces: ["yes", "1"]}
dns: {servers: ["10.0.0.1:53", "::1"], name: "on"}
kubelet: {healthz_url: "http://127.0.0.1:10248/healthz"}
detectors:
  kubelet_healthz: {restart_grace_seconds: 1e-5, enabled: no}
  defunct_processes: {max_total: 4194304}
remediation: {actions: {RestartContainerd: {cooldown_seconds: 0}}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "nodediag.yaml"
    file.write_text(CHANGED)
    return file


def config(*words: object) -> int:
    function, arguments = parse(["config", *map(str, words)])
    return function(arguments)


def reloaded(text: str, folder: Path) -> Loaded:
    again = folder / "again.yaml"
    again.write_text(text)
    return load(again)


def test_what_is_printed_loads_back_to_the_same_settings(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert config("--config", file) == 0
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert reloaded(printed, file.parent).settings == load(file).settings


def test_without_a_file_the_defaults_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert config() == 0
    assert reloaded(capsys.readouterr().out, tmp_path).settings == Settings()


def test_every_setting_is_printed_with_its_meaning_above_it() -> None:
    lines = as_yaml(Settings()).splitlines()
    assert max(map(len, lines)) <= WIDTH
    rest = " ".join(line.strip(" #") for line in lines)
    for path, _, rule in describe(Settings()):
        above, _, rest = rest.partition(f" {path.rpartition('.')[2]}:")
        assert rule.meaning in above, path


def test_bounds_are_part_of_the_meaning() -> None:
    assert "(at least 1, at most 3600)" in as_yaml(Settings())


def test_what_is_expected_once_it_is_set_is_not_set_by_being_printed(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config("--config", file)
    again = reloaded(capsys.readouterr().out, file.parent)
    assert again.is_set("kubelet.healthz_url")
    assert not again.is_set("containerd.address")
    assert not again.is_set("containerd.state_dir")
    assert "# address: /run/containerd/containerd.sock" in as_yaml(Settings())


def test_every_other_default_stands_there_as_a_value() -> None:
    printed = yaml.safe_load(as_yaml(Settings()))
    assert printed["http"]["listen"] == "127.0.0.1:9797"
    shim = Settings().detectors.containerd_shim
    assert printed["detectors"]["containerd_shim"]["period_seconds"] == shim.period_seconds
    assert printed["remediation"]["actions"]["RestartContainerd"]["cooldown_seconds"] == 120.0


def test_a_good_file_is_called_good(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert config("--check", file) == 0
    assert capsys.readouterr().out == f"{file}: good\n"


@pytest.mark.parametrize("option", ["--check", "--config"])
def test_a_bad_file_is_refused_with_every_mistake_on_standard_error(
    file: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    file.write_text("htp: {}\ndns: 5\n")
    assert config(option, file) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == [
        f"nodediag: settings refused: {file}: 2 mistakes",
        "  line 1: htp: unknown key; did you mean http?",
        "  line 2: dns: must be a table of settings (key: value), not 5",
    ]
