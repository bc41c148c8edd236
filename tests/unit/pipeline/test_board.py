"""The one place where the latest word of every detector stands."""

import logging

import pytest

from agent.model import Condition, DetectorState, DetectorStatus, Sample, Status
from agent.pipeline.board import Board, Entry
from tests.unit.doubles import SICK, FakeClock


def entry(detector: str, state: DetectorState = DetectorState.OK) -> Entry:
    condition = Condition(f"{SICK}Of{detector}", Status.FALSE, "AsExpected", "well", 0)
    return Entry(DetectorStatus(detector, state), (condition,), (Sample("looks", 1),))


@pytest.fixture
def board() -> Board:
    return Board("worker-3", FakeClock())


def test_an_empty_board_reports_the_node_and_nothing_else(board: Board) -> None:
    report = board.report()
    assert (report.node_name, report.observed_at, report.conditions, report.detectors) == ("worker-3", 1000.0, (), ())
    assert board.entry("a") is None


def test_the_latest_word_replaces_the_one_before(board: Board) -> None:
    board.publish(entry("a", DetectorState.STARTING))
    board.publish(entry("a"))
    assert board.entries() == (entry("a"),)
    assert board.entry("a") == entry("a")


def test_the_order_is_that_of_first_appearance(board: Board) -> None:
    for name in ("b", "a", "b"):
        board.publish(entry(name))
    assert [status.name for status in board.report().detectors] == ["b", "a"]
    assert [condition.type for condition in board.report().conditions] == ["NodeSickOfb", "NodeSickOfa"]


def test_listeners_hear_every_entry_from_then_on(board: Board) -> None:
    heard: list[str] = []
    board.publish(entry("before"))
    board.subscribe(lambda each: heard.append(each.status.name))
    board.publish(entry("a"))
    board.publish(entry("a"))
    assert heard == ["a", "a"]


def test_a_listener_may_read_the_board(board: Board) -> None:
    seen: list[int] = []
    board.subscribe(lambda _: seen.append(len(board.entries())))
    board.publish(entry("a"))
    assert seen == [1]


def test_a_listener_that_raises_is_logged_and_harms_nobody(board: Board, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[str] = []

    def clumsy(_: Entry) -> None:
        raise ValueError("broken listener")

    board.subscribe(clumsy)
    board.subscribe(lambda each: heard.append(each.status.name))
    with caplog.at_level(logging.ERROR):
        board.publish(entry("a"))
    assert heard == ["a"]
    assert [record.getMessage() for record in caplog.records] == ["a listener failed"]
