"""The HTTP server: metrics, probes and the status page, for everybody who can reach the address.

Everything is answered from the board; no request waits for a probe. And no client can hold the
server: connections are bounded in number and time (see `connections`) and in the bytes of a request,
so that no stranger costs the kubelet its liveness probe or Prometheus its scrape.
"""

import errno
import gzip
import http.client
import http.server
import logging
import socket
import socketserver
import sys
import threading
from http import HTTPStatus
from typing import Any

from agent.exporters.connections import Connections
from agent.exporters.site import Answer, Site

log = logging.getLogger("nodediag.http")

MAX_CONNECTIONS = 64
MAX_REQUEST_BYTES = 16 * 1024
"""Request line and headers together."""
CONNECTION_SECONDS = 5.0
"""How long a client may take to send a whole request, and again to take the whole answer."""
POLL_SECONDS = 0.5
"""How often connections are looked over; also the longest `stop` takes."""
MIN_GZIP_BYTES = 1024
MAX_REFUSAL = 200
"""Characters of a refusal; the library would repeat the whole request line."""
MAX_PORT = 65535


class ListenError(Exception):
    """The address cannot be listened on. The text says what, where and what to do."""


class HttpExporter:
    """Serves a Site on one address from threads of its own."""

    def __init__(self, listen: str, site: Site) -> None:
        self._listen = listen
        self._site = site
        self._server: _Server | None = None

    @property
    def port(self) -> int:
        """The port listened on; tells which one was given for port 0. 0 before `start`."""
        return int(self._server.server_address[1]) if self._server else 0

    def start(self) -> None:
        """Listen and serve until `stop`. Raises ListenError."""
        self._server = _listening(self._listen, self._site)
        threading.Thread(target=self._server.serve_forever, args=(POLL_SECONDS,), name="http", daemon=True).start()

    def stop(self) -> None:
        """Close the address and every connection. Returns within `POLL_SECONDS`; may be called at any time."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
            server.connections.drop_all()


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """One thread per connection. Not http.server.HTTPServer, which asks DNS for its own name when it binds."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 512

    def __init__(self, family: socket.AddressFamily, address: Any, site: Site) -> None:  # noqa: ANN401 - by family
        self.address_family = family
        self.site = site
        self.connections = Connections(MAX_CONNECTIONS, CONNECTION_SECONDS)
        super().__init__(address, _Handler)

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ANN401, ARG002 - the library's signature
        """Admit a connection, or have it closed."""
        return self.connections.admit(request)

    def close_request(self, request: Any) -> None:  # noqa: ANN401 - the library's signature
        """Close a connection, whoever ended it."""
        self.connections.forget(request)
        super().close_request(request)

    def service_actions(self) -> None:
        """Look over the connections; called by `serve_forever` at least every `POLL_SECONDS`."""
        self.connections.drop_late()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401, ARG002 - the library's signature
        """Log what went wrong; a client that went away is nothing to log."""
        error = sys.exception()
        level = logging.DEBUG if isinstance(error, OSError) else logging.ERROR
        log.log(level, "a connection ended early", exc_info=error)


class _Reader:
    """What a client sends, cut off where a request is longer than it may be."""

    def __init__(self, stream: Any) -> None:  # noqa: ANN401 - a buffered reader
        self._stream = stream
        self._left = MAX_REQUEST_BYTES

    def renew(self) -> None:
        """Begin a new request."""
        self._left = MAX_REQUEST_BYTES

    def readline(self, _: int = -1) -> bytes:
        """Return the next line. Raises LineTooLong, which http.server knows, if the request has been too long."""
        line: bytes = self._stream.readline(self._left + 1)
        self._left -= len(line)
        if self._left < 0:
            raise http.client.LineTooLong("request")
        return line

    def close(self) -> None:
        """Close the stream below."""
        self._stream.close()


class _Handler(http.server.BaseHTTPRequestHandler):
    """One connection, request after request."""

    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        """Bound what is read."""
        super().setup()
        self.reader = _Reader(self.rfile)
        self.rfile = self.reader  # type: ignore[assignment]

    def handle_one_request(self) -> None:
        """Read one request and answer it."""
        self.server.connections.waiting(self.connection)
        self.reader.renew()
        self.requestline = self.request_version = self.command = ""
        try:
            super().handle_one_request()
        except http.client.LineTooLong:
            self.send_error(HTTPStatus.REQUEST_URI_TOO_LONG)
            self.wfile.flush()

    def parse_request(self) -> bool:
        """Parse the request and note that it is complete. A body is never read, so the connection ends after it."""
        if not super().parse_request():
            return False
        self.server.connections.answering(self.connection)
        if "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
            self.close_connection = True
        if self.request_version == "HTTP/1.1" and "Host" not in self.headers:
            self.send_error(HTTPStatus.BAD_REQUEST, "a Host header is missing")
            return False
        return True

    def do_GET(self) -> None:
        """Answer with the page of the path."""
        try:
            path = self.path.partition("?")[0]
            answer = self.server.site.answer(path, self.headers.get("Accept", ""))
        except Exception:
            log.exception("a page could not be made")
            answer = Answer(
                HTTPStatus.INTERNAL_SERVER_ERROR, b"this page could not be made; the agent's log says why\n"
            )
        self._send(answer)

    do_HEAD = do_GET  # noqa: N815 - the library's names

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """Refuse in one plain line, and end the connection. An unknown method is a method not allowed here."""
        status = HTTPStatus(code)
        self.close_connection = True
        if status is HTTPStatus.NOT_IMPLEMENTED:
            status, message = HTTPStatus.METHOD_NOT_ALLOWED, None
        allow = (("Allow", "GET, HEAD"),) if status is HTTPStatus.METHOD_NOT_ALLOWED else ()
        self._send(
            Answer(status, f"{message or status.phrase}"[:MAX_REFUSAL].encode(errors="replace") + b"\n", headers=allow)
        )

    def version_string(self) -> str:
        """Name the server without its version."""
        return "nodediag"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401 - the library's signature
        """Requests are not logged: probes and scrapes come every few seconds."""

    def _send(self, answer: Answer) -> None:
        body = answer.body
        self.send_response(answer.status)
        if len(body) >= MIN_GZIP_BYTES and _takes_gzip(self.headers.get("Accept-Encoding", "")):
            body = gzip.compress(body, compresslevel=1, mtime=0)
            self.send_header("Content-Encoding", "gzip")
        for name, value in answer.headers:
            self.send_header(name, value)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _takes_gzip(accept_encoding: str) -> bool:
    for offer in accept_encoding.lower().split(","):
        coding, _, weight = offer.replace(" ", "").partition(";")
        if coding == "gzip":
            return weight not in {"q=0", "q=0.0", "q=0.00", "q=0.000"}
    return False


def _listening(listen: str, site: Site) -> _Server:
    host, _, port = listen.rpartition(":")
    if not port.isdecimal() or int(port) > MAX_PORT:  # the C library would take it modulo 65536
        raise ListenError(_why_not(listen, port, f"{port or 'nothing'} is no port"))
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return _Server(family, address, site)
    except (OSError, ValueError) as error:
        raise ListenError(_why_not(listen, port, error)) from error


def _why_not(listen: str, port: str, error: Exception | str) -> str:
    begin = f"cannot serve HTTP on {listen}: "
    code = error.errno if isinstance(error, OSError) else None
    if code == errno.EADDRINUSE:
        return (
            f"{begin}address already in use. Another nodediag, or another program, listens there "
            f"(ss -ltnp 'sport = :{port}' shows which): stop it, or set http.listen to a free port."
        )
    if code == errno.EACCES:
        return (
            f"{begin}permission denied. Ports below 1024 need CAP_NET_BIND_SERVICE: "
            "set http.listen to a higher port, such as 9797."
        )
    if code == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
        return (
            f"{begin}this host has no such address. Set http.listen to one that it has "
            "(ip -brief address lists them), or to 127.0.0.1:9797."
        )
    detail = error.strerror if isinstance(error, OSError) else error
    return f"{begin}{detail}. Set http.listen to host:port, such as 127.0.0.1:9797 or [::1]:9797."
