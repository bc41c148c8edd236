"""Asks the kubelet's own API on this node, over TLS, in one conversation with one total deadline.

Whoever holds the port gets the token, so it is not shown before the server is known for certain: it presents a
certificate that the trust file holds itself (the kubelet's own, pinned), or one that an authority in that file has
signed for the very address that was asked. Of a pinned one neither names nor age matter: the host itself says that it
is the kubelet's, which signs its own for a year and does not renew it (client-go, GenerateSelfSignedCertKey). The trust
file and the token file are read at every request, so what is rotated is taken up by itself. No redirect is followed,
no proxy is used and no name is resolved.

Imported only where `kubelet.api_url` is set: it brings `ssl`.
"""

import os
import re
import socket
import ssl
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, TypeVar
from urllib.parse import urlsplit

import h11

from agent.clock import Clock
from agent.host.exchange import MAX_DETAIL
from agent.host.kubelet import MAX_HEADER_BYTES, KubeletApiError, KubeletApiTimeoutError, api_peer
from agent.host.kubelet_calls import METRICS, PODS, KubeletCalls
from agent.host.rights import Rights
from agent.printable import printable

MAX_TOKEN_BYTES = 16 * 1024
MAX_TRUST_BYTES = 1 << 20
READ_BYTES = 16 * 1024
"""What one TLS record holds; a larger read would bring no more."""
OK = 200
EXPIRED = 10
"""X509_V_ERR_CERT_HAS_EXPIRED of openssl's x509_vfy.h."""

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")
_TOKEN = re.compile(rb"[\x21-\x7e]+")
_RIGHTS = {PODS: "nodes/pods", METRICS: "nodes/metrics"}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Access:
    """Where the API is and what is shown and believed there. `trust_file`: PEM, the kubelet's own certificate or CAs.

    With `insecure` any server is believed, and gets the token. An empty `token_file`: no token is shown.
    """

    url: str
    token_file: str
    trust_file: str
    insecure: bool = False


class KubeletApi:
    """Asks, and counts what it asks. Safe to use from several threads; each call is a connection of its own."""

    def __init__(self, access: Access, calls: KubeletCalls, clock: Clock) -> None:
        self._access = access
        self._peer = api_peer(access.url)
        self._calls = calls
        self._clock = clock

    def get(self, path: str, take: Callable[[bytes], bool], *, seconds: float, max_bytes: int) -> None:
        """Ask for one of the paths and hand the body over piece by piece, until `take` returns False.

        `seconds` of awake time are for everything together, `max_bytes` for the answer with its head. Raises
        KubeletApiError, KubeletApiTimeoutError, and whatever `take` raises.
        """
        call = _Call(self._access, path, self._clock, seconds)
        try:
            self._converse(call, take, max_bytes)
            call.whole = True
        except TimeoutError:
            raise KubeletApiTimeoutError(f"{call.what} {call.waiting} within {seconds:g} s") from None
        except h11.RemoteProtocolError as error:
            raise call.failed(f"has no whole answer in HTTP: {printable(str(error), MAX_DETAIL)}") from None
        except ssl.SSLError as error:
            raise call.failed(_tls_trouble(error, self._access)) from None
        except OSError as error:
            raise call.failed(f"failed: {error.strerror or error}") from None
        finally:
            if call.sent:
                self._calls.answered(path, call.token, call.status, whole=call.whole)
            else:
                self._calls.unsent(path)

    def _converse(self, call: "_Call", take: Callable[[bytes], bool], max_bytes: int) -> None:
        call.token = _token(self._access.token_file)
        try:
            connection = self._connect(call, pinned_only=False)
        except ssl.SSLCertVerificationError as error:
            if error.verify_code != EXPIRED:
                raise
            connection = self._connect(call, pinned_only=True)
        with connection:
            _exchange(connection, call, take, max_bytes)

    def _connect(self, call: "_Call", *, pinned_only: bool) -> ssl.SSLSocket:
        plain = socket.socket(self._peer.family, socket.SOCK_STREAM)
        try:
            plain.settimeout(call.left())
            plain.connect(self._peer.address)
            return _verified(plain, self._access, self._peer.address[0], call, pinned_only=pinned_only)
        except BaseException:
            plain.close()
            raise


class _Call:
    """One request under way: its deadline, and how far it has come."""

    def __init__(self, access: Access, path: str, clock: Clock, seconds: float) -> None:
        self.path = path
        self.host = urlsplit(access.url).netloc
        self.what = f"GET https://{self.host}{path}"
        self.token = b""
        self.sent = False
        self.status: int | None = None
        self.whole = False
        self.waiting = "was not connected"
        self._clock = clock
        self._ends = clock.awake() + seconds

    def left(self) -> float:
        """Return the seconds left. Raises TimeoutError when there are none."""
        left = self._ends - self._clock.awake()
        if left <= 0:
            raise TimeoutError
        return left

    def patiently(self, connection: ssl.SSLSocket, act: Callable[[], T]) -> T:
        """Do what may block, for as long as there is awake time left. Raises TimeoutError."""
        while True:
            connection.settimeout(self.left())
            try:
                return act()
            except TimeoutError:  # of the wall's time; while we stood still, nobody was late
                continue

    def failed(self, why: str) -> KubeletApiError:
        """Return the error that says what was asked and why there is no answer."""
        return KubeletApiError(f"{self.what} {why}")


def _verified(plain: socket.socket, access: Access, address: str, call: _Call, *, pinned_only: bool) -> ssl.SSLSocket:
    """Return the encrypted connection to a server that is who it should be. Raises KubeletApiError, OSError.

    `pinned_only`: only a certificate in the trust file itself will do, of any age; by whom it is signed is not asked.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False  # a pinned certificate may bear any name; see below for all others
    pinned: frozenset[bytes] = frozenset()
    if not access.insecure:
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # a certificate in the file needs no authority above it
        pinned = _trust(context, access.trust_file)
    if access.insecure or pinned_only:
        context.verify_mode = ssl.CERT_NONE
    connection = context.wrap_socket(plain, do_handshake_on_connect=False)
    call.waiting = "came to no TLS handshake"
    try:
        call.patiently(connection, connection.do_handshake)
        if not access.insecure:
            _demand(connection, pinned, None if pinned_only else address, access)
    except BaseException:
        connection.close()
        raise
    return connection


def _demand(connection: ssl.SSLSocket, pinned: frozenset[bytes], address: str | None, access: Access) -> None:
    """Let nobody pass but the holder of a pinned certificate, or of a verified one that was issued for this address.

    Raises KubeletApiError.
    """
    presented, details = connection.getpeercert(binary_form=True), connection.getpeercert()
    if presented in pinned or (address and presented and details and _is_for(details, address)):
        return
    why = (
        "has expired, and is not itself" if address is None else f"was not issued for {address}, though by an authority"
    )
    raise KubeletApiError(
        f"the server at {access.url} is not believed and was shown no token: its certificate {why} in "
        f"{access.trust_file}"
    )


def _is_for(certificate: Mapping[str, Any], address: str) -> bool:
    """Whether a verified certificate names this IP address (RFC 2818: an address is compared with addresses only)."""
    wanted = ip_address(address.partition("%")[0])
    for kind, name in certificate.get("subjectAltName", ()):
        with suppress(ValueError):  # ssl writes <invalid> for what is no address
            if kind == "IP Address" and ip_address(name.strip()) == wanted:
                return True
    return False


def _exchange(connection: ssl.SSLSocket, call: _Call, take: Callable[[bytes], bool], max_bytes: int) -> None:
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEADER_BYTES)
    headers = [("Host", call.host), ("User-Agent", "nodediag"), ("Accept", "*/*"), ("Connection", "close")]
    if call.token:
        headers.append(("Authorization", f"Bearer {call.token.decode('ascii')}"))
    request = (http.send(h11.Request(method="GET", target=call.path, headers=headers)) or b"") + (
        http.send(h11.EndOfMessage()) or b""
    )
    call.sent, call.waiting = True, "was not answered"
    connection.settimeout(call.left())
    connection.sendall(request)
    received = 0
    while True:
        call.left()
        match http.next_event():
            case h11.NEED_DATA:
                data = call.patiently(connection, lambda: connection.recv(READ_BYTES))
                received += len(data)
                if received > max_bytes:
                    raise call.failed(f"is answered with more than {max_bytes >> 20} MiB; the rest is not read")
                http.receive_data(data)
            case h11.Response() as response:
                call.status = response.status_code
                call.waiting = "began to be answered, but the answer did not end"
                if call.status != OK:
                    raise call.failed(_refusal(call.path, call.status))
            case h11.Data() as data:
                if not take(bytes(data.data)):
                    return
            case h11.InformationalResponse():
                pass
            case _:
                return


def _refusal(path: str, status: int) -> str:
    """Say what a status means here, and what an operator can do."""
    right = _RIGHTS.get(path, "nodes/metrics")
    match status:
        case 401:
            return (
                "is answered 401 Unauthorized: the kubelet does not know this token. Is kubelet.token_file this "
                "cluster's and not expired, and does the kubelet ask the API server (authentication.webhook.enabled)?"
            )
        case 403:
            return (
                "is answered 403 Forbidden: this agent's ClusterRole lacks the rule "
                f'{{apiGroups: [""], resources: [{right}], verbs: [get]}}. Kubelets before Kubernetes 1.33 may not '
                "know it and ask for nodes/proxy instead; do not grant that, it can exec into every pod: leave "
                "kubelet.api_url empty there"
            )
        case _ if 300 <= status < 400:
            return f"is answered {status}, a redirect, and none is followed: is kubelet.api_url the kubelet's?"
        case 404:
            return "is answered 404 Not Found: is kubelet.api_url the kubelet's (port 10250)?"
        case _:
            return f"is answered {status}"


def _token(path: str) -> bytes:
    """Read the token as it is now. Raises KubeletApiError. What it is appears in no message."""
    if not path:
        return b""
    token = _contents(path, MAX_TOKEN_BYTES, "kubelet.token_file").strip()
    if not _TOKEN.fullmatch(token):
        raise KubeletApiError(f"{path} (kubelet.token_file) holds no token: that is one word of printable ASCII")
    return token


def _trust(context: ssl.SSLContext, path: str) -> frozenset[bytes]:
    """Let the context believe what the file holds; return its certificates as DER. Raises KubeletApiError."""
    text = _contents(path, MAX_TRUST_BYTES, "kubelet.ca_file").decode("ascii", "replace")
    found = _CERTIFICATE.findall(text)
    try:
        context.load_verify_locations(cadata="\n".join(found) or "none")
        return frozenset(map(ssl.PEM_cert_to_DER_cert, found))
    except (ssl.SSLError, ValueError):
        raise KubeletApiError(f"{path} (kubelet.ca_file) holds no certificate in PEM that can be read") from None


def _contents(path: str, limit: int, setting: str) -> bytes:
    """Read a small regular file; links are followed, by which the kubelet swaps what it projects.

    Raises KubeletApiError.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(file, "rb") as stream:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise KubeletApiError(f"{path} ({setting}) is no regular file")
            read = stream.read(limit + 1)
    except PermissionError as error:
        fault = Rights().path(path, error)
        raise KubeletApiError(f"{path} ({setting}) cannot be read: {fault}", fault) from None
    except OSError as error:
        raise KubeletApiError(f"{path} ({setting}) cannot be read: {(error.strerror or str(error)).lower()}") from None
    if len(read) > limit:
        raise KubeletApiError(f"{path} ({setting}) is larger than {limit >> 10} KiB")
    return read


def _tls_trouble(error: ssl.SSLError, access: Access) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"was not sent: the server is not believed and was shown no token. Its certificate does not fit "
            f"{access.trust_file}: {printable(error.verify_message, MAX_DETAIL)}"
        )
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return "failed: the connection was closed before the answer was whole"
    return f"failed in TLS: {printable(error.reason or str(error), MAX_DETAIL)}"
