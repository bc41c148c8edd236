"""The API used by somebody who knows nothing but its endpoint, as grpcurl does: everything comes by reflection."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent.model import Action
from tests.e2e.agent_process import AgentProcess
from tests.unit.cli.processes import OTHERS, closed_port

ROOT = Path(__file__).parents[2]
SECONDS = 20
BUF_SECONDS = 60
"""buf may have to be fetched first."""
PROTOS = sorted((ROOT / "proto" / "nodediag" / "v1").glob("*_service.proto"))
DIAGNOSTICS = "nodediag.v1.DiagnosticsService"
REMEDIATION = "nodediag.v1.RemediationService"
KUBELET = "KubeletHealthzFailing"


@dataclass(frozen=True)
class Stranger:
    """Runs examples/reflect.py against one endpoint."""

    endpoint: str

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, str(ROOT / "examples" / "reflect.py"), "--endpoint", self.endpoint, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)

    def told(self, *words: str) -> str:
        done = self.run(*words)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stranger]:
    """Somebody who asks an agent whose kubelet refuses every connection."""
    with closed_port() as port:
        folder = tmp_path_factory.mktemp("agent")
        settings: dict[str, Any] = {
            "host": {"state_dir": str(folder / "state")},
            "kubelet": {"healthz_url": f"http://127.0.0.1:{port}/healthz"},
            "detectors": {name: {"enabled": False} for name in OTHERS} | {"kubelet_healthz": {"failure_threshold": 1}},
        }
        with AgentProcess(folder, settings) as agent:
            yield Stranger(agent.endpoint)


def methods_in_protos() -> dict[str, set[str]]:
    """The rpc lines of our protos, by service."""
    found: dict[str, set[str]] = {}
    for proto in PROTOS:
        service = ""
        for line in proto.read_text().splitlines():
            if words := re.match(r"service (\w+)", line):
                service = f"nodediag.v1.{words[1]}"
            elif words := re.match(r"  rpc (\w+)\((\w+)\) returns \((stream )?(\w+)\);", line):
                rpc = f"rpc {words[1]}(nodediag.v1.{words[2]}) returns ({words[3] or ''}nodediag.v1.{words[4]})"
                found.setdefault(service, set()).add(rpc)
    return found


def methods_described(text: str) -> dict[str, set[str]]:
    """The rpc lines the example prints, by service."""
    found: dict[str, set[str]] = {}
    service = ""
    for line in text.splitlines():
        if not line.startswith(" "):
            service = line
            found[service] = set()
        elif line.startswith("  rpc "):
            found[service].add(line.strip())
    return found


@pytest.mark.parametrize("service", [DIAGNOSTICS, REMEDIATION])
def test_every_method_of_the_protos_is_described(stranger: Stranger, service: str) -> None:
    expected = methods_in_protos()[service]
    assert len(expected) == 4
    assert methods_described(stranger.told()).get(service) == expected


def test_health_and_reflection_are_listed_too(stranger: Stranger) -> None:
    assert {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} <= set(
        methods_described(stranger.told())
    )


def test_requests_are_described_field_by_field(stranger: Stranger) -> None:
    assert "    repeated string types\n" in stranger.told()


def test_the_report_is_asked_for_and_read(stranger: Stranger) -> None:
    report = json.loads(stranger.told(f"{DIAGNOSTICS}/GetNodeReport"))["report"]
    assert report["nodeName"] == "lab"
    assert [(each["type"], each["status"], each["reason"]) for each in report["conditions"]] == [
        (KUBELET, "CONDITION_STATUS_TRUE", "HealthzRefused")
    ]
    assert report["conditions"][0]["findings"][0]["target"]["kind"] == "TARGET_KIND_KUBELET"


def test_a_request_with_fields_is_made_from_json_and_refused_with_details(stranger: Stranger) -> None:
    done = stranger.run(f"{DIAGNOSTICS}/WatchConditions", json.dumps({"types": ["KubeletSad"]}))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("INVALID_ARGUMENT: types[0]: KubeletSad is no condition of this agent")
    details = json.loads(done.stderr.split("\n", 1)[1])["details"]
    assert [each["field"] for each in details[1]["fieldViolations"]] == ["types[0]"]


def test_a_stream_tells_its_snapshot_and_ends_in_time(stranger: Stranger) -> None:
    done = stranger.run("--seconds", "1", f"{DIAGNOSTICS}/WatchConditions")
    first = json.loads(done.stdout.splitlines()[0])
    assert [each["type"] for each in first["snapshot"]["conditions"]] == [KUBELET]
    assert (done.returncode, done.stderr) == (1, "hung up after 1 s\n")


def test_the_actions_are_asked_for_and_read(stranger: Stranger) -> None:
    told = json.loads(stranger.told(f"{REMEDIATION}/ListActions"))
    assert {each["action"] for each in told["actions"]} <= {each.value for each in Action} - {Action.NONE}
    assert "KillShim" in {each["action"] for each in told["actions"]}
    assert not told.get("enabled", False)  # as nobody has switched it on


def test_a_tool_made_by_others_asks_by_reflection(stranger: Stranger) -> None:
    socket = stranger.endpoint.removeprefix("unix:")
    curl = [
        str(ROOT / "tools" / "buf"),
        "curl",
        "--protocol",
        "grpc",
        "--http2-prior-knowledge",
        "--unix-socket",
        socket,
    ]
    words = ["--data", "{}", f"http://localhost/{DIAGNOSTICS}/GetNodeReport"]
    done = subprocess.run([*curl, *words], capture_output=True, text=True, timeout=BUF_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["report"]["nodeName"] == "lab"


def test_what_there_is_not_is_told_plainly(stranger: Stranger) -> None:
    for method in (f"{DIAGNOSTICS}/MakeCoffee", "nodediag.v1.CoffeeService/Make"):
        done = stranger.run(method)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("no such method, or no such request: ")
