"""The kubelet, containerd and DNS flows, from the fault to its end through a real agent."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.acts import Outcome
from agent.client import Client
from agent.model import Action, TargetKind
from tests.detections import record_outcome
from tests.e2e.agent_process import AgentProcess
from tests.e2e.mending import QUICK, found, mending, nodediag, untouched
from tests.lab import conntrack_faults, shim_faults
from tests.lab.containerd import Containerd
from tests.lab.containers import run_containers
from tests.lab.dns_servers import DnsMode
from tests.lab.netns import Node
from tests.lab.processes import has_ended
from tests.lab.supervised import KubeletProcess, supervised
from tests.lab.waiting import wait_until

CONTAINERS = 10
SOURCES, SERVER = ("10.244.0.7", "10.244.0.8"), "10.96.0.11"


def only(detector: str, **settings: Any) -> dict[str, Any]:
    """Return settings of a single detector that is switched on."""
    names = ("containerd_shim", "defunct_processes", "conntrack_dns", "kubelet_healthz", "container_runtime")
    each = {name: {"enabled": False} for name in names if name != detector}
    quick: dict[str, Any] = dict(QUICK.get(detector, {}))
    return {"detectors": {**each, detector: {**quick, **settings}}}


def test_a_stopped_kubelet_is_restarted_on_request(tmp_path: Path) -> None:
    with KubeletProcess() as kubelet:
        settings = {**mending(tmp_path / "state"), **only("kubelet_healthz"), "kubelet": {"healthz_url": kubelet.url}}
        settings["host"]["dbus_socket"] = str(tmp_path / "no-bus")
        with AgentProcess(tmp_path, settings) as agent:
            wait_until(agent.all_well, 15, "a healthy kubelet is found to be healthy")
            before = kubelet.process
            kubelet.hang()
            found(agent, lambda f: f.target.kind is TargetKind.KUBELET, "the kubelet is named")
            done = nodediag(agent, "remediate", "RestartKubelet", "--target", "kubelet", "--yes")
            assert done.returncode == 0, done.stdout + done.stderr
            assert "verified" in done.stdout
            record_outcome("RestartKubelet", "kubelet stopped", "lab", "verified")
            assert has_ended(before)
            assert kubelet.process.start_time != before.start_time
            wait_until(agent.all_well, 15, "the new kubelet is well")


def test_a_paused_containerd_is_restarted_and_ten_containers_run_on(tmp_path: Path) -> None:
    with Containerd() as containerd:
        containers = run_containers(containerd, CONTAINERS)
        settings = {
            **mending(tmp_path / "state"),
            "containerd": {"address": str(containerd.address), "state_dir": str(containerd.state_dir)},
            "detectors": {**only("container_runtime")["detectors"], "containerd_shim": QUICK["containerd_shim"]},
        }
        settings["host"]["dbus_socket"] = str(tmp_path / "no-bus")
        with supervised(containerd), AgentProcess(tmp_path, settings) as agent, untouched(containers):
            wait_until(agent.all_well, 15, "a healthy containerd is found to be healthy")
            before = containerd.process
            containerd.pause()
            found(agent, lambda f: f.target.kind is TargetKind.CONTAINERD, "containerd is named")
            done = nodediag(agent, "remediate", "RestartContainerd", "--target", "containerd", "--yes")
            assert done.returncode == 0, done.stdout + done.stderr
            assert "verified" in done.stdout
            record_outcome("RestartContainerd", "containerd stopped", "lab", "verified")
            assert has_ended(before)
            wait_until(agent.all_well, 15, "the new containerd is well")


def test_the_bundle_of_a_dead_shim_goes_with_a_restart_of_containerd(tmp_path: Path) -> None:
    with Containerd() as containerd:
        neighbours = run_containers(containerd, 2)
        (victim,) = run_containers(containerd, 1, name_prefix="dead")
        settings = {
            **mending(tmp_path / "state"),
            **only("containerd_shim"),
            "containerd": {"address": str(containerd.address), "state_dir": str(containerd.state_dir)},
        }
        settings["host"]["dbus_socket"] = str(tmp_path / "no-bus")
        with (
            supervised(containerd),
            shim_faults.dead_shim_with_bundle(containerd, victim),
            AgentProcess(tmp_path, settings) as agent,
            untouched(neighbours),
        ):
            finding = found(agent, lambda f: f.reason == "ShimDead", "the dead shim is named")
            assert finding.recommended_action is Action.RESTART_CONTAINERD
            with Client(agent.endpoint) as client:
                done = client.remediate(Action.RESTART_CONTAINERD, finding.target)
            assert done.outcome is Outcome.VERIFIED, done.message
            record_outcome("RestartContainerd", "shim killed, bundle left", "lab", "verified")
            assert not victim.bundle.exists()


@pytest.mark.parametrize("dry_run", [True, False])
def test_flows_that_wait_in_vain_are_deleted_on_request_and_no_others(tmp_path: Path, dry_run: bool) -> None:
    with Node() as node, conntrack_faults.replied_dns_flows(node, 10, SOURCES, SERVER) as dns:
        settings = {
            **mending(tmp_path / "state"),
            **only("conntrack_dns", period_seconds=1),
            "dns": {"servers": [SERVER]},
        }
        agent = AgentProcess(
            tmp_path,
            settings,
            start=lambda argv, **options: node.start(*argv, **options),
            connect=lambda port: _connected(node, port),
        )
        with agent, conntrack_faults.unreplied_dns_flows(node, 20, SOURCES, "10.96.0.99"), _ignored_queries(node, 15):
            dns.set_mode(DnsMode.DROPS_SECOND)
            finding = found(agent, lambda f: f.condition == "ConntrackDNSRace", "the lost queries are named")
            assert finding.recommended_action is Action.DELETE_CONNTRACK_FLOWS
            with Client(agent.endpoint) as client:
                done = client.remediate(Action.DELETE_CONNTRACK_FLOWS, finding.target, dry_run=dry_run)
            assert done.outcome is (Outcome.DRY_RUN if dry_run else Outcome.VERIFIED), done.message
            if not dry_run:
                record_outcome("DeleteConntrackFlows", "DNS drops one of each pair", "lab", done.outcome)
            left = _udp_flows(node, SERVER, "[UNREPLIED]", "-s", SOURCES[0])  # without the agent's own probes
            assert left == (15 if dry_run else 0)
            assert _udp_flows(node, SERVER, "") >= 10, "answered flows are kept"
            assert _udp_flows(node, "10.96.0.99", "[UNREPLIED]") == 20, "flows to another server are kept"


def _connected(node: Node, port: int) -> socket.socket:
    connection = node.make_socket(socket.AF_INET, socket.SOCK_STREAM)
    connection.settimeout(10)
    connection.connect(("127.0.0.1", port))
    return connection


@contextmanager
def _ignored_queries(node: Node, count: int) -> Iterator[None]:
    """Flows to the server that it never answers: what is sent is no DNS."""
    with ExitStack() as stack:
        for _ in range(count):
            client = stack.enter_context(node.make_socket(socket.AF_INET, socket.SOCK_DGRAM))
            client.bind((SOURCES[0], 0))
            client.sendto(b"?", (SERVER, 53))
        yield


def _udp_flows(node: Node, server: str, mark: str, *further: str) -> int:
    lines = node.run("conntrack", "-L", "-p", "udp", "--dport", "53", "-d", server, *further).stdout.splitlines()
    return sum(mark in line for line in lines)
