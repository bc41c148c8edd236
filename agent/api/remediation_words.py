"""The words of the act flow and the protos: `write_` makes a message of a word, `read_` reads one back.

Texts that are not UTF-8 leave with those bytes escaped, as everywhere in the API. An agent newer than its client may
use words the client does not know; they are read as the nearest word that claims nothing: an outcome as interrupted,
so that somebody looks, and a refusal as one of the gate itself, with the unknown word in its message.
"""

from collections.abc import Mapping
from types import MappingProxyType

from agent import acts, model
from agent.api import convert, revert
from agent.api.pb import diagnostics_service_pb2 as diagnostics_pb
from agent.api.pb import remediation_service_pb2 as pb
from agent.printable import encodable

OUTCOMES: Mapping[acts.Outcome, pb.Outcome] = MappingProxyType(
    {
        acts.Outcome.RUNNING: pb.OUTCOME_RUNNING,
        acts.Outcome.REFUSED: pb.OUTCOME_REFUSED,
        acts.Outcome.DRY_RUN: pb.OUTCOME_DRY_RUN,
        acts.Outcome.PERFORMED: pb.OUTCOME_PERFORMED,
        acts.Outcome.VERIFIED: pb.OUTCOME_VERIFIED,
        acts.Outcome.INEFFECTIVE: pb.OUTCOME_INEFFECTIVE,
        acts.Outcome.FAILED: pb.OUTCOME_FAILED,
        acts.Outcome.INTERRUPTED: pb.OUTCOME_INTERRUPTED,
    }
)
_OUTCOMES_READ = MappingProxyType({number: word for word, number in OUTCOMES.items()})


def write_request(asked: acts.Request) -> pb.RemediateRequest:
    """Ask. Who asks is not sent: the agent sees it from the connection."""
    return pb.RemediateRequest(
        request_id=encodable(asked.request_id),
        action=asked.action.value,
        target=convert.target(asked.target),
        dry_run=asked.dry_run,
        fencing_token=asked.fencing_token,
        reason=encodable(asked.reason),
    )


def read_request(sent: pb.RemediateRequest, caller: str) -> acts.Request:
    """Read what `caller` asks for; an action unknown here is read as Action.NONE. Nothing is judged."""
    return acts.Request(
        request_id=sent.request_id,
        action=revert.action(sent.action),
        target=revert.target(sent.target),
        caller=caller,
        dry_run=sent.dry_run,
        fencing_token=sent.fencing_token,
        reason=sent.reason,
    )


def write_refusal(refused: acts.Refusal) -> pb.Refusal:
    """Tell a refusal that is recorded."""
    return pb.Refusal(
        reason=refused.reason.value,
        message=encodable(refused.message),
        retry_delay=None if refused.retry_seconds is None else convert.duration(refused.retry_seconds),
    )


def read_refusal(sent: pb.Refusal) -> acts.Refusal:
    """Read a refusal that is recorded."""
    reason = read_reason(sent.reason)
    return acts.Refusal(
        reason=reason or acts.RefusalReason.GATE_FAILED,
        message=sent.message if reason else f"{sent.reason}: {sent.message}",
        retry_seconds=revert.seconds(sent.retry_delay) if sent.HasField("retry_delay") else None,
    )


def read_reason(sent: str) -> acts.RefusalReason | None:
    """Read the one word of a refusal or of an error's ErrorInfo; None if it is unknown here."""
    try:
        return acts.RefusalReason(sent)
    except ValueError:
        return None


def write_remediation(done: acts.Remediation) -> pb.Remediation:
    """Tell a request and what came of it."""
    asked = done.request
    return pb.Remediation(
        request_id=encodable(asked.request_id),
        action=asked.action.value,
        target=convert.target(asked.target),
        dry_run=asked.dry_run,
        fencing_token=asked.fencing_token,
        reason=encodable(asked.reason),
        caller=encodable(asked.caller),
        outcome=OUTCOMES[done.outcome],
        message=encodable(done.message),
        received_at=convert.timestamp(done.received_at),
        finished_at=convert.timestamp(done.finished_at) if done.finished_at else None,
        acted=done.acted,
        refusal=None if done.refusal is None else write_refusal(done.refusal),
        evidence_id=encodable(done.evidence_id),
    )


def read_remediation(sent: pb.Remediation) -> acts.Remediation:
    """Read a request and what came of it."""
    asked = acts.Request(
        request_id=sent.request_id,
        action=revert.action(sent.action),
        target=revert.target(sent.target),
        caller=sent.caller,
        dry_run=sent.dry_run,
        fencing_token=sent.fencing_token,
        reason=sent.reason,
    )
    return acts.Remediation(
        request=asked,
        outcome=_OUTCOMES_READ.get(sent.outcome, acts.Outcome.INTERRUPTED),
        message=sent.message,
        received_at=revert.seconds(sent.received_at),
        finished_at=revert.seconds(sent.finished_at) if sent.HasField("finished_at") else 0.0,
        acted=sent.acted,
        refusal=read_refusal(sent.refusal) if sent.HasField("refusal") else None,
        evidence_id=sent.evidence_id,
    )


def write_status(status: acts.RemediationStatus) -> pb.ListActionsResponse:
    """Tell how the act flow stands for one caller."""
    return pb.ListActionsResponse(
        actions=[_write_action(each) for each in status.actions],
        enabled=status.enabled,
        dry_run=status.dry_run,
        pause_reason=encodable(status.paused),
        ledger_trouble=encodable(status.trouble),
        highest_fencing_token=status.highest_token,
        max_per_hour=status.max_per_hour,
        left_this_hour=status.left_this_hour,
    )


def read_status(sent: pb.ListActionsResponse) -> acts.RemediationStatus:
    """Read how the act flow stands for this caller; actions unknown here are left out."""
    return acts.RemediationStatus(
        enabled=sent.enabled,
        dry_run=sent.dry_run,
        paused=sent.pause_reason,
        trouble=sent.ledger_trouble,
        highest_token=sent.highest_fencing_token,
        max_per_hour=sent.max_per_hour,
        left_this_hour=sent.left_this_hour,
        actions=tuple(
            _read_action(each) for each in sent.actions if revert.action(each.action) is not model.Action.NONE
        ),
    )


def _write_action(status: acts.ActionStatus) -> pb.ActionStatus:
    return pb.ActionStatus(
        action=status.action.value,
        does=encodable(status.does),
        requires=encodable(status.requires),
        risk=encodable(status.risk),
        target_kinds=[convert.KINDS[kind] for kind in status.targets],
        mends=[pb.MendedCondition(type=kind, reasons=reasons) for kind, reasons in status.mends.items()],
        enabled=status.enabled,
        allowed=status.allowed,
        cooldown=convert.duration(status.cooldown_seconds),
        cooldown_left=convert.duration(status.cooldown_left_seconds),
        max_per_hour=status.max_per_hour,
        left_this_hour=status.left_this_hour,
    )


def _read_action(sent: pb.ActionStatus) -> acts.ActionStatus:
    return acts.ActionStatus(
        action=revert.action(sent.action),
        does=sent.does,
        requires=sent.requires,
        risk=sent.risk,
        targets=tuple(revert.KINDS[kind] for kind in sent.target_kinds if kind in revert.KINDS),
        mends={each.type: tuple(each.reasons) for each in sent.mends},
        enabled=sent.enabled,
        allowed=sent.allowed,
        cooldown_seconds=revert.seconds(sent.cooldown),
        cooldown_left_seconds=revert.seconds(sent.cooldown_left),
        max_per_hour=sent.max_per_hour,
        left_this_hour=sent.left_this_hour,
    )


def write_evidence(stored: acts.Evidence) -> diagnostics_pb.Evidence:
    """Tell what one piece of evidence is."""
    return diagnostics_pb.Evidence(
        id=encodable(stored.id),
        request_id=encodable(stored.request_id),
        action=encodable(stored.action),
        created_at=convert.timestamp(stored.created_at),
        size_bytes=stored.size,
        sha256=encodable(stored.sha256),
    )


def read_evidence(sent: diagnostics_pb.Evidence) -> acts.Evidence:
    """Read what one piece of evidence is."""
    return acts.Evidence(
        id=sent.id,
        request_id=sent.request_id,
        action=sent.action,
        created_at=revert.seconds(sent.created_at),
        size=sent.size_bytes,
        sha256=sent.sha256,
    )
