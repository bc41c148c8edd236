"""A stand-in for the API server, over TLS: it keeps one Node and its Events, and is strict about what it is asked.

What a real one would refuse, or what nobody told it to expect, is refused and kept in `complaints`, so that a test
which looks there sees every mistake of a client. What was used of RBAC is kept in `used`: API group,
resource, namespace (empty for what has none) and verb.
"""

from __future__ import annotations

import enum
import json
import socket
import ssl
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from tests.lab.api_objects import RefusedError, check_event, merge_event, merge_status, node
from tests.lab.certificates import Authority

STRATEGIC = "application/strategic-merge-patch+json"
METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
QUERY = "fieldManager=nodediag"
MAX_BODY = 1 << 20


class ApiMode(enum.Enum):
    """How a request is treated."""

    OK = "done"
    BUSY = "429 with a Retry-After"
    ERROR_500 = "500"
    UNAUTHORIZED = "401"
    FORBIDDEN = "403"
    NOT_FOUND = "404"
    INVALID = "422"
    HANG = "read, and never answered"
    TRICKLE = "an answer without end, a byte in a while"
    RESET = "read, and the connection reset"
    LATE = "done, after a delay"
    GARBAGE = "200 with what is no object"
    REDIRECT = "sent to another path"
    HUGE = "200 with more than anybody wants to read"


_REFUSALS = {
    ApiMode.BUSY: (429, "TooManyRequests", "the server has received too many requests"),
    ApiMode.ERROR_500: (500, "InternalError", "etcdserver: request timed out"),
    ApiMode.UNAUTHORIZED: (401, "Unauthorized", "Unauthorized"),
    ApiMode.FORBIDDEN: (403, "Forbidden", 'User "system:serviceaccount:nodediag:nodediag" cannot do that'),
    ApiMode.NOT_FOUND: (404, "NotFound", "not found"),
    ApiMode.INVALID: (422, "Invalid", "is invalid"),
}


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    verb: str
    resource: str
    namespace: str
    path: str
    headers: dict[str, str]
    body: Any
    peer: tuple[str, int]


@dataclass
class _Kept:
    node: dict[str, Any]
    events: dict[str, dict[str, Any]] = field(default_factory=dict)


class ApiStandin:
    """The stand-in, as a context manager. `url` is where it serves, `ca_file` who signed its certificate.

    `tokens` are those it accepts. `modes` gives a mode to a resource of RBAC ("events"); `mode` is for all others.
    `retry_after` is the header it sends with 429; `seconds` the delay of LATE, and between two bytes of TRICKLE.
    """

    def __init__(
        self, folder: Path, node_name: str, *, mode: ApiMode = ApiMode.OK, names: tuple[str, ...] = ()
    ) -> None:
        self.node_name = node_name
        self.mode = mode
        self.modes: dict[str, ApiMode] = {}
        self.retry_after = "1"
        self.seconds = 0.5
        self.tokens = {"first-token"}
        self.ca_file, self.token_file = folder / "ca.crt", folder / "token"
        self.asked: list[Asked] = []
        self.complaints: list[str] = []
        self.used: Counter[tuple[str, str, str, str]] = Counter()
        self.changed = threading.Condition()
        self._kept = _Kept(node(node_name))
        self._ended = threading.Event()
        authority = Authority("kubernetes")
        self.ca_file.write_bytes(authority.pem)
        self.token_file.write_text("first-token")
        pair = authority.issue(*(names or ("127.0.0.1",))).write(folder, "apiserver")
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(*pair)
        self._server = _Server(self)
        self.port = int(self._server.server_address[1])
        self.url = f"https://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), name="lab-apiserver", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def settings(self) -> dict[str, Any]:
        """The table `node_conditions` of an agent that is to use it."""
        files = {"ca_file": str(self.ca_file), "token_file": str(self.token_file)}
        return {"enabled": True, "server": self.url, **files}

    @property
    def conditions(self) -> dict[str, dict[str, Any]]:
        """The Node's conditions by type, as they stand."""
        with self.changed:
            return {each["type"]: dict(each) for each in self._kept.node["status"]["conditions"]}

    @property
    def document(self) -> dict[str, Any]:
        """The whole Node, a copy."""
        with self.changed:
            found: dict[str, Any] = json.loads(json.dumps(self._kept.node))
            return found

    @property
    def events(self) -> dict[str, dict[str, Any]]:
        """The Events by name, copies."""
        with self.changed:
            return {name: dict(each) for name, each in self._kept.events.items()}

    def drop_events(self) -> None:
        """Forget every Event, as an API server does an hour after it was written last."""
        with self.changed:
            self._kept.events.clear()

    def plant(self, condition: dict[str, Any]) -> None:
        """Add a condition somebody else has written."""
        with self.changed:
            self._kept.node["status"]["conditions"].append(condition)

    def wrap(self, connection: socket.socket) -> ssl.SSLSocket:
        """Return the connection with TLS, the handshake still to be made."""
        return self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)

    def take(self, handler: _Handler) -> None:
        """Answer one request in the mode its resource is in."""
        asked, name = handler.read()
        with self.changed:
            self.asked.append(asked)
            if asked.resource:
                self.used["", asked.resource, asked.namespace, asked.verb] += 1
            self.changed.notify_all()
        mode = self.modes.get(asked.resource, self.mode)
        token = asked.headers.get("authorization", "").partition(" ")
        if token[0].lower() != "bearer" or token[2] not in self.tokens:
            mode = ApiMode.UNAUTHORIZED
        if mode in _REFUSALS:
            handler.refuse(*_REFUSALS[mode], self.retry_after if mode is ApiMode.BUSY else "")
        elif mode is ApiMode.LATE:
            self._ended.wait(self.seconds)
            self._carry_out(handler, asked, name)
        elif mode is ApiMode.OK:
            self._carry_out(handler, asked, name)
        else:
            handler.misbehave(mode, self._ended, self.seconds)

    def _carry_out(self, handler: _Handler, asked: Asked, name: str) -> None:
        try:
            _check_headers(asked)
            with self.changed:
                metadata = self._apply(asked, name)
                self.changed.notify_all()
        except RefusedError as error:
            self.complaints.append(f"{asked.verb} {asked.path}: {error}")
            handler.refuse(422, "Invalid", str(error))
        except LookupError as error:
            handler.refuse(*error.args)
        else:
            kind = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}
            handler.answer(201 if asked.verb == "create" else 200, {**kind, "metadata": metadata})

    def _apply(self, asked: Asked, name: str) -> dict[str, Any]:
        """Change what is kept and return its metadata. Raises RefusedError, or LookupError for 404 and 409."""
        events = self._kept.events
        match asked.verb, asked.resource:
            case "patch", "nodes/status":
                if name != self.node_name:
                    raise LookupError(404, "NotFound", f'nodes "{name}" not found')
                merge_status(self._kept.node, asked.body)
                metadata: dict[str, Any] = self._kept.node["metadata"]
                return metadata
            case "create", "events":
                made = check_event(asked.body, asked.namespace, self.node_name)
                if made in events:
                    raise LookupError(409, "AlreadyExists", f'events "{made}" already exists')
                events[made] = asked.body
                return dict(asked.body["metadata"])
            case "patch", "events":
                if asked.namespace != "default" or name not in events:
                    raise LookupError(404, "NotFound", f'events "{name}" not found')
                merge_event(events[name], asked.body)
                return dict(events[name]["metadata"])
        raise RefusedError("nobody needs to ask for this")


def _check_headers(asked: Asked) -> None:
    wanted = {"content-type": "application/json" if asked.verb == "create" else STRATEGIC, "accept": METADATA_ONLY}
    for header, value in wanted.items():
        if asked.headers.get(header) != value:
            raise RefusedError(f"{header} is {asked.headers.get(header)!r}, not {value!r}")
    if urlsplit(asked.path).query != QUERY:
        raise RefusedError(f"the query is not {QUERY}")
    if not asked.headers.get("user-agent", "").startswith("nodediag/"):
        raise RefusedError("does not say who it is")


def _meant(method: str, path: str) -> tuple[str, str, str, str]:
    """Return verb, resource, namespace and name as RBAC sees a request of the core API; empty where there is none."""
    match [method, *(unquote(part) for part in urlsplit(path).path.split("/")[1:])]:
        case ["PATCH", "api", "v1", "nodes", name, "status"]:
            return "patch", "nodes/status", "", name
        case ["POST", "api", "v1", "namespaces", namespace, "events"]:
            return "create", "events", namespace, ""
        case ["PATCH", "api", "v1", "namespaces", namespace, "events", name]:
            return "patch", "events", namespace, name
    return method.lower(), "", "", ""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 16

    def __init__(self, owner: ApiStandin) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.owner = owner

    def get_request(self) -> tuple[Any, Any]:
        connection, address = super().get_request()
        return self.owner.wrap(connection), address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gives up is no error of ours."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30
    server: _Server

    def do_POST(self) -> None:
        self.server.owner.take(self)

    do_GET = do_PUT = do_PATCH = do_DELETE = do_POST  # noqa: N815 - http.server looks for these names

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def read(self) -> tuple[Asked, str]:
        """Return the request, and the name it is about."""
        size = int(self.headers.get("Content-Length", "0"))
        raw = self.rfile.read(min(size, MAX_BODY))
        verb, resource, namespace, name = _meant(self.command, self.path)
        try:
            body = json.loads(raw)
        except ValueError:
            body = raw
        headers = {key.lower(): value for key, value in self.headers.items()}
        return Asked(verb, resource, namespace, self.path, headers, body, self.client_address), name

    def answer(self, status: int, body: Any, *headers: tuple[str, str]) -> None:
        """Send a JSON object."""
        raw = json.dumps(body).encode()
        self.send_response(status)
        for name, value in (("Content-Type", "application/json"), ("Content-Length", str(len(raw))), *headers):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def refuse(self, status: int, reason: str, message: str, retry_after: str = "") -> None:
        """Send a Kubernetes Status."""
        body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": message}
        self.answer(status, {**body, "code": status}, *([("Retry-After", retry_after)] if retry_after else []))

    def misbehave(self, mode: ApiMode, ended: threading.Event, seconds: float) -> None:
        """Answer as no API server should."""
        self.close_connection = True
        with suppress(OSError):
            match mode:
                case ApiMode.HANG:
                    ended.wait()
                case ApiMode.TRICKLE:
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Endless: ")
                    while not ended.wait(seconds):
                        self.wfile.write(b"x")
                case ApiMode.RESET:
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    self.connection.close()
                case ApiMode.GARBAGE:
                    self.answer(200, ["welcome to the hotel"])
                case ApiMode.REDIRECT:
                    self.answer(307, {}, ("Location", "/elsewhere"))
                case ApiMode.HUGE:
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{")
                    while not ended.is_set():
                        self.wfile.write(b" " * 65536)
