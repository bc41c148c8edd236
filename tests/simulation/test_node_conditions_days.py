"""What is sent when, over simulated time: the bound of a day, and that nothing is told late, twice or for ever."""

import random
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from agent.exporters.node_conditions import events, pace, status
from agent.exporters.node_conditions.pace import Answer, Budget
from agent.exporters.node_conditions.plan import Pause, Plan, Request, WriteEvent, WriteStatus
from agent.exporters.node_conditions.status import Seen
from agent.model import ActiveFinding
from tests.unit.node_conditions.days import DAY, DONE, always, failed, live
from tests.unit.node_conditions.telling import DNS, HUNG, finding, ill, unseen, well

WELL = Seen((well(), well(DNS)), ("PLEGUnhealthy",))
ILL = Seen((ill(), well(DNS)), ("PLEGUnhealthy",))
STATUS_A_DAY = status.BURST + DAY / status.REFILL_SECONDS
EVENTS_A_DAY = events.BURST + DAY / events.REFILL_SECONDS
"""The bounds docs/node-conditions.md states: 1,450 and 298 on the worst day a node can have."""


def test_the_bound_is_the_one_that_is_promised() -> None:
    promised = f"{STATUS_A_DAY:,.0f} patches and {EVENTS_A_DAY:.0f} for Events at most"
    assert promised in (Path(__file__).parents[2] / "docs/node-conditions.md").read_text()


def plan(seed: int = 1, heartbeat: float = 300.0, interval: float = 10.0, *, with_events: bool = True) -> Plan:
    return Plan(heartbeat, interval, events=with_events, now=0.0, dice=random.Random(seed).random)


def flapping(now: float) -> Seen:
    """At every look another status, another reason and other findings than before."""
    turn = int(now * 100)
    conditions = (ill(finding(turn), finding(turn + 1)), well(DNS)) if turn % 2 else (unseen(reason=f"R{turn}"),)
    return Seen(conditions)


def busy_now_and_then(_: Request, now: float) -> Answer:
    return (DONE, failed(500), failed(429, 0.0), failed(409))[int(now) % 4]


@pytest.mark.parametrize(
    "server",
    [always(DONE), always(failed(500)), always(failed(429, 0.0)), always(failed(0)), busy_now_and_then],
    ids=["done", "500", "429 at once", "unreachable", "changing"],
)
def test_a_day_of_the_worst_flapping_stays_within_the_bound(server: Callable[[Request, float], Answer]) -> None:
    sent = live(plan(), flapping, server, look=7.0)
    assert len(sent.writes) <= STATUS_A_DAY == 1450
    assert len(sent.events) <= EVENTS_A_DAY == 298
    assert all(later - sooner >= 10.0 for sooner, later in pairwise(sent.writes))


def test_a_server_that_contradicts_itself_about_events_costs_no_more() -> None:
    turned = always(Answer(409, "409", "exists", turned=True))
    sent = live(plan(), lambda _now: ILL, lambda r, n: turned(r, n) if isinstance(r, WriteEvent) else DONE)
    assert len(sent.events) <= EVENTS_A_DAY


def test_a_quiet_day_is_heartbeats_and_no_event() -> None:
    sent = live(plan(), lambda _now: WELL)
    assert 300 <= len(sent.writes) <= 360
    assert sent.events == []
    gaps = [later - sooner for sooner, later in pairwise(sent.writes)]
    assert min(gaps) >= 240
    assert max(gaps) < 306, "at the latest with the first look after 5 min"
    assert max(gaps) - min(gaps) > 40, "spread, so that a fleet does not beat in step"


def test_a_finding_that_stands_all_day_is_one_event_renewed_before_it_expires() -> None:
    sent = live(plan(), lambda _now: ILL)
    assert 30 <= len(sent.events) <= 36
    assert max(later - sooner for sooner, later in pairwise(sent.events)) < 3600
    requests = [request for _, request in sent.requests if isinstance(request, WriteEvent)]
    assert [request.exists for request in requests] == [False] + [True] * (len(requests) - 1)
    assert [request.count for request in requests] == list(range(1, len(requests) + 1))


def test_a_finding_that_comes_and_goes_all_day_is_the_same_event_and_not_more() -> None:
    sent = live(plan(), lambda now: ILL if int(now / 30) % 2 else WELL)
    assert len(sent.events) <= 36


def test_a_change_is_told_within_its_interval_and_so_is_its_end() -> None:
    told: dict[str, float] = {}
    for seed in range(50):
        core = plan(seed)
        live(core, lambda _now: WELL, seconds=400)
        for board, name in ((ILL, "begin"), (WELL, "end")):
            begins = 400.0 if name == "begin" else 500.0
            (first, *_) = live(core, lambda _now, board=board: board, began=begins, seconds=100, look=1.0).writes  # type: ignore[misc]
            told[f"{name} {seed}"] = first - begins
    assert max(told.values()) <= 11
    assert max(told.values()) - min(told.values()) > 8, "a fault of the whole fleet is spread over the interval"


def test_what_has_gone_again_before_it_was_told_is_not_told() -> None:
    core = plan()
    live(core, lambda _now: WELL, seconds=60)
    assert isinstance(core.next(ILL, 60.0), Pause)
    sent = live(core, lambda _now: WELL, began=60.5, seconds=100)
    assert sent.requests == []


def test_values_that_change_at_every_look_are_no_change() -> None:
    sent = live(plan(), lambda now: Seen((well(message=f"answers in {now} ms"),)), seconds=3600)
    assert len(sent.writes) <= 16


def test_a_write_carries_all_that_is_known_and_takes_away_what_does_not_apply() -> None:
    step = next(request for _, request in live(plan(), lambda _now: ILL, seconds=60).requests)
    assert step == WriteStatus(ILL)


def test_a_condition_that_stops_to_apply_is_a_change() -> None:
    core = plan()
    live(core, lambda _now: ILL, seconds=60)
    gone = Seen((well(DNS),), ("PLEGUnhealthy", HUNG))
    (first, request) = live(core, lambda _now: gone, began=60.0, seconds=20).requests[0]
    assert first < 71
    assert request == WriteStatus(gone)


def test_the_first_looks_are_waited_for_but_not_for_ever() -> None:
    starting = Seen((unseen(reason="Starting"),), (), waiting=True)
    assert live(plan(), lambda _now: starting, seconds=59).requests == []
    assert len(live(plan(), lambda _now: starting, seconds=80).writes) == 1
    at_once = live(plan(), lambda now: WELL if now > 8 else starting, seconds=60).writes
    assert len(at_once) == 1
    assert 8 < at_once[0] < 20


def test_an_outage_leaves_no_queue_and_ends_with_one_write_of_the_present() -> None:
    core = plan()
    live(core, lambda _now: WELL, seconds=600)
    outage = live(core, flapping, always(failed(0)), began=600, seconds=6 * 3600)
    assert len(outage.writes) < 100
    after = live(core, lambda _now: WELL, began=600 + 6 * 3600, seconds=1000)
    assert [request for _, request in after.requests if isinstance(request, WriteEvent)] == []
    assert after.requests[0][1] == WriteStatus(WELL)
    assert after.writes[0] - (600 + 6 * 3600) <= pace.MAX_BACKOFF_SECONDS * 1.5 + 5
    assert core.pending(WELL) == 0


def test_findings_of_a_long_outage_are_not_remembered() -> None:
    core = plan()
    live(core, flapping, always(failed(0)), seconds=3600)
    assert core._events is not None
    assert len(core._events.known) <= 2


def test_more_findings_than_there_is_room_for_cost_no_more() -> None:
    crowd = Seen((ill(*map(finding, range(500))),))
    core = plan()
    sent = live(core, lambda _now: crowd, seconds=3600, look=10.0)
    assert core._events is not None
    assert len(core._events.known) == events.MAX_KNOWN
    assert len(sent.events) <= events.BURST + 3600 / events.REFILL_SECONDS


def test_room_is_made_by_those_long_gone() -> None:
    core = plan()
    live(core, lambda _now: Seen((ill(*map(finding, range(events.MAX_KNOWN))),)), seconds=8 * 3600, look=60.0)
    sent = live(core, lambda _now: Seen((ill(finding(999)),)), began=8 * 3600, seconds=600)
    assert len(sent.events) == 1


def test_it_comes_back_never_sooner_than_asked_and_not_in_step() -> None:
    waits = set()
    for seed in range(20):
        core = plan(seed, with_events=False)
        first = live(core, lambda _now: WELL, always(failed(429, 120.0)), seconds=400).writes
        assert first[1] - first[0] >= 120
        waits.add(round(first[1] - first[0], 3))
    assert len(waits) == 20


def test_a_retry_after_of_a_year_is_not_believed() -> None:
    assert pace.backoff_seconds(failed(429, 3e7), 1, lambda: 0.0) == pace.MAX_RETRY_AFTER_SECONDS


def test_back_off_grows_to_its_cap() -> None:
    waits = [pace.backoff_seconds(failed(500), failures, lambda: 0.0) for failures in range(1, 12)]
    assert waits[:4] == [2.0, 4.0, 8.0, 16.0]
    assert waits[-1] == 300.0
    assert pace.backoff_seconds(failed(500), 10_000, lambda: 0.0) == 300.0


def test_what_time_does_not_mend_is_tried_seldom() -> None:
    sent = live(plan(), lambda _now: ILL, always(failed(403, seldom=True)))
    assert len(sent.writes) <= DAY / 600
    assert len(sent.events) <= DAY / 600


def test_a_right_missing_for_events_does_not_stop_the_conditions() -> None:
    denied = failed(403, seldom=True)
    sent = live(plan(), lambda _now: ILL, lambda r, _now: denied if isinstance(r, WriteEvent) else DONE)
    assert len(sent.writes) >= 288


def test_one_event_that_is_not_taken_does_not_stop_the_others() -> None:
    crowd, told = Seen((ill(*map(finding, range(3))),)), []
    refused: list[ActiveFinding] = []
    """The one that comes first: only then are there others that wait behind it."""

    def server(request: Request, _: float) -> Answer:
        if isinstance(request, WriteEvent):
            refused[:] = refused or [request.finding]
            if request.finding == refused[0]:
                return failed(422, seldom=True)
            told.append(request.finding)
        return DONE

    live(plan(), lambda _now: crowd, server, seconds=3600)
    others = {finding(number).finding.key for number in range(3)} - {refused[0].finding.key}
    assert {each.finding.key for each in told[:2]} == others


def test_an_event_that_exists_already_is_renewed_and_its_count_left_alone() -> None:
    def server(request: Request, _: float) -> Answer:
        exists = isinstance(request, WriteEvent) and not request.exists
        return Answer(409, "409", "exists", turned=True) if exists else DONE

    sent = live(plan(), lambda _now: ILL, server, seconds=600)
    told = [(r.exists, r.count) for _, r in sent.requests if isinstance(r, WriteEvent)]
    assert told == [(False, 1), (True, None)]


def test_an_event_that_has_expired_is_made_anew() -> None:
    expired = {"when": 4000.0}

    def server(request: Request, now: float) -> Answer:
        if isinstance(request, WriteEvent) and request.exists and now > expired["when"] > 0:
            expired["when"] = 0
            return Answer(404, "404", "gone", turned=True)
        return DONE

    sent = live(plan(), lambda _now: ILL, server, seconds=3 * 3600)
    told = [(r.exists, r.count) for _, r in sent.requests if isinstance(r, WriteEvent)]
    assert told[:4] == [(False, 1), (True, 2), (True, 3), (False, 1)]


def test_without_events_none_is_sent() -> None:
    assert live(plan(with_events=False), flapping, seconds=3600).events == []


def test_a_fault_of_a_whole_fleet_is_spread_and_so_are_the_heartbeats_after_it() -> None:
    nodes = 200
    moments = []
    for seed in range(nodes):
        core = plan(seed, with_events=False)
        live(core, lambda _now: WELL, seconds=300)
        moments += live(core, lambda _now: ILL, began=300.0, seconds=1800.0).writes
    in_ten_seconds = Counter(int(at / 10) for at in moments)
    assert max(in_ten_seconds.values()) <= nodes, "5,000 nodes: at most 500 a second, as many as their leases"
    afterwards = [count for ten, count in in_ten_seconds.items() if ten > 32]
    assert max(afterwards) <= nodes / 4, "and then at most 125 a second: the heartbeats are not in step"


def test_pending_is_what_the_server_does_not_know_yet() -> None:
    core = plan()
    assert core.pending(ILL) == 3
    live(core, lambda _now: ILL, seconds=60)
    assert core.pending(ILL) == 0
    assert core.pending(WELL) == 1
    core.next(Seen((ill(finding(1), finding(2)),)), 61.0)
    assert core.pending(Seen((ill(finding(1), finding(2)),))) == 1, "the second finding has no Event yet"


def test_a_budget_is_spent_and_refilled() -> None:
    budget = Budget(2, 60.0, at=1000.0)
    for _ in range(2):
        assert budget.wait_seconds(1000.0) == 0
        budget = budget.spend(1000.0)
    assert budget.wait_seconds(1000.0) == 60.0
    assert budget.wait_seconds(1045.0) == 15.0
    assert budget.wait_seconds(1060.0) == 0.0
    budget = budget.spend(1060.0)
    assert budget.wait_seconds(1060.0) == 60.0
    assert budget.wait_seconds(1e9) == 0.0
    spent = budget.spend(1e9)
    assert spent.spend(1e9).wait_seconds(1e9) == 60.0, "what is not used is not saved up"
