"""What is no fault is not reported: churn, a restart of containerd during it, and a drain.

Two minutes of churn; with NIGHTLY=1 in the environment, ten.
"""

import re
import time
from contextlib import ExitStack

from tests.cluster.churn import churn_for, churning
from tests.cluster.conftest import NIGHTLY
from tests.cluster.deployed import FindingLog
from tests.cluster.fleet import Fleet
from tests.cluster.pods import NAMESPACE, pod_spec
from tests.lab.kubernetes.cluster import NODE_NAME, Cluster

SECONDS = 600.0 if NIGHTLY else 120.0


def test_churn_with_a_restart_of_containerd_in_it(well: Fleet, cluster: Cluster) -> None:
    with ExitStack() as stack:
        logs = {name: stack.enter_context(FindingLog(agent)) for name, agent in well.agents.items()}
        with churning(cluster):
            rounds = churn_for(cluster, SECONDS / 2)
            cluster.containerd.stop()
            cluster.containerd.start()
            rounds += churn_for(cluster, SECONDS / 2)
        started = len(cluster.kubectl.items("events", f"--namespace={NAMESPACE}", "--field-selector=reason=Started"))
        print(f"churn for {SECONDS:.0f} s: {rounds} rounds, {started} Events of started containers")
        assert {name: log.messages() for name, log in logs.items() if log.findings} == {}


def test_drain(well: Fleet, cluster: Cluster) -> None:
    labels = {"app": "drained"}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "drained", "namespace": NAMESPACE},
        "spec": {
            "replicas": 4,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod_spec()},
        },
    }
    cluster.kubectl.apply(deployment)
    try:
        words = ("rollout", "status", "deployment/drained", f"--namespace={NAMESPACE}", "--timeout=120s")
        cluster.kubectl.run(*words, timeout=150)
        with ExitStack() as stack:
            logs = {name: stack.enter_context(FindingLog(agent)) for name, agent in well.agents.items()}
            began = time.monotonic()
            done = cluster.kubectl.run(
                "drain", NODE_NAME, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s"
            )
            print(f"drained after {time.monotonic() - began:.1f} s")
            assert len(re.findall(r"pod/drained-\S+ evicted", done.stdout)) == 4, done.stdout
            well.await_well()
            assert {name: log.messages() for name, log in logs.items() if log.findings} == {}
    finally:
        cluster.kubectl.run("uncordon", NODE_NAME)
        cluster.kubectl.delete(deployment)
