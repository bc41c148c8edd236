"""DNS servers that behave badly on purpose, over UDP, switchable while they run."""

from __future__ import annotations

import enum
import heapq
import itertools
import selectors
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from . import dns_wire
from .waiting import wait_until

_ADDRESSES = {dns_wire.A: "10.96.0.1", dns_wire.AAAA: "fd00::1"}
_LARGEST_QUERY = 4096


class DnsMode(enum.Enum):
    """How the server treats a query."""

    HEALTHY = "answers at once"
    NXDOMAIN = "answers at once that there is no such name"
    DROPS_SECOND = "of two parallel queries of one socket, answers the first only"
    SILENT = "takes queries and answers none"
    CLOSED = "does not listen: the kernel refuses"
    SLOW = "answers, but late"


class DnsServer:
    """A UDP DNS server in a thread, as a context manager.

    ``DROPS_SECOND`` looks to a resolver as a lost conntrack race does.  Every
    answer is held for ``window`` seconds, and a query of another type that
    comes from the same port meanwhile is dropped.  A client that waits for its
    first answer before it asks again never falls into the window: so both of a
    sequential pair are answered, whatever the machine's load.

    ``make_socket`` lets the socket be born in another network namespace.
    """

    def __init__(
        self,
        address: str = "127.0.0.1",
        port: int = 0,
        mode: DnsMode = DnsMode.HEALTHY,
        *,
        delay: float = 3.0,
        window: float = 0.05,
        make_socket: Callable[[int, int], socket.socket] = socket.socket,
    ) -> None:
        self.address = address
        self.port = port
        self.delay = delay
        self.window = window
        self.received: list[dns_wire.Question] = []
        self.dropped: list[dns_wire.Question] = []
        self._make_socket = make_socket
        self._mode = mode
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._due: list[tuple[float, int, bytes, Any]] = []
        self._order = itertools.count()
        self._held: dict[Any, tuple[float, int]] = {}
        self._wake_up, self._woken = socket.socketpair()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="lab-dns", daemon=True)

    def __enter__(self) -> Self:
        self._bind()
        self.set_mode(self._mode)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ending.set()
        self._wake_up.send(b"x")
        self._thread.join(10.0)
        self._unbind()
        self._wake_up.close()
        self._woken.close()

    @property
    def mode(self) -> DnsMode:
        """How the server behaves now."""
        return self._mode

    def set_mode(self, mode: DnsMode, *, delay: float | None = None) -> None:
        """Change the behaviour from the next query on; answers due already are dropped."""
        with self._lock:
            self._mode = mode
            self.delay = self.delay if delay is None else delay
            self._due.clear()
            self._held.clear()
            if mode is DnsMode.CLOSED:
                self._unbind()
            elif self._socket is None:
                self._bind()
        self._wake_up.send(b"x")

    def _bind(self) -> None:
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        server = self._make_socket(family, socket.SOCK_DGRAM)
        server.bind((self.address, self.port))
        server.setblocking(False)
        self.port = server.getsockname()[1]
        self._socket = server

    def _unbind(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _serve(self) -> None:
        while not self._ending.is_set():
            with selectors.DefaultSelector() as selector:
                selector.register(self._woken, selectors.EVENT_READ)
                with self._lock:
                    server = self._socket
                    if server is not None:
                        selector.register(server, selectors.EVENT_READ)
                    pause = max(0.0, self._due[0][0] - time.monotonic()) if self._due else None
                ready = {key.fileobj for key, _ in selector.select(pause)}
            if self._woken in ready:
                self._woken.recv(64)
            with self._lock:
                if server is not None and server is self._socket:
                    self._send_due(server)
                    if server in ready:
                        self._receive(server)

    def _receive(self, server: socket.socket) -> None:
        while True:
            try:
                packet, client = server.recvfrom(_LARGEST_QUERY)
            except BlockingIOError:
                return
            except ConnectionError:
                continue
            question = dns_wire.read_question(packet)
            if question is not None:
                self.received.append(question)
                self._treat(question, client)

    def _treat(self, question: dns_wire.Question, client: Any) -> None:
        now = time.monotonic()
        wait = 0.0
        code = dns_wire.NOERROR
        if self._mode is DnsMode.SILENT:
            self.dropped.append(question)
            return
        if self._mode is DnsMode.NXDOMAIN:
            code = dns_wire.NXDOMAIN
        elif self._mode is DnsMode.SLOW:
            wait = self.delay
        elif self._mode is DnsMode.DROPS_SECOND:
            until, kind = self._held.get(client, (0.0, 0))
            if now < until and kind != question.kind:
                self.dropped.append(question)
                return
            wait = self.window
            self._held = {who: what for who, what in self._held.items() if what[0] > now}
            self._held[client] = (now + wait, question.kind)
        answer = dns_wire.write_answer(question, _ADDRESSES, code)
        heapq.heappush(self._due, (now + wait, next(self._order), answer, client))
        if wait == 0.0 and self._socket is not None:
            self._send_due(self._socket)

    def _send_due(self, server: socket.socket) -> None:
        while self._due and self._due[0][0] <= time.monotonic():
            _, _, answer, client = heapq.heappop(self._due)
            try:
                server.sendto(answer, client)
            except OSError:
                # The client is gone; that is its right.
                continue

    def wait_for_queries(self, count: int, timeout: float = 10.0) -> None:
        """Wait until that many queries have come since the start."""
        wait_until(lambda: len(self.received) >= count, timeout, f"{count} DNS queries")
