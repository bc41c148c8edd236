"""Time as this process lives it, with a process that really stands still."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import clock
from agent.clock import StallMeter
from tests.lab.waiting import wait_until

TICK, TOLERANCE = 0.2, 0.05
HELD_SECONDS = 0.6

READER = """
import sys
from agent.clock import StallMeter
meter = StallMeter()
meter.start()
print("started", flush=True)
for _ in sys.stdin:
    print(meter.stalled(), meter.awake(), meter.monotonic(), flush=True)
"""


class HandTime:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now + 1e9


class LateTick(threading.Event):
    """The meter's own pause, which ends when the test says so: until then its thread is late."""

    def __init__(self) -> None:
        super().__init__()
        self._due = threading.Semaphore(0)
        self.ticked = threading.Semaphore(0)

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout == TICK
        self.ticked.release()
        self._due.acquire()
        return self.is_set()

    def come_round(self) -> None:
        self._due.release()
        assert self.ticked.acquire(timeout=30)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> HandTime:
    hand = HandTime()
    monkeypatch.setattr(clock, "time", hand)
    return hand


@pytest.fixture
def ticks() -> LateTick:
    return LateTick()


@pytest.fixture
def meter(now: HandTime, ticks: LateTick) -> Iterator[StallMeter]:
    meter = StallMeter(TICK, TOLERANCE)
    meter._stop = ticks
    meter.start()
    assert ticks.ticked.acquire(timeout=30)
    yield meter
    meter.stop()
    ticks._due.release()


def test_a_tick_in_time_is_no_stall(meter: StallMeter, now: HandTime, ticks: LateTick) -> None:
    for _ in range(10):
        now.now += TICK + 0.04
        ticks.come_round()
    assert meter.stalled() == 0
    assert meter.awake() == now.now


def test_lateness_beyond_the_tolerance_is_a_stall(meter: StallMeter, now: HandTime, ticks: LateTick) -> None:
    now.now += TICK + 30
    ticks.come_round()
    assert meter.stalled() == pytest.approx(30)
    assert meter.awake() == pytest.approx(100 + TICK)


def test_who_reads_before_the_late_thread_sees_the_stall_as_well(
    meter: StallMeter, now: HandTime, ticks: LateTick
) -> None:
    now.now += TICK + 30
    assert meter.stalled() == pytest.approx(30)
    assert meter.awake() == pytest.approx(100 + TICK)
    ticks.come_round()
    assert meter.stalled() == pytest.approx(30)


def test_stalls_add_up(meter: StallMeter, now: HandTime, ticks: LateTick) -> None:
    for _ in range(3):
        now.now += TICK + 10
        ticks.come_round()
    assert meter.stalled() == pytest.approx(30)


def test_awake_time_never_goes_back(meter: StallMeter, now: HandTime, ticks: LateTick) -> None:
    seen = [meter.awake()]
    for step in range(200):
        now.now += 0.01
        if step % 60 == 59:
            ticks.come_round()
        seen.append(meter.awake())
    assert seen == sorted(seen)


def test_a_meter_that_does_not_run_notices_nothing(now: HandTime) -> None:
    meter = StallMeter(TICK, TOLERANCE)
    now.now += 30
    assert (meter.stalled(), meter.awake(), meter.monotonic()) == (0, 130, 130)
    assert meter.wall() == 130 + 1e9


def test_time_before_the_start_is_no_stall(now: HandTime, ticks: LateTick) -> None:
    meter = StallMeter(TICK, TOLERANCE)
    meter._stop = ticks
    now.now += 30
    meter.start()
    assert meter.stalled() == 0
    meter.stop()
    ticks._due.release()


def test_a_real_stop_of_the_process_is_measured() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", READER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "started\n"
        before = read(child)
        child.send_signal(signal.SIGSTOP)
        wait_until(lambda: state(child.pid) == "T", 30, "the child stands still")
        held = time.monotonic() + HELD_SECONDS
        wait_until(lambda: time.monotonic() > held, 30, "it stood still for long enough")
        child.send_signal(signal.SIGCONT)
        after = read(child)
        child.stdin.close()
    stalled, awake, lived = (late - early for late, early in zip(after, before, strict=True))
    assert HELD_SECONDS - TICK <= stalled <= lived
    assert awake == pytest.approx(lived - stalled, abs=HELD_SECONDS / 2)


def read(child: "subprocess.Popen[str]") -> list[float]:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write("\n")
    child.stdin.flush()
    return [float(word) for word in child.stdout.readline().split()]


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
