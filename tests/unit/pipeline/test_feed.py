"""Watchers are told of changes, in order and of each once, and no watcher costs the writer or the others anything."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from agent.model import (
    ActiveFinding,
    Changed,
    Condition,
    DetectorState,
    DetectorStatus,
    Event,
    Gap,
    Removed,
    Snapshot,
    Status,
)
from agent.pipeline.board import Board, Entry
from agent.pipeline.feed import MAX_QUEUED, MAX_WATCHERS, Feed, TooManyWatchersError, Watcher
from tests.lab.waiting import wait_until
from tests.unit.doubles import CLEAN, DIRTY, SICK, FakeClock, Script, finding, runner_of, sick


@pytest.fixture
def board() -> Board:
    return Board("worker-3", FakeClock())


@pytest.fixture
def feed(board: Board) -> Iterator[Feed]:
    feed = Feed(board)
    yield feed
    feed.close()


def condition(reason: str = "AsExpected", kind: str = SICK, *pids: int, message: str = "") -> Condition:
    findings = tuple(ActiveFinding(finding(kind, pid=pid), 0.0) for pid in pids)
    return Condition(kind, Status.TRUE if pids else Status.FALSE, reason, message, 0.0, findings)


def say(board: Board, *conditions: Condition, detector: str = "doctor") -> None:
    board.publish(Entry(DetectorStatus(detector, DetectorState.OK), conditions))


def told(watcher: Watcher, count: int) -> list[Event]:
    """The next events; there must be so many."""
    events = iter(watcher)
    return [next(events) for _ in range(count)]


def nothing_waits(watcher: Watcher) -> bool:
    return not watcher._due and not watcher._queue


def test_the_first_event_is_how_things_stand_also_what_was_said_before_the_feed_was(board: Board) -> None:
    say(board, condition())
    feed = Feed(board)
    say(board, condition(kind=DIRTY), detector="cleaner")
    assert told(feed.watch(), 1) == [Snapshot((condition(), condition(kind=DIRTY)))]


def test_a_snapshot_carries_the_latest_values_although_they_were_no_change(board: Board, feed: Feed) -> None:
    say(board, condition(message="36.6"))
    say(board, condition(message="36.7"))
    assert told(feed.watch(), 1) == [Snapshot((condition(message="36.7"),))]


@pytest.mark.parametrize(
    ("after", "is_change"),
    [
        (condition("Fever", SICK, 7), False),
        (condition("Fever", SICK, 7, message="hotter"), False),
        (condition("Fever", SICK, 8), True),
        (condition("Fever", SICK, 7, 8), True),
        (condition("Chill", SICK, 7), True),
        (condition(), True),
    ],
)
def test_what_a_change_is(board: Board, feed: Feed, after: Condition, is_change: bool) -> None:
    say(board, condition("Fever", SICK, 7))
    watcher = feed.watch()
    told(watcher, 1)
    say(board, after)
    assert told(watcher, int(is_change)) == [Changed(after)][: int(is_change)]
    assert nothing_waits(watcher)


def test_what_does_not_apply_any_more_is_removed(board: Board, feed: Feed) -> None:
    say(board, condition(), condition(kind=DIRTY))
    watcher = feed.watch()
    told(watcher, 1)
    say(board)
    assert told(watcher, 2) == [Removed(SICK), Removed(DIRTY)]
    assert told(feed.watch(), 1) == [Snapshot(())]
    say(board, condition())
    assert told(watcher, 1) == [Changed(condition())]


def test_only_the_types_asked_for_are_told(board: Board, feed: Feed) -> None:
    say(board, condition(), condition(kind=DIRTY))
    watcher = feed.watch([DIRTY])
    assert told(watcher, 1) == [Snapshot((condition(kind=DIRTY),))]
    say(board, condition("Fever", SICK, 7), condition(kind=DIRTY))
    assert nothing_waits(watcher)
    say(board, condition("Fever", SICK, 7), condition("Mud", DIRTY, 7))
    say(board)
    assert told(watcher, 2) == [Changed(condition("Mud", DIRTY, 7)), Removed(DIRTY)]


def test_what_changes_before_the_snapshot_is_read_is_in_the_snapshot_and_nowhere_else(board: Board, feed: Feed) -> None:
    watcher = feed.watch()
    for number in range(3 * MAX_QUEUED):
        say(board, condition(f"Reason{number}"))
    assert told(watcher, 1) == [Snapshot((condition(f"Reason{3 * MAX_QUEUED - 1}"),))]
    assert nothing_waits(watcher)
    assert feed.missed == 0


def test_a_full_queue_is_still_told_in_order(board: Board, feed: Feed) -> None:
    watcher = feed.watch()
    told(watcher, 1)
    changes = [condition(f"Reason{number}") for number in range(MAX_QUEUED)]
    for each in changes:
        say(board, each)
    assert told(watcher, MAX_QUEUED) == [Changed(each) for each in changes]
    assert feed.missed == 0


@pytest.mark.parametrize("more", [1, 2, 1000])
def test_a_slow_reader_is_told_of_its_gap_then_how_things_stand_then_goes_on(
    board: Board, feed: Feed, more: int
) -> None:
    watcher, quick = feed.watch(), feed.watch()
    told(watcher, 1)
    told(quick, 1)
    for number in range(MAX_QUEUED + more):
        say(board, condition(f"Reason{number}"))
        assert told(quick, 1) == [Changed(condition(f"Reason{number}"))]
    assert not watcher._queue  # it costs nothing meanwhile
    last = condition(f"Reason{MAX_QUEUED + more - 1}")
    assert told(watcher, 2) == [Gap(MAX_QUEUED + more), Snapshot((last,))]
    assert feed.missed == MAX_QUEUED + more
    say(board, condition("After"))
    assert told(watcher, 1) == [Changed(condition("After"))]


def test_a_change_between_the_gap_and_its_snapshot_is_in_the_snapshot(board: Board, feed: Feed) -> None:
    watcher = feed.watch()
    told(watcher, 1)
    for number in range(MAX_QUEUED + 1):
        say(board, condition(f"Reason{number}"))
    assert told(watcher, 1) == [Gap(MAX_QUEUED + 1)]
    say(board, condition("Between"))
    assert told(watcher, 1) == [Snapshot((condition("Between"),))]
    assert nothing_waits(watcher)


def test_there_are_only_so_many_watchers_and_a_place_given_back_is_free(feed: Feed) -> None:
    watchers = [feed.watch() for _ in range(MAX_WATCHERS)]
    with pytest.raises(TooManyWatchersError, match="there are 16 watchers already"):
        feed.watch()
    watchers[3].close()
    watchers[3].close()
    with feed.watch(), pytest.raises(TooManyWatchersError):
        feed.watch()
    feed.watch()


@pytest.mark.parametrize("end", [lambda feed, _: feed.close(), lambda _, watcher: watcher.close()], ids=["feed", "own"])
def test_a_watcher_that_waits_is_ended_at_once(feed: Feed, end: Callable[[Feed, Watcher], None]) -> None:
    watcher = feed.watch()
    told(watcher, 1)
    ended = threading.Event()

    def read() -> None:
        list(watcher)
        ended.set()

    threading.Thread(target=read, daemon=True).start()
    time.sleep(0.05)
    end(feed, watcher)
    assert ended.wait(30)


def test_a_closed_feed_tells_nobody_anything(board: Board, feed: Feed) -> None:
    feed.close()
    say(board, condition())
    assert feed.closed
    assert list(feed.watch()) == []


def test_a_watcher_that_waits_is_told_as_soon_as_something_changes(board: Board, feed: Feed) -> None:
    heard: list[Event] = []
    watcher = feed.watch()
    reader = threading.Thread(target=lambda: heard.extend(told(watcher, 2)), daemon=True)
    reader.start()
    while len(heard) + int(not watcher._due) < 1:
        time.sleep(0.001)
    say(board, condition())
    reader.join(30)
    assert heard == [Snapshot(()), Changed(condition())]


def test_readers_that_never_read_do_not_hold_the_writer(board: Board, feed: Feed) -> None:
    for _ in range(MAX_WATCHERS):
        told(feed.watch(), 1)
    began = time.monotonic()
    for number in range(2000):
        say(board, condition(f"Reason{number}"))
    assert time.monotonic() - began < 30


def test_many_writers_and_a_reader_that_comes_late_agree_in_the_end(board: Board, feed: Feed) -> None:
    def write(name: str) -> None:
        for number in range(300):
            say(board, condition(f"Reason{number}", name), detector=name)

    writers = [threading.Thread(target=write, args=(f"Type{number}",)) for number in range(4)]
    seen: dict[str, str] = {}
    watcher = feed.watch()

    def read() -> None:
        for event in watcher:
            match event:
                case Snapshot(conditions):
                    seen.update({each.type: each.reason for each in conditions})
                case Changed(each):
                    seen[each.type] = each.reason

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    last = {f"Type{number}": "Reason299" for number in range(4)}
    wait_until(lambda: seen == last, 30, "the reader knows the last word of every writer")


def test_two_that_speak_for_one_detector_at_once_leave_the_word_of_the_board(board: Board, feed: Feed) -> None:
    feed._hear(Entry(DetectorStatus("doctor", DetectorState.OK), (condition("Early"),)))
    say(board, condition("Late"))
    feed._hear(Entry(DetectorStatus("doctor", DetectorState.OK), (condition("Early"),)))
    assert told(feed.watch(), 1) == [Snapshot((condition("Late"),))]


def test_what_a_runner_publishes_arrives(board: Board, feed: Feed) -> None:
    runner = runner_of(Script(CLEAN, sick(sightings=2)), board, FakeClock())
    watcher = feed.watch([SICK])
    (begin,) = told(watcher, 1)
    assert isinstance(begin, Snapshot)
    assert [each.reason for each in begin.conditions] == ["Starting"]
    runner.look()
    runner.look()
    runner.look()
    reasons = [event.condition.reason for event in told(watcher, 2) if isinstance(event, Changed)]
    assert reasons == ["AsExpected", "Fever"]
    assert nothing_waits(watcher)
