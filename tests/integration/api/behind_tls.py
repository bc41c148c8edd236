"""An API over TCP on the loopback, with authorities, certificates and callers of its own."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from agent.acts import Caller
from agent.api.diagnostics import Diagnostics
from agent.api.endpoint import Place, TlsFiles
from agent.api.grpc_server import Service, diagnostics
from agent.api.server import ApiServer
from agent.client import Client, ClientTls
from agent.model import Action
from agent.pipeline.board import Board
from agent.pipeline.feed import Feed
from agent.remediation.evidence import EvidenceStore
from tests.lab.certificates import Authority, Issued, Name, Projected
from tests.unit.builders import RealClock
from tests.unit.doubles import DIRTY, SICK

READER = "reader.ops.svc"
CONTROLLER = "spiffe://lab/ns/ops/sa/controller"
CALLERS = (Caller(READER), Caller(CONTROLLER, frozenset({Action.KILL_SHIM})))


@dataclass
class TlsAgent:
    """Everything there is to know of it. `services` are served besides the diagnostics."""

    folder: Path
    services: tuple[Service, ...] = ()
    authority: Authority = field(default_factory=lambda: Authority("callers and agents"))

    def __post_init__(self) -> None:
        self.files = Projected(self.folder / "server")
        self.ca = self.folder / "agents-ca.crt"
        self.ca.write_bytes(self.authority.pem)
        self.renew()
        board = Board("worker-3", RealClock())
        feed = Feed(board)
        services = (
            diagnostics(Diagnostics(board, feed, (SICK, DIRTY), EvidenceStore(self.folder / "evidence", time.time))),
            *self.services,
        )
        self.board = board
        self.api = ApiServer(self.place, board, feed, lambda: services)

    @property
    def place(self) -> Place:
        tls = TlsFiles(str(self.files.cert), str(self.files.key), str(self.files.ca))
        return Place("127.0.0.1:0", tls, CALLERS)

    def renew(self, ca: bytes | None = None) -> Issued:
        """Swap in a new certificate of the agent's, and the authorities of the callers."""
        fresh = self.authority.issue("127.0.0.1", "localhost")
        self.files.swap(fresh, ca or self.authority.pem)
        return fresh

    def identify(self, issued: Issued, stem: str = "caller") -> ClientTls:
        """What a client with this certificate needs."""
        cert, key = issued.write(self.folder, stem)
        return ClientTls(str(cert), str(key), str(self.ca))

    def client(self, *names: Name | str, deadline_seconds: float = 30.0) -> Client:
        """A client with a new certificate for these names."""
        return Client(self.api.endpoint, deadline_seconds, self.identify(self.authority.issue(*names)))

    def channel(self, *names: Name | str) -> grpc.Channel:
        """A bare channel with a new certificate for these names."""
        issued = self.authority.issue(*names)
        credentials = grpc.ssl_channel_credentials(self.authority.pem, issued.key, issued.cert)
        return grpc.secure_channel(self.api.endpoint, credentials, options=[("grpc.use_local_subchannel_pool", 1)])
