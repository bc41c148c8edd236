"""Hysteresis, look by look.

A look is written as one letter: `s` one sighting, `S` a finding that holds two, `.` nothing,
`?` nothing could be seen. A condition is T, F or U.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.model import CheckResult, Condition, Status
from agent.pipeline.conditions import MAX_MESSAGE, Hysteresis, Thresholds, advance, conclude
from tests.unit.doubles import CLEAN, DIRTY, SICK, finding, sick

LOOKS = {
    "s": sick(),
    "S": sick(sightings=2),
    ".": CLEAN,
    "?": CheckResult(unknown={SICK: "too dark"}),
}
STEP = 10.0


def walk(looks: str, failure: int = 2, success: int = 1) -> list[Condition]:
    """The condition after each look; the looks are STEP seconds apart, the first at 0."""
    memory, condition, told = Hysteresis(), None, []
    for index, look in enumerate(looks):
        now = index * STEP
        memory = advance(memory, LOOKS[look], Thresholds(failure, success), now)
        condition = conclude(SICK, memory, LOOKS[look], condition, now)
        told.append(condition)
    return told


def letters(told: list[Condition]) -> str:
    return "".join(condition.status.value[0] for condition in told)


def after(*results: CheckResult) -> Hysteresis:
    memory = Hysteresis()
    for result in results:
        memory = advance(memory, result, Thresholds(2, 1), 0)
    return memory


@pytest.mark.parametrize(
    ("looks", "thresholds", "expected"),
    [
        (".", (2, 1), "F"),
        (".s", (2, 1), "FF"),
        (".ss", (2, 1), "FFT"),
        (".s.s.s", (2, 1), "FFFFFF"),
        (".S", (2, 1), "FT"),
        (".s", (1, 1), "FT"),
        (".Ss", (3, 1), "FFT"),
        (".ss.", (2, 1), "FFTF"),
        (".ss..", (2, 2), "FFTTF"),
        (".ss.s.s..", (2, 2), "FFTTTTTTF"),
        (".s.s", (2, 2), "FFFF"),
        (".ss?ss", (2, 1), "FFTUTT"),
        (".ss?.", (2, 1), "FFTUF"),
        (".s?s", (2, 1), "FFUT"),
        (".ss.?.", (2, 2), "FFTTUF"),
        ("s", (2, 1), "U"),
        ("ss", (2, 1), "UT"),
        ("s.", (2, 1), "UF"),
        ("?s.", (2, 1), "UUF"),
    ],
)
def test_a_finding_is_confirmed_and_cleared_by_looks_in_a_row(
    looks: str, thresholds: tuple[int, int], expected: str
) -> None:
    assert letters(walk(looks, *thresholds)) == expected


def test_what_was_not_known_to_be_well_is_undetermined_while_it_is_suspected() -> None:
    condition = walk("s")[0]
    assert (condition.status, condition.reason) == (Status.UNKNOWN, "Unconfirmed")
    assert condition.message == "suspected, but not confirmed: 7 has a fever"


def test_what_was_well_stays_well_under_suspicion_but_says_so() -> None:
    condition = walk(".s")[1]
    assert (condition.status, condition.reason) == (Status.FALSE, "AsExpected")
    assert condition.message == "suspected, but not confirmed: 7 has a fever"


def test_a_second_finding_is_doubted_as_much_as_the_first() -> None:
    both = CheckResult(findings=(finding(pid=1), finding(pid=2)))
    memory = after(sick(pid=1), both)
    assert [item.finding.target.pid for item in memory.active(SICK)] == [1]
    assert memory.unsettled(())
    assert [item.finding.target.pid for item in advance(memory, both, Thresholds(2, 1), 0).active(SICK)] == [1, 2]


def test_the_same_pid_with_another_start_time_is_another_finding() -> None:
    assert after(sick(start_time=1), sick(start_time=1)).active(SICK)
    assert not after(sick(start_time=1), sick(start_time=2)).active(SICK)


def test_a_finding_is_told_with_its_latest_words_and_its_first_time() -> None:
    memory = Hysteresis()
    for now, text in enumerate(["one", "two", "three"]):
        memory = advance(memory, sick(text=text), Thresholds(2, 1), now)
    (active,) = memory.active(SICK)
    assert (active.finding.message, active.since) == ("three", 0)


def test_the_longest_standing_finding_gives_the_reason() -> None:
    old, new = finding(pid=1, sightings=2), finding(pid=2, sightings=2, text="newer")
    memory = advance(Hysteresis(), CheckResult(findings=(old,)), Thresholds(2, 1), 0)
    result = CheckResult(findings=(new, old))
    memory = advance(memory, result, Thresholds(2, 1), 5)
    condition = conclude(SICK, memory, result, None, 5)
    assert condition.message == "2 findings: 1 has a fever; newer"
    assert [item.since for item in condition.findings] == [0, 5]


def test_conditions_of_one_detector_do_not_touch_each_other() -> None:
    memory = after(sick(condition=DIRTY, sightings=2))
    assert conclude(SICK, memory, CLEAN, None, 0).status is Status.FALSE
    assert conclude(DIRTY, memory, CLEAN, None, 0).status is Status.TRUE


def test_a_blind_look_neither_clears_nor_forgets() -> None:
    told = walk(".ss?s")
    assert told[3].findings == ()
    assert told[3].message == "too dark"
    assert told[4].findings[0].since == STEP


def test_the_time_of_the_last_transition_moves_with_the_status_only() -> None:
    told = walk(".sss..?")
    assert [condition.last_transition_time for condition in told] == [0, 0, 20, 20, 40, 40, 60]


def test_more_looks_are_wanted_only_where_they_can_tell_more() -> None:
    assert not after(CLEAN).unsettled(())
    assert after(sick()).unsettled(())
    assert not after(sick(), sick()).unsettled(())
    assert advance(after(sick(), sick()), CLEAN, Thresholds(2, 2), 0).unsettled(())
    assert not after(sick()).unsettled({SICK: "too dark"})


@pytest.mark.parametrize(
    "result",
    [
        sick(sightings=2, text="x" * 5000),
        CheckResult(unknown={SICK: "x" * 5000}),
        CheckResult(healthy={SICK: "x" * 5000}),
    ],
)
def test_a_message_is_bounded_and_shows_that_it_was_cut(result: CheckResult) -> None:
    message = conclude(SICK, after(result), result, None, 0).message
    assert len(message) == MAX_MESSAGE
    assert message.endswith("x...")


@given(st.text("sS.?", max_size=40), st.integers(1, 6), st.integers(1, 4))
def test_nothing_is_true_before_its_sightings_in_a_row(looks: str, failure: int, success: int) -> None:
    for index, condition in enumerate(walk(looks, failure, success)):
        if condition.status is Status.TRUE:
            seen = looks[: index + 1].replace("?", "")
            streaks = seen.split("." * success)
            assert max(sum({"s": 1, "S": 2}.get(look, 0) for look in streak) for streak in streaks) >= failure
            assert condition.findings


@given(st.text("sS.?", max_size=40), st.integers(1, 6), st.integers(1, 4))
def test_enough_clean_looks_always_clear(looks: str, failure: int, success: int) -> None:
    last = walk(looks + "." * success, failure, success)[-1]
    assert last.status is Status.FALSE
    assert last.findings == ()


@given(st.text("sS.?", min_size=1, max_size=40))
def test_a_condition_never_contradicts_its_findings(looks: str) -> None:
    for condition in walk(looks):
        assert bool(condition.findings) == (condition.status is Status.TRUE)
