"""The cluster's keys, certificates and tokens, and the kubeconfig files made of them."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.lab.certificates import Authority

_RSA_BITS = 2048
_DAY = 86400.0
USERS = {
    "admin": ("admin", "system:masters"),
    "kubelet": ("system:node:{node}", "system:nodes"),
    "controller-manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
}
"""By file name: the user's name and group."""


@dataclass(frozen=True)
class Pki:
    """Where the files lie, all in one folder."""

    folder: Path
    server: str

    def file(self, name: str) -> Path:
        """Return the path of one of the files."""
        return self.folder / name

    def kubeconfig(self, user: str) -> Path:
        """Return the kubeconfig of one of `USERS`."""
        return self.folder / f"{user}.kubeconfig"


def make_pki(folder: Path, node: str, server: str, *server_names: str) -> Pki:
    """Make everything anew in a folder; `server` is the API server's URL, `server_names` what it is reached by."""
    folder.mkdir(mode=0o700)
    pki = Pki(folder, server)
    authority = Authority("the lab's cluster")
    pki.file("ca.crt").write_bytes(authority.pem)
    authority.issue(*server_names, seconds=_DAY).write(folder, "apiserver")
    # The API server shows this one to the kubelet, for `kubectl exec` and `kubectl logs`.
    client = authority.issue(seconds=_DAY, common_name="kube-apiserver", organization="system:masters")
    client.write(folder, "kubelet-client")
    _make_service_account_key(folder)
    tokens = {user: secrets.token_hex(16) for user in USERS}
    lines = [f'{tokens[user]},{name.format(node=node)},{user},"{group}"\n' for user, (name, group) in USERS.items()]
    pki.file("tokens.csv").write_text("".join(lines))
    for user, token in tokens.items():
        pki.kubeconfig(user).write_text(_kubeconfig(pki, token))
    return pki


def _make_service_account_key(folder: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=_RSA_BITS)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    (folder / "service-account.key").write_bytes(private)


def _kubeconfig(pki: Pki, token: str) -> str:
    name = "nodediag-lab"
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": name, "cluster": {"server": pki.server, "certificate-authority": str(pki.file("ca.crt"))}}
            ],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
            "current-context": name,
        }
    )
