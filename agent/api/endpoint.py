"""Where the API is served: how the place is named, and how it is taken.

On a Unix socket (`unix:PATH`) the file belongs to the agent's user alone (mode 0600), and `agent.api.doorkeeper` looks
at who connects. A socket file left over from an agent that was killed is replaced; one that somebody still answers on
is not. Two agents that start at the same moment are told apart by the HTTP address, which is taken first.

Over TCP (`host:port`) there are certificates on both sides, see `agent.api.credentials` and `agent.api.callers`.
"""

import errno
import os
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from agent.acts import Caller

SCHEME = "unix:"
MODE = 0o600
FOLDER_MODE = 0o755
BACKLOG = 128
PROBE_SECONDS = 1.0
"""How long we wait to learn whether somebody answers on a socket file."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of PEM files: our certificate with its chain, its key, and the authorities that sign the callers'."""

    cert_file: str
    key_file: str
    client_ca_file: str


@dataclass(frozen=True, slots=True)
class Place:
    """What the API is served on: `listen` is unix:PATH or host:port; `tls` and `callers` go with host:port alone."""

    listen: str
    tls: TlsFiles | None = None
    callers: tuple[Caller, ...] = ()


class EndpointError(Exception):
    """The place cannot be served on. The text says what, where and what to do."""


class EndpointInUseError(EndpointError):
    """Somebody answers there already."""


def is_unix(endpoint: str) -> bool:
    """Whether this is unix:PATH; else it is host:port."""
    return endpoint.startswith(SCHEME)


def path_of(endpoint: str) -> Path:
    """Return the path of `unix:PATH`."""
    return Path("/" + endpoint.removeprefix(SCHEME).lstrip("/"))


def address_of(endpoint: str) -> str:
    """Return the endpoint as a grpc client wants it, which takes a path for a part of a URI."""
    return SCHEME + quote(str(path_of(endpoint))) if is_unix(endpoint) else endpoint


def host_and_port(endpoint: str) -> tuple[str, int]:
    """Split host:port; an IPv6 address loses its brackets."""
    host, _, port = endpoint.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def take_path(endpoint: str) -> socket.socket:
    """Return a socket that listens at `unix:PATH`, its file of mode 0600. Raises EndpointError."""
    path = path_of(endpoint)
    try:
        path.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        if _left_over(path):
            path.unlink(missing_ok=True)
        return _listening(path)
    except OSError as error:
        raise EndpointError(_why_not(endpoint, f"{error.strerror or error}")) from error


def take_address(listen: str) -> socket.socket:
    """Return a socket that listens at host:port, a name being taken for its first address. Raises EndpointError."""
    host, port = host_and_port(listen)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        both = address[0] == "::" and socket.has_dualstack_ipv6()
        return socket.create_server((str(address[0]), port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        kind = EndpointInUseError if error.errno == errno.EADDRINUSE else EndpointError
        raise kind(
            f"cannot serve gRPC on {listen}: {why}. "
            "Set grpc.listen to an address of this node and a port nobody listens on (ss -ltnp shows who does), "
            'to unix:PATH, or to "" to serve no API.'
        ) from error


def remover(endpoint: str) -> Callable[[], None]:
    """Return what removes the socket file that lies at `unix:PATH` now, but no other that lies there later."""
    path = path_of(endpoint)
    file = _inode(path)

    def remove() -> None:
        with suppress(OSError):
            if _inode(path) == file:
                path.unlink()

    return remove


def _inode(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def _listening(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        os.fchmod(listener.fileno(), MODE)  # Linux makes the file with the mode of the socket, less the umask
        listener.bind(os.fspath(path))
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _left_over(path: Path) -> bool:
    """Whether a socket file lies there that nobody answers on. Raises EndpointError if somebody does."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(mode):
        raise EndpointError(_why_not(f"{SCHEME}{path}", "something lies there that is no socket"))
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(PROBE_SECONDS)
        try:
            caller.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return True
        except (BlockingIOError, TimeoutError):
            pass  # its queue is full: somebody is there, and slow
    raise EndpointInUseError(
        f"cannot serve gRPC on {SCHEME}{path}: another nodediag is running and answers there. "
        'Stop it, or set grpc.listen to another path, or to "" to serve no API.'
    )


def _why_not(endpoint: str, what: str) -> str:
    return (
        f"cannot serve gRPC on {endpoint}: {what}. Set grpc.listen to unix:PATH in a folder this user may "
        'write to, or to "" to serve no API.'
    )
