"""Faults of real pods: shims that hang, and zombies of a probe that the kubelet itself runs."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.cluster.deployed import ROOT
from tests.cluster.detection import Fault
from tests.cluster.fleet import ENDPOINT, Fleet
from tests.cluster.pods import NAMESPACE, container, pod, running_pod, shim_of, tasks
from tests.detections import record_outcome
from tests.lab.kubernetes.cluster import NODE_NAME, Cluster
from tests.lab.processes import Process, has_ended, send_signal, state_of
from tests.lab.waiting import wait_until

ZOMBIES_EACH_TIME = 40
LEAVES_ZOMBIES = f"i=0; while [ $i -lt {ZOMBIES_EACH_TIME} ]; do sleep 0.1 & i=$((i+1)); done"
"""A probe whose children outlive it. Then they are those of the container's first process."""
GONE_SECONDS = 90.0


@contextmanager
def stopped(shim: Process) -> Iterator[None]:
    """Stop a shim for the body."""
    send_signal(shim, signal.SIGSTOP)
    try:
        wait_until(lambda: state_of(shim) == "T", 5.0, "the shim is stopped")
        yield
    finally:
        send_signal(shim, signal.SIGCONT)


def condition_on_node(cluster: Cluster, kind: str) -> dict[str, Any]:
    """Return a condition of the Node object, empty if it is not there."""
    conditions = cluster.kubectl.get("node", NODE_NAME)["status"]["conditions"]
    return next((each for each in conditions if each["type"] == kind), {})


def events_on_node(cluster: Cluster, reason: str) -> list[dict[str, Any]]:
    """Return our Events about the node."""
    selector = f"--field-selector=involvedObject.kind=Node,involvedObject.name={NODE_NAME},reason={reason}"
    return cluster.kubectl.items("events", "--namespace=default", selector)


def test_a_hung_shim_is_reported_by_all_and_on_the_node_object_and_clears(well: Fleet, cluster: Cluster) -> None:
    with running_pod(cluster, "hung") as name:
        shim = shim_of(name)
        with stopped(shim):
            fault = Fault("shim stopped", name)
            finding = fault.detected(well.shipped)
            assert finding.target.pid == shim.pid
            for agent in well.agents.values():
                agent.found(fault.fits, "it is reported by every overlay")

            def enriched() -> bool:
                known = well.agents["kubelet-api"].findings()
                return any(each.pod is not None and each.pod.qos_class == "BestEffort" for each in known)

            wait_until(enriched, 60, "the kubelet's API tells the QoS class of the pod")
            wait_until(
                lambda: condition_on_node(cluster, "ContainerdShimHung").get("status") == "True", 60,
                "the condition appears on the node",
            )  # fmt: skip
            (event,) = wait_until(lambda: events_on_node(cluster, "ShimUnresponsive"), 60, "the Event appears")
            assert name in event["message"]
        wait_until(
            lambda: condition_on_node(cluster, "ContainerdShimHung").get("status") == "False", 60,
            "the condition clears on the node",
        )  # fmt: skip


def test_a_pod_that_is_deleted_while_its_shim_hangs(well: Fleet, cluster: Cluster) -> None:
    with running_pod(cluster, "terminating") as name:
        with stopped(shim_of(name)):
            fault = Fault("shim stopped", name)
            cluster.kubectl.run("delete", "pod", "terminating", f"--namespace={NAMESPACE}", "--wait=false")
            fault.detected(well.shipped)
            assert cluster.kubectl.get("pod", "terminating", f"--namespace={NAMESPACE}")["metadata"][
                "deletionTimestamp"
            ]
        selector = "--field-selector=metadata.name=terminating"
        wait_until(
            lambda: not cluster.kubectl.items("pods", f"--namespace={NAMESPACE}", selector), GONE_SECONDS,
            "the pod is gone once its shim goes on",
        )  # fmt: skip


def test_kill_shim_over_mtls_and_the_kubelet_starts_one_copy(well: Fleet, cluster: Cluster) -> None:
    with running_pod(cluster, "killed") as name:
        before = tasks(name)
        with stopped(shim_of(name)):
            fault = Fault("shim stopped", name)
            fault.detected(well.agents["remediation"])
            tls = well.tls
            command = [
                sys.executable, "-m", "agent", "remediate", "KillShim", "--target", name, "--yes",
                "--endpoint", ENDPOINT, "--cert", tls.cert_file, "--key", tls.key_file, "--ca", tls.ca_file,
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=180)
            assert done.returncode == 0, done.stdout + done.stderr
        record_outcome("KillShim", "shim stopped", "cluster", "verified")
        old = {task.id for task in before}
        assert all(has_ended(task.init) for task in before), "nothing of the old pod runs on beside the new one"

        def started_again() -> bool:
            now = [task for task in tasks(name) if task.container == "app"]
            return len(now) == 1 and now[0].id not in old

        wait_until(started_again, GONE_SECONDS, "the kubelet has started one copy")
        cluster.kubectl.await_phase("killed", NAMESPACE)


def test_zombies_of_an_exec_probe_that_the_kubelet_runs(well: Fleet, cluster: Cluster) -> None:
    probe = {"exec": {"command": ["/bin/sh", "-c", LEAVES_ZOMBIES]}, "periodSeconds": 2, "timeoutSeconds": 5}
    leaky = container(script="exec sleep 1000000", livenessProbe=probe)
    cluster.kubectl.apply(pod("leaky", leaky))
    try:
        fault = Fault("zombies of an exec probe", f"{NAMESPACE}/leaky")
        finding = fault.detected(well.shipped)
        assert "sleep" in finding.message
        (app,) = (task for task in tasks(f"{NAMESPACE}/leaky") if task.container)
        assert finding.target.pid == app.init.pid
    finally:
        cluster.kubectl.delete(pod("leaky", leaky))
