"""Asks the kubelet for its healthz and times every phase of the answer.

HTTP is spoken by the sans-IO library h11 over `host.exchange`. No name is resolved.
"""

import socket
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import SplitResult, urlsplit

import h11

from agent.clock import Clock
from agent.host.exchange import MAX_DETAIL, Attempt, Ending, NoAnswerError, Peer, converse
from agent.model import DeploymentFault
from agent.printable import printable

MAX_HEADER_BYTES = 16 * 1024
MAX_BODY_BYTES = 64 * 1024
MAX_FAILING_CHECKS = 16
MAX_CHECK_NAME = 64
HTTP_PORT = 80
API_PORT = 10250
"""Where a kubelet serves its API (KubeletConfiguration, port)."""


class KubeletApiError(Exception):
    """The kubelet's own API gave no answer to use. The text says what was asked, what came, and what would help.

    `fault` is set if the agent's deployment is why.
    """

    def __init__(self, message: str, fault: DeploymentFault | None = None) -> None:
        super().__init__(message)
        self.fault = fault


class KubeletApiTimeoutError(KubeletApiError):
    """The total deadline passed before the answer was whole."""


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """Status and body of an answer; `whole` is False if the body was cut at its bound."""

    status: int
    body: bytes
    whole: bool = True


def healthz(url: str, *, deadline: float, hedge: float, clock: Clock) -> tuple[Attempt[HttpAnswer], ...]:
    """Ask a healthz URL, at most twice at once, and return the attempts (see `converse`).

    Raises ValueError for a URL that `url_problem` objects to.
    """
    peer, question = _request(url)
    return converse(peer, lambda: HttpTalk(question), deadline=deadline, hedge=hedge, clock=clock)


def url_problem(url: str) -> str | None:
    """Return why this healthz URL cannot be asked, or None."""
    try:
        _request(url)
    except ValueError as error:
        return str(error)
    return None


def api_url_problem(url: str) -> str | None:
    """Return why the kubelet's API cannot be asked at this URL, or None; empty: it is not to be asked."""
    try:
        if url:
            api_peer(url)
    except ValueError as error:
        return str(error)
    return None


def api_peer(url: str) -> Peer:
    """Return whom the URL of the kubelet's API names. Raises ValueError."""
    parts = urlsplit(url) if url.isascii() and url.isprintable() and " " not in url else urlsplit("")
    if parts.scheme != "https" or not parts.hostname or parts.username is not None or parts.query or parts.fragment:
        raise ValueError("must be an https:// URL without credentials, such as https://10.0.0.7:10250")
    if parts.path not in ("", "/"):
        raise ValueError(
            "must be without a path, such as https://10.0.0.7:10250: the agent asks for /pods and /metrics"
        )
    return _peer(parts, API_PORT)


def is_loopback(url: str) -> bool:
    """Whether a healthz URL points at this host, so that it depends on whose network we are in."""
    host = urlsplit(url).hostname or ""
    return host == "localhost" or ip_address(host.partition("%")[0]).is_loopback


def place(url: str) -> tuple[str, int]:
    """Return the IP address and port of a healthz URL, as it is asked."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return ("127.0.0.1" if host == "localhost" else host), parts.port or HTTP_PORT


def failing_checks(body: bytes) -> tuple[str, ...]:
    """Return the names of the checks that failed, from lines such as `[-]syncloop failed: reason withheld`.

    The form is apiserver's healthz.go, `handleRootHealth`; the kubelet lists the checks only on failure.
    """
    failing = (line[3:].partition(b" failed")[0] for line in body.splitlines() if line.startswith(b"[-]"))
    names = [printable(name, MAX_CHECK_NAME) for name, _ in zip(failing, range(MAX_FAILING_CHECKS + 1), strict=False)]
    return (*names[:MAX_FAILING_CHECKS], "…") if len(names) > MAX_FAILING_CHECKS else tuple(names)


class HttpTalk:
    """One HTTP/1.1 request and its response (a Talk)."""

    def __init__(self, request: h11.Request) -> None:
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEADER_BYTES)
        self.question = (self._http.send(request) or b"") + (self._http.send(h11.EndOfMessage()) or b"")
        self.answer: HttpAnswer | None = None
        self._status = 0
        self._body = bytearray()

    def hear(self, data: bytes) -> bytes:
        """Take what arrived. Raises NoAnswerError."""
        try:
            self._http.receive_data(data)
            while self.answer is None and self._take(self._http.next_event()):
                pass
        except h11.RemoteProtocolError as error:
            raise NoAnswerError(Ending.MALFORMED, printable(str(error), MAX_DETAIL)) from None
        return b""

    def _take(self, event: Any) -> bool:  # noqa: ANN401 - h11's events have no common type
        """Take one event; False when there is no further one yet."""
        match event:
            case h11.Response():
                self._status = event.status_code
            case h11.Data():
                self._body += event.data
                if len(self._body) > MAX_BODY_BYTES:
                    self.answer = HttpAnswer(self._status, bytes(self._body[:MAX_BODY_BYTES]), whole=False)
                    raise NoAnswerError(Ending.TOO_LARGE, f"the body does not end within {MAX_BODY_BYTES // 1024} KiB")
            case h11.EndOfMessage():
                self.answer = HttpAnswer(self._status, bytes(self._body))
            case h11.InformationalResponse():
                pass
            case _:
                return False
        return True


def _request(url: str) -> tuple[Peer, h11.Request]:
    """Return whom to ask and what. Raises ValueError."""
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("must be a URL of printable ASCII")
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or parts.username is not None:
        raise ValueError("must be an http:// URL without credentials, such as http://127.0.0.1:10248/healthz")
    headers = [("Host", parts.netloc), ("User-Agent", "nodediag"), ("Accept", "*/*"), ("Connection", "close")]
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        return _peer(parts, HTTP_PORT), h11.Request(method="GET", target=target, headers=headers)
    except h11.LocalProtocolError as error:
        raise ValueError(f"cannot be asked for: {error}") from None


def _peer(parts: SplitResult, usual_port: int) -> Peer:
    """Return the address in a URL; a name is not resolved, since a resolver may hang. Raises ValueError."""
    host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname
    try:
        found = socket.getaddrinfo(host, parts.port or usual_port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except OSError:
        raise ValueError("must have an IP address or localhost as its host: no name is resolved") from None
    family, _, _, _, address = found[0]
    return Peer(family, address)
