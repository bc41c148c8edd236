"""An agent with the manifest's capabilities, without one of them, and under the runtime's AppArmor profile."""

import pytest
import yaml

from tests.lab.waiting import wait_until
from tests.vm.image import ROOT
from tests.vm.node import FOUND_SECONDS, Finding, Node, about

HUNG = "ContainerdShimHung"
PROFILE = "cri-containerd.apparmor.d"
LOOKS = 8


def manifest_capabilities() -> list[str]:
    """Return what the DaemonSet adds to no capability at all."""
    documents = yaml.safe_load_all((ROOT / "deploy" / "daemonset.yaml").read_text())
    (daemonset,) = [each for each in documents if each["kind"] == "DaemonSet"]
    (container,) = daemonset["spec"]["template"]["spec"]["containers"]
    capabilities = container["securityContext"]["capabilities"]
    assert capabilities["drop"] == ["ALL"]
    return [f"CAP_{name}" for name in capabilities["add"]]


def restart_agent(node: Node, *lines: str) -> None:
    """Start the agent anew, with these settings in the [Service] section of its unit."""
    node.drop_in("nodediag", "[Service]", "NoNewPrivileges=yes", *lines)
    before = node.main_pid("nodediag")
    node.output("systemctl restart nodediag")
    assert node.main_pid("nodediag") not in {0, before}


def test_the_manifests_capabilities_are_enough_to_see_everything(node: Node) -> None:
    restart_agent(node, f"CapabilityBoundingSet={' '.join(manifest_capabilities())}")
    node.wait_until_well()
    victim, _ = node.pods
    node.output(f"kill -STOP {victim.shim}")
    assert node.found(HUNG, about(victim))["pod"]["name"] == victim.name


@pytest.mark.parametrize("capability", manifest_capabilities())
def test_a_missing_capability_is_a_fault_of_the_deployment(node: Node, capability: str) -> None:
    left = [each for each in manifest_capabilities() if each != capability]
    restart_agent(node, f"CapabilityBoundingSet={' '.join(left)}")
    fault = deployment_fault(node)
    assert (fault["cause"], fault["subject"]) == ("capability", capability)


def test_a_confined_agent_names_the_profile_and_leaves_the_audit_log_alone(node: Node) -> None:
    # The runtime makes its profile with the first container.
    run = "ctr run --rm --rootfs --null-io --apparmor-default-profile"
    node.output(f"{run} {PROFILE} /opt/rootfs first /bin/true")
    node.output("sysctl -q kernel.printk_ratelimit=0")
    restart_agent(node, f"AppArmorProfile={PROFILE}")
    assert PROFILE in node.output(f"cat /proc/{node.main_pid('nodediag')}/attr/current")
    fault = deployment_fault(node)
    assert fault["cause"] == "apparmor"
    assert PROFILE in fault["subject"]
    assert not any(each["cause"] == "capability" for each in node.report()["deploymentFaults"])
    # A process is read closely once, not at every look; this test's own commands are new ones each time.
    processes = int(node.output("ls -d /proc/[0-9]* | wc -l"))
    assert denials_in_looks(node) < LOOKS * processes / 3
    victim, _ = node.pods
    node.output(f"kill -STOP {victim.shim}")
    node.found(HUNG, about(victim))
    assert denials_in_looks(node) < LOOKS * processes / 3


def denials_in_looks(node: Node) -> int:
    """Return how much AppArmor denies while the agent looks some times."""
    before = denials(node)
    looks: set[str] = set()
    wait_until(lambda: len(noted(node, looks)) > LOOKS, FOUND_SECONDS, f"the agent has looked {LOOKS} times")
    return denials(node) - before


def deployment_fault(node: Node) -> Finding:
    return wait_until(
        lambda: next(iter(node.report().get("deploymentFaults", [])), None), FOUND_SECONDS, "a fault of the deployment"
    )


def noted(node: Node, looks: set[str]) -> set[str]:
    """Add how long the last probe of the detector of shims took, which no two probes have in common."""
    detectors = node.report().get("detectors", [])
    looks.update(str(each["durationSeconds"]) for each in detectors if each["name"] == "containerd_shim")
    return looks


def denials(node: Node) -> int:
    """Return how often AppArmor has denied something."""
    return int(node.output("dmesg | grep -c 'apparmor=\"DENIED\"' || true"))
