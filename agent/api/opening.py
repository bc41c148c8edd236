"""Starts what listens behind the door, for the first who comes or ahead of that.

That takes a moment and may fail; so it is done in a thread of its own, and can be tried again after a failure.
"""

import logging
import queue
import threading
from collections.abc import Callable
from contextlib import suppress

from agent.api.hidden import HiddenSocket

log = logging.getLogger("nodediag.api")


class Opening:
    """`inside` starts what listens and returns its socket, or raises; `ring` is called when that has ended either way.

    `inner` is what was opened, None until then. `begin` and `take_up` are for one thread alone.
    """

    def __init__(self, inside: Callable[[], HiddenSocket], ring: Callable[[], None]) -> None:
        self.inner: HiddenSocket | None = None
        self._inside = inside
        self._ring = ring
        self._opened: queue.SimpleQueue[HiddenSocket | None] = queue.SimpleQueue()
        self._under_way = False
        self._closed = False

    def begin(self) -> None:
        """Start it, unless that is under way."""
        if not self._under_way:
            self._under_way = True
            threading.Thread(target=self._open, name="api-opening", daemon=True).start()

    def take_up(self) -> bool:
        """Return whether it has ended since the last time; if so, `inner` is what was opened, or None if it failed."""
        if not self._under_way:
            return False
        try:
            self.inner = self._opened.get_nowait()
        except queue.Empty:
            return False
        self._under_way = False
        return True

    def close(self) -> None:
        """Close what was opened, also if it is opened only after this."""
        self._closed = True
        if self.inner:
            self.inner.close()
        with suppress(queue.Empty):
            while True:
                left = self._opened.get_nowait()
                if left:
                    left.close()

    def _open(self) -> None:
        inner = None
        try:
            inner = self._inside()
        except Exception:
            log.exception("callers are turned away: what serves them could not be started")
        self._opened.put(inner)
        self._ring()
        if self._closed:
            self.close()
