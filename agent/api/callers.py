"""Who calls: the user behind a Unix socket, or the identity in a certificate, and what it may ask for.

Every call is looked at before its request is read, of whatever kind it is; only whether the agent is healthy
(`Health/Check`) is told to everybody who gets as far as asking. Whatever goes wrong here refuses.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, TypeAlias

import grpc

from agent.acts import Caller
from agent.api import errors
from agent.api.certificate_names import CertificateName
from agent.api.limits import REQUEST_SECONDS, STREAM_SECONDS, Deadlines
from agent.api.reception import Visitor
from agent.model import Action
from agent.printable import printable

log = logging.getLogger("nodediag.api")

ALL_ACTIONS = frozenset(Action) - {Action.NONE}
OPEN_TO_ALL = frozenset({"/grpc.health.v1.Health/Check"})
MAX_NAMES_SHOWN = 4
MAX_NAME_SHOWN = 100
"""Characters of a name from a certificate that are repeated to its bearer."""
_ATTRIBUTE = "nodediag_caller"

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
MaybeHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
Recognize: TypeAlias = Callable[[grpc.ServicerContext], Caller]
"""Tells who calls. Raises StrangerError."""
VisitorOf: TypeAlias = Callable[[str], Visitor | None]
"""Tells who is behind a peer as grpc names it."""


class StrangerError(Exception):
    """The call is refused with this status."""

    def __init__(self, status: grpc.Status) -> None:
        super().__init__(status.details)
        self.status = status


def caller_of(context: grpc.ServicerContext) -> Caller:
    """Return who makes this call, as it was recognized before the servicer was asked. Aborts if it was not."""
    caller = getattr(context, _ATTRIBUTE, None)
    if not isinstance(caller, Caller):
        context.abort_with_status(errors.unauthenticated("it is not known who calls"))
    return caller


def by_user(visitor_of: VisitorOf) -> Recognize:
    """Recognize callers by the user the doorkeeper has let in, who may ask for everything."""

    def recognize(context: grpc.ServicerContext) -> Caller:
        visitor = visitor_of(context.peer())
        if visitor is None or visitor.uid is None:
            raise StrangerError(errors.unauthenticated("this call did not come through the agent's own socket"))
        return Caller(f"unix:uid={visitor.uid}", ALL_ACTIONS)

    return recognize


def by_certificate(visitor_of: VisitorOf, callers: Sequence[Caller]) -> Recognize:
    """Recognize callers by the URIs and DNS names in their certificate: just one of them must be an identity."""
    known = {caller.identity.encode(): caller for caller in callers}

    def recognize(context: grpc.ServicerContext) -> Caller:
        visitor = visitor_of(context.peer())
        if visitor is None or visitor.uid is not None:
            raise StrangerError(errors.unauthenticated("a client certificate is needed to call this agent"))
        found = {name.identity for name in visitor.names if name.identity in known}
        if len(found) != 1:
            raise StrangerError(_unknown(visitor.names, found))
        return known[found.pop()]

    return recognize


class CallerCheck(grpc.ServerInterceptor):
    """Refuses strangers, and whoever opens a call and leaves it at that."""

    def __init__(self, recognize: Recognize, deadlines: Deadlines) -> None:
        self._recognize = recognize
        self._deadlines = deadlines

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], MaybeHandler],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> MaybeHandler:
        """Return a handler that looks at the caller first.

        What takes a single request is handled as if it took a stream, so that we are asked when the call begins and
        not when its request is there: on the wire it is the same.
        """
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        is_open = handler_call_details.method in OPEN_TO_ALL
        behaviour = self._streaming(handler) if handler.request_streaming else self._single(handler, is_open=is_open)
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        return make(behaviour, handler.request_deserializer, handler.response_serializer)

    def _single(self, handler: Handler, *, is_open: bool) -> Callable[[Iterator[Any], grpc.ServicerContext], Any]:
        inner: Any = handler.unary_stream if handler.response_streaming else handler.unary_unary

        def behave(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:  # noqa: ANN401 - any message
            if not is_open:
                self._admit(context)
            with self._deadlines.bound(REQUEST_SECONDS, context.cancel):
                request = next(requests, None)
            if request is None:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call has no request")
            return inner(request, context)

        return behave

    def _streaming(self, handler: Handler) -> Callable[[Iterator[Any], grpc.ServicerContext], Any]:
        """Reflection alone is of this kind: a question or a few, so the whole of it is bounded."""
        inner: Any = handler.stream_stream if handler.response_streaming else handler.stream_unary

        def behave(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:  # noqa: ANN401 - any message
            self._admit(context)
            forget = self._deadlines.watch(STREAM_SECONDS, context.cancel)
            if not context.add_callback(forget):
                forget()  # the caller has gone already
            return inner(requests, context)

        return behave

    def _admit(self, context: grpc.ServicerContext) -> None:
        try:
            caller = self._recognize(context)
        except StrangerError as stranger:
            context.abort_with_status(stranger.status)
        except Exception:
            log.exception("a caller could not be recognized, and is refused")
            context.abort_with_status(errors.unauthenticated("the agent could not tell who calls"))
        setattr(context, _ATTRIBUTE, caller)


def _unknown(names: Collection[CertificateName], found: Collection[bytes | None]) -> grpc.Status:
    shown = [_printable(name.identity) for name in names if name.identity is not None]
    listed = ", ".join(shown[:MAX_NAMES_SHOWN]) or "no URI and no DNS name"
    more = f" and {len(shown) - MAX_NAMES_SHOWN} more" if len(shown) > MAX_NAMES_SHOWN else ""
    if found:
        what = "which are several callers of the agent's setting grpc.callers, and a certificate must name just one"
    else:
        what = "and no caller in the agent's setting grpc.callers is called so"
    return errors.denied(f"your certificate names {listed}{more}, {what}", "CALLER_UNKNOWN", {})


def _printable(name: bytes) -> str:
    return printable(ascii(name.decode("latin-1"))[1:-1], MAX_NAME_SHOWN)
