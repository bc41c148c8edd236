"""The network of a whole node that is to be a Kubernetes node: a default route, the service address, and pods' own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.lab.whole_node import ADDRESS

SERVICE_NETWORK = "10.96.0.0/24"
API_SERVICE = "10.96.0.1"
"""The first address of the service network: the Service `kubernetes`."""
API_PORT = 6443
_PLUGINS = Path("/usr/lib/cni")
"""Of Debian's containernetworking-plugins."""
_POD_NETWORK = "10.244.0.0/24"


def furnish_network() -> None:
    """Give the node an interface with its address, a default route, and kube-proxy's rule: a kubelet needs them.

    The interface's other end is in the same network namespace: what is sent there goes nowhere.
    """
    to_api_server = [
        "--destination", API_SERVICE, "--protocol", "tcp", "--dport", "443",
        "--jump", "DNAT", "--to-destination", f"{ADDRESS}:{API_PORT}",
    ]  # fmt: skip
    commands = [
        ["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "nowhere"],
        ["ip", "link", "set", "nowhere", "up"],
        ["ip", "address", "delete", f"{ADDRESS}/32", "dev", "lo"],
        ["ip", "address", "add", f"{ADDRESS}/24", "dev", "eth0"],
        ["ip", "link", "set", "eth0", "up"],
        ["ip", "route", "add", "default", "via", _gateway()],
        *(["iptables", "--table", "nat", "--append", chain, *to_api_server] for chain in ("OUTPUT", "PREROUTING")),
    ]
    for command in commands:
        subprocess.run(command, check=True, capture_output=True, text=True)


def furnish_cni(binaries: Path, configuration: Path) -> None:
    """Fill the folders in which containerd looks for CNI's plugins and their configuration."""
    if not (_PLUGINS / "ptp").exists():
        raise FileNotFoundError(f"no CNI plugins in {_PLUGINS}: install the package containernetworking-plugins")
    binaries.symlink_to(_PLUGINS)
    configuration.mkdir()
    plugin = {
        "type": "ptp",
        "ipam": {"type": "host-local", "subnet": _POD_NETWORK, "routes": [{"dst": "0.0.0.0/0"}], "dataDir": "/run/cni"},
    }
    network = {"cniVersion": "0.4.0", "name": "lab", "plugins": [plugin]}
    (configuration / "10-lab.conflist").write_text(json.dumps(network))


def _gateway() -> str:
    return ADDRESS.rsplit(".", 1)[0] + ".1"
