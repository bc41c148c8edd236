"""DiagnosticsService: the report, conditions as they change, and the evidence of what was acted on.

Answers come from memory, evidence from the state folder; none waits for a probe.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import grpc

from agent.api import convert, errors, remediation_words
from agent.api.pb import diagnostics_service_pb2 as pb
from agent.api.pb import diagnostics_service_pb2_grpc as pb_grpc
from agent.pipeline.board import Board
from agent.pipeline.feed import MAX_WATCHERS, Feed, TooManyWatchersError, Watcher
from agent.remediation.evidence import EvidenceError, EvidenceStore
from agent.remediation.turnstile import DiskHangsError, Turnstile

MAX_SHOWN = 64
"""Characters of a caller's word that are repeated to it."""


class Diagnostics(pb_grpc.DiagnosticsServiceServicer):
    """Answers for one board, its feed and its evidence; `types` are all that this agent's detectors may report."""

    def __init__(self, board: Board, feed: Feed, types: Collection[str], evidence: EvidenceStore) -> None:
        self._board = board
        self._feed = feed
        self._types = frozenset(types)
        self._evidence = evidence
        self._reading = Turnstile()

    def GetNodeReport(  # noqa: N802 - the proto's name
        self,
        request: pb.GetNodeReportRequest,  # noqa: ARG002 - it asks for nothing in particular
        context: grpc.ServicerContext,  # noqa: ARG002 - it cannot be refused
    ) -> pb.GetNodeReportResponse:
        """Return everything known about this node now."""
        return pb.GetNodeReportResponse(report=convert.report(self._board.report()))

    def WatchConditions(  # noqa: N802 - the proto's name
        self, request: pb.WatchConditionsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.WatchConditionsResponse]:
        """Stream a snapshot, then each change; a message is made only once the one before it is on its way."""
        with self._admitted(request, context) as watcher:
            if not context.add_callback(watcher.close):
                return  # the caller has gone already
            for event in watcher:
                yield convert.event(event)
        if self._feed.closed:
            context.abort_with_status(errors.stopping())

    def ListEvidence(  # noqa: N802 - the proto's name
        self,
        request: pb.ListEvidenceRequest,  # noqa: ARG002 - it asks for nothing in particular
        context: grpc.ServicerContext,
    ) -> pb.ListEvidenceResponse:
        """Return what evidence is stored, the latest first."""
        with self._readable(context):
            stored = self._evidence.list()
        return pb.ListEvidenceResponse(evidence=[remediation_words.write_evidence(each) for each in stored])

    def FetchEvidence(  # noqa: N802 - the proto's name
        self, request: pb.FetchEvidenceRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.FetchEvidenceResponse]:
        """Stream one piece of evidence in chunks."""
        with self._readable(context):
            try:
                chunks = self._evidence.read(request.id)
            except KeyError:
                message = f"no evidence {request.id[:MAX_SHOWN]!r} is stored (any more)"
                context.abort_with_status(errors.not_found(message, "EVIDENCE_NOT_FOUND", {}))
        for chunk in chunks:
            yield pb.FetchEvidenceResponse(chunk=chunk)

    @contextmanager
    def _readable(self, context: grpc.ServicerContext) -> Iterator[None]:
        try:
            with self._reading.inside():
                yield
        except EvidenceError as error:
            context.abort_with_status(errors.precondition(str(error), "EVIDENCE_UNREADABLE", {}, "evidence"))
        except DiskHangsError as error:
            context.abort_with_status(errors.unavailable(str(error), "BUSY", {}))

    def _admitted(self, request: pb.WatchConditionsRequest, context: grpc.ServicerContext) -> Watcher:
        violations = self._violations(request)
        if violations:
            context.abort_with_status(errors.invalid(violations))
        try:
            return self._feed.watch(request.types)
        except TooManyWatchersError as full:
            limits = {"limit": str(MAX_WATCHERS)}
            context.abort_with_status(errors.exhausted(str(full), "TOO_MANY_WATCHERS", limits))

    def _violations(self, request: pb.WatchConditionsRequest) -> Mapping[str, str]:
        known = ", ".join(sorted(self._types))
        return {
            f"types[{index}]": f"{name[:MAX_SHOWN]} is no condition of this agent; there are: {known}"
            for index, name in enumerate(request.types)
            if name not in self._types
        }
