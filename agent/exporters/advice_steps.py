"""The form of an advice: steps, each with its own condition and its own commands, and what commands are made of.

The commands of one step belong to one decision, so a step may be pasted whole; two steps never stand in one block.
Names chosen by a workload never become part of a command unless they have the shape of what they claim to be.
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass

from agent.exporters.wording import short_id
from agent.model import Finding, PodRef, TargetKind

BY_HAND = "Only if remediation is disabled on this node"
"""The condition of every step that does by hand what the agent's own action does with checks."""

_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?\Z")
"""A Kubernetes object's name: RFC 1123 subdomain."""
_CONTAINER_ID = re.compile(r"[0-9a-f]{64}\Z")
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@][A-Za-z0-9:_.\\@-]{0,246}\.(?:service|scope|slice)\Z")
"""The units that own a cgroup (see host.units). A name that begins with a dash would be an option."""
_TYPED: Mapping[TargetKind, str] = {
    TargetKind.KUBELET: "kubelet",
    TargetKind.CONTAINERD: "containerd",
    TargetKind.CONNTRACK: "conntrack",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One decision: what to do, when (empty: in any case), and its commands in the order to type them."""

    do: str
    when: str = ""
    commands: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """Condition and instruction in one text, without the commands."""
        return f"{self.when}: {self.do}" if self.when else self.do


@dataclass(frozen=True, slots=True)
class Advice:
    """The steps in the order in which they are considered; there is at least one."""

    steps: tuple[Step, ...]

    @property
    def numbered(self) -> tuple[tuple[str, Step], ...]:
        """Each step behind its number, which is empty where there is only one."""
        if len(self.steps) == 1:
            return (("", self.steps[0]),)
        return tuple((f"{number}. ", step) for number, step in enumerate(self.steps, 1))


def by_agent(finding: Finding, do: str, when: str = "") -> tuple[Step, ...]:
    """Return the step that has the agent do the recommended action; none if the target has no name to type."""
    target = finding.target
    name = _TYPED.get(target.kind) or (str(target.pid) if target.pid else "") or dns_target(finding)[0]
    if not name and _CONTAINER_ID.match(target.container_id):
        name = short_id(target.container_id)
    command = f"nodediag remediate {finding.recommended_action} --target {name}"
    return (Step(do, when, (command,)),) if name else ()


def with_pid(finding: Finding, do: str, command: str, when: str = "") -> tuple[Step, ...]:
    """Return a step whose command has the target's pid in place of `{pid}`; none if the target has no pid."""
    pid = finding.target.pid
    return (Step(do, when, (command.format(pid=pid),)),) if pid else ()


def with_pod(pod: PodRef | None, do: str, verb: str, when: str = "") -> tuple[Step, ...]:
    """Return a step with `kubectl VERB POD`; none if the pod is not known or its name is none of Kubernetes'."""
    if pod is None or not _NAME.match(pod.namespace) or not _NAME.match(pod.name):
        return ()
    return (Step(do, when, (f"kubectl -n {pod.namespace} {verb} {pod.name}",)),)


def container_ids(finding: Finding) -> tuple[str, ...]:
    """Return the ids of the target's containers, shortened as crictl does; those of another shape are left out."""
    listed = finding.values.get("containerIds")
    named = (finding.target.container_id, *(listed if isinstance(listed, tuple) else ()))
    return tuple(dict.fromkeys(short_id(each) for each in named if _CONTAINER_ID.match(each)))


def each_pid_in(containers: tuple[str, ...], command: str) -> str:
    """Return a shell command that runs `command` for each process `$p` in these containers' cgroups.

    By id, because a pod's cgroup also holds the copy that the kubelet has started meanwhile. /proc/N/cgroup never
    blocks, and names the container on cgroup v1 and v2 alike.
    """
    return f"for p in $(grep -lsE '{'|'.join(containers)}' /proc/[0-9]*/cgroup | cut -d / -f 3); do {command}; done"


def listed_in(containers: tuple[str, ...]) -> str:
    """Return a shell command that prints pid, name and state of each process in these containers' cgroups."""
    return each_pid_in(containers, "echo $p $(cat /proc/$p/comm; grep State /proc/$p/status)")


def unit_of(cgroup: str) -> str:
    """Return the systemd unit that a cgroup is named after; empty if it is none, or its name is no unit's."""
    name = cgroup.rpartition("/")[2]
    return name if _UNIT.match(name) else ""


def is_path(path: str) -> bool:
    """Whether a text is an absolute path that stays where it begins, and can be shown."""
    return path.startswith("/") and path.isprintable() and ".." not in path.split("/")


def dns_target(finding: Finding) -> tuple[str, str]:
    """Return address and port of the DNS server that a finding is about; empty if it is about none."""
    return dns_server(finding.target.address) if finding.target.kind is TargetKind.DNS_SERVER else ("", "")


def dns_server(text: str) -> tuple[str, str]:
    """Return address and port of a DNS server from `10.96.0.10`, `10.96.0.10:5353` or `[::1]:5353`; empty if none."""
    if "%" in text:  # a scope may hold anything
        return "", ""
    host, bracket, port = text.removeprefix("[").partition("]:")
    if not bracket and host.count(":") == 1:
        host, _, port = host.partition(":")
    try:
        return str(ipaddress.ip_address(host)), port if port.isdecimal() and port.isascii() else ""
    except ValueError:
        return "", ""
