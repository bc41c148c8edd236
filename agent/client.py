"""A small client of a running agent, for `nodediag report` and `watch` and for controllers in Python.

with Client("unix:/run/nodediag/nodediag.sock") as client:
    print(client.get_node_report())
    for event in client.watch():
        ...
"""

import threading
from collections.abc import Collection, Generator
from types import TracebackType
from typing import Self

import grpc

from agent.api import revert
from agent.api.endpoint import address_of, path_of
from agent.api.pb import diagnostics_service_pb2 as pb
from agent.api.pb import diagnostics_service_pb2_grpc as pb_grpc
from agent.model import Event, NodeReport

DEADLINE_SECONDS = 5.0
"""Answers come from memory: an agent that takes longer does not answer."""
MAX_RECEIVED_BYTES = 64 << 20


class ClientError(Exception):
    """The agent did not answer, or refused; `code` is grpc's. The text is for people."""

    def __init__(self, text: str, code: grpc.StatusCode) -> None:
        super().__init__(text)
        self.code = code


class Client:
    """One connection to the agent on `unix:PATH`; made when it is first needed."""

    def __init__(self, endpoint: str, deadline_seconds: float = DEADLINE_SECONDS) -> None:
        self._endpoint = endpoint
        self._deadline = deadline_seconds
        options = (
            ("grpc.max_receive_message_length", MAX_RECEIVED_BYTES),
            ("grpc.use_local_subchannel_pool", 1),  # another client's failure is not ours
        )
        self._channel = grpc.insecure_channel(address_of(endpoint), options=options)
        self._stub = pb_grpc.DiagnosticsServiceStub(self._channel)

    def __enter__(self) -> Self:
        """Use it for a while."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Hang up."""
        self.close()

    def close(self) -> None:
        """Hang up; a watch under way ends."""
        self._channel.close()

    def get_node_report(self) -> NodeReport:
        """Return everything known about the node now. Raises ClientError."""
        try:
            answer: pb.GetNodeReportResponse = self._stub.GetNodeReport(
                pb.GetNodeReportRequest(), timeout=self._deadline
            )
        except grpc.RpcError as error:
            raise self._explained(error) from error
        return revert.report(answer.report)

    def watch(self, types: Collection[str] = ()) -> Generator[Event]:
        """Tell a snapshot of these types of conditions (all if none are named), then each change.

        Goes on until this client is closed; raises ClientError if the agent refuses, and when it stops.
        """
        told = False
        stream = self._stub.WatchConditions(pb.WatchConditionsRequest(types=types))
        late = threading.Timer(self._deadline, stream.cancel)  # the snapshot is as quick as the report
        late.daemon = True
        late.start()
        try:
            for answer in stream:
                late.cancel()
                told = True
                event = revert.event(answer)
                if event is not None:
                    yield event
        except grpc.RpcError as error:
            if not (told and error.code() is grpc.StatusCode.CANCELLED):
                raise self._explained(error) from error
        finally:
            late.cancel()
            stream.cancel()

    def _explained(self, error: grpc.RpcError) -> ClientError:
        code, details = error.code(), error.details() or ""
        return ClientError(self._sentence(code, details), code)

    def _sentence(self, code: grpc.StatusCode, details: str) -> str:
        at = f"unix:{path_of(self._endpoint)}"
        if code is grpc.StatusCode.UNAVAILABLE and "stopping" in details:
            return f"{details} ({at})"
        if code is grpc.StatusCode.UNAVAILABLE:
            return f"no agent answers on {at}: {_cause(details)}. Is the agent running, and is --endpoint right?"
        if code in {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}:
            return (
                f"the agent on {at} has not answered for {self._deadline:g} s. "
                "Is it standing still, and is --endpoint right?"
            )
        return f"the agent on {at} says {code.name}: {details}"


def _cause(details: str) -> str:
    """Return the system's own words from what grpc makes of them."""
    known = ("No such file or directory", "Connection refused", "Permission denied")
    return next(
        (words for words in known if words in details), details.splitlines()[0] if details else "no reason told"
    )
