"""A small client of a running agent, for `nodediag report` and `watch` and for controllers in Python.

with Client("unix:/run/nodediag/nodediag.sock") as client:  # over TCP: Client("10.0.0.7:9798", tls=ClientTls(...))
    print(client.get_node_report())
    for event in client.watch():
        ...
"""

import re
import ssl
import threading
from collections.abc import Collection, Generator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from agent.api import revert
from agent.api.endpoint import address_of, is_unix, path_of
from agent.api.pb import diagnostics_service_pb2 as pb
from agent.api.pb import diagnostics_service_pb2_grpc as pb_grpc
from agent.model import Event, NodeReport

DEADLINE_SECONDS = 5.0
"""Answers come from memory: an agent that takes longer does not answer."""
MAX_RECEIVED_BYTES = 64 << 20
MAX_FILE_BYTES = 1 << 20


class ClientError(Exception):
    """The agent did not answer, or refused; `code` is grpc's. The text is for people."""

    def __init__(self, text: str, code: grpc.StatusCode) -> None:
        super().__init__(text)
        self.code = code


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
        at = f"unix:{path_of(self._endpoint)}" if is_unix(self._endpoint) else self._endpoint
        if code is grpc.StatusCode.UNAVAILABLE and "stopping" in details:
            return f"{details} ({at})"
        if code is grpc.StatusCode.UNAVAILABLE and (advice := _certificate_advice(self._endpoint, details)):
            return f"no connection with the agent on {at}: {advice}"
        if code is grpc.StatusCode.UNAVAILABLE:
            return f"no agent answers on {at}: {_cause(details)}. Is the agent running, and is --endpoint right?"
        if code in {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}:
            return (
                f"the agent on {at} has not answered for {self._deadline:g} s. "
                "Is it standing still, and is --endpoint right?"
            )
        return f"the agent on {at} says {code.name}: {details}"


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
        "its certificate is not made out to this host. Is the host in --endpoint one of the certificate's names?"
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
