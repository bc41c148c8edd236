"""A node at work with nothing wrong that the agent watches: pods that fail, restart, complete, and are killed."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.cluster.pods import NAMESPACE, container, pod_spec
from tests.lab.kubernetes.cluster import Cluster
from tests.lab.waiting import wait_until

EATS_MEMORY = "x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo ${#x}"
PROBE = {"exec": {"command": ["/bin/true"]}, "periodSeconds": 1, "timeoutSeconds": 5}
GONE_SECONDS = 240.0
LIMITED = {"limits": {"memory": "16Mi", "cpu": "100m"}}


def _deployment(name: str, replicas: int, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": spec},
        },
    }


def _job(name: str, completions: int, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "completions": completions, "parallelism": 2, "backoffLimit": 1000,
            "template": {"spec": {**spec, "restartPolicy": "Never"}},
        },
    }  # fmt: skip


def objects() -> tuple[dict[str, Any], ...]:
    """Return what runs during the churn."""
    return (
        _deployment("failing", 2, pod_spec(container(script="sleep 1; exit 1"))),
        _deployment("missing", 1, pod_spec({**container(), "command": ["/no/such/program"]})),
        _deployment("probed", 2, pod_spec(container(livenessProbe=PROBE, readinessProbe=PROBE), container("side"))),
        _deployment("hungry", 1, pod_spec(container(script=EATS_MEMORY, resources=LIMITED))),
        _deployment(
            "prepared", 1, pod_spec(initContainers=[container("first", "exit 0"), container("second", "exit 0")])
        ),
        _job("short", 1000, pod_spec(container(script="exit 0"))),
        _job("unlucky", 1000, pod_spec(container(script="exit 3"))),
    )


@contextmanager
def churning(cluster: Cluster) -> Iterator[None]:
    """Keep all of them at work for the body, and delete them."""
    cluster.kubectl.apply(*objects())
    try:
        yield
    finally:
        cluster.kubectl.delete(*objects())
        selector = ("pods", f"--namespace={NAMESPACE}")
        wait_until(lambda: not cluster.kubectl.items(*selector), GONE_SECONDS, "the pods of the churn are gone")


def churn_for(cluster: Cluster, seconds: float) -> int:
    """Replace the pods of a deployment over and over for so long; return how often."""
    deadline, rounds = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        rounds += 1
        for replicas in (4, 1):
            probed = ("deployment/probed", f"--namespace={NAMESPACE}")
            cluster.kubectl.run("scale", *probed, f"--replicas={replicas}")
            cluster.kubectl.run("rollout", "status", *probed, "--timeout=120s", timeout=150)
    return rounds
