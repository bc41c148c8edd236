"""The manifest as shipped and each overlay, deployed side by side for all tests that make faults.

Each overlay has a namespace and a port of its own; else it is what `kubectl apply -k` applies. What an operator adds is
added: the Secret, and `dry_run: false` for remediation.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.client import ClientTls
from tests.cluster.deployed import Agent, copy_of, deployed
from tests.delivery.deploy.kustomize import overlay
from tests.lab.certificates import CA, CERT, KEY, Authority
from tests.lab.kubernetes.cluster import Cluster
from tests.lab.pod_spec import Manifest
from tests.lab.whole_node import ADDRESS

CALLER = "mender.nodediag.svc"
"""A caller that the overlay itself names, who may request KillShim."""
ENDPOINT = f"{ADDRESS}:9798"
OVERLAYS = ("kubelet-api", "remediation", "node-conditions")
PORTS_APART = 10


@dataclass(frozen=True)
class Fleet:
    """The agents by name, and a caller's certificate for the one that remediates."""

    agents: dict[str, Agent]
    tls: ClientTls

    @property
    def shipped(self) -> Agent:
        """The agent of deploy/daemonset.yaml."""
        return self.agents["shipped"]

    def await_well(self) -> None:
        """Wait until every condition of every agent is False."""
        for agent in self.agents.values():
            agent.await_well()


@contextmanager
def running_fleet(cluster: Cluster, shipped: Agent, folder: Path) -> Iterator[Fleet]:
    """Deploy the overlays beside the manifest as shipped for the body, each rolled out and well."""
    authority = Authority("callers and agents")
    (folder / CA).write_bytes(authority.pem)
    cert, key = authority.issue(CALLER).write(folder, "caller")
    with ExitStack() as stack:
        stack.enter_context(_proxy_granted(cluster, "nodediag-kubelet-api"))
        agents = {"shipped": shipped}
        for number, name in enumerate(OVERLAYS, 1):
            manifest = Manifest(overlay(name))
            manifest = _finished(manifest, authority) if name == "remediation" else manifest
            manifest = copy_of(manifest, f"nodediag-{name}", number * PORTS_APART)
            agents[name] = stack.enter_context(deployed(cluster, manifest))
        for agent in agents.values():
            agent.await_rollout()
        fleet = Fleet(agents, ClientTls(str(cert), str(key), str(folder / CA)))
        fleet.await_well()
        yield fleet


def _finished(manifest: Manifest, authority: Authority) -> Manifest:
    """Return the overlay `remediation` as an operator finishes it: with a Secret, and no dry run."""
    changed = manifest.copy()
    files = changed.settings
    files["remediation.yaml"] = files["remediation.yaml"].replace("dry_run: true", "dry_run: false")
    issued = authority.issue(ADDRESS)
    data = {CERT: issued.cert.decode(), KEY: issued.key.decode(), CA: authority.pem.decode()}
    metadata = {"name": "nodediag-tls", "namespace": "nodediag"}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data}
    namespace, *others = changed.objects
    return Manifest((namespace, secret, *others))


@contextmanager
def _proxy_granted(cluster: Cluster, namespace: str) -> Iterator[None]:
    """Let kubelet-api read nodes/proxy: a kubelet before 1.33 knows no `nodes/pods` and requires that for /pods.

    The manifests do not grant it, and must not: it can exec into every pod.
    """
    print(f"granted to {namespace} for this test alone: nodes/proxy, as a kubelet before 1.33 authorizes /pods")
    name = "nodediag-test-proxy"
    rbac = "rbac.authorization.k8s.io"
    rule = {"apiGroups": [""], "resources": ["nodes/proxy"], "verbs": ["get"]}
    role: dict[str, Any] = {
        "apiVersion": f"{rbac}/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": [rule]
    }  # fmt: skip
    binding = {
        "apiVersion": f"{rbac}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": "nodediag", "namespace": namespace}],
    }
    cluster.kubectl.apply(role, binding)
    try:
        yield
    finally:
        cluster.kubectl.delete(role, binding)
