"""The agent on the cluster, deployed with kubectl, and what it knows."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from agent.client import Client, ClientError
from agent.model import Changed, Condition, Finding, NodeReport, Status
from tests.lab.kubernetes.cluster import Cluster
from tests.lab.kubernetes.kubectl import Kubectl
from tests.lab.pod_spec import Manifest
from tests.lab.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = "nodediag"
STARTED_SECONDS = 300.0
"""Twice what its startupProbe gives it: several start at the same time, each at a tenth of a processor."""
FOUND_SECONDS = 120.0
"""Generous, since other lanes may run beside this one; what it took is recorded."""
_PORT = 9797
_BUNDLES = Path("/run/containerd/io.containerd.runtime.v2.task/k8s.io")
_NOT_KNOWN = {"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
"""Kinds that Kubernetes 1.20 does not have."""


class FindingLog:
    """Every finding that an agent confirms while the body runs, as a context manager."""

    def __init__(self, agent: "Agent") -> None:
        self.findings: list[Finding] = []
        self._client = agent.client()
        self._thread = threading.Thread(target=self._follow, name="finding-log", daemon=True)
        self._closing = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._client.close()
        self._thread.join(10.0)

    def messages(self) -> list[str]:
        """Return them as text."""
        return [f"{each.condition} {each.reason}: {each.message}" for each in self.findings]

    def _follow(self) -> None:
        try:
            for event in self._client.watch():
                if isinstance(event, Changed):
                    self.findings += [active.finding for active in event.condition.findings]
        except ClientError:
            if not self._closing.is_set():
                raise


@dataclass(frozen=True)
class Agent:
    """The agent of a DaemonSet on the cluster's only node, read over its Unix socket."""

    kubectl: Kubectl
    namespace: str = NAMESPACE

    def pod(self) -> dict[str, Any]:
        """Return its pod."""
        pods = self.kubectl.items("pods", f"--namespace={self.namespace}", "--selector=app.kubernetes.io/name=nodediag")
        (found,) = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
        return found

    def pid(self) -> int:
        """Return the pid of its process."""
        (status,) = self.pod()["status"]["containerStatuses"]
        return int((_BUNDLES / status["containerID"].removeprefix("containerd://") / "init.pid").read_text())

    def client(self) -> Client:
        """Return a client of it."""
        return Client(f"unix:/proc/{self.pid()}/root/run/nodediag/nodediag.sock")

    def report(self) -> NodeReport:
        """Return what it knows now."""
        with self.client() as client:
            return client.get_node_report()

    def await_rollout(self) -> float:
        """Wait until the DaemonSet is rolled out; return the seconds it took."""
        began = time.monotonic()
        words = ("rollout", "status", "daemonset/nodediag", f"--timeout={STARTED_SECONDS:.0f}s")
        self.kubectl.run("--namespace", self.namespace, *words, timeout=STARTED_SECONDS + 10)
        return time.monotonic() - began

    def exec(self, *words: str) -> tuple[int, str]:
        """Run a command inside by `kubectl exec`; return its exit status, and its output on one line."""
        done = self.kubectl.run(
            "--namespace", self.namespace, "exec", "daemonset/nodediag", "--", *words, check=False
        )  # fmt: skip
        return done.returncode, re.sub(r"\s+", " ", done.stdout + done.stderr)

    def unsettled(self) -> dict[str, str]:
        """Return the conditions that are not False, and how they stand."""
        return {
            each.type: f"{each.status} {each.reason}: {each.message}"
            for each in self._conditions()
            if each.status is not Status.FALSE
        }

    def await_well(self, timeout: float = FOUND_SECONDS) -> None:
        """Wait until every condition is False."""
        seen: dict[str, str] = {"": "no report"}

        def well() -> bool:
            nonlocal seen
            seen = self.unsettled() if self._conditions() else {"": "no report"}
            return not seen

        try:
            wait_until(well, timeout, "every condition is False")
        except AssertionError as error:
            raise AssertionError(f"{error}: {seen}") from None

    def findings(self) -> list[Finding]:
        """Return every confirmed finding."""
        return [active.finding for condition in self._conditions() for active in condition.findings]

    def found(self, fits: Callable[[Finding], bool], what: str, timeout: float = FOUND_SECONDS) -> Finding:
        """Wait for the finding that fits."""
        try:
            return wait_until(lambda: next(filter(fits, self.findings()), None), timeout, what)
        except AssertionError as error:
            raise AssertionError(f"{error}; the agent reports {self.unsettled()}") from None

    def _conditions(self) -> tuple[Condition, ...]:
        try:
            return self.report().conditions
        except (ClientError, FileNotFoundError, KeyError, ValueError):  # it is just being started
            return ()


def shipped() -> Manifest:
    """Return deploy/daemonset.yaml."""
    return Manifest.parse((ROOT / "deploy" / "daemonset.yaml").read_text())


def copy_of(manifest: Manifest, name: str, number: int) -> Manifest:
    """Return the manifest for a namespace and a port of its own, so that it can run beside others."""
    changed = manifest.copy()
    for each in changed.objects:
        if each["kind"] == "Namespace":
            each["metadata"]["name"] = name
        elif each["metadata"].get("namespace") == NAMESPACE:
            each["metadata"]["namespace"] = name
        for subject in each.get("subjects", ()):
            subject["namespace"] = name
    port = _PORT + number
    files = changed.settings
    files["nodediag.yaml"] = files["nodediag.yaml"].replace(f":{_PORT}", f":{port}")
    (metrics,) = (each for each in changed.container["ports"] if each["name"] == "metrics")
    metrics["containerPort"] = metrics["hostPort"] = port
    return changed


@contextmanager
def deployed(cluster: Cluster, manifest: Manifest) -> Iterator[Agent]:
    """Apply the manifest for the body, and delete it again, without waiting for either."""
    known = tuple(each for each in manifest.objects if each["kind"] not in _NOT_KNOWN)
    if len(known) < len(manifest.objects):
        print(f"left out, since Kubernetes 1.20 does not know them: {len(manifest.objects) - len(known)} objects")
    cluster.kubectl.apply(*known)
    try:
        yield Agent(cluster.kubectl, manifest.get("DaemonSet")["metadata"]["namespace"])
    finally:
        cluster.kubectl.delete(*known, wait=False)
