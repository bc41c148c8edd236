"""Sends one request to the API server, through the kubernetes package, within one deadline.

Of that package only its REST client, its configuration and its in-cluster loader are loaded: without its `__init__`,
which loads the models of every kind, it costs a quarter. Each request reads token and CA anew, as they rotate on disk,
and has a connection of its own, closed afterwards: the next is minutes away, and the API server would have closed it.

No redirect is followed, no proxy is used, nothing is tried again here, and the token is only ever sent over a
connection whose certificate was verified by the CA file.

The one module that imports kubernetes.
"""

import importlib
import importlib.util
import logging
import os
import ssl
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from agent.exporters.node_conditions.answers import MAX_ANSWER, answered, unanswered
from agent.exporters.node_conditions.calls import METADATA_ONLY, Call
from agent.exporters.node_conditions.pace import Answer

DEADLINE_SECONDS = 10.0
"""For one request, from the connection to the last byte of the answer; a server's name is looked up before."""
MAX_FILE_BYTES = 1 << 20
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_PACKAGES = ("kubernetes", "kubernetes.client", "kubernetes.config", "kubernetes.utils")


class UnusableError(Exception):
    """There is nobody to ask, or nothing to show: the text says what is missing and where it comes from."""


@dataclass(frozen=True, slots=True)
class Access:
    """Where the API server is and what we show it; what is empty is as Kubernetes gives it to every pod."""

    server: str = ""
    ca_file: str = ""
    token_file: str = ""


class ApiServer:
    """The API server as one node sees it. `send` is called from one thread."""

    def __init__(
        self,
        access: Access,
        agent: str,
        deadline_seconds: float = DEADLINE_SECONDS,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._access = access
        self._agent = agent
        self._deadline = deadline_seconds
        self._environ = environ

    def send(self, call: Call) -> Answer:
        """Send one request. Whatever becomes of it is the answer; nothing is raised."""
        try:
            return self._send(call)
        except UnusableError as error:
            return Answer(0, "unusable", str(error))
        except Exception as error:  # noqa: BLE001 - the library lets through what urllib3, ssl and http.client raise
            return unanswered(error)

    def _send(self, call: Call) -> Answer:
        library = _library()
        configuration = self._configure(library)
        rest = library.rest(configuration)
        rest.pool_manager.connection_pool_kw["ssl_context"] = _context(configuration.ssl_ca_cert, self._deadline)
        try:
            response = rest.request(
                call.method,
                configuration.host + call.path,
                headers={
                    "Authorization": configuration.api_key["BearerToken"],
                    "Content-Type": call.content_type,
                    "Accept": METADATA_ONLY,
                    "Accept-Encoding": "identity",
                    "User-Agent": self._agent,
                    "Connection": "close",
                },
                body=call.body,
                _request_timeout=self._deadline,
            ).response
            try:
                body = response.read(MAX_ANSWER + 1, decode_content=False)
                return answered(call, response.status, response.headers, body)
            finally:
                response.close()
        finally:
            rest.close()

    def _configure(self, library: "_Library") -> Any:  # noqa: ANN401 - the library has types of its own
        """Return the library's configuration with server, CA and token of now. Raises UnusableError."""
        token = self._access.token_file or str(SERVICE_ACCOUNT / "token")
        ca = self._access.ca_file or str(SERVICE_ACCOUNT / "ca.crt")
        for path, setting in ((token, "token_file"), (ca, "ca_file")):
            _look_at(path, setting)
        configuration = library.configuration()
        try:
            library.loader(token, ca, try_refresh_token=False, environ=self._place()).load_and_set(configuration)
        except library.config_error as error:
            raise UnusableError(f"{error} ({token}, {ca})") from error
        kind, _, secret = configuration.api_key["BearerToken"].partition(" ")
        if not secret.strip().isascii() or not secret.strip().isprintable():
            raise UnusableError(f"what stands in {token} is no token")
        configuration.api_key["BearerToken"] = f"{kind} {secret.strip()}"
        configuration.retries = False
        configuration.proxy = None
        return configuration

    def _place(self) -> Mapping[str, str]:
        """Return host and port as the in-cluster loader reads them. Raises UnusableError."""
        if self._access.server:
            place = urlsplit(self._access.server)
            return {"KUBERNETES_SERVICE_HOST": place.hostname or "", "KUBERNETES_SERVICE_PORT": str(place.port or 443)}
        if not self._environ.get("KUBERNETES_SERVICE_HOST"):
            raise UnusableError(
                "KUBERNETES_SERVICE_HOST is not set, as it is in every pod: set node_conditions.server outside of one"
            )
        return self._environ


@dataclass(frozen=True, slots=True)
class _Library:
    """What is used of the kubernetes package."""

    configuration: Callable[[], Any]
    loader: Callable[..., Any]
    rest: Callable[..., Any]
    config_error: type[Exception]


def _library() -> _Library:
    """Load those modules of the kubernetes package, and no others. Raises UnusableError if it is not installed."""
    try:
        for name in _PACKAGES:
            if name not in sys.modules:
                sys.modules[name] = _bare(name)
        configuration = importlib.import_module("kubernetes.client.configuration").Configuration
        sys.modules["kubernetes.client"].__dict__["Configuration"] = configuration  # where the loader looks for it
        loader = importlib.import_module("kubernetes.config.incluster_config")
        rest = importlib.import_module("kubernetes.client.rest")
    except ImportError as error:
        raise UnusableError(f"the Python package kubernetes is needed (nodediag[node-conditions]): {error}") from error
    logging.getLogger("urllib3").setLevel(logging.CRITICAL)  # what goes wrong is told by us, once
    return _Library(configuration, loader.InClusterConfigLoader, rest.RESTClientObject, loader.ConfigException)


def _bare(name: str) -> ModuleType:
    """Return a package of which only submodules can be had: its `__init__` is not run."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise ImportError(f"{name} is not installed")
    return importlib.util.module_from_spec(spec)


def _look_at(path: str, setting: str) -> None:
    """Raise UnusableError if a file cannot be read or is too large to be what it should."""
    where = f"node_conditions.{setting}, or as every pod of a service account has it mounted"
    try:
        size = Path(path).stat().st_size
        Path(path).open("rb").close()
    except OSError as error:
        raise UnusableError(f"cannot read {path} ({where}): {(error.strerror or str(error)).lower()}") from error
    if size > MAX_FILE_BYTES:
        raise UnusableError(f"{path} ({where}) is larger than {MAX_FILE_BYTES} bytes")


def _context(ca_file: str, seconds: float) -> ssl.SSLContext:
    """Return a TLS context that trusts one CA file, for connections of one request. Raises UnusableError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(ca_file)
    except (OSError, ValueError) as error:
        raise UnusableError(f"{ca_file} holds no certificate of an authority: {error}") from error
    end = time.monotonic() + seconds

    class Socket(ssl.SSLSocket):
        """A socket on which all reads and writes together have one deadline, be it drop by drop."""

        def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 - as it is in ssl
            self._limit()
            super().do_handshake(block)

        def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:  # noqa: ANN401
            self._limit()
            return super().recv_into(buffer, nbytes, flags)

        def send(self, data: Any, flags: int = 0) -> int:  # noqa: ANN401
            self._limit()
            return super().send(data, flags)

        def _limit(self) -> None:
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError("the deadline has passed")
            self.settimeout(left)

    context.sslsocket_class = Socket
    return context
