"""The way in to the API: takes its place at once, and has the API started when somebody comes.

A node that nobody asks never loads grpc, which is a third of what the agent would take.
"""

import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from agent.api import endpoint as places
from agent.api.credentials import CertificateError, CertificateWatch
from agent.api.doorkeeper import Doorkeeper
from agent.api.endpoint import EndpointError, Place, TlsFiles
from agent.api.hidden import FOLDERS, HiddenSocket
from agent.api.reception import CertificateArrival, UserArrival, Visitor

Serve = Callable[[HiddenSocket], None]
"""Starts what listens at a hidden socket, and hides it; returns when it listens. May raise whatever goes wrong."""


class Door:
    """Takes its place when it is made. Raises EndpointError."""

    def __init__(self, listen: str, place: Place, serve: Serve) -> None:
        self._serve = serve
        self._watch: CertificateWatch | None = None
        self.over_tcp = not places.is_unix(listen)
        self.callers = place.callers
        if not self.over_tcp:
            self.endpoint = listen
            self._folders: Sequence[Path] = (places.path_of(listen).parent,)
            self._keeper = self._unix_keeper(listen)
            return
        if place.tls is None or not place.callers:
            raise EndpointError(f"cannot serve gRPC on {listen}: over TCP, grpc.tls and grpc.callers must be set")
        self._folders = FOLDERS
        self._watch = self._loaded(listen, place.tls)
        listener = places.take_address(listen)
        self.endpoint = f"{listen.rpartition(':')[0]}:{listener.getsockname()[1]}"
        self._keeper = self._tcp_keeper(listener, self._watch)

    def visitor(self, peer: str) -> Visitor | None:
        """Return who is behind a peer as grpc names it; None if it did not come through this door, or has left."""
        return self._keeper.visitor(peer)

    def open(self, *, ahead: bool = False) -> None:
        """Let callers in; `ahead`: start what serves them now, not for the first. Raises OSError."""
        if self._watch:
            self._watch.start()
        self._keeper.start(ahead=ahead)

    def close(self) -> None:
        """Let nobody in any more."""
        self._keeper.close()

    def stop(self, seconds: float) -> None:
        """End, within so many seconds; what was served has ended."""
        self._keeper.stop(seconds)
        if self._watch:
            self._watch.stop()

    def _inside(self) -> HiddenSocket:
        """Have the API started behind a hidden socket. Made no sooner: a crash would leave its folder behind."""
        inner = HiddenSocket(self._folders)
        try:
            self._serve(inner)
        except BaseException:
            inner.close()
            raise
        return inner

    def _unix_keeper(self, listen: str) -> Doorkeeper:
        listener = places.take_path(listen)
        remove = places.remover(listen)
        try:
            self._try_folders()
        except OSError as error:
            listener.close()
            remove()
            raise EndpointError(f"cannot serve gRPC on {listen}: {error.strerror or error}") from error
        return Doorkeeper(listener, UserArrival, self._inside, remove)

    def _tcp_keeper(self, listener: socket.socket, watch: CertificateWatch) -> Doorkeeper:
        try:
            self._try_folders()
        except OSError as error:
            listener.close()
            why = error.strerror or error
            raise EndpointError(f"cannot serve gRPC over TCP: no folder for a socket in /run or /tmp: {why}") from error
        return Doorkeeper(listener, lambda connection: CertificateArrival(connection, watch.context()), self._inside)

    def _try_folders(self) -> None:
        """See now whether a socket can be hidden later, when nobody reads the log. Raises OSError."""
        HiddenSocket(self._folders).close()

    @staticmethod
    def _loaded(listen: str, tls: TlsFiles) -> CertificateWatch:
        watch = CertificateWatch(tls)
        try:
            watch.load()
        except CertificateError as error:
            raise EndpointError(f"cannot serve gRPC on {listen}: {error}. See the settings grpc.tls.") from error
        return watch
