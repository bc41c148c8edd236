"""What the kubelet is asked, and what that makes it ask the API server: counted with its default cache times."""

from collections.abc import Mapping

import pytest

from agent.host.kubelet_calls import METRICS, PODS, KubeletCalls
from agent.model import MetricKind
from tests.unit.builders import ManualClock

TOKEN = b"a token"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def calls(clock: ManualClock) -> KubeletCalls:
    return KubeletCalls(clock)


def counted(calls: KubeletCalls, name: str = "kubelet_api_requests_total") -> Mapping[tuple[str, ...], float]:
    return {sample.labels: sample.value for sample in calls.samples() if sample.name == name}


def caused(calls: KubeletCalls) -> tuple[float, float]:
    found = counted(calls, "kubelet_api_apiserver_requests_estimate_total")
    assert set(found) == {("token_review",), ("subject_access_review",)}
    return found["token_review",], found["subject_access_review",]


def ask(calls: KubeletCalls, status: int | None = 200, path: str = PODS, token: bytes = TOKEN) -> None:
    calls.answered(path, token, status, whole=True)


def test_every_counter_begins_at_nought_so_that_its_first_step_is_a_rate(calls: KubeletCalls) -> None:
    assert counted(calls) == {(PODS, "200"): 0, (METRICS, "200"): 0}
    assert caused(calls) == (0, 0)
    assert all(metric.kind is MetricKind.COUNTER for metric in calls.metrics)


def test_requests_count_by_path_and_status(calls: KubeletCalls) -> None:
    ask(calls)
    ask(calls, 403)
    ask(calls, None, METRICS)
    calls.unsent(METRICS)
    calls.answered(PODS, TOKEN, 200, whole=False)
    assert counted(calls) == {
        (PODS, "200"): 1,
        (PODS, "403"): 1,
        (PODS, "error"): 1,
        (METRICS, "200"): 0,
        (METRICS, "error"): 2,
    }


def test_no_server_can_make_series_without_end(calls: KubeletCalls) -> None:
    for status in range(100, 1000):
        ask(calls, status)
    assert len(counted(calls)) < 20


def test_the_kubelet_remembers_who_and_what_was_allowed(calls: KubeletCalls, clock: ManualClock) -> None:
    for _ in range(20):  # every 30 s for 10 min
        ask(calls)
        clock.advance(30)
    assert caused(calls) == (600 / 120, 600 / 300)


def test_each_path_is_reviewed_for_itself_and_the_token_once(calls: KubeletCalls) -> None:
    ask(calls)
    ask(calls, path=METRICS)
    assert caused(calls) == (1, 2)


def test_a_new_token_is_reviewed_anew(calls: KubeletCalls) -> None:
    ask(calls)
    ask(calls, token=b"another")
    assert caused(calls) == (2, 2)


def test_a_denial_is_remembered_for_half_a_minute_and_costs_a_look_at_nodes_proxy_too(
    calls: KubeletCalls, clock: ManualClock
) -> None:
    ask(calls, 403)
    clock.advance(29)
    ask(calls, 403)
    assert caused(calls) == (1, 2)
    clock.advance(1)
    ask(calls, 403)
    assert caused(calls) == (1, 4)
    ask(calls, 403, METRICS)
    assert caused(calls) == (1, 5)


def test_a_token_that_is_refused_is_looked_up_for_no_rights(calls: KubeletCalls) -> None:
    ask(calls, 401)
    assert caused(calls) == (1, 0)


def test_an_unanswered_request_counts_as_one_that_was_allowed(calls: KubeletCalls) -> None:
    ask(calls, None)
    assert caused(calls) == (1, 1)


def test_who_shows_no_token_and_what_was_never_sent_cause_nothing(calls: KubeletCalls) -> None:
    ask(calls, token=b"")
    calls.unsent(PODS)
    assert caused(calls) == (0, 0)


def test_tokens_that_were_rotated_out_are_forgotten(calls: KubeletCalls) -> None:
    for number in range(1000):
        ask(calls, token=b"%d" % number)
    assert len(calls._cached_until) <= 16
