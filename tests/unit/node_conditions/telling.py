"""Conditions and findings to tell, and a dice that shows what it is told to."""

from agent.model import Action, ActiveFinding, Condition, Finding, PodRef, Status, Target, TargetKind

SINCE = 1785553965.25
HUNG, DNS = "ContainerdShimHung", "DNSUnavailable"
UID = "3a0e9c5e-7b5f-4f0e-9d0c-2b8a1d0f6c11"
CONFIG_HASH = "2363cc135985085bb5caf8c2db60826d"
"""What a kubelet uses as the uid of a static pod."""


def finding(number: int = 1, condition: str = HUNG, pod: PodRef | None = None, message: str = "") -> ActiveFinding:
    target = Target(TargetKind.SHIM, pid=4000 + number, start_time=number, boot_id="b")
    text = message or f"shim {4000 + number} does not answer"
    return ActiveFinding(Finding(condition, "ShimUnresponsive", text, Action.KILL_SHIM, target, pod), SINCE)


def well(kind: str = HUNG, message: str = "nothing wrong was seen") -> Condition:
    return Condition(kind, Status.FALSE, "AsExpected", message, SINCE)


def ill(*findings: ActiveFinding, kind: str = HUNG) -> Condition:
    found = findings or (finding(condition=kind),)
    return Condition(kind, Status.TRUE, found[0].finding.reason, found[0].finding.message, SINCE, found)


def unseen(kind: str = HUNG, reason: str = "CannotSee") -> Condition:
    return Condition(kind, Status.UNKNOWN, reason, "it cannot be seen", SINCE)
