"""`make demo`: the tour on real parts, in under two minutes.

A private containerd runs pods, a kubelet and a DNS server stand beside it, and an agent watches them. Things go wrong;
the agent names each and, asked as somebody on call would ask, mends what it can; the rest is mended by taking the fault
away, and the agent takes its words back. Then the agent is asked about a node of its own namespaces: its DNS flows
wait in vain, and its conntrack table fills up. Everything made is taken away again.
"""

import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.e2e.agent_process import AgentProcess, Change
from tests.e2e.conftest import settings_for
from tests.lab import conntrack_faults, shim_faults, zombies
from tests.lab.containerd import Containerd
from tests.lab.containers import run_containers
from tests.lab.dns_servers import DnsMode, DnsServer
from tests.lab.kubelet_standin import KubeletMode
from tests.lab.netns import Node
from tests.lab.pods import Container, Pod
from tests.lab.requirements import missing_parts
from tests.lab.supervised import KubeletProcess, supervised
from tests.lab.survivors import container_that_may_survive, surviving_processes
from tests.lab.versions import VersionUnavailableError, choose
from tests.lab.waiting import wait_until

EXPECTED = {
    "ContainerdShimHung": "ShimUnresponsive",
    "ContainerdShimLeaked": "ProcessesWithoutShim",
    "ExcessiveDefunctProcesses": "ParentNotReaping",
    "ConntrackDNSRace": "DNSQueriesLost",
    "KubeletHealthzFailing": "HealthzNotOK",
}
SOURCES, SERVER = ("10.244.0.7", "10.244.0.8"), "10.96.0.11"
COMMAND_SECONDS = 60


def main() -> int:
    """Walk the tour; 0 if every fault was named, what was asked for was mended, and all was well again."""
    try:
        print(f"Using {choose()}.")
    except VersionUnavailableError as error:
        print(f"the demo cannot run here: {error}", file=sys.stderr)
        return 1
    missing = missing_parts()
    if missing:
        print("the demo cannot run here; missing: " + ", ".join(missing), file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="nodediag-demo-") as folder:
        _pods_tour(Path(folder))
        _conntrack_tour(Path(folder) / "conntrack")
    _say("Done. Everything the demo made is gone.")
    return 0


def _pods_tour(folder: Path) -> None:
    with (
        Containerd() as containerd,
        KubeletProcess() as kubelet,
        DnsServer() as dns,
        container_that_may_survive(containerd, Pod(name="survivor", namespace="shop")) as survivor,
    ):
        pods = [*run_containers(containerd, 7), survivor]
        settings = {**settings_for(containerd, kubelet, dns), **_mending(folder)}
        with supervised(containerd), AgentProcess(folder, settings) as agent:
            wait_until(agent.all_well, 20, "the healthy node is well")
            _say(f"A healthy node: {len(pods)} pods, a kubelet, a DNS server. No condition is True.")
            with ExitStack() as faults:
                began = time.time()
                hung, frozen, breeder = _break(faults, containerd, pods, kubelet, dns)
                _watch(agent, "True", began)
                _say("What somebody on call sees (nodediag check):")
                _nodediag("check", "--config", str(folder / "nodediag.yaml"), exits=(1,))
                _say("nodediag mends on request, after a fresh look at that very target, and tells whether it helped.")
                _remediate(agent, "KillShim", f"{hung.pod.namespace}/{hung.pod.name}", "--dry-run")
                _remediate(agent, "KillShim", f"{hung.pod.namespace}/{hung.pod.name}")
                _remediate(agent, "ThawCgroup", frozen.id[:12])
                _remediate(agent, "KillParent", str(breeder))
                _remediate(agent, "RestartKubelet", "kubelet")
                _say("The rest is mended by taking the fault away.")
                mended = time.time()
            _watch(agent, "False", mended)
            containerd.pause()
            _say("Fault: containerd is stopped.")
            wait_until(lambda: agent.statuses()["ContainerRuntimeUnresponsive"] == "True", 20, "containerd is named")
            _remediate(agent, "RestartContainerd", "containerd")
            _say("What was asked for, and what came of it (nodediag remediations):")
            _nodediag("remediations", "--endpoint", agent.endpoint)
            took = agent.stop()
            _say(f"The agent was told to stop and had gone after {took:.1f} s.")


def _mending(folder: Path) -> dict[str, Any]:
    """Settings that allow everything; a node of the demo's own has no system bus."""
    host = {"state_dir": str(folder / "state"), "dbus_socket": str(folder / "no-bus")}
    actions = {"KillShim": {"cooldown_seconds": 0}}
    return {"host": host, "remediation": {"enabled": True, "dry_run": False, "actions": actions}}


def _break(
    faults: ExitStack, containerd: Containerd, pods: list[Container], kubelet: KubeletProcess, dns: DnsServer
) -> tuple[Container, Container, int]:
    hung, frozen, *_, stranded = pods
    faults.enter_context(shim_faults.stopped_shim(hung))
    _say(f"Fault: the shim of pod {hung.pod_namespace}/{hung.pod_name} is stopped (pid {hung.shim_pid}).")
    faults.enter_context(shim_faults.frozen_shim(frozen))
    _say(f"Fault: the shim of pod {frozen.pod_namespace}/{frozen.pod_name} is frozen (pid {frozen.shim_pid}).")
    faults.enter_context(surviving_processes(containerd, stranded))
    _say(f"Fault: the shim of pod {stranded.pod_namespace}/{stranded.pod_name} was killed, its container runs on.")
    bred = faults.enter_context(
        zombies.zombies_under_container(containerd, 500, pod=Pod(name="zombie-maker", namespace="shop"))
    )
    _say(f"Fault: 500 zombies under process {bred.process.pid} of pod shop/zombie-maker.")
    dns.set_mode(DnsMode.DROPS_SECOND)
    faults.callback(dns.set_mode, DnsMode.HEALTHY)
    _say("Fault: of two DNS queries sent at once, one is lost.")
    kubelet.set_mode(KubeletMode.ERROR_500)
    _say("Fault: the kubelet's healthz says 500.")
    return hung, frozen, bred.process.pid


def _remediate(agent: AgentProcess, action: str, target: str, *words: str) -> None:
    arguments = ["remediate", action, "--target", target, *words]
    _say("$ nodediag " + " ".join([*arguments, "--yes"]))
    _nodediag(*arguments, "--yes", "--endpoint", agent.endpoint)


def _nodediag(*words: str, exits: tuple[int, ...] = (0,)) -> None:
    done = subprocess.run([sys.executable, "-m", "agent", *words], check=False, timeout=COMMAND_SECONDS)
    if done.returncode not in exits:
        raise AssertionError(f"nodediag {' '.join(words)} exited {done.returncode}")


def _watch(agent: AgentProcess, status: str, since: float) -> None:
    """Print each change to this status as it comes, until no expected condition is anything else."""
    told: set[tuple[str, float]] = set()

    def news() -> bool:
        for change in agent.changes():
            if change.at >= since and change.status == status and (change.type, change.at) not in told:
                told.add((change.type, change.at))
                if change.type in EXPECTED and _is_expected(change):
                    print(f"  {change.at - since:5.1f} s  {change.type}={change.status}  {change.reason}", flush=True)
        latest = {change.type: change for change in agent.changes()}
        return all(kind in latest and latest[kind].status == status and _is_expected(latest[kind]) for kind in EXPECTED)

    wait_until(news, 40, f"every condition is {status}")


def _is_expected(change: Change) -> bool:
    return change.status == "False" or change.reason == EXPECTED[change.type]


def _conntrack_tour(folder: Path) -> None:
    with Node() as node, conntrack_faults.replied_dns_flows(node, 10, SOURCES, SERVER) as dns:
        settings = {**_mending(folder), "dns": {"servers": [SERVER]}}
        agent = AgentProcess(
            folder,
            settings,
            start=lambda argv, **options: node.start(*argv, **options),
            connect=lambda port: _connected(node, port),
        )
        with conntrack_faults.tracking(node), agent:
            rise = conntrack_faults.clashes(node, 100)
            wait_until(lambda: (_clashes(agent) or 0) >= rise, 20, "the clashes are counted")
            _say(
                f"{rise} conntrack clashes were made; this kernel resolves them, so nodediag counts and accuses nobody:"
            )
            print(f"  nodediag_conntrack_events_total for clash_resolve: {_clashes(agent):.0f}")
            _lost_queries(node, dns, agent)
            with conntrack_faults.table_nearly_full(node):
                pressure = "ConntrackTablePressure"
                wait_until(lambda: agent.statuses()[pressure] == "True", 20, "the table is called nearly full")
                change = next(change for change in agent.accusations() if change.type == pressure)
                _say(f"The conntrack table fills up: {change.type}={change.status} {change.reason}")
                print(f"  {change.message}")


def _lost_queries(node: Node, dns: DnsServer, agent: AgentProcess) -> None:
    """Flows that wait in vain are deleted; those that were answered stay."""
    with ExitStack() as stack:
        for _ in range(20):
            client = stack.enter_context(node.make_socket(socket.AF_INET, socket.SOCK_DGRAM))
            client.bind((SOURCES[0], 0))
            client.sendto(b"?", (SERVER, 53))
        dns.set_mode(DnsMode.DROPS_SECOND)
        wait_until(lambda: agent.statuses()["ConntrackDNSRace"] == "True", 20, "the lost queries are named")
        _say(f"Fault: DNS server {SERVER} loses one of two queries, and 20 flows to it wait in vain.")
        _remediate(agent, "DeleteConntrackFlows", SERVER)
        dns.set_mode(DnsMode.HEALTHY)


def _connected(node: Node, port: int) -> socket.socket:
    connection = node.make_socket(socket.AF_INET, socket.SOCK_STREAM)
    connection.settimeout(10)
    connection.connect(("127.0.0.1", port))
    return connection


def _clashes(agent: AgentProcess) -> float | None:
    return agent.metric("nodediag_conntrack_events_total", event="clash_resolve")


def _say(text: str) -> None:
    print(f"\n{text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
