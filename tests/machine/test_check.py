"""`nodediag check` as somebody on call, a plugin of node-problem-detector or a program uses it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE
from typing import Any

import jsonschema
import pytest
import yaml

from tests.e2e.conftest import settings_for
from tests.lab import zombies
from tests.lab.containerd import Containerd
from tests.lab.containers import run_pod, running_container
from tests.lab.dns_servers import DnsServer
from tests.lab.kubelet_standin import KubeletStandin
from tests.lab.netns import Node
from tests.lab.pods import Pod
from tests.lab.shim_faults import stopped_shim
from tests.lab.waiting import wait_until

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "docs" / "report.schema.json").read_text())
HEALTHY, SICK, UNDETERMINED = 0, 1, 2

pytestmark = pytest.mark.lab


def check(*arguments: str, config: Path, wrapper: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*wrapper, sys.executable, "-m", "agent", "check", "--config", str(config), *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "KUBERNETES_SERVICE_HOST"}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


def report(*arguments: str, config: Path, wrapper: tuple[str, ...] = ()) -> tuple[int, dict[str, Any]]:
    """Return the exit code and the report, after it was held against its schema."""
    done = check("--format", "json", *arguments, config=config, wrapper=wrapper)
    parsed = json.loads(done.stdout)
    jsonschema.validate(parsed, SCHEMA)
    return done.returncode, parsed


def condition(parsed: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(item for item in parsed["conditions"] if item["type"] == kind)


@pytest.fixture
def quiet_config(tmp_path: Path) -> Path:
    """Settings of a machine without Kubernetes; no DNS query leaves it."""
    file = tmp_path / "nodediag.yaml"
    file.write_text('dns: {servers: ["127.0.0.1:9"]}')
    return file


def test_a_hung_shim_that_serves_three_containers_is_one_finding_with_all_of_them(tmp_path: Path) -> None:
    with Containerd() as containerd, KubeletStandin() as kubelet, DnsServer() as dns:
        config = tmp_path / "nodediag.yaml"
        config.write_text(json.dumps(settings_for(containerd, kubelet, dns)))
        sandbox, *others = run_pod(containerd, ("app", "sidecar"), pod=Pod(name="web", namespace="shop"))
        code, healthy = report(config=config)
        assert code == HEALTHY
        states = {item["name"]: item["state"] for item in healthy["detectors"]}
        assert states.pop("kubelet_pleg") == "not_applicable", "nobody has said where the kubelet's API is"
        assert set(states.values()) == {"ok"}
        with stopped_shim(sandbox):
            code, parsed = report("--detector", "containerd_shim", config=config)
        assert code == SICK
        (finding,) = condition(parsed, "ContainerdShimHung")["findings"]
        assert set(finding["values"]["containerIds"]) == {sandbox.id, *(other.id for other in others)}
        assert finding["recommendedAction"] == "KillShim"
        assert finding["target"]["pid"] == sandbox.shim.pid
        assert finding["target"]["startTime"] == sandbox.shim.start_time
        assert finding["target"]["containerId"] == sandbox.id
        assert (finding["pod"]["namespace"], finding["pod"]["name"]) == ("shop", "web")
        assert finding["pod"]["uid"] == sandbox.pod_uid
        assert finding["values"]["processState"] == "T"
        assert finding["values"]["wchan"] == "do_signal_stop"
        assert [item["name"] for item in parsed["detectors"]] == ["containerd_shim"]


def test_zombies_with_hostile_names_break_no_report(quiet_config: Path) -> None:
    with ExitStack() as stack:
        parents = [stack.enter_context(zombies.plain_zombies(60, name)) for name in zombies.HOSTILE_NAMES]
        code, parsed = report("--detector", "defunct_processes", config=quiet_config)
        text = check("--detector", "defunct_processes", config=quiet_config).stdout
    assert code == SICK
    findings = condition(parsed, "ExcessiveDefunctProcesses")["findings"]
    counts = {finding["target"]["pid"]: finding["values"]["zombies"] for finding in findings}
    assert counts == {parent.process.pid: 60 for parent in parents}
    assert all(line.isprintable() for line in text.split("\n"))


@pytest.fixture
def machine() -> Iterator[Node]:
    """A machine in a pid namespace of its own: on this one, others may run a containerd beside the tests.

    It has no containerd and no kubelet, but a container that is a node, as kind makes them, whose containerd is not
    the machine's.
    """
    with Node(init_name="systemd") as node:
        node_in_container = ("unshare", "--fork", "--kill-child", "--pid", "--mount-proc", "--")
        started = node.start(
            *node_in_container, "sh", "-c", "echo -n containerd >/proc/self/comm; read -r _", stdin=PIPE
        )
        wait_until(lambda: node.run("pgrep", "-x", "containerd", check=False).stdout, 30, "its containerd runs")
        yield node
        started.kill()


def test_a_machine_without_kubernetes_is_told_to_be_one(quiet_config: Path, machine: Node) -> None:
    parsed = report(config=quiet_config, wrapper=tuple(machine.command()))[1]
    states = {item["name"]: item["state"] for item in parsed["detectors"]}
    assert states["containerd_shim"] == states["container_runtime"] == states["kubelet_healthz"] == "not_applicable"
    assert states["defunct_processes"] == states["conntrack_dns"] == "ok"


MANIFEST = yaml.safe_load_all((ROOT / "deploy" / "daemonset.yaml").read_text())
(CONTAINER,) = next(each for each in MANIFEST if each["kind"] == "DaemonSet")["spec"]["template"]["spec"]["containers"]
CAPABILITIES = frozenset(name.lower() for name in CONTAINER["securityContext"]["capabilities"]["add"])


def with_capabilities(*names: str) -> tuple[str, ...]:
    """Return what runs a command as root with these capabilities alone."""
    return ("setpriv", "--bounding-set=" + ",".join(["-all", *(f"+{name}" for name in names)]))


def test_the_manifest_s_capabilities_show_a_real_shim_and_none_of_them_is_superfluous_for_it(tmp_path: Path) -> None:
    """The folder of the shims' sockets has the mode that containerd gives it."""
    with Containerd() as containerd, KubeletStandin() as kubelet, DnsServer() as dns, running_container(containerd):
        config = tmp_path / "nodediag.yaml"
        config.write_text(json.dumps(settings_for(containerd, kubelet, dns)))
        shims = ("--detector", "containerd_shim")
        code, parsed = report(*shims, config=config, wrapper=with_capabilities(*CAPABILITIES))
        assert (code, parsed["deploymentFaults"]) == (HEALTHY, [])
        lacking = with_capabilities(*(CAPABILITIES - {"dac_read_search"}))
        code, parsed = report(*shims, config=config, wrapper=lacking)
        text = check(*shims, config=config, wrapper=lacking).stdout.splitlines()
    (fault,) = parsed["deploymentFaults"]
    assert code == UNDETERMINED
    assert (fault["cause"], fault["subject"]) == ("capability", "CAP_DAC_READ_SEARCH")
    assert "because /run/containerd/s has mode 0600" in fault["message"]
    assert set(fault["hides"]) == {"ContainerdShimHung", "ContainerdShimLeaked"}
    assert {condition(parsed, kind)["reason"] for kind in fault["hides"]} == {"AgentLacksPermission"}
    assert text[1].startswith("The agent's own deployment has 1 fault")


def with_folders(*making: str) -> tuple[str, ...]:
    """Return a wrapper that gives the command empty /run and /var/lib of its own, and makes something in them."""
    mounts = ("mount -t tmpfs tmpfs /run", "mount -t tmpfs tmpfs /var/lib")
    return ("unshare", "--mount", "sh", "-ec", "; ".join((*mounts, *making, 'exec "$@"')), "sh")


def test_folders_without_content_are_neither_a_kubelet_nor_a_containerd(quiet_config: Path, machine: Node) -> None:
    empty = (
        "mkdir -p /var/lib/kubelet/pki /var/lib/kubelet/pods /var/lib/nodediag /var/lib/containerd /run/nodediag",
        "mkdir -p /run/containerd/s /run/containerd/io.containerd.runtime.v2.task/k8s.io",
        "touch /var/lib/kubelet/config.yaml",
    )
    parsed = report(config=quiet_config, wrapper=(*machine.command(), *with_folders(*empty)))[1]
    states = {item["name"]: item["state"] for item in parsed["detectors"]}
    assert states["kubelet_healthz"] == states["container_runtime"] == "not_applicable"
    assert {item["type"] for item in parsed["conditions"]} & {
        "KubeletHealthzFailing",
        "ContainerRuntimeUnresponsive",
    } == set()


@pytest.mark.parametrize("content", ["pki/kubelet.crt", "pods/6f0e/etc-hosts", "config.yaml"])
def test_what_a_kubelet_has_left_in_its_folder_is_a_kubelet_that_does_not_listen(
    quiet_config: Path, content: str
) -> None:
    path = f"/var/lib/kubelet/{content}"
    making = (f"mkdir -p $(dirname {path})", f"echo x >{path}")
    code, parsed = report("--detector", "kubelet_healthz", config=quiet_config, wrapper=with_folders(*making))
    assert (code, condition(parsed, "KubeletHealthzFailing")["reason"]) == (SICK, "HealthzRefused")


def test_without_cap_net_admin_it_says_what_it_cannot_see(quiet_config: Path) -> None:
    wrapper = ("setpriv", "--bounding-set=-net_admin")
    parsed = report("--detector", "conntrack_dns", config=quiet_config, wrapper=wrapper)[1]
    assert "CAP_NET_ADMIN" in condition(parsed, "ConntrackDNSRace")["message"]


def test_in_a_network_namespace_of_its_own_conntrack_is_unknown_and_never_false(quiet_config: Path) -> None:
    wrapper = ("unshare", "--net")
    parsed = report("--detector", "conntrack_dns", config=quiet_config, wrapper=wrapper)[1]
    for kind in ("ConntrackDNSRace", "ConntrackTablePressure"):
        assert condition(parsed, kind)["status"] == "Unknown"
        assert "hostNetwork" in condition(parsed, kind)["message"]


def test_in_a_pid_namespace_of_its_own_processes_are_unknown_and_never_false(quiet_config: Path) -> None:
    with Node(init_name="pause") as node:
        command = (sys.executable, "-m", "agent", "check", "--config", str(quiet_config), "--format", "json")
        done = node.run(*command, "--detector", "defunct_processes", timeout=60, check=False)
    zombies_condition = condition(json.loads(done.stdout), "ExcessiveDefunctProcesses")
    assert done.returncode == UNDETERMINED
    assert zombies_condition["status"] == "Unknown"
    assert "hostPID" in zombies_condition["message"]


def test_in_a_plain_pod_nothing_is_judged_and_least_of_all_the_kubelet(tmp_path: Path) -> None:
    """Neither hostPID nor hostNetwork: pid 1 is the pod's own, and its network the same as ours."""
    config = tmp_path / "nodediag.yaml"
    config.write_text('dns: {servers: ["127.0.0.1:9"]}')
    with Node(init_name="pause") as node:
        command = ("env", "KUBERNETES_SERVICE_HOST=10.96.0.1", sys.executable, "-m", "agent", "check")
        done = node.run(*command, "--config", str(config), "--format", "json", timeout=60, check=False)
    statuses = {item["type"]: item["status"] for item in json.loads(done.stdout)["conditions"]}
    assert done.returncode == UNDETERMINED
    assert set(statuses.values()) == {"Unknown"}
    assert "KubeletHealthzFailing" in statuses
