"""An agent that serves controllers over TCP is still asked on its own node, without a certificate, by root."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.acts import RefusalReason
from tests.e2e.agent_process import AgentProcess, free_port
from tests.lab.certificates import Authority, Projected

MENDER = "mender.ops.svc"
IN_ITS_OWN_RUN = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /run && exec "$@"', "sh"]
"""As in the manifest, where /run/nodediag is the pod's own: other agents on this machine have sockets, too."""


@contextmanager
def over_tcp(folder: Path, into: list[str]) -> Iterator[AgentProcess]:
    """An agent of which only TCP is asked in its settings, started with these words before its own."""
    authority, files = Authority("agents and callers"), Projected(folder / "server")
    files.swap(authority.issue("127.0.0.1"), authority.pem)
    tls = {"cert_file": str(files.cert), "key_file": str(files.key), "client_ca_file": str(files.ca)}
    grpc = {"listen": f"127.0.0.1:{free_port()}", "tls": tls, "callers": [{"identity": MENDER}]}
    detectors = ("containerd_shim", "conntrack_dns", "kubelet_healthz", "container_runtime")
    settings = {
        "grpc": grpc,
        "detectors": {name: {"enabled": False} for name in detectors},
        "host": {"state_dir": str(folder / "state")},
        "remediation": {"enabled": True},
    }

    def start(words: list[str], **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*into, *words], **options)

    with AgentProcess(folder, settings, start=start) as agent:
        yield agent


def ask(agent: AgentProcess, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a subcommand where `kubectl exec` would: in the mount namespace of the agent, with no option."""
    command = ["nsenter", "--mount", "--target", str(agent.process.pid), sys.executable, "-m", "agent", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_report_is_told_without_a_certificate(tmp_path: Path) -> None:
    with over_tcp(tmp_path, IN_ITS_OWN_RUN) as agent:
        done = ask(agent, "report", "--format", "json")
        assert done.stderr == ""
        assert json.loads(done.stdout)["nodeName"] == "lab"
        took = agent.stop()
    assert took < 20


def test_who_asks_there_may_ask_for_every_action_and_the_gate_is_asked_all_the_same(tmp_path: Path) -> None:
    with over_tcp(tmp_path, IN_ITS_OWN_RUN) as agent:
        done = ask(agent, "remediate", "KillShim", "--target", "1", "--yes")
        actions = ask(agent, "actions", "--format", "json")
    assert "nothing was found about 1" in done.stderr
    assert RefusalReason.CALLER_NOT_ALLOWED.value not in done.stderr
    assert len(json.loads(actions.stdout)["actions"]) > 1


def test_where_that_socket_cannot_be_made_the_node_is_watched_and_controllers_are_served(tmp_path: Path) -> None:
    nothing_writable = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o ro none /run && exec "$@"', "sh"]
    with over_tcp(tmp_path, nothing_writable) as agent:
        log = [json.loads(line) for line in (tmp_path / "log.json").read_text().splitlines()]
    said = {line["message"]: line for line in log}
    assert "cannot serve gRPC on unix:/run/nodediag/" in said["no API is served to those on this node"]["why"]
    assert said["started"]["api"].startswith("127.0.0.1:")
    assert agent.process.returncode == 0


@pytest.mark.parametrize("listen", ["", "unix:{}/n.sock"])
def test_no_second_socket_is_made_where_the_api_is_not_over_tcp(tmp_path: Path, listen: str) -> None:
    settings = {"grpc": {"listen": listen.format(tmp_path)}}

    def start(words: list[str], **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*IN_ITS_OWN_RUN, *words], **options)

    with AgentProcess(tmp_path, settings, start=start) as agent:
        done = ask(agent, "report")
    assert done.returncode == 2
    assert "/run/nodediag/nodediag.sock" in done.stderr
