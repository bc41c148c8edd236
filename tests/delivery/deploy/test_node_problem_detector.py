"""The custom plugin's configuration is one node-problem-detector takes.

Its fields and rules are those of its docs/custom_plugin_monitor.md and of `Validate` in its
pkg/custompluginmonitor/types/config.go, which it does not start without. That its commands do what it expects is
tried in tests/e2e.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from agent.app import DETECTOR_CLASSES, DETECTOR_NAMES
from agent.cli.check import SETTLE_SECONDS
from agent.cli.parser import parse
from agent.settings import Settings

PLUGIN = Path(__file__).parents[3] / "deploy/node-problem-detector/nodediag-plugin.json"
PLUGIN_CONFIG = {
    "invoke_interval": str,
    "timeout": str,
    "max_output_length": int,
    "concurrency": int,
    "enable_message_change_based_condition_update": bool,
    "skip_initial_status": bool,
}
FIELDS = {"plugin", "pluginConfig", "source", "metricsReporting", "conditions", "rules"}
PERMANENT_RULE = {"type", "condition", "reason", "path", "args", "timeout"}
OWNED_BY_IT = re.compile(r"\w+Unhealthy|KernelDeadlock|\w+Shutdown|Frequent\w+Restart|ReadonlyFilesystem|NTPProblem")
BUFFER_BYTES = 4096
"""What it reads of a plugin's output at most."""
START_SECONDS = 5.0
"""Python's start and end on a node that is short of CPU."""


@pytest.fixture(scope="module")
def plugin() -> dict[str, Any]:
    return dict(json.loads(PLUGIN.read_text()))


def seconds(text: str) -> float:
    """Read a duration of Go, as far as this file uses them."""
    found = re.fullmatch(r"(\d+)(s|m)", text)
    assert found, f"{text} is no duration"
    return float(found[1]) * {"s": 1, "m": 60}[found[2]]


def test_it_has_the_documented_fields_and_no_other(plugin: dict[str, Any]) -> None:
    assert set(plugin) == FIELDS
    assert plugin["plugin"] == "custom"
    assert {name: type(value) for name, value in plugin["pluginConfig"].items()} == PLUGIN_CONFIG
    assert {tuple(sorted(each)) for each in plugin["conditions"]} == {("message", "reason", "type")}
    assert {frozenset(each) for each in plugin["rules"]} == {frozenset(PERMANENT_RULE)}


def test_it_would_not_be_refused(plugin: dict[str, Any]) -> None:
    limit = seconds(plugin["pluginConfig"]["timeout"])
    types = [each["type"] for each in plugin["conditions"]]
    for rule in plugin["rules"]:
        assert seconds(rule["timeout"]) <= limit
        assert rule["type"] == "permanent"
        assert rule["condition"] in types
        assert rule["path"].startswith("/")
    assert sorted(rule["condition"] for rule in plugin["rules"]) == sorted(types)


def test_every_command_can_be_typed_and_every_detector_that_needs_no_setting_is_asked(plugin: dict[str, Any]) -> None:
    asked = []
    for rule in plugin["rules"]:
        _, arguments = parse(rule["args"])
        assert (arguments.command, arguments.format, arguments.config) == ("check", "line", None)
        asked += arguments.detector
    kubelets_api = {"kubelet_pleg"} if not Settings().kubelet.api_url else set()
    assert sorted(asked) == sorted(set(DETECTOR_NAMES) - kubelets_api)


def test_a_check_that_looks_as_long_as_it_may_is_not_cut_off(plugin: dict[str, Any]) -> None:
    for rule in plugin["rules"]:
        assert seconds(rule["timeout"]) >= SETTLE_SECONDS + START_SECONDS


def test_all_checks_come_round_within_their_interval(plugin: dict[str, Any]) -> None:
    """On a healthy node, where the longest took 15 s with every CPU taken; a batch that overruns is caught up once."""
    batch = -(-len(plugin["rules"]) // plugin["pluginConfig"]["concurrency"]) * 15.0
    assert batch <= seconds(plugin["pluginConfig"]["invoke_interval"])


def test_its_conditions_are_called_as_neither_of_us_calls_its_own(plugin: dict[str, Any]) -> None:
    """Two that write one condition take it from each other for ever."""
    ours = {kind for detector in DETECTOR_CLASSES for kind in detector.conditions}
    for condition in plugin["conditions"]:
        assert condition["type"] not in ours
        assert not OWNED_BY_IT.fullmatch(condition["type"])
        assert condition["type"].endswith("Problem")


def test_a_message_that_only_counts_on_changes_nothing(plugin: dict[str, Any]) -> None:
    """Our messages hold how long it has been so far: each would be an Event and a write to the API server."""
    assert plugin["pluginConfig"]["enable_message_change_based_condition_update"] is False


def test_more_is_kept_of_a_message_than_the_80_bytes_of_old(plugin: dict[str, Any]) -> None:
    assert 80 < plugin["pluginConfig"]["max_output_length"] <= BUFFER_BYTES
