"""The pod book: whoever asks is answered at once, and the kubelet is asked seldom, whatever becomes of it."""

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

import pytest

from agent.host import pod_book
from agent.host.pod_book import PAUSE_SECONDS, PodBook
from agent.host.pod_list import ListedPod
from agent.model import Action, Finding, PodRef, Target, TargetKind
from tests.lab.waiting import wait_until
from tests.unit.builders import POD_UID, WEB, ManualClock

FULL = PodRef("shop", "web-0", POD_UID, "", "StatefulSet/web", "Burstable", node_critical=False, labels=(("app", "w"),))
APP = replace(FULL, container="app")
LISTED = ListedPod(FULL, (("c1", "app"), ("c0", "app"), ("s1", "sidecar")))


class Kubelet:
    """What the book reads; each reading is counted, and can be held or made to fail."""

    def __init__(self, *pods: ListedPod) -> None:
        self.pods = pods
        self.readings = 0
        self.error: Exception | None = None
        self.go = threading.Event()
        self.go.set()

    def read(self, take: Callable[[ListedPod], None]) -> None:
        self.readings += 1
        self.go.wait(10)
        for pod in self.pods:
            take(pod)
        if self.error:
            raise self.error


@pytest.fixture
def kubelet() -> Iterator[Kubelet]:
    made = Kubelet(LISTED)
    yield made
    made.go.set()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def book(kubelet: Kubelet, clock: ManualClock) -> PodBook:
    return PodBook(kubelet.read, clock)


def finding(pod: PodRef | None = WEB, container_id: str = "sandbox") -> Finding:
    target = Target(TargetKind.SHIM, pid=7, start_time=1, container_id=container_id)
    return Finding("ContainerdShimHung", "ShimUnresponsive", "it hangs", Action.KILL_SHIM, target, pod)


def quiet(book: PodBook) -> None:
    """Wait until the reading has ended, and has said so in the log."""
    wait_until(lambda: not book._reading and not readers(), 30, "the reading ends")


def readers() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "kubelet-pods"]


def asked(book: PodBook, container_id: str = "c1") -> PodRef | None:
    """What is said at once; and wait for what comes of it."""
    said = book.pod_of(container_id)
    quiet(book)
    return said


class TestNaming:
    def test_at_first_nothing_is_known_and_soon_all_is(self, book: PodBook) -> None:
        assert asked(book) is None
        assert book.pod_of("c1") == APP
        assert book.pod_of("s1") == replace(APP, container="sidecar")

    def test_a_container_that_ended_before_is_named(self, book: PodBook) -> None:
        asked(book)
        assert book.pod_of("c0") == APP

    def test_a_finding_is_the_same_with_more_said_of_its_pod(self, book: PodBook) -> None:
        before = finding()
        assert book.identify(before) == before
        quiet(book)
        after = book.identify(before)
        assert after == replace(before, pod=APP)
        assert after.key == before.key
        assert book.identify(after) == after

    def test_a_sandbox_stays_the_whole_pods(self, book: PodBook) -> None:
        asked(book)
        assert book.identify(finding(replace(WEB, container=""), "c1")).pod == FULL

    def test_a_finding_whose_pod_is_known_by_uid_alone_is_named(self, book: PodBook) -> None:
        asked(book)
        assert book.identify(finding(PodRef("", "", POD_UID), "c1")).pod == APP
        assert book.identify(finding(PodRef("", "", POD_UID), "unheard-of")).pod == FULL

    def test_a_finding_of_nobody_is_named_by_its_container(self, book: PodBook) -> None:
        asked(book)
        assert book.identify(finding(None, "c1")).pod == APP

    def test_the_bundle_has_the_last_word_on_a_pods_name(self, book: PodBook) -> None:
        asked(book)
        for other in (replace(WEB, name="web-1"), replace(WEB, namespace="prod")):
            assert book.identify(finding(other)) == finding(other)

    def test_a_bundle_without_uid_is_matched_by_its_container(self, book: PodBook) -> None:
        asked(book)
        nameless = replace(WEB, uid="")
        assert book.identify(finding(nameless, "c1")).pod == APP
        assert book.identify(finding(replace(nameless, name="web-1"), "c1")).pod == replace(nameless, name="web-1")

    def test_what_has_neither_pod_nor_container_asks_for_nothing(self, book: PodBook, kubelet: Kubelet) -> None:
        assert book.identify(finding(None, "")) == finding(None, "")
        quiet(book)
        assert kubelet.readings == 0

    def test_pods_that_are_gone_are_remembered(self, book: PodBook, kubelet: Kubelet, clock: ManualClock) -> None:
        asked(book)
        kubelet.pods = ()
        clock.advance(PAUSE_SECONDS)
        asked(book, "unheard-of")
        assert kubelet.readings == 2
        assert book.pod_of("c1") == APP

    def test_memory_has_a_limit_and_forgets_the_oldest(
        self, book: PodBook, kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pod_book, "MAX_PODS", 3)
        monkeypatch.setattr(pod_book, "MAX_CONTAINERS", 4)
        kubelet.pods = tuple(
            ListedPod(replace(FULL, name=f"p{n}", uid=f"u{n}"), ((f"a{n}", "a"), (f"b{n}", "b"))) for n in range(9)
        )
        asked(book)
        assert list(book._pods) == ["u6", "u7", "u8"]
        assert list(book._containers) == ["a7", "b7", "a8", "b8"]


class TestAsking:
    def test_nobody_waits_and_only_one_reading_is_under_way(self, book: PodBook, kubelet: Kubelet) -> None:
        kubelet.go.clear()
        for number in range(100):
            assert book.pod_of(f"c{number}") is None
            assert book.identify(finding()) == finding()
        assert kubelet.readings == 1
        kubelet.go.set()
        quiet(book)
        assert book.pod_of("c1") == APP

    def test_a_reading_that_hangs_for_ever_is_not_joined_by_a_second(
        self, book: PodBook, kubelet: Kubelet, clock: ManualClock
    ) -> None:
        kubelet.go.clear()
        for _ in range(100):
            book.pod_of("c1")
            clock.advance(PAUSE_SECONDS)
        assert kubelet.readings == 1

    def test_in_thirty_seconds_the_kubelet_is_asked_once_at_most(
        self, book: PodBook, kubelet: Kubelet, clock: ManualClock
    ) -> None:
        times: list[float] = []
        for tick in range(3600):
            before = kubelet.readings
            book.pod_of(f"new-{tick}")  # an hour in which every second a container comes that nobody knows
            quiet(book)
            if kubelet.readings > before:
                times.append(clock.now)
            clock.advance(1.0)
        assert len(times) == 3600 / PAUSE_SECONDS
        assert min(later - earlier for earlier, later in pairwise(times)) >= PAUSE_SECONDS
        assert PAUSE_SECONDS >= 30, "what docs/security.md and docs/cost.md promise"

    def test_what_is_known_is_asked_for_no_more(self, book: PodBook, kubelet: Kubelet, clock: ManualClock) -> None:
        asked(book)
        for _ in range(100):
            clock.advance(PAUSE_SECONDS)
            asked(book)
            book.identify(finding())
        assert kubelet.readings == 1

    def test_a_container_the_kubelet_does_not_know_is_asked_for_less_and_less(
        self, book: PodBook, kubelet: Kubelet, clock: ManualClock
    ) -> None:
        for _ in range(3600):
            asked(book, "not-the-kubelets")
            clock.advance(1.0)
        assert 6 <= kubelet.readings <= 10

    def test_a_new_container_does_not_wait_for_one_that_is_never_found(
        self, book: PodBook, kubelet: Kubelet, clock: ManualClock
    ) -> None:
        for _ in range(4):
            asked(book, "not-the-kubelets")
            clock.advance(600.0)
        kubelet.pods = (LISTED, ListedPod(replace(FULL, uid="u2", name="web-1"), (("fresh", "app"),)))
        clock.advance(PAUSE_SECONDS)
        asked(book, "fresh")
        found = book.pod_of("fresh")
        assert found
        assert found.name == "web-1"

    def test_wishes_have_a_limit(self, book: PodBook, kubelet: Kubelet) -> None:
        kubelet.go.clear()
        for number in range(10_000):
            book.pod_of(f"c{number}")
        assert len(book._wishes) <= pod_book.MAX_WISHES


class TestFailure:
    def test_a_kubelet_that_fails_is_asked_less_and_less_and_then_again(
        self, book: PodBook, kubelet: Kubelet, clock: ManualClock
    ) -> None:
        kubelet.pods, kubelet.error = (), OSError("refused")
        for _ in range(3600):
            asked(book)
            clock.advance(1.0)
        assert 12 <= kubelet.readings <= 16
        kubelet.pods, kubelet.error = (LISTED,), None
        clock.advance(300.0)
        asked(book)
        assert book.pod_of("c1") == APP

    def test_failing_for_ever_does_not_break_the_book(
        self, book: PodBook, kubelet: Kubelet, clock: ManualClock
    ) -> None:
        kubelet.pods, kubelet.error = (), OSError("refused")
        for _ in range(1100):  # a pause that is doubled so often is no number any more
            clock.advance(600.0)
            asked(book)
        assert kubelet.readings == 1100

    def test_what_was_read_before_it_failed_counts(self, book: PodBook, kubelet: Kubelet) -> None:
        kubelet.error = ValueError("ends in the middle")
        asked(book)
        assert book.pod_of("c1") == APP

    def test_trouble_is_told_once_and_its_end_too(
        self, book: PodBook, kubelet: Kubelet, clock: ManualClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "nodediag.kubelet")
        kubelet.pods, kubelet.error = (), OSError("answered 403 Forbidden")
        for _ in range(5):
            asked(book)
            clock.advance(600.0)
        (record,) = caplog.records
        assert record.message == "pods are named by their bundles alone"
        assert vars(record)["why"] == "answered 403 Forbidden"
        kubelet.error = None
        asked(book)
        assert [each.message for each in caplog.records[1:]] == ["the kubelet names pods again"]

    def test_without_a_thread_it_goes_on(
        self, book: PodBook, kubelet: Kubelet, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_thread(*_: object, **__: object) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", no_thread)
            assert book.pod_of("c1") is None
        assert kubelet.readings == 0
        clock.advance(PAUSE_SECONDS)
        asked(book)
        assert book.pod_of("c1") == APP
