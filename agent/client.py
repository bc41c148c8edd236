"""A small client of a running agent, for the command line and for controllers in Python.

with Client("unix:/run/nodediag/nodediag.sock") as client:  # over TCP: Client("10.0.0.7:9798", tls=ClientTls(...))
    print(client.get_node_report())
    for event in client.watch():
        ...

examples/controller.py shows how to have something mended.
"""

import re
import ssl
import threading
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import grpc

from agent.acts import Evidence, Refusal, Remediation, RemediationStatus, Request
from agent.api import remediation_words as words
from agent.api import revert
from agent.api.endpoint import address_of, is_unix, path_of
from agent.api.pb import diagnostics_service_pb2 as pb
from agent.api.pb import diagnostics_service_pb2_grpc as pb_grpc
from agent.api.pb import remediation_service_pb2 as remediation_pb
from agent.api.pb import remediation_service_pb2_grpc as remediation_pb_grpc
from agent.api.refusal_details import refusal_of
from agent.model import Action, Event, NodeReport, Target

DEADLINE_SECONDS = 5.0
"""Answers come from memory: an agent that takes longer does not answer."""
REMEDIATE_SECONDS = 150.0
"""A remediation is answered once it is known whether it helped. What was begun goes on after that, too."""
MAX_RECEIVED_BYTES = 64 << 20
MAX_EVIDENCE_BYTES = 16 << 20
PAGE = 100
"""Remediations asked for at once, at most."""
MAX_FILE_BYTES = 1 << 20


class ClientError(Exception):
    """The agent did not answer, or refused; `code` is grpc's. The text is for people.

    `refusal` is why nothing was done and when the same request may be sent again, if the agent said so.
    """

    def __init__(self, text: str, code: grpc.StatusCode, refusal: Refusal | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.refusal = refusal


@dataclass(frozen=True, slots=True)
class ClientTls:
    """Paths of PEM files: who you are, and who signs the agent's certificate.

    `server_name`: what the agent's certificate is made out to, if that is not the host of the endpoint.
    """

    cert_file: str
    key_file: str
    ca_file: str
    server_name: str = ""


class Client:
    """One connection to the agent on `unix:PATH`, or with `tls` on `host:port`; made when it is first needed.

    The files are read now, and once: after your certificate is renewed, make a new client. Raises ClientError.
    """

    def __init__(self, endpoint: str, deadline_seconds: float = DEADLINE_SECONDS, tls: ClientTls | None = None) -> None:
        self._endpoint = endpoint
        self._deadline = deadline_seconds
        self._channel = _channel(endpoint, tls)
        self._stub = pb_grpc.DiagnosticsServiceStub(self._channel)
        self._mending = remediation_pb_grpc.RemediationServiceStub(self._channel)

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

    def list_actions(self) -> RemediationStatus:
        """Return every action as it stands for this caller, and what holds for all of them. Raises ClientError."""
        request = remediation_pb.ListActionsRequest()
        answer: remediation_pb.ListActionsResponse = self._ask(self._mending.ListActions, request)
        return words.read_status(answer)

    def remediate(
        self,
        action: Action,
        target: Target,
        *,
        request_id: str | None = None,
        fencing_token: int = 0,
        dry_run: bool = False,
        reason: str = "",
    ) -> Remediation:
        """Have one target mended, wait until it is known whether that helped (up to 150 s), and return what came of it.

        `target` is that of a finding, unchanged. `request_id` is a UUID of your own, made here if there is none.
        Nothing is repeated here. Raises ClientError; if its code is UNAVAILABLE or DEADLINE_EXCEEDED, the answer may
        have been lost on the way: call again with the same request_id, for which nothing is ever done twice.
        """
        asked = Request(request_id or str(uuid4()), action, target, "", dry_run, fencing_token, reason)
        answer: remediation_pb.RemediateResponse = self._ask(
            self._mending.Remediate, words.write_request(asked), REMEDIATE_SECONDS
        )
        return words.read_remediation(answer.remediation)

    def get_remediation(self, request_id: str) -> Remediation:
        """Return one remediation as it is recorded. Raises ClientError: NOT_FOUND if it is not."""
        request = remediation_pb.GetRemediationRequest(request_id=request_id)
        answer: remediation_pb.GetRemediationResponse = self._ask(self._mending.GetRemediation, request)
        return words.read_remediation(answer.remediation)

    def list_remediations(self, limit: int = 50) -> tuple[Remediation, ...]:
        """Return the latest remediations that are recorded, at most `limit`, the latest first. Raises ClientError."""
        found: list[Remediation] = []
        token = ""
        while len(found) < limit:
            size = min(PAGE, limit - len(found))
            request = remediation_pb.ListRemediationsRequest(page_size=size, page_token=token)
            page: remediation_pb.ListRemediationsResponse = self._ask(self._mending.ListRemediations, request)
            found += map(words.read_remediation, page.remediations)
            token = page.next_page_token
            if not token or not page.remediations:
                break
        return tuple(found[:limit])

    def list_evidence(self) -> tuple[Evidence, ...]:
        """Return what evidence is stored, the latest first. Raises ClientError."""
        answer: pb.ListEvidenceResponse = self._ask(self._stub.ListEvidence, pb.ListEvidenceRequest())
        return tuple(map(words.read_evidence, answer.evidence))

    def fetch_evidence(self, evidence_id: str) -> bytes:
        """Return one piece of evidence, a JSON document; compare it with the size and sha256 of `list_evidence`.

        Raises ClientError: NOT_FOUND if it is not stored (any more).
        """
        stream = self._stub.FetchEvidence(pb.FetchEvidenceRequest(id=evidence_id), timeout=self._deadline)
        document = bytearray()
        try:
            for answer in stream:
                document += answer.chunk
                if len(document) > MAX_EVIDENCE_BYTES:
                    what = f"the evidence is larger than {MAX_EVIDENCE_BYTES >> 20} MiB and was not read to its end"
                    raise ClientError(what, grpc.StatusCode.OUT_OF_RANGE)
        except grpc.RpcError as error:
            raise self._explained(error) from error
        finally:
            stream.cancel()
        return bytes(document)

    def _ask(self, call: Callable[..., Any], request: object, seconds: float | None = None) -> Any:  # noqa: ANN401 - the stubs have no types
        try:
            return call(request, timeout=seconds or self._deadline)
        except grpc.RpcError as error:
            raise self._explained(error, seconds) from error

    def _explained(self, error: grpc.RpcError, waited: float | None = None) -> ClientError:
        code, details = error.code(), error.details() or ""
        refusal = refusal_of(error)
        sentence = self._sentence(code, details, waited or self._deadline, refusal)
        return ClientError(sentence, code, refusal)

    def _sentence(self, code: grpc.StatusCode, details: str, waited: float, refusal: Refusal | None) -> str:
        at = f"unix:{path_of(self._endpoint)}" if is_unix(self._endpoint) else self._endpoint
        if code is grpc.StatusCode.UNAVAILABLE and "stopping" in details:
            return f"{details} ({at})"
        if refusal is not None:
            return f"the agent on {at} refuses: {refusal.reason}: {details}"
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return f"the agent on {at} does not know what it is asked for: it is older than this client, or no nodediag"
        if code is grpc.StatusCode.UNAVAILABLE:
            advice = _certificate_advice(self._endpoint, details)
            if advice:
                return f"no connection with the agent on {at}: {advice}"
            return f"no agent answers on {at}: {_cause(details)}. Is the agent running, and is --endpoint right?"
        words = f"the agent on {at} says {code.name}: {details}"
        if code in {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}:
            asks = "Is it standing still, and is --endpoint right?"
            words = f"the agent on {at} has not answered for {waited:g} s. {asks}"
        return words


def connect_options(tls: ClientTls | None = None) -> tuple[tuple[str, int | str], ...]:
    """Return grpc's options for a channel to an agent."""
    options: tuple[tuple[str, int | str], ...] = (
        ("grpc.max_receive_message_length", MAX_RECEIVED_BYTES),
        ("grpc.use_local_subchannel_pool", 1),  # another client's failure is not ours
    )
    return (*options, ("grpc.ssl_target_name_override", tls.server_name)) if tls and tls.server_name else options


def _channel(endpoint: str, tls: ClientTls | None) -> grpc.Channel:
    if is_unix(endpoint):
        if tls:
            raise _unusable(f"certificates (--cert, --key, --ca) are of no use on {endpoint}: leave them out")
        return grpc.insecure_channel(address_of(endpoint), options=connect_options())
    if not (tls and tls.cert_file and tls.key_file and tls.ca_file):
        raise _unusable(
            f"over TCP ({endpoint}) your certificate, its key and the agent's authority are needed: "
            "--cert, --key and --ca"
        )
    ca, key, cert = map(_content, (tls.ca_file, tls.key_file, tls.cert_file))
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(tls.cert_file, tls.key_file, password=lambda: b"")
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(tls.ca_file)
    except (ssl.SSLError, OSError, ValueError) as error:
        why = str(getattr(error, "reason", None) or error).lower().replace("_", " ")
        raise _unusable(
            f"{tls.cert_file}, {tls.key_file} and {tls.ca_file} must be a certificate, the key that belongs to it "
            f"and an authority, in PEM form and not encrypted: {why}"
        ) from error
    credentials = grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=cert)
    return grpc.secure_channel(address_of(endpoint), credentials, options=connect_options(tls))


def _content(path: str) -> bytes:
    try:
        with Path(path).open("rb") as stream:
            return stream.read(MAX_FILE_BYTES)
    except OSError as error:
        raise _unusable(f"{path} cannot be read: {error.strerror}") from error


def _unusable(text: str) -> ClientError:
    return ClientError(text, grpc.StatusCode.INVALID_ARGUMENT)


def _certificate_advice(endpoint: str, details: str) -> str:
    """Return what to check if it was a certificate that failed, as far as grpc tells; else nothing."""
    if is_unix(endpoint):
        return ""
    return next((advice for words, advice in _ADVICE.items() if re.search(words, details)), "")


_ADVICE = {
    "certificate has expired": "its certificate has expired. Is it renewed on the node (grpc.tls.cert_file)?",
    "CERTIFICATE_VERIFY_FAILED": (
        "its certificate is not signed by the authority you trust. Is --ca that of the agents?"
    ),
    "Hostname Verification Check failed": (
        "its certificate is not made out to this host. Is the host in --endpoint one of the certificate's names? "
        "If all agents share one certificate, say its name by --server-name."
    ),
    "max connection age": (
        "it ends every connection within 10 minutes, so that certificates are looked at again. Ask or watch again."
    ),
    "failed to connect.*(Socket closed|TSI_DATA_CORRUPTED|Connection reset)": (
        "it hangs up before a word is said, most likely because of your certificate. Is it valid now, and signed by an "
        "authority in the agent's grpc.tls.client_ca_file?"
    ),
    "WRONG_VERSION_NUMBER": "it does not speak TLS there. Is the port in --endpoint that of gRPC?",
}


def _cause(details: str) -> str:
    """Return the system's own words from what grpc makes of them."""
    known = ("No such file or directory", "Connection refused", "Permission denied")
    return next(
        (words for words in known if words in details), details.splitlines()[0] if details else "no reason told"
    )
