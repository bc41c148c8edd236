"""`make demo`: the tour on real parts, in under two minutes.

A private containerd runs pods, a kubelet and a DNS server stand beside it, and an agent at default
settings watches them. Four things go wrong at once; the agent names each; they are mended; the
agent takes its words back. Then the agent is asked about a node of its own namespaces whose
conntrack table fills up. Everything made is taken away again.
"""

import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.e2e.agent_process import AgentProcess, Change
from tests.e2e.conftest import settings_for
from tests.lab import conntrack_faults, shim_faults, zombies
from tests.lab.containerd import Containerd
from tests.lab.containers import run_containers
from tests.lab.dns_servers import DnsMode, DnsServer
from tests.lab.kubelet_standin import KubeletMode, KubeletStandin
from tests.lab.netns import Node
from tests.lab.pods import Container, Pod
from tests.lab.requirements import missing_parts
from tests.lab.waiting import wait_until

EXPECTED = {
    "ContainerdShimHung": "ShimUnresponsive",
    "ContainerdShimLeaked": "ProcessesWithoutShim",
    "ExcessiveDefunctProcesses": "ParentNotReaping",
    "ConntrackDNSRace": "DNSQueriesLost",
    "KubeletHealthzFailing": "HealthzNotOK",
}


def main() -> int:
    """Walk the tour; 0 if every fault was named and cleared."""
    missing = missing_parts()
    if missing:
        print("the demo cannot run here; missing: " + ", ".join(missing), file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="nodediag-demo-") as folder:
        _pods_tour(Path(folder))
        _conntrack_tour(Path(folder))
    _say("Done. Everything the demo made is gone.")
    return 0


def _pods_tour(folder: Path) -> None:
    with Containerd() as containerd, KubeletStandin() as kubelet, DnsServer() as dns:
        pods = run_containers(containerd, 8)
        settings = settings_for(containerd, kubelet, dns)
        with AgentProcess(folder, settings) as agent:
            wait_until(agent.all_well, 20, "the healthy node is well")
            _say(f"A healthy node: {len(pods)} pods, a kubelet, a DNS server. No condition is True.")
            with ExitStack() as faults:
                began = time.time()
                _break(faults, containerd, pods, kubelet, dns)
                _watch(agent, "True", began)
                _say("What somebody on call sees (nodediag check):")
                subprocess.run(
                    [sys.executable, "-m", "agent", "check", "--config", str(folder / "nodediag.yaml")], check=False
                )
                _say("Now everything is mended.")
                mended = time.time()
            _watch(agent, "False", mended)
            took = agent.stop()
            _say(f"The agent was told to stop and had gone after {took:.1f} s.")


def _break(
    faults: ExitStack, containerd: Containerd, pods: list[Container], kubelet: KubeletStandin, dns: DnsServer
) -> None:
    hung, stranded = pods[0], pods[1]
    faults.enter_context(shim_faults.stopped_shim(hung))
    _say(f"Fault: the shim of pod {hung.pod_namespace}/{hung.pod_name} is stopped (pid {hung.shim_pid}).")
    faults.enter_context(shim_faults.processes_without_shim(containerd, stranded))
    _say(f"Fault: the shim of pod {stranded.pod_namespace}/{stranded.pod_name} was killed, its container runs on.")
    bred = faults.enter_context(
        zombies.zombies_under_container(containerd, 500, pod=Pod(name="zombie-maker", namespace="shop"))
    )
    _say(f"Fault: 500 zombies under process {bred.process.pid} of pod shop/zombie-maker.")
    dns.set_mode(DnsMode.DROPS_SECOND)
    faults.callback(dns.set_mode, DnsMode.HEALTHY)
    _say("Fault: of two DNS queries sent at once, one is lost.")
    kubelet.set_mode(KubeletMode.ERROR_500)
    faults.callback(kubelet.set_mode, KubeletMode.HEALTHY)
    _say("Fault: the kubelet's healthz says 500.")


def _watch(agent: AgentProcess, status: str, since: float) -> None:
    """Print each change to this status as it comes, until all expected ones have come."""
    told: set[str] = set()

    def news() -> bool:
        for change in agent.changes():
            fits = change.status == status and change.at >= since and change.type not in told
            if fits and change.type in EXPECTED and _is_expected(change):
                told.add(change.type)
                print(f"  {change.at - since:5.1f} s  {change.type}={change.status}  {change.reason}", flush=True)
                if status == "True":
                    print(f"           {change.message}")
        return told == set(EXPECTED)

    wait_until(news, 30, f"every condition is {status}")


def _is_expected(change: Change) -> bool:
    return change.status == "False" or change.reason == EXPECTED[change.type]


def _conntrack_tour(folder: Path) -> None:
    with Node() as node, DnsServer(make_socket=node.make_socket) as dns:
        settings = {"dns": {"servers": [f"{dns.address}:{dns.port}"]}}
        agent = AgentProcess(
            folder / "conntrack",
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
            with conntrack_faults.table_nearly_full(node):
                wait_until(lambda: bool(agent.accusations()), 20, "the table is called nearly full")
                change = agent.accusations()[0]
                _say(f"The conntrack table fills up: {change.type}={change.status} {change.reason}")
                print(f"  {change.message}")


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
