"""The words of the act flow: what is asked for, what is refused, and what came of it.

Frozen values only, as in `agent.model`; standard library and `agent.model` alone, so that gate, ledger,
API and clients share these words.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from agent.model import Action, Target, TargetKind

MAX_TOKEN = 2**63 - 1
"""Highest fencing token; the ledger keeps it in a signed 64-bit column."""
MAX_REASON = 1024
"""Characters of a request's reason."""


class Outcome(StrEnum):
    """What came of a request. RUNNING is the only one that is not final."""

    RUNNING = "running"
    REFUSED = "refused"
    DRY_RUN = "dry_run"
    PERFORMED = "performed"
    VERIFIED = "verified"
    INEFFECTIVE = "ineffective"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


class RefusalReason(StrEnum):
    """Why nothing was done. One word for programs; docs/actions.md explains each."""

    DISABLED = "REMEDIATION_DISABLED"
    ACTION_DISABLED = "ACTION_DISABLED"
    UNKNOWN_ACTION = "UNKNOWN_ACTION"
    CALLER_NOT_ALLOWED = "CALLER_NOT_ALLOWED"
    WRONG_TARGET_KIND = "WRONG_TARGET_KIND"
    INEXACT_TARGET = "INEXACT_TARGET"
    STALE_FENCING_TOKEN = "STALE_FENCING_TOKEN"  # noqa: S105 - no password
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    COOLING_DOWN = "COOLING_DOWN"
    BUDGET_SPENT = "BUDGET_SPENT"
    PAUSED = "PAUSED"
    OTHER_BOOT = "OTHER_BOOT"
    TARGET_GONE = "TARGET_GONE"
    TARGET_CHANGED = "TARGET_CHANGED"
    PROTECTED_PROCESS = "PROTECTED_PROCESS"
    CONDITION_NOT_TRUE = "CONDITION_NOT_TRUE"
    NOT_CONFIRMED = "NOT_CONFIRMED"
    UNSAFE_NOW = "UNSAFE_NOW"
    CANNOT_SEE = "CANNOT_SEE"
    LEDGER_UNUSABLE = "LEDGER_UNUSABLE"
    EVIDENCE_NOT_STORED = "EVIDENCE_NOT_STORED"
    GATE_FAILED = "GATE_FAILED"
    BUSY = "BUSY"
    STALLED = "STALLED"
    STOPPING = "STOPPING"


_ABOUT_THE_TARGET = frozenset(
    {
        RefusalReason.OTHER_BOOT,
        RefusalReason.TARGET_GONE,
        RefusalReason.TARGET_CHANGED,
        RefusalReason.PROTECTED_PROCESS,
        RefusalReason.CONDITION_NOT_TRUE,
        RefusalReason.NOT_CONFIRMED,
        RefusalReason.UNSAFE_NOW,
    }
)
REFUSALS: Mapping[RefusalReason, str] = MappingProxyType(
    {
        RefusalReason.DISABLED: (
            "Remediation is switched off on this node; set `remediation.enabled: true` to allow it."
        ),
        RefusalReason.ACTION_DISABLED: (
            "This action is switched off on this node; its own table below `remediation.actions` enables it."
        ),
        RefusalReason.UNKNOWN_ACTION: "The agent knows no action of this name; `nodediag actions` lists them.",
        RefusalReason.CALLER_NOT_ALLOWED: (
            "This caller may not ask for this action; `grpc.callers` says who may ask for what."
        ),
        RefusalReason.WRONG_TARGET_KIND: "The action cannot be done to a target of this kind.",
        RefusalReason.INEXACT_TARGET: (
            "The target lacks a part of its identity, such as start time or boot id; send it just as the report has it."
        ),
        RefusalReason.STALE_FENCING_TOKEN: (
            "A request with a higher token was seen, so the caller has lost its lease to another; it must stop acting."
        ),
        RefusalReason.REQUEST_ID_REUSED: (
            "This request_id was used for another request; choose a new UUID for every new request."
        ),
        RefusalReason.COOLING_DOWN: "The action was done a short while ago and rests until its cool-down is over.",
        RefusalReason.BUDGET_SPENT: (
            "The action, or all actions together, were done as often as one hour allows; a fault that keeps coming "
            "back needs a person."
        ),
        RefusalReason.PAUSED: "Somebody has paused remediation on this node; `nodediag actions` says why.",
        RefusalReason.OTHER_BOOT: "The node was booted since the target was reported; ask for a new report.",
        RefusalReason.TARGET_GONE: "The target is no longer there, so there is nothing to mend.",
        RefusalReason.TARGET_CHANGED: (
            "Something else has taken the target's place, such as another process with its pid; ask for a new report."
        ),
        RefusalReason.PROTECTED_PROCESS: (
            "Never touched: the node's pid 1, the agent itself, and any process of a kind the action is not for."
        ),
        RefusalReason.CONDITION_NOT_TRUE: (
            "No confirmed finding about this very target permits the action; it may have cleared meanwhile."
        ),
        RefusalReason.NOT_CONFIRMED: "The fault was reported, but a fresh look at the target does not show it now.",
        RefusalReason.UNSAFE_NOW: "The fault is there, but to act now could do harm; the message says why.",
        RefusalReason.CANNOT_SEE: (
            "A fresh look at the target was not possible, and nothing is done blindly; the message says what it lacks."
        ),
        RefusalReason.LEDGER_UNUSABLE: (
            "What is done could not be recorded, so nothing is done; look at the disk and rights of `host.state_dir`."
        ),
        RefusalReason.EVIDENCE_NOT_STORED: (
            "The evidence could not be stored before the act; look at the disk and rights of `host.state_dir`."
        ),
        RefusalReason.GATE_FAILED: (
            "Judging the request failed by a fault of the agent, which counts as a refusal; its log has the details."
        ),
        RefusalReason.BUSY: "Another remediation is under way on this node; they are done one at a time.",
        RefusalReason.STALLED: (
            "The agent itself stood still while it looked, so what it saw proves nothing; send the same request again."
        ),
        RefusalReason.STOPPING: "The agent is stopping; send the same request again once it runs.",
    }
)
"""What each refusal means and what would help, in a sentence for operators; makes docs/actions.md."""

REFUSAL_CODES: Mapping[RefusalReason, str] = MappingProxyType(
    {
        **dict.fromkeys(RefusalReason, "FAILED_PRECONDITION"),
        RefusalReason.UNKNOWN_ACTION: "INVALID_ARGUMENT",
        RefusalReason.WRONG_TARGET_KIND: "INVALID_ARGUMENT",
        RefusalReason.INEXACT_TARGET: "INVALID_ARGUMENT",
        RefusalReason.REQUEST_ID_REUSED: "INVALID_ARGUMENT",
        RefusalReason.CALLER_NOT_ALLOWED: "PERMISSION_DENIED",
        RefusalReason.COOLING_DOWN: "RESOURCE_EXHAUSTED",
        RefusalReason.BUDGET_SPENT: "RESOURCE_EXHAUSTED",
        RefusalReason.BUSY: "UNAVAILABLE",
        RefusalReason.STALLED: "UNAVAILABLE",
        RefusalReason.STOPPING: "UNAVAILABLE",
    }
)
"""The name of the gRPC status code each refusal is answered with; the server and docs/actions.md both take it here."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Nothing was done, and why, in a word and in a sentence that says what would help.

    `retry_seconds`: the very same request (request_id included) may succeed after this long; None if waiting
    alone does not help.
    """

    reason: RefusalReason
    message: str
    retry_seconds: float | None = None

    @property
    def binds(self) -> bool:
        """Whether it is the answer to its request_id for good: a look at the target has refuted the request.

        Whatever else stood in the way may be gone when the same request comes again.
        """
        return self.reason in _ABOUT_THE_TARGET


class RefusedError(Exception):
    """Raised on the way to an act; carries the refusal to whoever answers the caller."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def refused(reason: RefusalReason, message: str, retry_seconds: float | None = None) -> RefusedError:
    """Return a refusal to raise."""
    return RefusedError(Refusal(reason, message, retry_seconds))


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: `identity` for logs and the ledger, and the actions it may ask for."""

    identity: str
    actions: frozenset[Action] = frozenset()


@dataclass(frozen=True, slots=True)
class Request:
    """One request to mend something. `request_id` is a UUID in lower case, chosen by the caller."""

    request_id: str
    action: Action
    target: Target
    caller: str
    dry_run: bool = False
    fencing_token: int = 0
    reason: str = ""

    @property
    def asks_the_same_as(self) -> tuple[Action, Target, str, bool]:
        """What a repeat of this request_id must have in common with the first; token and reason may differ."""
        return (self.action, self.target, self.caller, self.dry_run)


@dataclass(frozen=True, slots=True)
class Remediation:
    """A request and what came of it. Moments in seconds since the epoch; `finished_at` 0.0 while it runs.

    `acted`: whether the last step was begun, so that the node may have been changed. `evidence_id` is empty if
    none was stored.
    """

    request: Request
    outcome: Outcome
    message: str
    received_at: float
    finished_at: float = 0.0
    acted: bool = False
    refusal: Refusal | None = None
    evidence_id: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the settings allow of one action; `max_per_hour` 0 means never."""

    enabled: bool = True
    cooldown_seconds: float = 60.0
    max_per_hour: int = 6


@dataclass(frozen=True, slots=True)
class ActionStatus:
    """One action as it stands now for one caller.

    `targets` are the kinds it takes, `mends` maps a condition to the reasons that permit it. `left_this_hour` counts
    both its own budget and the node's.
    """

    action: Action
    does: str
    requires: str
    risk: str
    targets: tuple[TargetKind, ...]
    mends: Mapping[str, tuple[str, ...]]
    enabled: bool
    allowed: bool
    cooldown_seconds: float
    cooldown_left_seconds: float
    max_per_hour: int
    left_this_hour: int


@dataclass(frozen=True, slots=True)
class RemediationStatus:
    """The whole act flow as it stands now for one caller.

    `paused` is why the node is paused, empty if it is not; `trouble` is why nothing can be recorded, and so nothing
    be done. `highest_token` is the highest fencing token seen on this node.
    """

    enabled: bool
    dry_run: bool
    paused: str
    trouble: str
    highest_token: int
    max_per_hour: int
    left_this_hour: int
    actions: tuple[ActionStatus, ...]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was captured before an act: one JSON file. `created_at` in seconds since the epoch, `size` in bytes."""

    id: str
    request_id: str
    action: str
    created_at: float
    size: int
    sha256: str
