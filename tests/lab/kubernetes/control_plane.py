"""etcd, API server, controller manager and scheduler, each a process with a log."""

from __future__ import annotations

import json
import ssl
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab.kubernetes.network import API_PORT, API_SERVICE, SERVICE_NETWORK
from tests.lab.kubernetes.pki import Pki, make_pki
from tests.lab.kubernetes.service import Service
from tests.lab.waiting import wait_until
from tests.lab.whole_node import ADDRESS

_READY_SECONDS = 120.0
_AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        # Whose token or permission it is about stands in the answer alone.
        {
            "level": "RequestResponse",
            "resources": [
                {"group": "authentication.k8s.io", "resources": ["tokenreviews"]},
                {"group": "authorization.k8s.io", "resources": ["subjectaccessreviews"]},
            ],
        },
        {"level": "Metadata"},
    ],
}


class ControlPlane:
    """The four of them, as a context manager; the API server is ready when it is entered."""

    def __init__(self, binaries: Path, folder: Path, node: str) -> None:
        self.audit_log = folder / "audit.log"
        self.pki: Pki = make_pki(
            folder / "pki", node, f"https://{ADDRESS}:{API_PORT}",
            ADDRESS, API_SERVICE, "127.0.0.1", "kubernetes.default.svc", "kubernetes",
        )  # fmt: skip
        policy = folder / "audit-policy.json"
        policy.write_text(json.dumps(_AUDIT_POLICY))
        self.etcd = Service("etcd", _etcd(binaries, folder), folder)
        self.api_server = Service("kube-apiserver", _api_server(binaries, self.pki, policy, self.audit_log), folder)
        self.controller_manager = Service("kube-controller-manager", _controller_manager(binaries, self.pki), folder)
        self.scheduler = Service("kube-scheduler", _scheduler(binaries, self.pki), folder)
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.enter_context(self.etcd)
            undo.enter_context(self.api_server)
            wait_until(self._is_ready, _READY_SECONDS, "the API server is ready")
            undo.enter_context(self.controller_manager)
            undo.enter_context(self.scheduler)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def _is_ready(self) -> bool:
        self.etcd.check()
        self.api_server.check()
        context = ssl.create_default_context(cafile=str(self.pki.file("ca.crt")))
        try:
            with urllib.request.urlopen(f"{self.pki.server}/readyz", timeout=3, context=context) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False


def _etcd(binaries: Path, folder: Path) -> list[str]:
    client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
    return [
        str(binaries / "etcd"), f"--data-dir={folder / 'etcd'}", "--unsafe-no-fsync",
        f"--listen-client-urls={client}", f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=default={peer}",
    ]  # fmt: skip


def _api_server(binaries: Path, pki: Pki, audit_policy: Path, audit_log: Path) -> list[str]:
    return [
        str(binaries / "kube-apiserver"), "--etcd-servers=http://127.0.0.1:2379",
        f"--bind-address={ADDRESS}", f"--advertise-address={ADDRESS}", f"--secure-port={API_PORT}",
        "--insecure-port=0", f"--cert-dir={pki.folder}", f"--tls-cert-file={pki.file('apiserver.crt')}",
        f"--tls-private-key-file={pki.file('apiserver.key')}", f"--token-auth-file={pki.file('tokens.csv')}",
        "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={pki.file('service-account.key')}",
        f"--service-account-signing-key-file={pki.file('service-account.key')}",
        f"--service-cluster-ip-range={SERVICE_NETWORK}",
        f"--kubelet-client-certificate={pki.file('kubelet-client.crt')}",
        f"--kubelet-client-key={pki.file('kubelet-client.key')}", "--kubelet-preferred-address-types=InternalIP",
        f"--audit-policy-file={audit_policy}", f"--audit-log-path={audit_log}",
    ]  # fmt: skip


def _controller_manager(binaries: Path, pki: Pki) -> list[str]:
    return [
        str(binaries / "kube-controller-manager"), f"--kubeconfig={pki.kubeconfig('controller-manager')}",
        f"--service-account-private-key-file={pki.file('service-account.key')}",
        f"--root-ca-file={pki.file('ca.crt')}", "--use-service-account-credentials=true", "--leader-elect=false",
        "--authentication-skip-lookup=true", "--secure-port=0", "--port=10252", "--address=127.0.0.1",
    ]  # fmt: skip


def _scheduler(binaries: Path, pki: Pki) -> list[str]:
    return [
        str(binaries / "kube-scheduler"), f"--kubeconfig={pki.kubeconfig('scheduler')}", "--leader-elect=false",
        "--secure-port=0", "--port=10251", "--address=127.0.0.1",
    ]  # fmt: skip
