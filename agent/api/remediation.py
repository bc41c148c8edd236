"""RemediationService: passes requests to the engine and its answers back; what is refused leaves as an error."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import grpc

from agent.acts import MAX_REASON, MAX_TOKEN, Caller, Outcome, Refusal, RefusalReason, Remediation
from agent.api import errors, refusals, revert
from agent.api import remediation_words as words
from agent.api.callers import caller_of
from agent.api.limits import seconds_left
from agent.api.pb import remediation_service_pb2 as pb
from agent.api.pb import remediation_service_pb2_grpc as pb_grpc
from agent.model import Action
from agent.remediation.engine import Engine
from agent.remediation.ledger import LedgerError
from agent.remediation.turnstile import DiskHangsError

MAX_SECONDS = 120.0
"""How long a call waits for what came of it; a remediation that takes longer goes on, and GetRemediation tells."""
RETRY_SECONDS = 5.0
MAX_TARGET_TEXT = 4096
MAX_SHOWN = 64
MAX_PAGE = 100
DEFAULT_PAGE = 50


def remediation(engine: Engine) -> Callable[[grpc.Server], str]:
    """Return RemediationService as a service to serve."""

    def add(server: grpc.Server) -> str:
        pb_grpc.add_RemediationServiceServicer_to_server(RemediationServicer(engine), server)
        return str(pb.DESCRIPTOR.services_by_name["RemediationService"].full_name)

    return add


class RemediationServicer(pb_grpc.RemediationServiceServicer):
    """Answers for one engine; `caller_of` tells who is at the other end of a call."""

    def __init__(self, engine: Engine, caller_of: Callable[[grpc.ServicerContext], Caller] = caller_of) -> None:
        self._engine = engine
        self._caller_of = caller_of

    def ListActions(  # noqa: N802 - the proto's name
        self,
        request: pb.ListActionsRequest,  # noqa: ARG002 - it asks for nothing in particular
        context: grpc.ServicerContext,
    ) -> pb.ListActionsResponse:
        """Return every action as it stands now for this caller."""
        with _readable(context):
            return words.write_status(self._engine.status(self._caller_of(context)))

    def Remediate(  # noqa: N802 - the proto's name
        self, request: pb.RemediateRequest, context: grpc.ServicerContext
    ) -> pb.RemediateResponse:
        """Mend one target, and return once it is known whether that helped."""
        caller = self._caller_of(context)
        violations = dict(_violations(request))
        if violations:
            reason = RefusalReason.UNKNOWN_ACTION.value if violations.keys() == {"action"} else "INVALID_FIELDS"
            context.abort_with_status(errors.invalid(violations, reason))
        asked = words.read_request(request, caller.identity)
        try:
            done = self._engine.remediate(asked, caller, seconds_left(context, MAX_SECONDS))
        except TimeoutError as late:
            message = f"{late}; GetRemediation tells what comes of it"
            context.abort_with_status(errors.told(grpc.StatusCode.DEADLINE_EXCEEDED, message, "UNDER_WAY", {}))
        if done.outcome is Outcome.REFUSED and done.refusal is not None:
            _abort(context, done, done.refusal)
        return pb.RemediateResponse(remediation=words.write_remediation(done))

    def GetRemediation(  # noqa: N802 - the proto's name
        self, request: pb.GetRemediationRequest, context: grpc.ServicerContext
    ) -> pb.GetRemediationResponse:
        """Return one remediation by its request_id."""
        if not _is_uuid(request.request_id):
            context.abort_with_status(errors.invalid({"request_id": _NO_UUID}))
        with _readable(context):
            found = self._engine.find(request.request_id)
        if found is None:
            message = f"no remediation {request.request_id} is recorded (any more)"
            context.abort_with_status(errors.not_found(message, "REMEDIATION_NOT_FOUND", {}))
        return pb.GetRemediationResponse(remediation=words.write_remediation(found))

    def ListRemediations(  # noqa: N802 - the proto's name
        self, request: pb.ListRemediationsRequest, context: grpc.ServicerContext
    ) -> pb.ListRemediationsResponse:
        """Return a page of the recorded remediations, the latest first."""
        with _readable(context):
            try:
                page, following = self._engine.list(
                    min(request.page_size or DEFAULT_PAGE, MAX_PAGE), request.page_token
                )
            except ValueError:
                wrong = "must be the next_page_token of an earlier answer"
                context.abort_with_status(errors.invalid({"page_token": wrong}))
        return pb.ListRemediationsResponse(
            remediations=[words.write_remediation(each) for each in page], next_page_token=following
        )


_NO_UUID = "must be a UUID in lower case, such as 0f9a3c1e-5d2b-4c7a-9e64-2b1f8d3a7c55"


def _violations(request: pb.RemediateRequest) -> Iterator[tuple[str, str]]:
    """What is wrong with a request in itself, by field."""
    if not _is_uuid(request.request_id):
        yield "request_id", _NO_UUID
    if revert.action(request.action) is Action.NONE:
        known = ", ".join(action.value for action in Action if action is not Action.NONE)
        yield "action", f"{request.action[:MAX_SHOWN]!r} is no action of this agent; there are: {known}"
    if request.target.kind not in revert.KINDS:
        yield "target.kind", "must be set: pass the target on as the report has it"
    for name in ("boot_id", "container_id", "containerd_namespace", "cgroup", "address"):
        if len(getattr(request.target, name)) > MAX_TARGET_TEXT:
            yield f"target.{name}", f"must be at most {MAX_TARGET_TEXT} characters"
    if request.fencing_token > MAX_TOKEN:
        yield "fencing_token", f"must be at most {MAX_TOKEN}"
    if len(request.reason) > MAX_REASON:
        yield "reason", f"must be at most {MAX_REASON} characters"


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def _abort(context: grpc.ServicerContext, done: Remediation, refusal: Refusal) -> NoReturn:
    metadata = {"request_id": done.request.request_id, "action": done.request.action.value}
    context.abort_with_status(refusals.status_of(refusal, metadata))
    raise AssertionError("abort_with_status raises")


@contextmanager
def _readable(context: grpc.ServicerContext) -> Iterator[None]:
    try:
        yield
    except LedgerError as error:
        context.abort_with_status(refusals.status_of(Refusal(RefusalReason.LEDGER_UNUSABLE, str(error)), {}))
    except DiskHangsError as error:
        context.abort_with_status(refusals.status_of(Refusal(RefusalReason.BUSY, str(error), RETRY_SECONDS), {}))
