"""Counts what the kubelet's API is asked, and estimates what that makes the kubelet ask the API server.

A kubelet lets the API server judge tokens: a TokenReview tells whose a token is, a SubjectAccessReview whether they
may. It remembers both (KubeletConfiguration: authentication.webhook.cacheTTL 2 min, authorization.webhook.
cacheAuthorizedTTL 5 min, cacheUnauthorizedTTL 30 s; these are its defaults, and other settings make the estimate
wrong). So the load on the API server has a bound that does not depend on how often we ask, and here it is counted.
"""

import hashlib
import threading
from collections import Counter
from collections.abc import Iterator
from typing import ClassVar

from agent.clock import Clock
from agent.model import Metric, MetricKind, Sample

PODS = "/pods"
METRICS = "/metrics"
TOKEN_REVIEW = "token_review"  # noqa: S105 - a kind of request
ACCESS_REVIEW = "subject_access_review"

REVIEWED_SECONDS = 120.0
ALLOWED_SECONDS = 300.0
DENIED_SECONDS = 30.0
OK, UNAUTHORIZED, FORBIDDEN = 200, 401, 403

_TOLD_CODES = frozenset({200, 401, 403, 404, 429, 500, 503})
"""Codes with a series of their own; of others only the class is told, so that a peer cannot make series."""
_DENIALS = {PODS: 2, METRICS: 1}
"""Reviews behind a 403: whoever may not nodes/pods is looked up for nodes/proxy, too (KEP-2862)."""
_MAX_REMEMBERED = 16


class KubeletCalls:
    """The counters; safe to use from several threads. They start at 0 for every path and kind."""

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "kubelet_api_requests_total",
            MetricKind.COUNTER,
            "Requests to the kubelet's API by HTTP status; error: no whole answer, or none was asked for because the "
            "server could not be verified. Only while kubelet.api_url is set.",
            ("path", "code"),
        ),
        Metric(
            "kubelet_api_apiserver_requests_estimate_total",
            MetricKind.COUNTER,
            "Requests these probably caused from the kubelet to the API server, by its default cache times. Only while "
            "kubelet.api_url is set.",
            ("kind",),
        ),
    )

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, str]] = Counter({(path, "200"): 0 for path in (PODS, METRICS)})
        self._caused: Counter[str] = Counter({TOKEN_REVIEW: 0, ACCESS_REVIEW: 0})
        self._cached_until: dict[tuple[str, ...], float] = {}

    def answered(self, path: str, token: bytes, status: int | None, *, whole: bool) -> None:
        """Count a request that was sent; `status` is None if no answer came: it then counts as one that was allowed.

        `whole`: the answer could be read to its end.
        """
        with self._lock:
            failed = status is None or (status == OK and not whole)
            self._requests[path, "error" if failed or status is None else _code(status)] += 1
            who = hashlib.sha256(token).hexdigest()
            if not token:
                return  # an anonymous caller is nobody to be reviewed
            if not self._cached((TOKEN_REVIEW, who), REVIEWED_SECONDS):
                self._caused[TOKEN_REVIEW] += 1
            if status == UNAUTHORIZED:
                return
            denied = status == FORBIDDEN
            if not self._cached((ACCESS_REVIEW, who, path), DENIED_SECONDS if denied else ALLOWED_SECONDS):
                self._caused[ACCESS_REVIEW] += _DENIALS.get(path, 1) if denied else 1

    def unsent(self, path: str) -> None:
        """Count a request that was never sent."""
        with self._lock:
            self._requests[path, "error"] += 1

    def samples(self) -> Iterator[Sample]:
        """Return how the counters stand."""
        with self._lock:
            requests, caused = dict(self._requests), dict(self._caused)
        yield from (Sample("kubelet_api_requests_total", count, labels) for labels, count in requests.items())
        for kind, count in caused.items():
            yield Sample("kubelet_api_apiserver_requests_estimate_total", count, (kind,))

    def _cached(self, key: tuple[str, ...], seconds: float) -> bool:
        """Whether the kubelet still remembers an answer; if not, it does from now on."""
        now = self._clock.monotonic()
        if self._cached_until.get(key, now) > now:
            return True
        while len(self._cached_until) >= _MAX_REMEMBERED:  # tokens that were rotated out
            del self._cached_until[next(iter(self._cached_until))]
        self._cached_until[key] = now + seconds
        return False


def _code(status: int) -> str:
    return str(status) if status in _TOLD_CODES else f"{status // 100}xx"
