"""A stand-in for the kubelet's own API: a TLS server that answers as it is told, and keeps what it was sent.

What it answers is a function of the connection and the request; `replying` and its neighbours make some.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

from tests.lab.certificates import Issued
from tests.lab.kubelet_standin import Reply
from tests.lab.waiting import wait_until

_LONGEST_REQUEST = 65536

Answer: TypeAlias = Callable[["Conversation"], None]


class Conversation:
    """One connection on which a request has arrived. `over` is set when the stand-in ends."""

    def __init__(self, connection: ssl.SSLSocket, request: bytes, over: threading.Event) -> None:
        self.request = request
        self.path = request.split(b" ", 2)[1].decode("latin-1") if b" " in request else ""
        self.over = over
        self.send = connection.sendall


class KubeletApi:
    """The stand-in, as a context manager. `answer` and what it presents may be changed while it runs.

    `connections` counts those that were accepted; `requests` has all that was ever read behind TLS.
    """

    def __init__(
        self, folder: Path, issued: Issued, answer: Answer, *, address: str = "127.0.0.1", port: int = 0
    ) -> None:
        self.answer = answer
        self.shakes_hands = True
        self.connections = 0
        self.requests: list[bytes] = []
        self._folder = folder
        self._listener = socket.create_server((address, port), backlog=16)
        self._over = threading.Event()
        self._open: set[socket.socket] = set()
        self._ended = 0
        self._lock = threading.Lock()
        self.url = f"https://{address}:{self._listener.getsockname()[1]}"
        self.present(issued)

    def present(self, issued: Issued) -> None:
        """Show this certificate from the next connection on."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._folder.mkdir(parents=True, exist_ok=True)
        context.load_cert_chain(*issued.write(self._folder, "kubelet"))
        self._context = context

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="lab-kubelet-api", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.end_connections()

    def end_connections(self) -> None:
        """End those that are open, whatever they wait for."""
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection,), name="lab-kubelet-api", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:  # the client gave up, as it should with such a server
            if not self.shakes_hands:
                self._over.wait()
                return
            with self._context.wrap_socket(connection, server_side=True) as served:
                with self._lock:
                    self._open.add(served)
                request = self._read(served)
                if request:
                    self.answer(Conversation(served, request, self._over))
        with self._lock:
            self._open = {each for each in self._open if each.fileno() >= 0}
            self._ended += 1

    def wait_for_end_of(self, connections: int) -> None:
        """Wait until so many connections are over, from whichever side."""
        wait_until(lambda: self._ended >= connections, 10, "the connections end")

    def _read(self, connection: ssl.SSLSocket) -> bytes:
        """Read up to the blank line; whatever comes is kept, also if the rest never does."""
        request = b""
        self.requests.append(request)
        while b"\r\n\r\n" not in request and len(request) < _LONGEST_REQUEST:
            part = connection.recv(4096)
            if not part:
                break
            request += part
            self.requests[-1] = request
        return request


def replying(*replies: Reply, **routes: Reply) -> Answer:
    """Answer every path with the one reply, or by its last word (`pods=...`), and 404 what has none."""
    missing = Reply(b"404 page not found\n", 404, "Not Found")

    def answer(talk: Conversation) -> None:
        talk.send((replies[0] if replies else routes.get(talk.path.strip("/"), missing)).wire())

    return answer


def sending(data: bytes, *, then: bytes = b"", every: float | None = None) -> Answer:
    """Send these bytes as they are; then hold the connection, or send `then` again and again, `every` so often."""

    def answer(talk: Conversation) -> None:
        talk.send(data)
        if every is None and not then:
            talk.over.wait()
        while not talk.over.wait(every or 0):
            talk.send(then)

    return answer


def closing(data: bytes) -> Answer:
    """Send these bytes and close."""
    return lambda talk: talk.send(data)
