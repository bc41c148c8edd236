"""A stand-in for the kubelet's health endpoint, healthy or ill in every known way.

It speaks HTTP/1.1 by hand on plain sockets: a proper server library would not
consent to the answers wanted here.
"""

from __future__ import annotations

import enum
import socket
import ssl
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

_LONGEST_REQUEST = 65536
_IDLE_TIMEOUT = 120.0
_CHUNK = b"x" * 65536
_GARBAGE = b"\x16\x03\x01\x00\xff not HTTP \x00\xfe\xff\r\n\r\n" * 8

HEALTHZ_FAILED = (
    b"[+]ping ok\n[+]log ok\n[-]syncloop failed: reason withheld\n[+]device-plugin ok\nhealthz check failed\n"
)
"""What a kubelet's aggregated healthz answers with 500 when one check fails."""


class KubeletMode(enum.Enum):
    """How the stand-in treats a connection."""

    HEALTHY = "answers ok"
    LATE = "answers ok, but after a delay"
    NEVER = "accepts, reads, and sends no byte"
    BACKLOG = "does not accept: the kernel connects, as for a stopped process"
    TRICKLE_HEADERS = "sends one byte of an endless header in a while"
    TRICKLE_BODY = "sends the headers, then one byte of the body in a while"
    REFUSE = "does not listen"
    ERROR_500 = "answers 500 and names the failed check"
    ENDLESS_BODY = "sends a body without end as fast as it can"
    GARBAGE = "sends what is not HTTP"
    RESET = "closes the connection with a reset"


@dataclass(frozen=True)
class Reply:
    """A whole HTTP answer."""

    body: bytes
    status: int = 200
    reason: str = "OK"
    headers: tuple[tuple[str, str], ...] = (("Content-Type", "text/plain; charset=utf-8"),)

    def wire(self) -> bytes:
        """Return the answer as it is sent."""
        lines = [f"HTTP/1.1 {self.status} {self.reason}", *(f"{name}: {value}" for name, value in self.headers)]
        lines.append(f"Content-Length: {len(self.body)}")
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + self.body


_OK = Reply(b"ok")
_NOT_FOUND = Reply(b"404 page not found\n", 404, "Not Found")
_FAILED = Reply(HEALTHZ_FAILED, 500, "Internal Server Error")


def read_recording(directory: Path, name: str) -> Reply:
    """Read a recorded answer: ``NAME.headers`` (as curl prints them) and ``NAME.body``."""
    head = (directory / f"{name}.headers").read_text().splitlines()
    _, status, *reason = head[0].split(" ", 2)
    headers = []
    for line in head[1:]:
        key, colon, value = line.partition(":")
        if colon and key.lower() not in ("content-length", "transfer-encoding", "connection"):
            headers.append((key, value.strip()))
    body = (directory / f"{name}.body").read_bytes()
    return Reply(body, int(status), reason[0] if reason else "", tuple(headers))


@dataclass
class _Connections:
    """The connections being served, so that a change of mode can end them."""

    open: set[socket.socket] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, connection: socket.socket) -> None:
        with self.lock:
            self.open.add(connection)

    def drop(self, connection: socket.socket) -> None:
        with self.lock:
            self.open.discard(connection)
        connection.close()

    def end_all(self) -> None:
        with self.lock:
            for connection in self.open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


class KubeletStandin:
    """The stand-in, as a context manager; ``url`` is its healthz.

    ``routes`` maps paths to answers and replaces what a healthy kubelet says on
    10248: ``ok`` for ``/healthz`` and 404 for everything else.
    """

    def __init__(
        self,
        mode: KubeletMode = KubeletMode.HEALTHY,
        *,
        address: str = "127.0.0.1",
        port: int = 0,
        seconds: float = 1.0,
        tls: ssl.SSLContext | None = None,
        routes: dict[str, Reply] | None = None,
    ) -> None:
        self.address = address
        self.port = port
        self.routes = {"/healthz": _OK} if routes is None else routes
        self.requests: list[bytes] = []
        self._mode = mode
        self._seconds = seconds
        self._tls = tls
        self._listener: socket.socket | None = None
        self._acceptor: threading.Thread | None = None
        self._changed = threading.Event()
        self._connections = _Connections()

    def __enter__(self) -> Self:
        # Also a stand-in that is to refuse takes its port first: it must be nobody else's.
        self._listen()
        self.set_mode(self._mode, seconds=self._seconds)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._interrupt()
        self._close_listener()

    @property
    def url(self) -> str:
        """The URL of the health endpoint."""
        scheme = "https" if self._tls else "http"
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{scheme}://{host}:{self.port}/healthz"

    @property
    def mode(self) -> KubeletMode:
        """How it behaves now."""
        return self._mode

    def set_mode(self, mode: KubeletMode, *, seconds: float | None = None) -> None:
        """Change the behaviour at once; open connections are ended.

        ``seconds`` is the delay of ``LATE`` and the time between two bytes of a trickle.
        """
        self._interrupt()
        self._mode = mode
        self._seconds = self._seconds if seconds is None else seconds
        self._changed = threading.Event()
        if mode is KubeletMode.REFUSE:
            self._close_listener()
            return
        if self._listener is None:
            self._listen()
        if mode is not KubeletMode.BACKLOG:
            self._acceptor = threading.Thread(
                target=self._accept, args=(self._listener, self._changed), name="lab-kubelet", daemon=True
            )
            self._acceptor.start()

    def _interrupt(self) -> None:
        self._changed.set()
        self._connections.end_all()
        if self._acceptor is not None:
            self._acceptor.join(10.0)
            self._acceptor = None

    def _listen(self) -> None:
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        listener = socket.create_server((self.address, self.port), family=family, backlog=16)
        listener.settimeout(0.05)
        self.port = listener.getsockname()[1]
        self._listener = listener

    def _close_listener(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _accept(self, listener: socket.socket, changed: threading.Event) -> None:
        while not changed.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            self._connections.add(connection)
            threading.Thread(target=self._serve, args=(connection, changed), name="lab-kubelet", daemon=True).start()

    def _serve(self, connection: socket.socket, changed: threading.Event) -> None:
        served = connection
        try:
            connection.settimeout(_IDLE_TIMEOUT)
            if self._tls is not None:
                served = self._tls.wrap_socket(connection, server_side=True)
                self._connections.add(served)
            while not changed.is_set():
                request = _read_request(served)
                if not request:
                    return
                self.requests.append(request)
                if not self._answer(served, request, changed):
                    return
        except OSError:
            # The client gave up, as it should with such a server.
            return
        finally:
            self._connections.drop(served)
            self._connections.drop(connection)

    def _answer(self, connection: socket.socket, request: bytes, changed: threading.Event) -> bool:
        """Answer in the present mode; tell whether the connection stays open."""
        reply = self._reply_to(request)
        match self._mode:
            case KubeletMode.HEALTHY:
                connection.sendall(reply.wire())
            case KubeletMode.LATE:
                if not changed.wait(self._seconds):
                    connection.sendall(reply.wire())
            case KubeletMode.ERROR_500:
                connection.sendall(_FAILED.wire())
            case KubeletMode.NEVER:
                changed.wait()
            case KubeletMode.TRICKLE_HEADERS:
                self._trickle(connection, b"HTTP/1.1 200 OK\r\nX-Endless: ", changed)
            case KubeletMode.TRICKLE_BODY:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1000000\r\n\r\n")
                self._trickle(connection, b"ok", changed)
            case KubeletMode.ENDLESS_BODY:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n")
                while not changed.is_set():
                    connection.sendall(_CHUNK)
            case KubeletMode.GARBAGE:
                connection.sendall(_GARBAGE)
            case KubeletMode.RESET:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        stays = self._mode in (KubeletMode.HEALTHY, KubeletMode.LATE, KubeletMode.ERROR_500)
        return stays and b"connection: close" not in request.lower()

    def _trickle(self, connection: socket.socket, beginning: bytes, changed: threading.Event) -> None:
        rest = iter(beginning)
        while not changed.is_set():
            connection.sendall(bytes([next(rest, ord("x"))]))
            changed.wait(self._seconds)

    def _reply_to(self, request: bytes) -> Reply:
        words = request.split(b" ", 2)
        path = words[1].decode("latin-1").partition("?")[0] if len(words) > 1 else ""
        return self.routes.get(path, _NOT_FOUND)


def _read_request(connection: socket.socket) -> bytes:
    """Read up to the blank line; a health request has no body."""
    request = b""
    while b"\r\n\r\n" not in request and len(request) < _LONGEST_REQUEST:
        part = connection.recv(4096)
        if not part:
            return b""
        request += part
    return request
