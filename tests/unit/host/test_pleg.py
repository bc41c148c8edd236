"""The kubelet's metrics: a few lines out of thousands, asked for seldom and never twice at a time."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.host import pleg
from agent.host.kubelet import KubeletApiError
from agent.host.kubelet_calls import METRICS
from agent.host.pleg import MAX_LINE_BYTES, PlegMetrics, PlegParser, PlegSense, Relists
from tests.lab.waiting import wait_until
from tests.unit.builders import ManualClock, ShiftedClock

FIXTURES = Path(__file__).parents[2] / "fixtures" / "kubelet"
RECORDED = (FIXTURES / "tls-metrics.body").read_bytes()
LAST_SEEN = b"kubelet_pleg_last_seen_seconds 1.795331497e+09\n"


def parsed(body: bytes, piece: int = 4096) -> PlegMetrics:
    parser = PlegParser()
    assert all(parser.feed(body[start : start + piece]) for start in range(0, len(body), piece))
    return parser.metrics(5.0, 7.0)


class TestParsing:
    def test_a_recorded_scrape(self) -> None:
        assert parsed(RECORDED) == PlegMetrics(
            5.0,
            7.0,
            1795331497.0,
            0.0,
            Relists(198, 0.3205926769999999),
            Relists(197, 828.0834565650001),
            evented=False,
        )

    @pytest.mark.parametrize("piece", [1, 3, 17, 100_000])
    def test_the_size_of_the_pieces_does_not_matter(self, piece: int) -> None:
        assert parsed(RECORDED, piece) == parsed(RECORDED)

    def test_a_kubelet_that_hears_of_changes_is_known(self) -> None:
        assert parsed(b"kubelet_evented_pleg_connection_success_count 2\n").evented

    @pytest.mark.parametrize(
        "line",
        [
            b"kubelet_pleg_last_seen_seconds NaN\n",
            b"kubelet_pleg_last_seen_seconds +Inf\n",
            b"kubelet_pleg_last_seen_seconds -5\n",
            b"kubelet_pleg_last_seen_seconds 1e999\n",
            b"kubelet_pleg_last_seen_seconds e-+\n",
            b"kubelet_pleg_last_seen_seconds\n",
            b"kubelet_pleg_last_seen_seconds_more 5\n",
            b"# kubelet_pleg_last_seen_seconds 5\n",
            b'kubelet_pleg_last_seen_seconds{node="x"} 5\n',
            b"kubelet_pleg_last_seen_seconds 17953",
            b"kubelet_pleg_last_seen_seconds " + b"1" * 100 + b"\n",
            b"x" * 5 * MAX_LINE_BYTES + b"kubelet_pleg_last_seen_seconds 5\n",
            b"\xff\x00\n",
        ],
    )
    def test_what_is_no_sample_of_these_is_passed_over(self, line: bytes) -> None:
        assert parsed(line).last_seen is None
        assert parsed(line.rstrip(b"\n") + b"\n" + LAST_SEEN, 100).last_seen in (1795331497.0, 17953.0)

    def test_the_first_word_counts(self) -> None:
        assert parsed(LAST_SEEN + b"kubelet_pleg_last_seen_seconds 5\n").last_seen == 1795331497.0

    def test_half_a_histogram_is_none(self) -> None:
        assert parsed(b"kubelet_pleg_relist_duration_seconds_sum 5\n").durations is None

    def test_a_line_without_end_is_not_held(self) -> None:
        parser = PlegParser()
        for _ in range(1000):
            parser.feed(b"x" * 4096)
        assert len(parser._line) <= MAX_LINE_BYTES
        parser.feed(b"\n" + LAST_SEEN)
        assert parser.metrics(0, 0).last_seen


class Kubelet:
    """Answers, when it may, with `body`; or fails."""

    def __init__(self) -> None:
        self.body = RECORDED
        self.error: Exception | None = None
        self.asked: list[tuple[str, float, int]] = []
        self.go = threading.Event()
        self.go.set()

    def get(self, path: str, take: Callable[[bytes], bool], *, seconds: float, max_bytes: int) -> None:
        self.asked.append((path, seconds, max_bytes))
        self.go.wait(10)
        if self.error:
            raise self.error
        take(self.body)


@pytest.fixture
def kubelet() -> Iterator[Kubelet]:
    made = Kubelet()
    yield made
    made.go.set()


class TestAsking:
    def test_an_answer_is_taken_with_its_moment(self, kubelet: Kubelet) -> None:
        clock = ManualClock()
        seen = PlegSense(kubelet, clock, 25.0).look(10.0)
        assert isinstance(seen, PlegMetrics)
        assert (seen.wall, seen.monotonic) == (clock.wall(), clock.monotonic())
        assert kubelet.asked == [(METRICS, pleg.GIVE_UP_SECONDS, pleg.MAX_BYTES)]

    def test_whoever_looks_again_too_soon_is_told_the_same(self, kubelet: Kubelet) -> None:
        clock = ManualClock()
        sense = PlegSense(kubelet, clock, 25.0)
        first = sense.look(10.0)
        for _ in range(24):
            clock.advance(1.0)
            assert sense.look(10.0) is first
        clock.advance(1.0)
        assert sense.look(10.0) is not first
        assert len(kubelet.asked) == 2

    def test_a_failure_is_not_asked_about_again_at_once_either(self, kubelet: Kubelet) -> None:
        sense = PlegSense(kubelet, ManualClock(), 25.0)
        kubelet.error = KubeletApiError("answered 403 Forbidden")
        for _ in range(3):
            with pytest.raises(KubeletApiError, match="403"):
                sense.look(10.0)
        assert len(kubelet.asked) == 1

    def test_a_question_that_hangs_is_listened_to_and_not_asked_again(self, kubelet: Kubelet) -> None:
        clock = ShiftedClock()
        sense = PlegSense(kubelet, clock, 0.0)
        kubelet.go.clear()
        for hours in range(3):
            clock.ahead = 3600.0 * hours
            waited = sense.look(0.05)
            assert isinstance(waited, float)
            assert waited >= 3600.0 * hours + 0.05
        assert len(kubelet.asked) == 1

    def test_an_answer_that_came_too_late_tells_of_no_moment_and_is_thrown_away(self, kubelet: Kubelet) -> None:
        clock = ShiftedClock()
        sense = PlegSense(kubelet, clock, 0.0)
        kubelet.go.clear()
        sense.look(0.05)
        clock.ahead = 300.0
        kubelet.go.set()
        question = sense._question
        assert question
        assert question.ended.wait(30)
        assert isinstance(sense.look(10.0), PlegMetrics), "asked anew"
        assert len(kubelet.asked) == 2

    def test_a_late_answer_is_not_taken_either_while_it_is_too_soon_to_ask(self, kubelet: Kubelet) -> None:
        clock = ShiftedClock()
        sense = PlegSense(kubelet, clock, 1e9)
        kubelet.go.clear()
        sense.look(0.05)
        clock.ahead = 300.0
        kubelet.go.set()
        wait_until(lambda: sense._question and sense._question.ended.is_set(), 30, "the answer comes")
        late = sense.look(10.0)
        assert isinstance(late, float)
        assert late >= 300.0

    def test_without_a_thread_it_says_so(self, kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_thread(*_: object, **__: object) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(KubeletApiError, match="can't start new thread"):
            PlegSense(kubelet, ManualClock(), 25.0).look(10.0)
