"""The paths of the HTTP server and what each answers, from the board alone. Nothing here knows about sockets."""

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeAlias

from agent.exporters.page import CONTENT_SECURITY_POLICY, render
from agent.pipeline.board import Board

PLAIN = "text/plain; charset=utf-8"

Expose: TypeAlias = Callable[[str], tuple[bytes, str]]
"""From an Accept header to (body, content type)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a path answers."""

    status: HTTPStatus
    body: bytes
    content_type: str = PLAIN
    headers: tuple[tuple[str, str], ...] = ()


class Site:
    """Answers for one board.

    `alive` says whether the agent's own loop turns; it must not block. `expose` makes the metrics.
    """

    def __init__(self, board: Board, alive: Callable[[], bool], expose: Expose) -> None:
        self._board = board
        self._alive = alive
        self._expose = expose
        self._paths = {"/metrics": self._metrics, "/livez": self._livez, "/readyz": self._readyz, "/": self._page}

    def answer(self, path: str, accept: str) -> Answer:
        """Answer a GET. `path` is without its query."""
        handler = self._paths.get(path)
        if handler is None:
            known = " ".join(self._paths)
            return Answer(HTTPStatus.NOT_FOUND, f"not found; there are: {known}\n".encode())
        return handler(accept)

    def _metrics(self, accept: str) -> Answer:
        body, content_type = self._expose(accept)
        return Answer(HTTPStatus.OK, body, content_type, (("Vary", "Accept, Accept-Encoding"),))

    def _livez(self, _: str) -> Answer:
        if self._alive():
            return Answer(HTTPStatus.OK, b"ok\n")
        return Answer(HTTPStatus.SERVICE_UNAVAILABLE, b"the agent's own loop has stopped turning\n")

    def _readyz(self, _: str) -> Answer:
        waiting = self._board.waiting()
        if not waiting:
            return Answer(HTTPStatus.OK, b"ok\n")
        return Answer(HTTPStatus.SERVICE_UNAVAILABLE, f"not looked yet: {', '.join(waiting)}\n".encode())

    def _page(self, _: str) -> Answer:
        headers = (
            ("Content-Security-Policy", CONTENT_SECURITY_POLICY),
            ("Referrer-Policy", "no-referrer"),
            ("Vary", "Accept-Encoding"),
        )
        return Answer(HTTPStatus.OK, render(self._board.report()).encode(), "text/html; charset=utf-8", headers)
