"""The thread between the board and the API server: it waits for the server, and nobody waits for it."""

import logging
import threading
import time

import pytest

from agent.app import DETECTOR_CLASSES
from agent.exporters.metrics import Metrics
from agent.exporters.node_conditions.api import Access, ApiServer
from agent.exporters.node_conditions.calls import Call
from agent.exporters.node_conditions.exporter import NodeConditions, Pacing, seen_on
from agent.exporters.node_conditions.pace import Answer
from agent.model import Condition, DetectorState, DetectorStatus
from agent.pipeline.board import Board, Entry
from tests.lab.api_standin import ApiMode, ApiStandin
from tests.lab.waiting import wait_until
from tests.unit.doubles import FakeClock
from tests.unit.node_conditions.days import DONE
from tests.unit.node_conditions.telling import DNS, HUNG, finding, ill, well

NODE = "worker-3"
TYPES = (HUNG, DNS, "PLEGUnhealthy")
SECONDS = 10.0


class Passing(FakeClock):
    """Time that passes."""

    def monotonic(self) -> float:
        return time.monotonic()


class Listening:
    """Takes every call, and answers what it is told to."""

    def __init__(self, *answers: Answer | Exception) -> None:
        self.answers = list(answers)
        self.calls: list[Call] = []

    def send(self, call: Call) -> Answer:
        self.calls.append(call)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def say(board: Board, *conditions: Condition, state: DetectorState = DetectorState.OK, name: str = "shims") -> None:
    board.publish(Entry(DetectorStatus(name, state), conditions))


def telling(board: Board, server: ApiStandin, deadline: float = 5.0) -> NodeConditions:
    access = Access(server.url, str(server.ca_file), str(server.token_file))
    sender = ApiServer(access, "nodediag/test", deadline)
    return NodeConditions(board, NODE, TYPES, Pacing(300.0, 0.05, events=True), Passing(), sender, lambda: 0.5)


def stepwise(board: Board, clock: FakeClock, sender: Listening) -> NodeConditions:
    return NodeConditions(board, NODE, TYPES, Pacing(300.0, 10.0, events=False), clock, sender, lambda: 0.0)


def pass_time(part: NodeConditions, clock: FakeClock, seconds: float) -> None:
    end = clock.monotonic() + seconds
    while clock.monotonic() < end:
        clock.pass_time(part._turn())


def test_a_fault_is_told_and_its_end_too(standin: ApiStandin) -> None:
    standin.plant({**standin.conditions["Ready"], "type": "PLEGUnhealthy", "status": "True"})
    board = Board(NODE, FakeClock())
    say(board, well(), well(DNS))
    part = telling(board, standin)
    part.start()
    wait_until(lambda: standin.conditions.get(HUNG, {}).get("status") == "False", SECONDS, "it is well")
    assert "PLEGUnhealthy" not in standin.conditions, "what a predecessor left is corrected at the start"
    say(board, ill(), well(DNS))
    wait_until(lambda: standin.conditions[HUNG]["status"] == "True", SECONDS, "the fault is told")
    wait_until(lambda: standin.events, SECONDS, "the finding is told")
    say(board, well(), well(DNS))
    wait_until(lambda: standin.conditions[HUNG]["status"] == "False", SECONDS, "the end is told")
    say(board, state=DetectorState.NOT_APPLICABLE)
    wait_until(lambda: HUNG not in standin.conditions, SECONDS, "what does not apply is taken away")
    part.stop()
    assert standin.conditions["Ready"]["status"] == "True"


def test_a_server_that_hangs_delays_neither_the_board_nor_a_scrape_nor_the_end(standin: ApiStandin) -> None:
    standin.mode = ApiMode.HANG
    board = Board(NODE, FakeClock())
    say(board, ill())
    part = telling(board, standin, deadline=60.0)
    metrics = Metrics(board, FakeClock(), (), "1", meters=(part,))
    part.start()
    wait_until(lambda: standin.asked, SECONDS, "a request hangs")
    began = time.monotonic()
    for _ in range(100):
        say(board, well())
    assert b"nodediag_node_conditions_pending" in metrics.expose()[0]
    part.stop()
    assert time.monotonic() - began < 30
    (thread,) = [each for each in threading.enumerate() if each.name == "node-conditions"]
    assert thread.daemon, "the end of the process does not wait for it"


def test_nothing_is_sent_after_the_stop(standin: ApiStandin) -> None:
    board = Board(NODE, FakeClock())
    say(board, well())
    part = telling(board, standin)
    part.start()
    wait_until(lambda: HUNG in standin.conditions, SECONDS, "it is told")
    part.stop()
    wait_until(lambda: "node-conditions" not in {t.name for t in threading.enumerate()}, SECONDS, "the thread ends")
    sent = len(standin.asked)
    say(board, ill())
    assert len(standin.asked) == sent
    assert standin.conditions[HUNG]["status"] == "False", "a shutdown changes no condition"


def test_trouble_is_logged_once_for_each_state_and_once_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    busy, denied = Answer(503, "503", "away"), Answer(403, "403", "may not", seldom=True)
    board, clock = Board(NODE, FakeClock()), FakeClock()
    say(board, well())
    sender = Listening(busy, busy, busy, denied, denied, DONE)
    with caplog.at_level(logging.INFO, "nodediag.node_conditions"):
        pass_time(stepwise(board, clock, sender), clock, 3600)
    told = [(record.message, record.__dict__.get("why")) for record in caplog.records]
    assert told == [
        ("the API server cannot be told", "away"),
        ("the API server cannot be told", "may not"),
        ("the API server is told again", None),
    ]
    assert len(sender.calls) > 5


def test_a_mistake_of_our_own_is_logged_and_survived(caplog: pytest.LogCaptureFixture, standin: ApiStandin) -> None:
    board = Board(NODE, FakeClock())
    say(board, well())
    part = NodeConditions(
        board, NODE, TYPES, Pacing(300.0, 0.05, events=True), Passing(), Listening(OSError("oops")), lambda: 0.0
    )
    part.start()
    wait_until(lambda: caplog.records, SECONDS, "the mistake is logged")
    for _ in range(20):
        say(board, ill())
    assert [record.message for record in caplog.records] == ["node conditions could not be told"]
    part.stop()
    wait_until(lambda: "node-conditions" not in {t.name for t in threading.enumerate()}, SECONDS, "the thread ends")


def test_what_is_sent_is_counted_and_what_is_not_yet_told_is_shown() -> None:
    board, clock = Board(NODE, FakeClock()), FakeClock()
    say(board, ill())
    part = stepwise(board, clock, Listening(Answer(0, "timeout", "late"), DONE))
    metrics = Metrics(board, clock, (), "1", meters=(part,))
    part._turn()
    late = b'node_conditions_requests_total{code="timeout",resource="nodes/status",verb="patch"} 1.0'
    assert late in metrics.expose()[0]
    assert b"nodediag_node_conditions_pending 3.0" in metrics.expose()[0]
    pass_time(part, clock, 60)
    assert b'node_conditions_requests_total{code="200",resource="nodes/status",verb="patch"} 1.0' in metrics.expose()[0]
    assert b"nodediag_node_conditions_pending 0.0" in metrics.expose()[0]


def test_there_are_no_such_metrics_while_it_is_off() -> None:
    board = Board(NODE, FakeClock())
    assert b"node_conditions" not in Metrics(board, FakeClock(), (), "1").expose()[0]


def test_types_that_no_detector_reports_are_absent() -> None:
    board = Board(NODE, FakeClock())
    say(board, ill(finding()))
    say(board, state=DetectorState.STARTING, name="dns")
    seen = seen_on(board.entries(), TYPES)
    assert (seen.absent, seen.waiting) == ((DNS, "PLEGUnhealthy"), True)


def test_our_conditions_are_nobody_elses() -> None:
    foreign = {
        *("Ready", "MemoryPressure", "DiskPressure", "PIDPressure", "NetworkUnavailable"),  # kubelet, network plugin
        *("KernelDeadlock", "ReadonlyFilesystem", "XfsShutdown", "CperHardwareErrorFatal", "CorruptDockerOverlay2"),
        *(
            "FrequentKubeletRestart",
            "FrequentDockerRestart",
            "FrequentContainerdRestart",
            "FrequentUnregisterNetDevice",
        ),
        *("KubeletUnhealthy", "ContainerRuntimeUnhealthy", "NTPProblem", "ReadonlyFilesystem"),
    }
    ours = {kind for detector in DETECTOR_CLASSES for kind in detector.conditions}
    assert ours & foreign == set()
