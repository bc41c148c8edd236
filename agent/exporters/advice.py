"""What to do about a finding: steps, each with its condition, what to do, and the commands to type.

The agent's own command comes first where it can do it: it probes again, keeps evidence and verifies. The others are the
host's own tools and kubectl, for where remediation is disabled.
"""

import shlex
from collections.abc import Callable, Mapping

from agent.exporters.advice_service import journal, restart_containerd, restart_kubelet
from agent.exporters.advice_shim import kill_shim, processes_without_shim
from agent.exporters.advice_steps import (
    BY_HAND,
    Advice,
    Step,
    by_agent,
    dns_target,
    is_path,
    unit_of,
    with_pid,
    with_pod,
)
from agent.exporters.wording import snake
from agent.model import Action, Finding, TargetKind

_SWITCHES: Mapping[str, str] = {"cgroup.freeze": "0", "freezer.state": "THAWED"}
"""What is written to which file of a cgroup to thaw it: v2 and v1."""


def advise(finding: Finding) -> Advice:
    """Return what to do about one finding. Pure; every action and every kind of target has an answer."""
    return _ADVICE[finding.recommended_action](finding)


def _thaw_cgroup(finding: Finding) -> Advice:
    agent = by_agent(
        finding,
        "Have the agent thaw the cgroup. Nothing is lost by this.",
        "Only if nobody froze it on purpose (a checkpoint, a pause)",
    )
    steps = (*agent, *_thaw_by_hand(finding))
    words = "Thaw the frozen cgroup, unless somebody froze it on purpose (a checkpoint, a pause)."
    return Advice(steps or (Step(words),))


def _thaw_by_hand(finding: Finding) -> tuple[Step, ...]:
    file = _thaw_file(finding)
    directory, _, switch = file.rpartition("/")
    value, unit = _SWITCHES.get(switch), unit_of(directory)
    if value is None:
        return ()
    write = f"echo {value} > {shlex.quote(file)}"
    if not unit:
        return (Step("Thaw the cgroup by hand.", BY_HAND, (write,)),)
    name = shlex.quote(unit)
    return (
        Step(
            "See whether systemd froze this unit: only systemd can then thaw it and know that it has.",
            BY_HAND,
            (f"systemctl show -p FreezerState {name}",),
        ),
        Step("Thaw the unit by hand.", "Only if it prints FreezerState=frozen", (f"systemctl thaw {name}",)),
        Step("Thaw the cgroup by hand.", "Only if it prints anything else", (write,)),
    )


def _thaw_file(finding: Finding) -> str:
    """Return the file that thaws the frozen cgroup, of the hierarchy that freezes it on this node; empty if unknown.

    A frozen cgroup may be an ancestor of the target's own, and only the agent has seen which hierarchy froze it.
    """
    files = (value for key, value in finding.values.items() if snake(key) == "thaw_file")
    return next((file for file in files if isinstance(file, str) and is_path(file)), "")


def _signal_parent(finding: Finding) -> Advice:
    return Advice(
        (
            *by_agent(
                finding, "Have the agent remind the parent of its dead children with SIGCHLD. This ends nothing."
            ),
            *with_pid(finding, "Send SIGCHLD to the parent by hand. This ends nothing.", "kill -CHLD {pid}", BY_HAND),
            Step(
                "Restart the program, or give its container an init such as tini as pid 1: it has no handler for "
                "SIGCHLD.",
                "Only if the number of zombies has not fallen a minute after that",
            ),
        )
    )


def _kill_parent(finding: Finding) -> Advice:
    agent = by_agent(finding, "Have the agent end the parent; its zombies go with it.")
    by_hand = with_pod(finding.pod, "Delete the pod; its zombies go with it.", "delete pod", BY_HAND)
    if not by_hand:
        by_hand = (
            *with_pid(finding, "See whether the pid is still that of the parent.", "cat /proc/{pid}/comm", BY_HAND),
            *with_pid(
                finding,
                "End the parent; its zombies go with it.",
                "kill {pid}",
                "Only if it prints the name that the finding names, and remediation is disabled on this node",
            ),
        )
    last = "Run an init such as tini as the container's pid 1, or fix the exec probe that leaves the zombies."
    return Advice((*agent, *by_hand, Step(last, "So that it does not happen again")))


def _delete_flows(finding: Finding) -> Advice:
    address, _ = dns_target(finding)
    where = f" -d {address}" if address else ""
    family = " -f ipv6" if ":" in address else ""
    listed, deleted = (f"conntrack -{verb}{family} -p udp --dport 53{where}" for verb in "LD")
    return Advice(
        (
            *by_agent(
                finding,
                "Have the agent delete the unanswered DNS flows from conntrack: the next query makes a new one.",
            ),
            Step("List the DNS flows.", BY_HAND, (listed,)),
            Step(
                "Delete them. This also ends queries that are under way.",
                "Only if it lists UNREPLIED flows, and remediation is disabled on this node",
                (deleted,),
            ),
        )
    )


def _nothing(finding: Finding) -> Advice:
    target = finding.target
    if target.kind is TargetKind.CONTAINER and target.cgroup:
        return processes_without_shim(finding)
    words = "Nothing on this node fixes this safely by itself"
    commands = _QUERIES.get(target.kind) or journal(finding) or _dig(finding)
    if commands:
        return Advice((Step(f"{words}. Start here.", commands=commands),))
    steps = with_pod(finding.pod, f"{words}. Start with the pod.", "describe pod") or with_pid(
        finding, f"{words}. Start with the process.", "grep State /proc/{pid}/status; cat /proc/{pid}/wchan; echo"
    )
    return Advice(steps or (Step(f"{words}."),))


def _dig(finding: Finding) -> tuple[str, ...]:
    address, port = dns_target(finding)
    if not address:
        return ()
    return (f"dig @{address}{f' -p {port}' if port else ''} kubernetes.default.svc.cluster.local",)


_QUERIES: Mapping[TargetKind, tuple[str, ...]] = {
    TargetKind.CONNTRACK: ("conntrack -S", "sysctl net.netfilter.nf_conntrack_count net.netfilter.nf_conntrack_max"),
}
_ADVICE: Mapping[Action, Callable[[Finding], Advice]] = {
    Action.NONE: _nothing,
    Action.KILL_SHIM: kill_shim,
    Action.THAW_CGROUP: _thaw_cgroup,
    Action.SIGNAL_PARENT: _signal_parent,
    Action.KILL_PARENT: _kill_parent,
    Action.RESTART_KUBELET: restart_kubelet,
    Action.RESTART_CONTAINERD: restart_containerd,
    Action.DELETE_CONNTRACK_FLOWS: _delete_flows,
}
