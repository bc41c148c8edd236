"""What is connected with what."""

import socket
import threading
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent import app
from agent.clock import StallMeter
from agent.host.namespaces import INITIAL_PID_NAMESPACE
from agent.model import Condition, DetectorState, Status
from agent.pipeline.board import Entry
from agent.settings import DetectorsSettings, Loaded, load

Build = Callable[..., app.Agent]
NO_DNS = {"dns": {"servers": ["127.0.0.1:9"]}}


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[[dict[str, Any]], Loaded]:
    def loaded(settings: dict[str, Any]) -> Loaded:
        file = tmp_path / "nodediag.yaml"
        file.write_text(yaml.safe_dump({**NO_DNS, **settings}))
        return load(file)

    return loaded


@pytest.fixture
def build(loaded: Callable[[dict[str, Any]], Loaded]) -> Build:
    def build(settings: dict[str, Any], *names: str) -> app.Agent:
        return app.build(loaded(settings), StallMeter(), names or app.DETECTOR_NAMES)

    return build


@pytest.fixture
def quiet_node(tmp_path: Path) -> dict[str, Any]:
    """Settings of a node without a process, on which we are in the node's own network."""
    for process in ("1", "self"):
        folder = tmp_path / "proc" / process / "ns"
        folder.mkdir(parents=True)
        (folder / "net").symlink_to("net:[1]")
        (folder / "pid").symlink_to(INITIAL_PID_NAMESPACE)
    return {"host": {"proc": str(tmp_path / "proc")}}


def looked(agent: app.Agent) -> Entry:
    """What the only detector says after one look."""
    (runner,) = agent.runners
    runner.look()
    (entry,) = agent.board.entries()
    return entry


def only(entry: Entry) -> Condition:
    (condition,) = entry.conditions
    return condition


def test_class_settings_table_and_name_are_one_for_every_detector() -> None:
    tables = tuple(item.name for item in fields(DetectorsSettings))
    assert tuple(kind.name for kind in app.DETECTOR_CLASSES) == tables == app.DETECTOR_NAMES


def test_no_two_detectors_declare_the_same_condition_or_metric() -> None:
    for declared in (
        [name for kind in app.DETECTOR_CLASSES for name in kind.conditions],
        [metric.name for kind in app.DETECTOR_CLASSES for metric in kind.metrics],
    ):
        assert sorted(declared) == sorted(set(declared))


def test_by_default_every_detector_is_connected_and_none_is_started(build: Build) -> None:
    before = threading.active_count()
    agent = build({"node_name": "worker-3"})
    assert [type(detector) for detector in agent.detectors] == list(app.DETECTOR_CLASSES)
    assert [runner.name for runner in agent.runners] == list(app.DETECTOR_NAMES)
    assert agent.board.report().node_name == "worker-3"
    assert {status.state for status in agent.board.report().detectors} == {DetectorState.STARTING}
    assert threading.active_count() == before


def test_a_detector_that_is_switched_off_is_not_connected(
    build: Build, loaded: Callable[[dict[str, Any]], Loaded]
) -> None:
    off = {"detectors": {"conntrack_dns": {"enabled": False}}}
    assert "conntrack_dns" not in app.enabled(loaded(off).settings)
    assert [runner.name for runner in build(off).runners] == list(app.enabled(loaded(off).settings))
    assert build(off, "conntrack_dns").runners == ()


def test_only_the_named_detectors_are_connected(build: Build) -> None:
    assert [runner.name for runner in build({}, "kubelet_healthz").runners] == ["kubelet_healthz"]


def test_the_roots_of_the_settings_are_where_the_senses_look(build: Build, tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    agent = build({"host": {"proc": str(tmp_path / "proc")}}, "defunct_processes")
    assert str(tmp_path / "proc") in only(looked(agent)).message


def test_a_state_folder_that_was_set_is_expected_to_be_there(build: Build, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    entry = looked(build({"containerd": {"state_dir": missing}}, "containerd_shim"))
    assert entry.status.state is DetectorState.FAILED
    assert missing in entry.status.message


def test_a_socket_that_was_set_is_expected_to_answer(build: Build, quiet_node: dict[str, Any], tmp_path: Path) -> None:
    settings = {**quiet_node, "containerd": {"address": str(tmp_path / "missing.sock")}}
    entry = looked(build(settings, "container_runtime"))
    assert entry.status.state is DetectorState.OK
    assert "missing.sock" in only(entry).message


def test_a_kubelet_that_was_set_is_expected_to_answer(build: Build, quiet_node: dict[str, Any]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/healthz"
        detectors = {"kubelet_healthz": {"failure_threshold": 1}}
        settings = {**quiet_node, "kubelet": {"healthz_url": url}, "detectors": detectors}
        condition = only(looked(build(settings, "kubelet_healthz")))
    assert (condition.status, condition.reason) == (Status.TRUE, "HealthzRefused")


def test_the_dns_servers_of_the_settings_are_asked_for_the_name_of_the_settings(build: Build) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(5)
        settings = {
            "dns": {"servers": [f"127.0.0.1:{server.getsockname()[1]}"], "name": "who.example"},
            "detectors": {"conntrack_dns": {"attempt_seconds": 0.1}},
        }
        looked(build(settings, "conntrack_dns"))
        assert b"\x03who\x07example\x00" in server.recv(512)
