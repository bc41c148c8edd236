"""Values as a tired person reads them."""

import math

import pytest

from agent.durations import duration, measured_duration, moment, rounded
from agent.exporters.wording import ago, measured
from agent.model import Value


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.0004, "0.4 ms"),
        (0.00001, "0.01 ms"),
        (0.0000004, "under 0.01 ms"),
        (0.9994, "999 ms"),
        (0.9999, "1.0 s"),
        (2.04, "2.0 s"),
        (9.97, "10 s"),
        (119.4, "119 s"),
        (200, "3 min 20 s"),
        (180, "3 min"),
        (7199.9, "120 min"),
        (93784, "26 h 3 min"),
        (86400 * 3 + 7200, "3 d 2 h"),
        (86400 * 1000, "1,000 d"),
        (-5, "-5.0 s"),
        (math.inf, "without end"),
        (math.nan, "not known"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("seconds", [4e-9, 4e-7, 4e-5, 4e-4, 0.04, 0.4])
def test_nothing_that_took_time_reads_as_nothing(seconds: float) -> None:
    for text in (
        duration(seconds),
        measured_duration(rounded(seconds)),
        measured("relistSeconds", rounded(seconds))[1],
    ):
        assert text not in {"0 s", "0.0 s", "0 ms"}
        assert text.endswith(" ms")


def test_a_measured_nothing_is_a_bound_and_a_setting_of_0_is_0() -> None:
    assert measured_duration(0.0) == "under 1 ms"
    assert measured("mean_relist_seconds", 0.0) == ("mean relist", "under 1 ms")
    assert duration(0.0) == "0 s"


@pytest.mark.parametrize(("seconds", "value"), [(12.34, 12.3), (1.26, 1.3), (0.0412345678, 0.041235), (0, 0)])
def test_programs_get_tenths_and_below_a_second_microseconds(seconds: float, value: float) -> None:
    assert rounded(seconds) == value


@pytest.mark.parametrize(
    ("gone", "text"),
    [
        (-5, "just now"),
        (1, "just now"),
        (60, "60 s ago"),
        (185, "3 min ago"),
        (7200, "2 h ago"),
        (86400 * 3, "3 d ago"),
    ],
)
def test_how_long_ago(gone: float, text: str) -> None:
    assert ago(1000.0, 1000.0 + gone) == text


def test_a_moment_is_shown_with_how_long_ago_it_was() -> None:
    text = "2026-08-01 03:12:45 UTC (2 min ago)"
    assert measured("read_timestamp_seconds", 1785553965.25, 1785553965.25 + 120) == ("read", text)


def test_moments_are_in_utc() -> None:
    assert moment(1785553965.25) == "2026-08-01 03:12:45 UTC"


@pytest.mark.parametrize(
    ("key", "value", "name", "text"),
    [
        ("connect_seconds", 0.0021, "connect", "2.1 ms"),
        ("oldestSeconds", 200, "oldest", "3 min 20 s"),
        ("lastAnsweredSecondsAgo", 61.0, "last answered", "61 s ago"),
        ("lastAnsweredSecondsAgo", 0.0, "last answered", "just now"),
        ("memory_bytes", 41943040, "memory", "40.0 MiB"),
        ("small_bytes", 12, "small", "12 B"),
        ("fill_ratio", 0.987, "fill", "98.7 %"),
        ("throttled_percent", 5, "throttled", "5 %"),
        ("growthPerSecond", 2.5, "growth", "2.5/s"),
        ("zombies", 16018, "zombies", "16,018"),
        ("load", 1234.6, "load", "1,235"),
        ("pid", 123456, "PID", "123456"),
        ("start_time", 123456, "start time", "123456"),
        ("readTimestampSeconds", 1785553965.25, "read", "2026-08-01 03:12:45 UTC"),
        ("readTimestampSeconds", math.nan, "read", "not known"),
        ("readTimestampSeconds", 1e300, "read", "not known"),
        ("shim_pid", 123456, "shim PID", "123456"),
        ("node_local_dns", True, "node local DNS", "yes"),
        ("wchan", None, "wchan", "not known"),
        ("comm", "a\nb", "comm", "a\\nb"),
        ("comm", "", "comm", "(empty)"),
        ("comms", ("a", "\x1b"), "comms", "a, \\x1b"),
        ("container", "9c0e6f0d1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5", "container", "9c0e6f0d1a2b"),
        ("end", math.inf, "end", "without end"),
    ],
)
def test_measured_values(key: str, value: Value, name: str, text: str) -> None:
    assert measured(key, value) == (name, text)
