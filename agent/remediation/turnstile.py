"""Lets few at a time touch the disk, so that one that hangs holds those few and no more."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

PLACES = 4
SECONDS = 5.0


class DiskHangsError(Exception):
    """No place has become free: whoever has them has waited for the disk all the time."""


class Turnstile:
    """`places` may be inside at once; one more waits so many seconds at most."""

    def __init__(self, places: int = PLACES, seconds: float = SECONDS) -> None:
        self._places = threading.BoundedSemaphore(places)
        self._seconds = seconds

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Have a place for a while. Raises DiskHangsError."""
        if not self._places.acquire(timeout=self._seconds):
            raise DiskHangsError(
                f"the disk below the state folder (host.state_dir) has not answered for {self._seconds:g} s"
            )
        try:
            yield
        finally:
            self._places.release()
