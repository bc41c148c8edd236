"""What to do about a finding: the recommended action in words, and the commands to type next.

The agent's own command comes first where it can do it: it looks again, keeps evidence and verifies. The others are the
host's own tools and kubectl, for where remediation is switched off. Names chosen by strangers never become part of a
command unless they have the shape of what they claim to be.
"""

import ipaddress
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from agent.exporters.wording import short_id, snake
from agent.model import Action, Finding, PodRef, TargetKind

_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?\Z")
"""A Kubernetes object's name: RFC 1123 subdomain."""
_CONTAINER_ID = re.compile(r"[0-9a-f]{64}\Z")
_CGROUP_ROOTS = ("/sys/fs/cgroup", "/sys/fs/cgroup/pids")


@dataclass(frozen=True, slots=True)
class Advice:
    """One or two sentences, and commands in the order to type them; none if there is none worth typing."""

    words: str
    commands: tuple[str, ...] = ()


def advise(finding: Finding) -> Advice:
    """Say what to do about one finding. Pure; every action and every kind of target has an answer."""
    return _ADVICE[finding.recommended_action](finding)


def _kill_shim(finding: Finding) -> Advice:
    if finding.values.get("processState") == "T":
        return Advice(
            "It is only stopped: continue it first, which mends it without loss. Kill it if it stays silent; "
            "containerd then cleans up and the kubelet starts the pod again.",
            (
                *_with_pid(finding, "cat /proc/{pid}/comm", "kill -CONT {pid}"),
                *_remediate(finding),
                *_with_pid(finding, "kill -9 {pid}"),
            ),
        )
    if "orphanedSeconds" in finding.values:
        return Advice(
            "containerd no longer knows this shim, so nothing is started again. Before you kill it, see what still "
            "runs below it: that would be left without any shim.",
            (
                *_with_pid(finding, "cat /proc/{pid}/task/*/children"),  # ps reads command lines, and may never return
                *_remediate(finding),
                *_with_pid(finding, "kill -9 {pid}"),
            ),
        )
    return Advice(
        "Kill the shim. containerd then cleans up and the kubelet starts the pod again; afterwards see that no "
        "process of the container is left running, which containerd 2.x can leave behind.",
        (*_remediate(finding), *_with_pid(finding, "cat /proc/{pid}/comm", "kill -9 {pid}")),
    )


def _thaw_cgroup(finding: Finding) -> Advice:
    path = finding.target.cgroup
    for key, value in finding.values.items():  # a frozen cgroup may be an ancestor of the target's own
        if snake(key) == "frozen_cgroup" and isinstance(value, str) and value:
            path = value
    words = "Thaw the frozen cgroup, unless somebody has frozen it on purpose (a checkpoint, a pause)"
    if not _is_path(path):
        return Advice(f"{words}.", _remediate(finding))
    return Advice(
        f"{words}: by hand, with cgroup.freeze on cgroup v2 and freezer.state on v1.",
        (
            *_remediate(finding),
            f"echo 0 > {shlex.quote(f'/sys/fs/cgroup{path}/cgroup.freeze')}",
            f"echo THAWED > {shlex.quote(f'/sys/fs/cgroup/freezer{path}/freezer.state')}",
        ),
    )


def _signal_parent(finding: Finding) -> Advice:
    return Advice(
        "Remind the parent of its dead children with SIGCHLD. If their number does not fall, the program lacks a "
        "handler: it needs an init such as tini as the container's pid 1, or to be restarted.",
        (*_remediate(finding), *_with_pid(finding, "kill -CHLD {pid}")),
    )


def _kill_parent(finding: Finding) -> Advice:
    return Advice(
        "End the parent; the zombies go with it. For good, run an init such as tini as the container's pid 1, or "
        "repair the exec probe that leaves them.",
        (
            *_remediate(finding),
            *(_pod_command(finding.pod, "delete pod") or _with_pid(finding, "cat /proc/{pid}/comm", "kill {pid}")),
        ),
    )


def _restart_kubelet(finding: Finding) -> Advice:
    return Advice(
        "Restart the kubelet; running containers are not touched. By hand, keep its last words first.",
        (*_remediate(finding), "journalctl -u kubelet -n 200 --no-pager", "systemctl restart kubelet"),
    )


def _restart_containerd(finding: Finding) -> Advice:
    return Advice(
        "Restart containerd; running containers live on. First deal with hung shims (ContainerdShimHung): their pods "
        "may be cleaned up by it. By hand, keep its last words first.",
        (*_remediate(finding), "journalctl -u containerd -n 200 --no-pager", "systemctl restart containerd"),
    )


def _delete_flows(finding: Finding) -> Advice:
    address, _ = _server(finding)
    where = f" -d {address}" if address else ""
    family = " -f ipv6" if ":" in address else ""
    return Advice(
        "Delete the unanswered DNS flows from conntrack, so that the next query makes a new one. By hand, look at them "
        "first.",
        (*_remediate(finding), *(f"conntrack -{verb}{family} -p udp --dport 53{where}" for verb in "LD")),
    )


def _nothing(finding: Finding) -> Advice:
    target = finding.target
    if target.kind is TargetKind.CONTAINER and _is_path(target.cgroup):
        return Advice(
            "Nothing on this node mends it safely by itself. Its processes are in the cgroup (the first command is "
            "for v2, the second for v1); look at them before you end them.",
            tuple(f"cat {shlex.quote(f'{root}{target.cgroup}/cgroup.procs')}" for root in _CGROUP_ROOTS),
        )
    commands = (
        _LOOKS.get(target.kind)
        or _dig(finding)
        or _pod_command(finding.pod, "describe pod")
        or _with_pid(finding, "cat /proc/{pid}/status", "cat /proc/{pid}/wchan")
    )
    words = "Nothing on this node mends it safely by itself"
    return Advice(f"{words}; look here first." if commands else f"{words}.", commands)


def _dig(finding: Finding) -> tuple[str, ...]:
    address, port = _server(finding)
    if not address:
        return ()
    return (f"dig @{address}{f' -p {port}' if port else ''} kubernetes.default.svc.cluster.local",)


def _server(finding: Finding) -> tuple[str, str]:
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


def _is_path(path: str) -> bool:
    return path.startswith("/") and path.isprintable() and ".." not in path.split("/")


def _remediate(finding: Finding) -> tuple[str, ...]:
    """Return the agent's own command for the recommended action, if the target has a name that can be typed."""
    target = finding.target
    name = _WORDS.get(target.kind) or (str(target.pid) if target.pid else "") or _server(finding)[0]
    if not name and _CONTAINER_ID.match(target.container_id):
        name = short_id(target.container_id)
    return (f"nodediag remediate {finding.recommended_action} --target {name}",) if name else ()


def _with_pid(finding: Finding, *commands: str) -> tuple[str, ...]:
    pid = finding.target.pid
    return tuple(command.format(pid=pid) for command in commands) if pid else ()


def _pod_command(pod: PodRef | None, verb: str) -> tuple[str, ...]:
    if pod is None or not _NAME.match(pod.namespace) or not _NAME.match(pod.name):
        return ()
    return (f"kubectl -n {pod.namespace} {verb} {pod.name}",)


_WORDS: Mapping[TargetKind, str] = {
    TargetKind.KUBELET: "kubelet",
    TargetKind.CONTAINERD: "containerd",
    TargetKind.CONNTRACK: "conntrack",
}
_LOOKS: Mapping[TargetKind, tuple[str, ...]] = {
    TargetKind.KUBELET: ("journalctl -u kubelet -n 200 --no-pager",),
    TargetKind.CONTAINERD: ("journalctl -u containerd -n 200 --no-pager",),
    TargetKind.CONNTRACK: ("conntrack -S", "sysctl net.netfilter.nf_conntrack_count net.netfilter.nf_conntrack_max"),
}
_ADVICE: Mapping[Action, Callable[[Finding], Advice]] = {
    Action.NONE: _nothing,
    Action.KILL_SHIM: _kill_shim,
    Action.THAW_CGROUP: _thaw_cgroup,
    Action.SIGNAL_PARENT: _signal_parent,
    Action.KILL_PARENT: _kill_parent,
    Action.RESTART_KUBELET: _restart_kubelet,
    Action.RESTART_CONTAINERD: _restart_containerd,
    Action.DELETE_CONNTRACK_FLOWS: _delete_flows,
}
