"""What the lab needs of the machine, said plainly."""

from __future__ import annotations

import os
import shutil

_PACKAGES = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "busybox": "busybox-static",
    "gcc": "gcc and libc6-dev",
    "ip": "iproute2",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "sysctl": "procps",
    "nsenter": "util-linux",
    "unshare": "util-linux",
}


def missing_parts() -> list[str]:
    """Return what is missing, one sentence each; empty when the lab can work."""
    missing = [
        f"{command} (package {package})" for command, package in _PACKAGES.items() if shutil.which(command) is None
    ]
    if os.geteuid() != 0:
        missing.insert(0, "root")
    return missing
