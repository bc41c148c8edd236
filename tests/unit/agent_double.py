"""An agent that plays a script: both services on a real Unix socket, with answers that were written down before."""

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self

import grpc
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo

from agent.acts import (
    REFUSAL_CODES,
    ActionStatus,
    Evidence,
    Outcome,
    Refusal,
    Remediation,
    RemediationStatus,
    Request,
)
from agent.api import convert, errors
from agent.api import remediation_words as words
from agent.api.endpoint import address_of
from agent.api.pb import diagnostics_service_pb2 as diagnostics_pb
from agent.api.pb import diagnostics_service_pb2_grpc as diagnostics_pb_grpc
from agent.api.pb import remediation_service_pb2 as pb
from agent.api.pb import remediation_service_pb2_grpc as pb_grpc
from agent.model import Action, ActiveFinding, Condition, Event, NodeReport, Snapshot, Status, TargetKind

NOW = 1785553965.25  # 2026-08-01 03:12:45 UTC
CALLER = "uid:0"
KILL_SHIM = ActionStatus(
    action=Action.KILL_SHIM,
    does="Kills the shim by pidfd and ends what is left of its containers.",
    requires="A systemd or a containerd that cleans up.",
    risk="The pod's containers end without their grace period.",
    targets=(TargetKind.SHIM,),
    mends={
        "ContainerdShimHung": ("ShimUnresponsive", "ShimOperationStuck"),
        "ContainerdShimLeaked": ("ShimWithoutContainers",),
    },
    enabled=True,
    allowed=True,
    cooldown_seconds=120.0,
    cooldown_left_seconds=0.0,
    max_per_hour=6,
    left_this_hour=5,
)
READY = RemediationStatus(
    enabled=True,
    dry_run=False,
    paused="",
    trouble="",
    highest_token=7,
    max_per_hour=12,
    left_this_hour=11,
    actions=(KILL_SHIM,),
)


@dataclass(frozen=True)
class Lost:
    """The connection breaks before the answer; `recorded` says what came of it all the same, if anything."""

    recorded: Outcome | None = None


Answer = Outcome | Refusal | Lost | threading.Event
"""What a Remediate is answered with: an event is waited for, then it is verified."""


class AgentDouble:
    """Plays the agent on `endpoint`. `answers` are used up one by one, and the last one repeats."""

    def __init__(self, path: Path) -> None:
        self.endpoint = f"unix:{path}"
        self.status = READY
        self.report = report_of()
        self.events: SimpleQueue[Event | None] = SimpleQueue()
        self.answers: list[Answer] = [Outcome.VERIFIED]
        self.asked: list[Request] = []
        self.waiting = threading.Event()
        self.recorded: dict[str, Remediation] = {}
        self.evidence: dict[str, tuple[Evidence, bytes]] = {}
        self.page_sizes: list[int] = []
        self._server: grpc.Server | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        server = grpc.server(ThreadPoolExecutor(8))
        pb_grpc.add_RemediationServiceServicer_to_server(_Remediation(self), server)
        diagnostics_pb_grpc.add_DiagnosticsServiceServicer_to_server(_Diagnostics(self), server)
        assert server.add_insecure_port(address_of(self.endpoint))
        server.start()
        self._server = server

    def stop(self) -> None:
        """Hang up on everybody; another `start` serves on the same socket."""
        self.events.put(None)
        if self._server is not None:
            self._server.stop(None).wait(5)
        self.events = SimpleQueue()

    def store(self, evidence_id: str, document: bytes) -> Evidence:
        """Keep a piece of evidence."""
        digest = hashlib.sha256(document).hexdigest()
        stored = Evidence(evidence_id, "1b4e28ba-2fa1-41d2-883f-0016d3cca427", "KillShim", NOW, len(document), digest)
        self.evidence[evidence_id] = (stored, document)
        return stored

    def record(self, request: Request, outcome: Outcome = Outcome.VERIFIED, **more: Any) -> Remediation:
        """Remember what came of a request."""
        how: dict[str, Any] = {
            "message": f"it is {outcome}",
            "received_at": NOW,
            "finished_at": NOW + 4,
            "acted": True,
        } | more
        done = Remediation(replace(request, caller=CALLER), outcome, **how)
        self.recorded[request.request_id] = done
        return done

    def answer(self, request: Request, context: Any) -> Remediation:
        self.asked.append(request)
        step = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        match step:
            case Refusal():
                context.abort_with_status(refused(step, request))
            case Lost():
                if step.recorded is not None:
                    self.record(request, step.recorded)
                context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
            case threading.Event():
                self.waiting.set()
                assert step.wait(20)
                return self.record(request)
        assert isinstance(step, Outcome)
        return self.record(request, step)


def refused(refusal: Refusal, request: Request) -> grpc.Status:
    """The error a refusal is told with."""
    metadata = {"request_id": request.request_id, "action": request.action.value}
    info = ErrorInfo(reason=refusal.reason.value, domain=errors.DOMAIN, metadata=metadata)
    wait = [] if refusal.retry_seconds is None else [RetryInfo(retry_delay=convert.duration(refusal.retry_seconds))]
    code = grpc.StatusCode[REFUSAL_CODES[refusal.reason]]
    return errors.refusal(code, refusal.message, [info, *wait])


def report_of(*found: ActiveFinding) -> NodeReport:
    """A report with these findings."""
    kinds = dict.fromkeys(each.finding.condition for each in found)
    return NodeReport("worker-3", NOW, tuple(condition_of(kind, found) for kind in kinds), ())


def condition_of(kind: str, found: tuple[ActiveFinding, ...]) -> Condition:
    """A condition that is True with its findings among these, False if there are none."""
    own = tuple(each for each in found if each.finding.condition == kind)
    status = Status.TRUE if own else Status.FALSE
    reason = own[0].finding.reason if own else "AsExpected"
    return Condition(kind, status, reason, "as its findings say", NOW - 60, own)


class _Remediation(pb_grpc.RemediationServiceServicer):
    def __init__(self, agent: AgentDouble) -> None:
        self._agent = agent

    def ListActions(self, _: pb.ListActionsRequest, __: Any) -> pb.ListActionsResponse:  # noqa: N802
        return words.write_status(self._agent.status)

    def Remediate(self, sent: pb.RemediateRequest, context: Any) -> pb.RemediateResponse:  # noqa: N802
        done = self._agent.answer(words.read_request(sent, CALLER), context)
        return pb.RemediateResponse(remediation=words.write_remediation(done))

    def GetRemediation(self, sent: pb.GetRemediationRequest, context: Any) -> pb.GetRemediationResponse:  # noqa: N802
        found = self._agent.recorded.get(sent.request_id)
        if found is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "not recorded")
        assert found is not None
        return pb.GetRemediationResponse(remediation=words.write_remediation(found))

    def ListRemediations(self, sent: pb.ListRemediationsRequest, _: Any) -> pb.ListRemediationsResponse:  # noqa: N802
        self._agent.page_sizes.append(sent.page_size)
        found = list(reversed(self._agent.recorded.values()))
        start = int(sent.page_token or 0)
        end = start + min(sent.page_size, 3)  # an agent may send fewer than it was asked for
        return pb.ListRemediationsResponse(
            remediations=map(words.write_remediation, found[start:end]),
            next_page_token=str(end) if end < len(found) else "",
        )


class _Diagnostics(diagnostics_pb_grpc.DiagnosticsServiceServicer):
    def __init__(self, agent: AgentDouble) -> None:
        self._agent = agent

    def GetNodeReport(self, _: object, __: Any) -> diagnostics_pb.GetNodeReportResponse:  # noqa: N802
        return diagnostics_pb.GetNodeReportResponse(report=convert.report(self._agent.report))

    def WatchConditions(self, _: object, __: Any) -> Iterator[diagnostics_pb.WatchConditionsResponse]:  # noqa: N802
        yield convert.event(Snapshot(self._agent.report.conditions))
        while (event := self._agent.events.get()) is not None:
            yield convert.event(event)

    def ListEvidence(self, _: object, __: Any) -> diagnostics_pb.ListEvidenceResponse:  # noqa: N802
        stored = [words.write_evidence(each) for each, _ in self._agent.evidence.values()]
        return diagnostics_pb.ListEvidenceResponse(evidence=stored)

    def FetchEvidence(  # noqa: N802
        self, sent: diagnostics_pb.FetchEvidenceRequest, context: Any
    ) -> Iterator[diagnostics_pb.FetchEvidenceResponse]:
        if sent.id not in self._agent.evidence:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no evidence {sent.id}")
        _, document = self._agent.evidence[sent.id]
        for start in range(0, len(document), 1000):
            yield diagnostics_pb.FetchEvidenceResponse(chunk=document[start : start + 1000])
