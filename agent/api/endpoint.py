"""The Unix socket the API is served on: how it is named, and how its place is taken.

Whoever may open the socket may ask everything, so it belongs to the agent's user alone (mode 0600; for the
daemon that is root): the kernel refuses everybody else before a byte is read. A socket file left over from an
agent that was killed is replaced; one that somebody still answers on is not. Two agents that start at the same
moment are told apart by the HTTP address, which is taken first.
"""

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

SCHEME = "unix:"
MODE = 0o600
FOLDER_MODE = 0o755
PROBE_SECONDS = 1.0
"""How long we wait to learn whether somebody answers on a socket file."""


class EndpointError(Exception):
    """The socket cannot be served on. The text says what, where and what to do."""


class EndpointInUseError(EndpointError):
    """Somebody answers there already."""


def path_of(endpoint: str) -> Path:
    """Return the path of `unix:PATH`."""
    return Path("/" + endpoint.removeprefix(SCHEME).lstrip("/"))


def address_of(endpoint: str) -> str:
    """Return the endpoint as grpc wants it, which takes it for a URI."""
    return SCHEME + quote(str(path_of(endpoint)))


def take(endpoint: str) -> None:
    """Make sure that a socket can be made there and that nobody answers there. Raises EndpointError."""
    path = path_of(endpoint)
    try:
        path.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        if _left_over(path):
            path.unlink(missing_ok=True)
        with private(), socket.socket(socket.AF_UNIX) as trial:
            trial.bind(os.fspath(path))
        path.unlink()
    except OSError as error:
        raise EndpointError(_why_not(endpoint, f"{error.strerror or error}")) from error


@contextmanager
def private() -> Iterator[None]:
    """Make files that are the agent's alone meanwhile. The mask is the whole process's, so this must be short."""
    before = os.umask(0o777 & ~MODE)
    try:
        yield
    finally:
        os.umask(before)


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
