"""Records what the runs measured, for docs/tested-on.md: one JSON line a detection or remediation, below build/.

`make tested-on` makes the page of them. A line is appended with one write under a lock, so that several processes may
record at once, and those in a namespace of their own that have the same checkout.
"""

import fcntl
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from tests.lab.versions import containerd_version

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "detections"
KUBERNETES = "NODEDIAG_LAB_KUBERNETES"
"""In the environment of the cluster's tests: the folder of the kubelet that runs there."""
WHERE = ("lab", "image", "cluster", "VM")

HUNG, LEAKED = "ContainerdShimHung", "ContainerdShimLeaked"
ZOMBIES, KUBELET, PLEG = "ExcessiveDefunctProcesses", "KubeletHealthzFailing", "PLEGUnhealthy"
RACE, PRESSURE, DNS = "ConntrackDNSRace", "ConntrackTablePressure", "DNSUnavailable"
RUNTIME = "ContainerRuntimeUnresponsive"

FAULTS = {
    "shim stopped": (HUNG, "ShimUnresponsive"),
    "shim frozen": (HUNG, "ShimUnresponsive"),
    "shim's State stuck": (HUNG, "ShimOperationStuck"),
    "shim killed, bundle left": (LEAKED, "ShimDead"),
    "shim orphaned": (LEAKED, "ShimWithoutContainers"),
    "shim without live container": (LEAKED, "ShimWithoutContainers"),
    "processes without shim": (LEAKED, "ProcessesWithoutShim"),
    "shim killed, containers live on": (LEAKED, "ProcessesWithoutShim"),
    "zombies of a parent that does not reap": (ZOMBIES, "ParentNotReaping"),
    "zombies of an exec probe": (ZOMBIES, "ParentNotReaping"),
    "16,018 zombies": (ZOMBIES, "TooManyDefunctProcesses"),
    "zombies use up the pids of a pod": (ZOMBIES, "PidExhaustionAhead"),
    "DNS drops one of each pair": (RACE, "DNSQueriesLost"),
    "packets race for a conntrack entry": (RACE, "InsertFailed"),
    "conntrack table full": (PRESSURE, "TableFull"),
    "conntrack table nearly full": (PRESSURE, "TableNearlyFull"),
    "conntrack entries evicted": (PRESSURE, "EarlyDrop"),
    "conntrack hash chain too long": (PRESSURE, "ChainTooLong"),
    "DNS silent": (DNS, "ServerUnreachable"),
    "DNS not listening": (DNS, "ServerUnreachable"),
    "DNS slow": (DNS, "ServerSlow"),
    "kubelet never answers": (KUBELET, "HealthzTimeout"),
    "kubelet trickles": (KUBELET, "HealthzTimeout"),
    "kubelet stopped": (KUBELET, "HealthzTimeout"),
    "kubelet throttled": (KUBELET, "HealthzSlow"),
    "kubelet late": (KUBELET, "HealthzSlow"),
    "kubelet refuses": (KUBELET, "HealthzRefused"),
    "kubelet killed": (KUBELET, "HealthzRefused"),
    "kubelet says 500": (KUBELET, "HealthzNotOK"),
    "containerd stopped": (RUNTIME, "CRITimeout"),
    "containerd frozen": (RUNTIME, "CRITimeout"),
    "containerd killed": (RUNTIME, "RuntimeRefused"),
    "containerd stopped, seen by the kubelet": (PLEG, "RelistSlow"),
    "kubelet discards events": (PLEG, "EventsDiscarded"),
}
"""The faults by the name that a row of the page has, and the condition and reason that report them at first."""

REMEDIATIONS = (
    ("KillShim", "shim stopped"),
    ("KillShim", "shim frozen"),
    ("KillShim", "shim killed, containers live on"),
    ("ThawCgroup", "shim frozen"),
    ("ThawCgroup", "containerd frozen"),
    ("SignalParent", "zombies of a parent that does not reap"),
    ("KillParent", "zombies of a parent that does not reap"),
    ("RestartKubelet", "kubelet stopped"),
    ("RestartKubelet", "kubelet killed"),
    ("RestartContainerd", "containerd stopped"),
    ("RestartContainerd", "containerd killed"),
    ("RestartContainerd", "shim killed, bundle left"),
    ("DeleteConntrackFlows", "DNS drops one of each pair"),
)
"""The actions and the faults that they are tested against; what is recorded besides gets a row, too."""


@dataclass(frozen=True, slots=True)
class Record:
    """One measurement: a fault that was detected after so many seconds, or an action and how it ended."""

    fault: str
    where: str
    containerd: str
    condition: str = ""
    reason: str = ""
    seconds: float | None = None
    action: str = ""
    outcome: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    commit: str = ""
    at: str = ""


def record(
    fault: str,
    where: str,
    seconds: float,
    *,
    condition: str = "",
    reason: str = "",
    containerd: str = "",
    facts: Mapping[str, str] | None = None,
) -> None:
    """Record that a fault was detected; `where` is lab, image, cluster or VM.

    A fault that is not in FAULTS, or that another condition or reason reported, is recorded with these named. `facts`
    are those of a machine that is not this one: kernel, cgroup, systemd, containerd, runc, kubernetes.
    """
    known = FAULTS.get(fault, ("", ""))
    found = (condition or known[0], reason or known[1])
    if not all(found):
        raise ValueError(f"{fault!r} is not in FAULTS: name its condition and reason")
    _check(where)
    version = containerd or _version(facts)
    _append(Record(fault, where, version, *found, seconds=round(seconds, 2), facts=_facts(facts, where, version)))


def record_outcome(
    action: str, fault: str, where: str, outcome: str, *, containerd: str = "", facts: Mapping[str, str] | None = None
) -> None:
    """Record how an action against a fault ended: verified, refused ..."""
    _check(where)
    version = containerd or _version(facts)
    _append(Record(fault, where, version, action=action, outcome=outcome, facts=_facts(facts, where, version)))


def read(folder: Path = FOLDER) -> list[Record]:
    """Return all that was recorded, oldest first."""
    lines = (line for path in folder.glob("*.jsonl") for line in path.read_text().splitlines())
    return sorted((Record(**json.loads(line)) for line in lines), key=lambda each: each.at)


def _check(where: str) -> None:
    if where not in WHERE:
        raise ValueError(f"{where!r} is none of {', '.join(WHERE)}")


def _append(made: Record) -> None:
    row = {**asdict(made), "commit": commit(), "at": datetime.now(UTC).isoformat(timespec="seconds")}
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / f"{made.where}-{made.containerd}.jsonl").open("ab", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(row).encode() + b"\n")


def _version(facts: Mapping[str, str] | None) -> str:
    """Return the version of containerd, such as 2.1: that of another machine's facts, or that of this run."""
    found = re.match(r"\d+\.\d+", (facts or {}).get("containerd", ""))
    return found[0] if found else containerd_version()


def _facts(given: Mapping[str, str] | None, where: str, version: str) -> dict[str, str]:
    if given is not None:
        return dict(given)
    kubernetes = _word(f"{os.environ[KUBERNETES]}/kubelet --version", 1) if KUBERNETES in os.environ else ""
    return {**_of_this_machine(version), **({"kubernetes": kubernetes} if where == "cluster" else {})}


@cache
def _of_this_machine(version: str) -> Mapping[str, str]:
    facts = {"kernel": platform.release(), "cgroup": _cgroup_version(), "systemd": _systemd_version()}
    if version == containerd_version():  # those on PATH are of the version that was chosen
        facts |= {"containerd": _word("containerd --version", 2), "runc": _word("runc --version", 2)}
    return facts


def _cgroup_version() -> str:
    return "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1"


def _systemd_version() -> str:
    return _word("systemctl --version", 1) if Path("/run/systemd/system").exists() else "none"


def _word(command: str, number: int) -> str:
    """Return one word of what a command prints first; empty if there is no such command."""
    try:
        printed = subprocess.run(command.split(), capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return [*printed.split(), *[""] * number][number]


@cache
def commit() -> str:
    """Return what this checkout is: its commit, and whether files have been changed since."""
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
