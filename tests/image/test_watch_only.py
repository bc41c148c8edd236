"""The manifest as it is: every watch finds its faults, with what the manifest gives it and nothing more."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent.model import Action, Finding, NodeReport, Status
from tests.image.conftest import ROOT
from tests.image.deployed import Deployed, ImageNode, read
from tests.lab import conntrack_faults, shim_faults, zombies
from tests.lab.containers import run_container
from tests.lab.dns_servers import DnsMode
from tests.lab.kubelet_standin import KubeletMode
from tests.lab.pods import Pod
from tests.lab.waiting import wait_until
from tests.lab.whole_node import ThisNode

MANIFEST = read(ROOT / "deploy" / "daemonset.yaml")
SPARE = 0.25
"""Of the memory limit, never used."""


@dataclass(frozen=True)
class Missing:
    """What a watch says when something of the manifest is taken away: of a condition, with these words."""

    condition: str
    words: tuple[str, ...]


MISSING = {
    "NET_ADMIN": Missing("ConntrackDNSRace", ("CAP_NET_ADMIN is missing",)),
    "SYS_PTRACE": Missing("ContainerdShimLeaked", ("the agent needs CAP_SYS_PTRACE",)),
    "/run/containerd": Missing("ContainerRuntimeUnresponsive", ("mount /run/containerd here",)),
    "/sys/fs/cgroup": Missing("ContainerdShimHung", ("/sys/fs/cgroup does not show the node's cgroups",)),
}
"""By capability or path. One that is not here is not shown to be needed, and has no place in the manifest."""

EXPECTED = {
    ("ContainerdShimHung", "ShimUnresponsive", "shop/stopped"),
    ("ContainerdShimHung", "ShimUnresponsive", "shop/frozen"),
    ("ContainerdShimLeaked", "ShimWithoutContainers", "shop/orphaned"),
    ("ExcessiveDefunctProcesses", "ParentNotReaping", "shop/maker"),
    ("ConntrackDNSRace", "DNSQueriesLost", ""),
    ("KubeletHealthzFailing", "HealthzNotOK", ""),
}
"""What is made at the same time: condition, reason, and whose pod must be named."""
