"""What to do about a finding whose remedy is a restart of the kubelet or of containerd, or a start of one that ended.

Which unit runs a service depends on how the node was set up (kubelet.service, k3s.service, rke2-server.service, a
snap's): the commands name the unit that the finding names, and the usual one only where that is not known.
"""

import shlex

from agent.exporters.advice_steps import BY_HAND, Advice, Step, by_agent, unit_of, with_pid
from agent.model import Finding, TargetKind

_SERVICES = {TargetKind.KUBELET: "kubelet", TargetKind.CONTAINERD: "containerd"}
"""The targets that are a service of the node, and the unit that usually runs it."""
_STARTS_ANEW = "reset-failed lets systemd start it although its start limit may be used up"


def restart_kubelet(finding: Finding) -> Advice:
    """Return the steps that restart a kubelet, or start one that has ended."""
    unit = service_of(finding, "kubelet")
    if _has_ended(finding):
        agent = by_agent(finding, "Have the agent start the kubelet. Running containers are not touched.")
        return Advice((*agent, *_start_by_hand("the kubelet", unit)))
    return Advice(
        (
            *_continue_service(finding, "kubelet"),
            *by_agent(finding, "Have the agent restart the kubelet. Running containers are not touched."),
            _journal_kept(unit),
            Step(f"Restart the kubelet by hand; {_STARTS_ANEW}.", BY_HAND, (_anew("restart", unit),)),
        )
    )


def restart_containerd(finding: Finding) -> Advice:
    """Return the steps that restart a containerd, or start one that has ended."""
    unit = service_of(finding, "containerd")
    reported = "ContainerdShimHung is not reported"
    if _has_ended(finding):
        shims = f"Only if {reported}: containerd can clean up the pod of a hung shim when it starts"
        agent = by_agent(finding, "Have the agent start containerd. Running containers are not touched.", shims)
        return Advice((*agent, *_start_by_hand("containerd", unit, f", {reported}")))
    shims = f"Only if {reported}: a restart can clean up the pod of a hung shim"
    stopped = _continue_service(finding, "containerd") if finding.target.kind is TargetKind.CONTAINERD else ()
    return Advice(
        (
            *stopped,
            *by_agent(finding, "Have the agent restart containerd. Running containers are not touched.", shims),
            _journal_kept(unit),
            Step(
                "See whether the unit spares the shims when it is restarted.",
                BY_HAND,
                (f"systemctl show -p KillMode {shlex.quote(unit)}",),
            ),
            Step(
                f"Restart containerd by hand; {_STARTS_ANEW}.",
                f"Only if it prints KillMode=process, {reported}, and remediation is disabled on this node",
                (_anew("restart", unit),),
            ),
        )
    )


def service_of(finding: Finding, default: str) -> str:
    """Return the unit that runs the service a finding is about; the default if the finding does not name it.

    The target of a service that has ended is the cgroup of its unit. That of any other target, such as a shim, says
    nothing about containerd.
    """
    named = finding.values.get("unit")
    for text in (named if isinstance(named, str) else "", finding.target.cgroup):
        unit = unit_of(text) if finding.target.kind in _SERVICES else ""
        if unit.endswith(".service"):
            return unit
    return default


def journal(finding: Finding) -> tuple[str, ...]:
    """Return the command that prints the journal of the service a finding is about; none if it is about no service."""
    usual = _SERVICES.get(finding.target.kind)
    return (f"journalctl -u {shlex.quote(service_of(finding, usual))} -n 200 --no-pager",) if usual else ()


def _has_ended(finding: Finding) -> bool:
    return finding.target.kind in _SERVICES and not finding.target.pid


def _continue_service(finding: Finding, comm: str) -> tuple[Step, ...]:
    """Return the steps that may make a restart needless: a process that is only stopped is continued."""
    return (
        *with_pid(finding, f"See whether {comm} is only stopped.", "grep State /proc/{pid}/status"),
        *with_pid(
            finding,
            f"Continue {comm}; a restart is not needed then.",
            f"grep -x {comm} /proc/{{pid}}/comm && kill -CONT {{pid}}",
            "Only if it prints T (stopped), and nobody stopped it on purpose",
        ),
    )


def _start_by_hand(name: str, unit: str, also: str = "") -> tuple[Step, ...]:
    states = "systemctl show -p ActiveState,UnitFileState,Result"
    return (
        _journal_kept(unit),
        Step(
            "See why it does not run: UnitFileState=masked or disabled means that somebody switched it off on purpose.",
            BY_HAND,
            (f"{states} {shlex.quote(unit)}",),
        ),
        Step(
            f"Start {name} by hand; {_STARTS_ANEW}.",
            f"Only if it prints neither masked nor disabled{also}, and remediation is disabled on this node",
            (_anew("start", unit),),
        ),
    )


def _anew(verb: str, unit: str) -> str:
    """Return a command that also works once the start limit is used up, with which systemd only stops the unit."""
    name = shlex.quote(unit)
    return f"systemctl reset-failed {name}; systemctl {verb} {name}"


def _journal_kept(unit: str) -> Step:
    name, file = shlex.quote(unit), shlex.quote(f"{unit.removesuffix('.service')}.log")
    command = f"journalctl -u {name} -n 200 --no-pager > /var/tmp/{file}"
    return Step("Keep the journal: it may say why.", BY_HAND, (command,))
