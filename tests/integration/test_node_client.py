"""The API used from JavaScript: a client that buf makes of the protos, over TCP with certificates on both sides."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.e2e.agent_process import AgentProcess, free_port
from tests.lab.certificates import Authority, Issued
from tests.unit.cli.processes import OTHERS, closed_port

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "tests" / "clients" / "node"
SECONDS = 20
INSTALL_SECONDS = 90
"""The registry may be slow; usually it takes two."""
CONTROLLER = "controller.nodediag.test"
NOBODY = {"kind": "TARGET_KIND_SHIM", "pid": 2**22 + 1, "startTime": "1"}
"""A target with a pid no process can have."""
REQUEST_ID = str(uuid4())


def run(*command: object, folder: Path, seconds: float) -> None:
    done = subprocess.run(
        [*map(str, command)], cwd=folder, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the client: its packages installed, its code generated from the protos as they are."""
    folder = tmp_path_factory.mktemp("client") / "node"
    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("node_modules", "gen"))
    run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", folder=folder, seconds=INSTALL_SECONDS)
    google = folder / "google-protos" / "google" / "rpc"
    google.mkdir(parents=True)
    google.joinpath("error_details.proto").write_bytes(
        resources.files("google.rpc").joinpath("error_details.proto").read_bytes()
    )
    for protos in (ROOT / "proto", "google-protos"):
        buf = (ROOT / "tools" / "buf", "generate", protos, "--template", "buf.gen.yaml", "--output", "gen")
        run(*buf, folder=folder, seconds=SECONDS)
    return folder


@dataclass(frozen=True)
class Node:
    """An agent that lets CONTROLLER in and allows it KillShim, and somebody at the other end of the wire."""

    client: Path
    endpoint: str
    authority: Authority

    def ask(
        self, shows: Issued | None, request: dict[str, Any] | None = None, trusts: Authority | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Run the client with a certificate, if any; return its exit code and what it printed."""
        files = self.client / str(uuid4())
        files.mkdir()
        (files / "ca.pem").write_bytes((trusts or self.authority).pem)
        words: list[object] = ["--endpoint", self.endpoint, "--ca", files / "ca.pem"]
        if shows is not None:
            cert, key = shows.write(files, "caller")
            words += ["--cert", cert, "--key", key]
        if request is not None:
            words += ["--request", json.dumps(request)]
        done = subprocess.run(
            ["node", "--no-deprecation", "client.mjs", *map(str, words)],  # Node 18 warns of every address as a name
            cwd=self.client,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.stderr == ""
        return done.returncode, json.loads(done.stdout)


@pytest.fixture(scope="module")
def node(client: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("agent")
    authority = Authority("nodediag's callers and agents")
    cert, key = authority.issue("127.0.0.1").write(folder, "agent")
    (folder / "ca.pem").write_bytes(authority.pem)
    endpoint = f"127.0.0.1:{free_port()}"
    with closed_port() as port:
        settings: dict[str, Any] = {
            "grpc": {
                "listen": endpoint,
                "tls": {"cert_file": str(cert), "key_file": str(key), "client_ca_file": str(folder / "ca.pem")},
                "callers": [{"identity": CONTROLLER, "actions": ["KillShim"]}],
            },
            "host": {"state_dir": str(folder / "state")},
            "kubelet": {"healthz_url": f"http://127.0.0.1:{port}/healthz"},
            "detectors": {name: {"enabled": False} for name in OTHERS} | {"kubelet_healthz": {"failure_threshold": 1}},
        }
        with AgentProcess(folder, settings):
            yield Node(client, endpoint, authority)


@pytest.fixture(scope="module")
def told(node: Node) -> dict[str, Any]:
    """What the agent tells the controller that asks it to kill a shim there is not."""
    request = {"requestId": REQUEST_ID, "action": "KillShim", "target": NOBODY, "fencingToken": "1"}
    code, told = node.ask(node.authority.issue(CONTROLLER), request)
    assert code == 0, told
    return told


def test_the_report_comes_over_mutual_tls(told: dict[str, Any]) -> None:
    assert told["report"]["nodeName"] == "lab"
    assert [(each["type"], each["status"]) for each in told["report"]["conditions"]] == [
        ("KubeletHealthzFailing", "CONDITION_STATUS_TRUE")
    ]


def test_a_watch_begins_with_a_snapshot(told: dict[str, Any]) -> None:
    conditions = told["watch"]["snapshot"]["conditions"]
    assert [each["type"] for each in conditions] == ["KubeletHealthzFailing"]
    assert conditions[0]["findings"][0]["target"]["kind"] == "TARGET_KIND_KUBELET"


def test_the_actions_tell_what_this_caller_may_ask_for(told: dict[str, Any]) -> None:
    actions = told["actions"]["answer"]["actions"]
    assert {each["action"] for each in actions if each.get("allowed")} == {"KillShim"}
    assert "RestartKubelet" in {each["action"] for each in actions}


def test_a_refusal_is_read_from_the_details_of_the_error(told: dict[str, Any]) -> None:
    error = told["remediate"]["error"]
    assert (error["code"], [each["reason"] for each in error["errorInfo"]]) == (
        "FailedPrecondition",
        ["REMEDIATION_DISABLED"],
    )
    assert error["errorInfo"][0]["domain"] == "nodediag.v1"
    assert error["errorInfo"][0]["metadata"] == {"request_id": REQUEST_ID, "action": "KillShim"}


def test_wrong_fields_are_read_from_the_details_of_the_error(node: Node) -> None:
    code, told = node.ask(node.authority.issue(CONTROLLER), {"requestId": "no uuid", "action": "KillShim"})
    error = told["remediate"]["error"]
    assert (code, error["code"]) == (0, "InvalidArgument")
    assert "request_id" in {each["field"] for one in error["badRequest"] for each in one["fieldViolations"]}


def test_a_caller_nobody_has_named_is_refused(node: Node) -> None:
    code, told = node.ask(node.authority.issue("stranger.nodediag.test"))
    assert (code, told["error"]["code"]) == (1, "PermissionDenied")
    assert [each["reason"] for each in told["error"]["errorInfo"]] == ["CALLER_UNKNOWN"]


def test_without_a_certificate_no_conversation_comes_about(node: Node) -> None:
    assert no_conversation(*node.ask(None))


def test_with_a_certificate_of_another_authority_no_conversation_comes_about(node: Node) -> None:
    assert no_conversation(*node.ask(Authority("elsewhere").issue(CONTROLLER)))


def no_conversation(code: int, told: dict[str, Any]) -> bool:
    """Whether the connection was refused. TLS 1.3 lets a client speak before it is; what Node makes of that varies."""
    return code == 1 and set(told) == {"error"} and told["error"]["code"] in {"Canceled", "Internal", "Unavailable"}


def test_an_agent_of_another_authority_is_not_believed(node: Node) -> None:
    code, told = node.ask(node.authority.issue(CONTROLLER), trusts=Authority("elsewhere"))
    assert (code, set(told)) == (1, {"error"})
    assert "certificate" in told["error"]["message"]


def test_the_lock_file_pins_every_package_by_content_and_names_no_registry() -> None:
    packages = json.loads((SOURCE / "package-lock.json").read_text())["packages"]
    wanted = {name: package for name, package in packages.items() if name}
    assert all(package["integrity"].startswith("sha512-") for package in wanted.values())
    assert not any("resolved" in package for package in wanted.values())
