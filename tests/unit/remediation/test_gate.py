"""The gate: every refusal alone, every boundary, the order of all checks, and that no odd value ever opens it."""

import dataclasses
import math
from collections.abc import Callable
from itertools import combinations
from typing import Any
from unittest.mock import MagicMock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.acts import MAX_TOKEN, Caller, Limits, Refusal, RefusalReason, Request
from agent.model import Action, Target, TargetKind
from agent.remediation.gate import decide
from agent.remediation.gate_facts import ProcessFacts, Standing
from agent.remediation.past import HOUR_SECONDS, Act, cooldown_left, elapsed, left_this_hour

REQUEST_ID = "7d3f0c4e-5b0e-4a7b-9a55-0123456789ab"
BOOT, OTHER = "11111111-aaaa-4bbb-8ccc-000000000001", "22222222-aaaa-4bbb-8ccc-000000000002"
NOW = 10_000.0
PID, START, OWN_PID = 4321, 777, 999
COMMS = {
    TargetKind.SHIM: "containerd-shim",
    TargetKind.KUBELET: "kubelet",
    TargetKind.CONTAINERD: "containerd",
    TargetKind.PROCESS: "redis-server",
    TargetKind.CONTAINER: "redis-server",
}
IN_CONTAINERS = {TargetKind.PROCESS, TargetKind.CONTAINER}

Case = tuple[Request, Standing]
Change = Callable[[Case], Case]


def target(kind: TargetKind = TargetKind.SHIM, **fields: Any) -> Target:
    if kind is TargetKind.CONNTRACK:
        return Target(kind, **fields)
    if kind is TargetKind.DNS_SERVER:
        return Target(kind, **{"address": "10.0.0.10", **fields})
    return Target(kind, **{"pid": PID, "start_time": START, "boot_id": BOOT, **fields})


def case(kind: TargetKind = TargetKind.SHIM) -> Case:
    """A request that is allowed, and the standing it is allowed in."""
    inside = kind in IN_CONTAINERS
    facts = ProcessFacts(PID, START, COMMS[kind], "S", in_container=inside, nested=inside) if kind in COMMS else None
    request = Request(REQUEST_ID, Action.KILL_SHIM, target(kind), "controller", fencing_token=5)
    standing = Standing(
        enabled=True,
        limits={Action.KILL_SHIM: Limits(enabled=True, cooldown_seconds=60.0, max_per_hour=2)},
        max_per_hour=4,
        caller=Caller("controller", frozenset({Action.KILL_SHIM})),
        targets=(kind,),
        highest_token=5,
        known=None,
        history=(),
        paused="",
        trouble="",
        boot_id=BOOT,
        boot_seconds=NOW,
        own_pid=OWN_PID,
        process=facts,
    )
    return request, standing


def ago(seconds: float, action: Action = Action.KILL_SHIM, boot: str = BOOT) -> Act:
    return Act(action, boot, NOW - seconds)


def asks(**fields: Any) -> Change:
    return lambda c: (dataclasses.replace(c[0], **fields), c[1])


def aims(**fields: Any) -> Change:
    return lambda c: (dataclasses.replace(c[0], target=dataclasses.replace(c[0].target, **fields)), c[1])


def stands(**fields: Any) -> Change:
    return lambda c: (c[0], dataclasses.replace(c[1], **fields))


def limited(**fields: Any) -> Change:
    def change(c: Case) -> Case:
        limits = {action: dataclasses.replace(limit, **fields) for action, limit in c[1].limits.items()}
        return c[0], dataclasses.replace(c[1], limits=limits)

    return change


def lived(*acts: Act) -> Change:
    """More history, besides what another change has put there."""
    return lambda c: (c[0], dataclasses.replace(c[1], history=(*c[1].history, *acts)))


def process(**fields: Any) -> Change:
    def change(c: Case) -> Case:
        facts = c[1].process
        return c[0], dataclasses.replace(c[1], process=facts and dataclasses.replace(facts, **fields))

    return change


def both(*changes: Change) -> Change:
    def change(c: Case) -> Case:
        for one in changes:
            c = one(c)
        return c

    return change


def known(**fields: Any) -> Change:
    return lambda c: (c[0], dataclasses.replace(c[1], known=dataclasses.replace(c[0], **fields)))


def refusal(change: Change, kind: TargetKind = TargetKind.SHIM) -> Refusal:
    refused = decide(*change(case(kind)))
    assert refused is not None
    return refused


def reason(change: Change, kind: TargetKind = TargetKind.SHIM) -> RefusalReason:
    return refusal(change, kind).reason


R = RefusalReason
OTHERS = tuple(ago(100.0 + n, Action.THAW_CGROUP) for n in range(4))

IN_ORDER: tuple[tuple[str, Change, RefusalReason, str], ...] = (
    ("disabled", stands(enabled=False), R.DISABLED, "set remediation.enabled"),
    ("action disabled", limited(enabled=False), R.ACTION_DISABLED, "see remediation.actions.KillShim in its"),
    (
        "caller",
        stands(caller=Caller("controller", frozenset({Action.THAW_CGROUP}))),
        R.CALLER_NOT_ALLOWED,
        "see grpc.callers",
    ),
    ("kind", stands(targets=(TargetKind.PROCESS,)), R.WRONG_TARGET_KIND, "takes process"),
    ("exact", aims(start_time=None), R.INEXACT_TARGET, "is not exact"),
    ("token", stands(highest_token=6), R.STALE_FENCING_TOKEN, "is stale"),
    ("request_id", known(action=Action.THAW_CGROUP), R.REQUEST_ID_REUSED, "used before"),
    ("cool-down", lived(ago(10.0)), R.COOLING_DOWN, "rests for"),
    ("budget of the action", lived(ago(70.0), ago(80.0)), R.BUDGET_SPENT, "actions.KillShim.max_per_hour is"),
    ("budget of the node", lived(*OTHERS), R.BUDGET_SPENT, "remediation.max_per_hour is"),
    ("paused", stands(paused="change freeze"), R.PAUSED, "is paused"),
    ("ledger", stands(trouble="the disk is full"), R.LEDGER_UNUSABLE, "can be recorded"),
    ("boot", aims(boot_id=OTHER), R.OTHER_BOOT, "under boot"),
    ("gone", stands(process=None), R.TARGET_GONE, "is gone"),
    ("start time", process(start_time=START + 1), R.TARGET_CHANGED, "another process by now"),
    ("protected", stands(own_pid=PID), R.PROTECTED_PROCESS, "is never touched"),
    ("nested", process(nested=True), R.PROTECTED_PROCESS, "pid namespace"),
    ("in a container", process(in_container=True), R.PROTECTED_PROCESS, "runs in a container"),
    ("name", process(comm="bash"), R.TARGET_CHANGED, "is named"),
    ("unsound", asks(reason=None), R.GATE_FAILED, "unusable value for reason"),
)
EXCUSED = {("gone", "protected")}
"""That pid 1 and the agent itself are never touched is said even of what is gone."""


@pytest.mark.parametrize("kind", [*COMMS, TargetKind.CONNTRACK, TargetKind.DNS_SERVER])
def test_a_request_to_which_nothing_objects_is_allowed(kind: TargetKind) -> None:
    assert decide(*case(kind)) is None


@pytest.mark.parametrize("objection", IN_ORDER, ids=[objection[0] for objection in IN_ORDER])
def test_each_objection_alone_refuses(objection: Any) -> None:
    _, change, expected, words = objection
    told = refusal(change)
    assert told.reason is expected
    assert words in told.message


PAIRS = [pair for pair in combinations(IN_ORDER, 2) if (pair[0][0], pair[1][0]) not in EXCUSED]


@pytest.mark.parametrize(("earlier", "later"), PAIRS, ids=[f"{a[0]} before {b[0]}" for a, b in PAIRS])
def test_of_two_objections_the_earlier_is_told(earlier: Any, later: Any) -> None:
    told = refusal(both(later[1], earlier[1]))
    assert told.reason is earlier[2]
    assert earlier[3] in told.message


@given(st.sets(st.sampled_from(range(len(IN_ORDER))), min_size=1), st.randoms(use_true_random=False))
def test_whatever_else_is_wrong_nothing_is_allowed_and_a_known_word_is_told(broken: set[int], shuffle: Any) -> None:
    order = sorted(broken)
    shuffle.shuffle(order)
    told = decide(*both(*(IN_ORDER[index][1] for index in order))(case()))
    assert told is not None
    assert told.reason in {IN_ORDER[index][2] for index in broken}


# --- who and what -------------------------------------------------------------------------------


def test_an_action_without_limits_is_disabled() -> None:
    assert reason(stands(limits={})) is R.ACTION_DISABLED


def test_none_is_no_action_even_if_it_is_enabled_and_allowed() -> None:
    everything = both(
        asks(action=Action.NONE),
        stands(limits={Action.NONE: Limits()}, caller=Caller("controller", frozenset({Action.NONE}))),
    )
    assert reason(everything) is R.UNKNOWN_ACTION


def test_a_caller_that_is_not_the_one_of_the_request_is_refused() -> None:
    assert reason(asks(caller="somebody else")) is R.CALLER_NOT_ALLOWED


def test_the_caller_is_told_what_it_may_ask_for() -> None:
    told = refusal(stands(caller=Caller("controller", frozenset({Action.THAW_CGROUP, Action.KILL_PARENT}))))
    assert told.message == (
        "controller may not ask for KillShim (allowed: KillParent, ThawCgroup): see grpc.callers in the settings"
    )


@pytest.mark.parametrize("kind", list(COMMS))
@pytest.mark.parametrize("lacking", [{"pid": None}, {"start_time": None}, {"boot_id": ""}])
def test_a_process_without_pid_start_time_or_boot_is_inexact(kind: TargetKind, lacking: dict[str, Any]) -> None:
    told = refusal(aims(**lacking), kind)
    assert told.reason is R.INEXACT_TARGET
    assert f"it lacks: {next(iter(lacking))}; it has: kind {kind}, " in told.message


def test_a_dns_server_without_address_is_inexact() -> None:
    assert reason(aims(address=""), TargetKind.DNS_SERVER) is R.INEXACT_TARGET


def test_a_whole_node_is_never_exact() -> None:
    node = both(aims(kind=TargetKind.NODE), stands(targets=(TargetKind.NODE,)))
    assert reason(node) is R.INEXACT_TARGET


# --- token and request_id -----------------------------------------------------------------------


@pytest.mark.parametrize(("token", "highest", "allowed"), [(5, 5, True), (6, 5, True), (4, 5, False), (0, 0, True)])
def test_a_token_may_be_as_high_as_the_highest_but_not_lower(token: int, highest: int, allowed: bool) -> None:
    told = decide(*both(asks(fencing_token=token), stands(highest_token=highest))(case()))
    assert (told is None) is allowed


@pytest.mark.parametrize(("token", "allowed"), [(MAX_TOKEN, True), (MAX_TOKEN + 1, False), (-1, False)])
def test_a_token_outside_its_range_is_refused(token: int, allowed: bool) -> None:
    told = decide(*both(asks(fencing_token=token), stands(highest_token=0))(case()))
    assert (told is None) is allowed
    assert told is None or told.reason is R.STALE_FENCING_TOKEN


@pytest.mark.parametrize(
    "other",
    [{"action": Action.THAW_CGROUP}, {"target": target(pid=5)}, {"caller": "another"}, {"dry_run": True}],
)
def test_a_request_id_used_for_something_else_is_refused(other: dict[str, Any]) -> None:
    told = refusal(known(**other))
    assert told.reason is R.REQUEST_ID_REUSED
    assert "another request" in told.message


def test_a_request_id_used_for_the_same_is_not_done_again() -> None:
    told = refusal(known(reason="another reason", fencing_token=1))
    assert told.reason is R.REQUEST_ID_REUSED
    assert "GetRemediation" in told.message


# --- cool-down and budget -----------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "left"), [(0.0, 60.0), (59.5, 0.5), (60.0, None), (61.0, None)])
def test_an_action_rests_for_its_cooldown(seconds: float, left: float | None) -> None:
    told = decide(*lived(ago(seconds))(case()))
    assert (told and told.retry_seconds) == left


def test_the_latest_act_counts_for_the_cooldown_wherever_it_stands() -> None:
    assert refusal(both(limited(max_per_hour=9), lived(ago(100.0), ago(10.0), ago(50.0)))).retry_seconds == 50.0


def test_another_action_does_not_cool_this_one_down() -> None:
    assert decide(*lived(ago(1.0, Action.THAW_CGROUP))(case())) is None


def test_an_act_in_the_future_counts_as_just_done() -> None:
    told = refusal(lived(ago(-500.0)))
    assert (told.reason, told.retry_seconds) == (R.COOLING_DOWN, 60.0)


@pytest.mark.parametrize(("uptime", "left"), [(10.0, 50.0), (60.0, None)])
def test_an_act_of_another_boot_is_as_old_as_this_boot(uptime: float, left: float | None) -> None:
    change = both(stands(boot_seconds=uptime), lived(Act(Action.KILL_SHIM, OTHER, 123_456.0)))
    told = decide(*change(case()))
    assert (told and told.retry_seconds) == left


def test_an_act_before_this_boot_is_dated_by_a_negative_moment() -> None:
    assert elapsed(Act(Action.KILL_SHIM, BOOT, -90.0), BOOT, 10.0) == 100.0


def test_an_unreadable_boot_is_never_the_same_boot() -> None:
    assert elapsed(Act(Action.KILL_SHIM, "", 5.0), "", 30.0) == 30.0


@pytest.mark.parametrize(("oldest", "left"), [(3599.0, 1.0), (3600.0, None)])
def test_an_action_waits_until_its_oldest_act_leaves_the_hour(oldest: float, left: float | None) -> None:
    told = decide(*lived(ago(oldest), ago(70.0))(case()))
    assert (told and told.retry_seconds) == left


def test_with_more_acts_than_are_allowed_as_many_must_leave_the_hour() -> None:
    told = refusal(lived(ago(3000.0), ago(2000.0), ago(1000.0)))
    assert told.retry_seconds == 1600.0


def test_the_budget_of_the_node_counts_every_action() -> None:
    acts = (ago(3500.0), *(ago(100.0 + n, Action.THAW_CGROUP) for n in range(3)))
    told = refusal(lived(*acts))
    assert (told.reason, told.retry_seconds) == (R.BUDGET_SPENT, 100.0)
    assert "remediation.max_per_hour is 4" in told.message


@pytest.mark.parametrize("never", [limited(max_per_hour=0), stands(max_per_hour=0), limited(max_per_hour=-1)])
def test_a_budget_of_zero_means_never(never: Change) -> None:
    told = refusal(never)
    assert (told.reason, told.retry_seconds) == (R.BUDGET_SPENT, None)


def test_what_is_left_is_told_without_a_request() -> None:
    history = (ago(10.0), ago(100.0, Action.THAW_CGROUP), ago(HOUR_SECONDS))
    assert cooldown_left(Action.KILL_SHIM, 60.0, history, BOOT, NOW) == 50.0
    assert cooldown_left(Action.KILL_PARENT, 60.0, history, BOOT, NOW) == 0.0
    assert left_this_hour(3, history, BOOT, NOW, Action.KILL_SHIM) == 2
    assert left_this_hour(3, history, BOOT, NOW) == 1
    assert left_this_hour(1, history, BOOT, NOW) == 0


@given(
    st.lists(st.floats(0, 2 * HOUR_SECONDS), max_size=8).map(sorted),
    st.integers(1, 4),
    st.floats(0, HOUR_SECONDS),
)
def test_after_the_wait_that_was_told_the_same_request_is_allowed(ages: list[float], most: int, rest: float) -> None:
    change = both(limited(max_per_hour=most, cooldown_seconds=rest), stands(max_per_hour=100), lived(*map(ago, ages)))
    request, standing = change(case())
    for _ in range(2):  # the cool-down first, then the budget
        told = decide(request, standing)
        if told is None:
            return
        assert told.retry_seconds is not None
        later = standing.boot_seconds + told.retry_seconds + 1e-6
        standing = dataclasses.replace(standing, boot_seconds=later)
    assert decide(request, standing) is None


# --- the process --------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["Z", "X", "x"])
def test_a_process_that_has_ended_is_gone(state: str) -> None:
    assert reason(process(state=state)) is R.TARGET_GONE


def test_facts_about_another_pid_are_not_taken_for_the_target() -> None:
    assert reason(process(pid=PID + 1)) is R.TARGET_CHANGED


@pytest.mark.parametrize("pid", [1, 0, -1, OWN_PID])
@pytest.mark.parametrize("facts", ["there", "absent"])
@pytest.mark.parametrize("kind", list(COMMS))
def test_the_first_process_and_the_agent_are_never_touched(pid: int, facts: str, kind: TargetKind) -> None:
    seen = process(pid=pid) if facts == "there" else stands(process=None)
    assert reason(both(aims(pid=pid), seen), kind) is R.PROTECTED_PROCESS


@pytest.mark.parametrize("kind", [TargetKind.SHIM, TargetKind.KUBELET, TargetKind.CONTAINERD])
@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"in_container": True}, R.PROTECTED_PROCESS),
        ({"nested": True}, R.PROTECTED_PROCESS),
        ({"comm": "sleep"}, R.TARGET_CHANGED),
        ({"comm": ""}, R.TARGET_CHANGED),
    ],
)
def test_what_belongs_to_the_node_must_be_named_so_and_be_in_no_container(
    kind: TargetKind, facts: dict[str, Any], expected: RefusalReason
) -> None:
    assert reason(process(**facts), kind) is expected


@pytest.mark.parametrize("kind", sorted(IN_CONTAINERS))
@pytest.mark.parametrize("facts", [{"in_container": False}, {"comm": "containerd-shim"}])
def test_what_belongs_to_a_container_must_be_in_one_and_be_no_shim(kind: TargetKind, facts: dict[str, Any]) -> None:
    assert reason(process(**facts), kind) is R.PROTECTED_PROCESS


def test_a_name_that_is_no_text_is_escaped_in_the_sentence() -> None:
    assert r"is named '\x1b[2J\n', not" in refusal(process(comm="\x1b[2J\n")).message


@pytest.mark.parametrize("kind", [TargetKind.CONNTRACK, TargetKind.DNS_SERVER])
def test_what_is_no_process_is_still_refused_if_it_names_one_that_may_not_be_touched(kind: TargetKind) -> None:
    assert reason(aims(pid=1, boot_id=BOOT), kind) is R.PROTECTED_PROCESS
    assert reason(aims(pid=77, boot_id=BOOT), kind) is R.TARGET_GONE
    assert reason(aims(boot_id=OTHER), kind) is R.OTHER_BOOT


# --- sentences ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lived(ago(10.5)),
            "KillShim was done less than 60 s ago on this node and rests for another 50 s",
        ),
        (
            lived(ago(3000.0), ago(70.0)),
            (
                "KillShim was done 2 times in the last hour, and remediation.actions.KillShim.max_per_hour is 2: "
                "wait 600 s"
            ),
        ),
        (
            stands(highest_token=9),
            (
                "fencing token 5 is stale: 9 was seen on this node, so another holder has taken over. "
                "Take the lease again and send its number"
            ),
        ),
        (
            stands(paused="change freeze (/s/paused, since 2024-01-01T00:00:00Z)"),
            (
                "remediation is paused on this node: change freeze (/s/paused, since 2024-01-01T00:00:00Z). "
                "Removing the file `paused` from the state folder ends the pause"
            ),
        ),
        (
            process(start_time=778),
            "pid 4321 is another process by now: it was started at tick 778, not 777. Ask for a new report",
        ),
    ],
)
def test_a_refusal_says_what_until_when_and_what_to_do(change: Change, sentence: str) -> None:
    assert refusal(change).message == sentence


# --- garbage ------------------------------------------------------------------------------------


class Exploding:
    """Raises at whatever is done with it."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("boom")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("boom")

    def __bool__(self) -> bool:
        raise RuntimeError("boom")

    def __hash__(self) -> int:
        raise RuntimeError("boom")


GARBAGE: tuple[Any, ...] = (
    None,
    "",
    "text",
    b"",
    0,
    1,
    -1,
    1.5,
    float("nan"),
    float("inf"),
    -float("inf"),
    True,
    False,
    (),
    [],
    {},
    (None,),
    ["KillShim"],
    object(),
    MagicMock(),
    Exploding(),
)
ALLOWED_AS_WELL: dict[tuple[str, str], Callable[[Any], bool]] = {
    ("standing", "history"): lambda value: value == (),
    ("standing", "known"): lambda value: value is None,
    ("standing", "paused"): lambda value: value == "",
    ("standing", "trouble"): lambda value: value == "",
    ("standing", "enabled"): lambda value: value is True,
    ("standing", "max_per_hour"): lambda value: type(value) is int and value >= 1,
    ("standing", "highest_token"): lambda value: type(value) is int and value <= 5,
    ("standing", "own_pid"): lambda value: type(value) is int,
    ("standing", "boot_seconds"): lambda value: type(value) in (int, float) and math.isfinite(value),
    ("request", "request_id"): lambda value: type(value) is str and value != "",
    ("request", "dry_run"): lambda value: type(value) is bool,
    ("request", "reason"): lambda value: type(value) is str,
    ("target", "container_id"): lambda value: type(value) is str,
    ("target", "containerd_namespace"): lambda value: type(value) is str,
    ("target", "cgroup"): lambda value: type(value) is str,
    ("target", "address"): lambda value: type(value) is str,
    ("process", "state"): lambda value: type(value) is str,
    ("process", "in_container"): lambda value: value is False,
    ("process", "nested"): lambda value: value is False,
    ("limits", "enabled"): lambda value: value is True,
    ("limits", "cooldown_seconds"): lambda value: type(value) in (int, float) and math.isfinite(value),
    ("limits", "max_per_hour"): lambda value: type(value) is int and value >= 1,
}
CHANGES: dict[str, tuple[type, Callable[..., Change]]] = {
    "request": (Request, asks),
    "target": (Target, aims),
    "standing": (Standing, stands),
    "process": (ProcessFacts, process),
    "limits": (Limits, limited),
}
FIELDS = [(part, field.name) for part, (kind, _) in CHANGES.items() for field in dataclasses.fields(kind)]


def harmless(part: str, name: str, value: Any) -> bool:
    """Whether a value is one this field may well have."""
    if isinstance(value, Exploding):
        return False
    return bool(ALLOWED_AS_WELL.get((part, name), lambda _: False)(value))


@pytest.mark.parametrize(("part", "name"), FIELDS, ids=[f"{part}.{name}" for part, name in FIELDS])
def test_an_odd_value_in_any_field_is_refused_and_never_raises(part: str, name: str) -> None:
    change = CHANGES[part][1]
    for value in GARBAGE:
        told = decide(*change(**{name: value})(case()))
        if harmless(part, name, value):
            assert told is None, value
        else:
            assert type(told) is Refusal, value


@pytest.mark.parametrize("kind", list(COMMS))
def test_odd_facts_of_a_process_are_refused_for_every_kind(kind: TargetKind) -> None:
    for field in dataclasses.fields(ProcessFacts):
        for value in (None, 0, 1, object(), MagicMock(), Exploding()):
            assert decide(*process(**{field.name: value})(case(kind))) is not None, (field.name, value)


def test_an_odd_request_or_standing_is_refused() -> None:
    request, standing = case()
    for odd in GARBAGE:
        assert decide(odd, standing) is not None
        assert decide(request, odd) is not None
        assert decide(odd, odd) is not None


def test_an_odd_act_in_the_history_is_refused() -> None:
    acts: tuple[Any, ...] = (
        None,
        "act",
        MagicMock(),
        Exploding(),
        Act(None, BOOT, NOW - 70.0),  # type: ignore[arg-type]
        Act(Action.THAW_CGROUP, None, 1.0),  # type: ignore[arg-type]
        Act(Action.THAW_CGROUP, BOOT, float("nan")),
        Act(Action.THAW_CGROUP, BOOT, "1"),  # type: ignore[arg-type]
        Act(Action.THAW_CGROUP, BOOT, None),  # type: ignore[arg-type]
    )
    for act in acts:
        assert decide(*stands(history=(act,))(case())) is not None


def test_a_history_that_can_be_read_only_once_is_refused() -> None:
    assert reason(stands(history=iter(()))) is R.GATE_FAILED


def test_a_gate_that_errs_names_the_step_and_opens_nothing() -> None:
    told = refusal(stands(limits=None))
    assert told.reason is R.GATE_FAILED
    assert told.message == (
        "the gate failed (step action_enabled: AttributeError), so nothing is done. Report this as a bug"
    )


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.tuples(st.none()),
)


@given(st.sampled_from(FIELDS), ANYTHING)
def test_no_value_whatever_makes_the_gate_raise_or_allow_what_it_should_not(field: Any, value: Any) -> None:
    part, name = field
    told = decide(*CHANGES[part][1](**{name: value})(case()))
    assert told is None or type(told) is Refusal
    unless = {("request", "fencing_token"): type(value) is int and 5 <= value <= MAX_TOKEN}
    if told is None:
        assert harmless(part, name, value) or unless.get((part, name), False), value


@given(st.floats(0, 1e7), st.floats(0, 1e7), st.booleans())
def test_within_the_cooldown_nothing_is_ever_allowed(uptime: float, at: float, same_boot: bool) -> None:
    act = Act(Action.KILL_SHIM, BOOT if same_boot else OTHER, at)
    told = decide(*both(stands(boot_seconds=uptime), lived(act))(case()))
    since = max(0.0, uptime - at) if same_boot else uptime
    assert (told is None) is (60.0 - since <= 0.0)


# -- the one target whose process is gone for good


def dead_shim(action: Action = Action.RESTART_CONTAINERD, **fields: Any) -> Case:
    """A shim that is dead, as its finding names it: by its container; nothing of it is there to look at."""
    request, standing = case()
    exact = {"pid": None, "start_time": None, "container_id": "abc", **fields}
    return (
        dataclasses.replace(request, action=action, target=dataclasses.replace(request.target, **exact)),
        dataclasses.replace(
            standing,
            process=None,
            limits={action: Limits()},
            caller=Caller("controller", frozenset({action})),
        ),
    )


def test_containerd_may_be_restarted_for_the_bundle_of_a_dead_shim() -> None:
    assert decide(*dead_shim()) is None


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (dead_shim(Action.KILL_SHIM), RefusalReason.INEXACT_TARGET),
        (dead_shim(Action.THAW_CGROUP), RefusalReason.INEXACT_TARGET),
        (dead_shim(container_id=""), RefusalReason.INEXACT_TARGET),
        (dead_shim(boot_id=""), RefusalReason.INEXACT_TARGET),
        (dead_shim(boot_id=OTHER), RefusalReason.OTHER_BOOT),
        (dead_shim(pid=PID, start_time=START), RefusalReason.TARGET_GONE),
    ],
)
def test_nothing_else_is_allowed_without_a_process(odd: Case, reason: RefusalReason) -> None:
    refusal = decide(*odd)
    assert refusal is not None
    assert refusal.reason is reason


# -- a service whose process has ended: its unit is what is started

ENDED = {
    TargetKind.KUBELET: (Action.RESTART_KUBELET, "/system.slice/kubelet.service"),
    TargetKind.CONTAINERD: (Action.RESTART_CONTAINERD, "/system.slice/containerd.service"),
}


def ended(kind: TargetKind, action: Action | None = None, **fields: Any) -> Case:
    request, standing = dead_shim(action or ENDED[kind][0])
    exact = {"kind": kind, "container_id": "", "cgroup": ENDED[kind][1], **fields}
    target = dataclasses.replace(request.target, **exact)
    return dataclasses.replace(request, target=target), dataclasses.replace(standing, targets=(kind,))


@pytest.mark.parametrize("kind", list(ENDED))
def test_a_service_that_has_ended_may_be_started_by_its_unit(kind: TargetKind) -> None:
    assert decide(*ended(kind)) is None


@pytest.mark.parametrize("kind", list(ENDED))
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"cgroup": ""}, RefusalReason.INEXACT_TARGET),
        ({"boot_id": ""}, RefusalReason.INEXACT_TARGET),
        ({"start_time": START}, RefusalReason.INEXACT_TARGET),
        ({"action": Action.THAW_CGROUP}, RefusalReason.INEXACT_TARGET),
        ({"action": Action.KILL_SHIM}, RefusalReason.INEXACT_TARGET),
        ({"boot_id": OTHER}, RefusalReason.OTHER_BOOT),
        ({"pid": PID, "start_time": START}, RefusalReason.TARGET_GONE),
    ],
)
def test_a_service_that_has_ended_is_not_exact_without_its_unit(
    kind: TargetKind, fields: dict[str, Any], reason: RefusalReason
) -> None:
    refusal = decide(*ended(kind, **fields))
    assert refusal is not None
    assert refusal.reason is reason


def test_the_unit_of_one_service_does_not_permit_the_restart_of_the_other() -> None:
    refusal = decide(*ended(TargetKind.KUBELET, Action.RESTART_CONTAINERD))
    assert refusal is not None
    assert refusal.reason is RefusalReason.INEXACT_TARGET


@pytest.mark.parametrize("kind", list(ENDED))
def test_a_service_without_process_and_unit_is_refused_with_the_way_to_start_it(kind: TargetKind) -> None:
    refusal = decide(*ended(kind, cgroup="", address="/run/x.sock"))
    assert refusal is not None
    assert f"it lacks: pid, start_time; it has: kind {kind}, boot_id {BOOT}" in refusal.message
    assert "address /run/x.sock" in refusal.message
    assert f"systemctl list-unit-files '*{kind}*'" in refusal.message
    assert "latest report" not in refusal.message
