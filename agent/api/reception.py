"""How those who connect show who they are: by their user on a Unix socket, by their certificate over TCP."""

import os
import socket
import ssl
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from agent.api.certificate_names import CertificateName, alternative_names
from agent.api.relay import READ, WRITE

ROOT = 0
HTTP2 = "h2"
_CREDENTIALS = struct.Struct("iII")
"""struct ucred: pid, uid, gid (unix(7))."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who is behind a connection: the user id on a Unix socket, else None and the names in the certificate shown."""

    uid: int | None = None
    names: tuple[CertificateName, ...] = ()


class NotAdmittedError(Exception):
    """The connection is closed; `what` tells more for the log."""

    def __init__(self, message: str, **what: object) -> None:
        super().__init__(message)
        self.what: Mapping[str, object] = what


class Arrival(Protocol):
    """A connection whose bearer is not known yet. It owns `socket`, which does not block."""

    @property
    def socket(self) -> socket.socket:
        """The connection."""

    def step(self) -> Visitor | int:
        """Return who it is; or what must be waited for (READ, WRITE) before the next step.

        Raises NotAdmittedError, OSError.
        """


Reception = Callable[[socket.socket], Arrival]
"""Makes an arrival of a connection just accepted, which does not block. Raises OSError."""


@dataclass(slots=True, eq=False)
class UserArrival:
    """On a Unix socket, the kernel knows the user who connected. Only root and our own user are admitted."""

    socket: socket.socket
    welcome: frozenset[int] = field(default_factory=lambda: frozenset({ROOT, os.geteuid()}))

    def step(self) -> Visitor:
        """Return the user."""
        raw = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        uid = _CREDENTIALS.unpack(raw)[1]
        if uid not in self.welcome:
            raise NotAdmittedError("a user who may not call was shut out", uid=uid)
        return Visitor(uid=uid)


class CertificateArrival:
    """Over TCP, both show a certificate. `context` is of this one connection, so no session of another is resumed."""

    def __init__(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        self._peer = connection.getpeername()[0]
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = self._tls = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)

    def step(self) -> Visitor | int:
        """Go on with the handshake; at its end the certificate is verified."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return READ
        except ssl.SSLWantWriteError:
            return WRITE
        except ssl.SSLError as error:
            why = getattr(error, "verify_message", None) or (error.reason or "no TLS").lower().replace("_", " ")
            raise NotAdmittedError("a caller was shut out: no secure connection", why=why, peer=self._peer) from error
        shown = self._tls.getpeercert(binary_form=True)
        if not shown or self._tls.session_reused or self._tls.selected_alpn_protocol() != HTTP2:
            raise NotAdmittedError("a caller was shut out: it does not speak gRPC over TLS", peer=self._peer)
        try:
            return Visitor(names=alternative_names(shown))
        except ValueError as error:
            raise NotAdmittedError(
                "a caller was shut out: its certificate cannot be read", why=str(error), peer=self._peer
            ) from error
