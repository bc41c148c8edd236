"""What a call may cost: size, number and time. Channel arguments are grpc's own (grpc/impl/channel_arg_names.h)."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc

from agent.pipeline.feed import MAX_WATCHERS

MAX_CALLS = MAX_WATCHERS + 64
"""Calls under way at once, each with a thread of its own while it lasts; one more is refused at once."""
MAX_RECEIVED_BYTES = 64 * 1024
MAX_METADATA_BYTES = 8 * 1024
MAX_STREAMS = 100
"""Calls on one connection."""
REQUEST_SECONDS = 5.0
"""How long a call may stay without its request."""
STREAM_SECONDS = 60.0
"""How long a stream of requests may last."""
SWEEP_SECONDS = 0.5
KEEPALIVE_SECONDS = 60.0
"""A TCP connection with a call on it is asked for a sign of life this often, so that who vanished gives its place back.
"""
AGE_SECONDS = 270.0
"""A TCP connection is renewed after this long (grpc adds or takes a tenth), so that the certificates are looked at
again; with the grace, which calls get to end by themselves, a connection lasts less than 10 minutes."""
GRACE_SECONDS = 300.0

OPTIONS = (
    ("grpc.max_receive_message_length", MAX_RECEIVED_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", 2 * MAX_METADATA_BYTES),
    ("grpc.max_concurrent_streams", MAX_STREAMS),
    ("grpc.http2.bdp_probe", 0),  # so that the window, and what waits for a slow reader, stays small
)
TCP_OPTIONS = (
    ("grpc.keepalive_time_ms", int(KEEPALIVE_SECONDS * 1000)),
    ("grpc.max_connection_age_ms", int(AGE_SECONDS * 1000)),
    ("grpc.max_connection_age_grace_ms", int(GRACE_SECONDS * 1000)),
)


def seconds_left(context: grpc.ServicerContext, at_most: float) -> float:
    """Return how long this call may still take: what its caller allows, but no more than `at_most`; 0.0 if it is over.

    A caller that names no deadline gets `at_most`.
    """
    left = context.time_remaining()
    return max(0.0, at_most if left is None else min(left, at_most))


class Deadlines:
    """Ends what takes too long: one thread looks, and only while there is something to look after."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due: dict[object, tuple[float, Callable[[], object]]] = {}
        self._stopped = False
        self._thread: threading.Thread | None = None

    def watch(self, seconds: float, cancel: Callable[[], object]) -> Callable[[], None]:
        """Call `cancel` in so many seconds or a little later, unless what is returned was called before."""
        key = object()
        with self._changed:
            self._due[key] = (time.monotonic() + seconds, cancel)
            if self._thread is None:
                self._thread = threading.Thread(target=self._look_after, name="api-deadlines", daemon=True)
                self._thread.start()
            self._changed.notify_all()

        def forget() -> None:
            with self._changed:
                self._due.pop(key, None)

        return forget

    @contextmanager
    def bound(self, seconds: float, cancel: Callable[[], object]) -> Iterator[None]:
        """Call `cancel` if the block is not left within so many seconds, or a little later."""
        forget = self.watch(seconds, cancel)
        try:
            yield
        finally:
            forget()

    def stop(self) -> None:
        """Look after nothing any more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _look_after(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._due)
                self._changed.wait_for(lambda: self._stopped, SWEEP_SECONDS)
                if self._stopped:
                    return
                now = time.monotonic()
                late = [key for key, (due, _) in self._due.items() if due <= now]
                cancels = [self._due.pop(key)[1] for key in late]
            for cancel in cancels:
                cancel()
