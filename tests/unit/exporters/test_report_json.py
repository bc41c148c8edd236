"""docs/report.schema.json is true of what is printed."""

import copy
import importlib
import json
from dataclasses import fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from agent.exporters.report_json import dumps, to_json
from agent.model import Action, DetectorState, NodeReport, Status, TargetKind
from agent.settings import DetectorsSettings

SCHEMA: dict[str, Any] = json.loads((Path(__file__).parents[3] / "docs" / "report.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA, format_checker=jsonschema.FormatChecker())


def test_the_schema_is_a_schema_and_describes_every_field() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    tables = [SCHEMA, *(part for part in SCHEMA["$defs"].values() if part.get("type") == "object")]
    for table in tables:
        assert table["additionalProperties"] is False
        for name, field in table["properties"].items():
            assert field["description"], name


@pytest.mark.parametrize(
    ("where", "field", "words"),
    [
        ("condition", "status", Status),
        ("finding", "recommendedAction", Action),
        ("target", "kind", TargetKind),
        ("detector", "state", DetectorState),
    ],
)
def test_enumerations_are_those_of_the_model(where: str, field: str, words: type[StrEnum]) -> None:
    assert SCHEMA["$defs"][where]["properties"][field]["enum"] == [word.value for word in words] or set(
        SCHEMA["$defs"][where]["properties"][field]["enum"]
    ) == {word.value for word in words}


@pytest.mark.parametrize("name", ["report", "healthy_report", "misdeployed_report"])
def test_reports_follow_the_schema(name: str, request: pytest.FixtureRequest) -> None:
    report: NodeReport = request.getfixturevalue(name)
    VALIDATOR.validate(json.loads(dumps(report)))


def test_the_whole_of_a_finding(report: NodeReport) -> None:
    told = to_json(report)
    assert (told["nodeName"], told["observedAt"]) == ("worker-3", "2026-08-01T03:12:45.250Z")
    (finding,) = told["conditions"][0]["findings"]
    advice = finding.pop("advice")
    assert finding == {
        "reason": "ShimUnresponsive",
        "message": "the shim of shop/cart-7d9f4c (pid 4242) does not answer: Connect timed out after 2 s",
        "recommendedAction": "KillShim",
        "since": "2026-08-01T03:09:40.250Z",
        "target": {
            "kind": "shim",
            "pid": 4242,
            "startTime": 987654,
            "bootId": "6f1f2b1e-0000-4000-8000-000000000000",
            "containerId": "9c0e6f0d1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5",
            "containerdNamespace": "k8s.io",
        },
        "pod": {
            "namespace": "shop",
            "name": "cart-7d9f4c",
            "uid": "0a1b2c3d-0000-4000-8000-000000000000",
            "container": "web",
        },
        "values": {
            "connectTimeoutSeconds": 2.0,
            "processState": "D (disk sleep)",
            "wchan": "futex_do_wait",
            "freezerState": "FROZEN",
            "containers": ["web", "istio-proxy"],
        },
    }
    assert set(advice[0]) == {"when", "do", "commands"}
    assert advice[0]["commands"] == ["nodediag remediate KillShim --target 4242"]
    assert advice[1]["when"] == "Only if remediation is disabled on this node"
    assert told["detectors"][3] == {
        "name": "kubelet_healthz",
        "state": "not_applicable",
        "message": "no trace of a kubelet on this node",
        "durationSeconds": 0.0,
    }


def test_what_the_kubelets_api_told_of_a_pod_is_there_where_it_was_learnt(report: NodeReport) -> None:
    active = report.conditions[0].findings[0]
    assert active.finding.pod
    pod = replace(
        active.finding.pod,
        owner="ReplicaSet/cart-7d9f4c",
        qos_class="Burstable",
        node_critical=False,
        labels=(("app", "cart"), ("team", "pay")),
    )
    finding = replace(active.finding, pod=pod)
    condition = replace(report.conditions[0], findings=(replace(active, finding=finding),))
    told = to_json(replace(report, conditions=(condition,)))
    VALIDATOR.validate(told)
    assert told["conditions"][0]["findings"][0]["pod"] == {
        "namespace": "shop",
        "name": "cart-7d9f4c",
        "uid": "0a1b2c3d-0000-4000-8000-000000000000",
        "container": "web",
        "owner": "ReplicaSet/cart-7d9f4c",
        "qosClass": "Burstable",
        "nodeCritical": False,
        "labels": {"app": "cart", "team": "pay"},
    }


def test_a_zero_start_time_is_still_told(report: NodeReport) -> None:
    active = report.conditions[0].findings[0]
    target = replace(active.finding.target, start_time=0)
    finding = replace(active.finding, target=target, pod=None)
    condition = replace(report.conditions[0], findings=(replace(active, finding=finding),))
    told = to_json(replace(report, conditions=(condition,)))["conditions"][0]["findings"][0]
    assert told["target"]["startTime"] == 0
    assert told["pod"] is None


def test_hostile_text_is_ascii_json_that_others_can_read(hostile_report: NodeReport) -> None:
    text = dumps(hostile_report)
    assert text.isascii()
    assert "\x1b" not in text
    told = json.loads(text)
    json.dumps(told, ensure_ascii=False).encode()  # no lone surrogates, which jq and protobuf refuse
    values = told["conditions"][0]["findings"][0]["values"]
    assert values["endSeconds"] is None
    assert values["oddRatio"] is None


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("conditions", 0, "type"), "KubeletUnhealthy"),
        (("conditions", 0, "status"), True),
        (("conditions", 0, "lastTransitionTime"), 12345),
        (("conditions", 1, "findings"), [{}]),
        (("conditions", 0, "findings", 0, "target", "kind"), "toaster"),
        (("conditions", 0, "findings", 0, "target", "pid"), 0),
        (("conditions", 0, "findings", 0, "extra"), 1),
        (("detectors", 0, "name"), "other"),
        (("detectors", 0, "durationSeconds"), "1 s"),
    ],
)
def test_the_schema_refuses(report: NodeReport, path: tuple[str | int, ...], wrong: object) -> None:
    told: Any = copy.deepcopy(to_json(report))
    place = told
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = wrong
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(told)


def test_detectors_and_conditions_are_those_there_are() -> None:
    names = [field.name for field in fields(DetectorsSettings)]
    assert set(SCHEMA["$defs"]["detector"]["properties"]["name"]["enum"]) == set(names)
    types = set(SCHEMA["$defs"]["condition"]["properties"]["type"]["enum"])
    for name in names:
        module = importlib.import_module(f"agent.detectors.{name}")
        (detector,) = (thing for thing in vars(module).values() if getattr(thing, "name", None) == name)
        assert set(detector.conditions) <= types
