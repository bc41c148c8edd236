"""What kubelet_healthz decides from plain values, and that it looks at the right things."""

import math
import socket
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.clock import StallMeter
from agent.detectors.healthz_findings import FAILING, NOT_OK, REFUSED, SLOW, TIMEOUT, Observation
from agent.detectors.kubelet_healthz import KubeletHealthzDetector, KubeletHealthzSettings
from agent.host.exchange import Attempt, Ending, Phase
from agent.host.kubelet import HttpAnswer
from agent.host.service import Halt, Lifetime
from agent.model import (
    Action,
    CannotSeeError,
    CheckResult,
    Finding,
    NotApplicableError,
    ProcessId,
    Target,
    TargetKind,
)
from agent.pipeline.conditions import Hysteresis, Thresholds, advance
from agent.schema import rule_of
from tests.unit.builders import ManualClock
from tests.unit.doubles import denied_fault

URL = "http://127.0.0.1:10248/healthz"
KUBELET = ProcessId(812, 4000)
OLD = Lifetime(KUBELET, 3600.0)
BOOT = "7c5d0e0e-0a4c-4f0e-9c55-6f4c3c1c9d11"
SETTINGS = KubeletHealthzSettings()


def detector(url: str = URL, **more: Any) -> KubeletHealthzDetector:
    wiring: dict[str, Any] = {
        "explicit": True,
        "clock": StallMeter(),
        "kubelet_dir": Path("/nonexistent"),
        "kubelet_process": lambda: None,
        "process_age": lambda _: None,
        "boot_id": lambda: BOOT,
        "environ": {},
        "settings": SETTINGS,
    }
    return KubeletHealthzDetector(url=url, **(wiring | more))


def answered(
    seconds: float = 0.001, status: int = 200, body: bytes = b"ok", started: float = 0.0
) -> Attempt[HttpAnswer]:
    return Attempt(Ending.ANSWERED, Phase.TOTAL, seconds, 0.0001, seconds * 0.9, started, HttpAnswer(status, body))


def unanswered(
    ending: Ending = Ending.TIMEOUT, seconds: float = 10.0, phase: Phase = Phase.FIRST_BYTE, started: float = 0.0
) -> Attempt[HttpAnswer]:
    return Attempt(ending, phase, seconds, 0.0001 if phase is not Phase.CONNECT else None, started=started)


def refused(ending: Ending = Ending.REFUSED) -> Attempt[HttpAnswer]:
    return Attempt(ending, Phase.CONNECT, 0.0002, detail="ECONNREFUSED: connection refused")


def odd(ending: Ending, answer: HttpAnswer | None = None, detail: str = "") -> Attempt[HttpAnswer]:
    return Attempt(ending, Phase.TOTAL, 0.1, answer=answer, detail=detail)


def check(
    *attempts: Attempt[HttpAnswer], life: Lifetime = OLD, refused_seconds: float = 0.0, answered_before: bool = False
) -> CheckResult:
    return detector().check(Observation(URL, attempts, life, refused_seconds, answered_before, BOOT))


def only(result: CheckResult) -> Finding:
    (finding,) = result.findings
    assert finding.condition == FAILING
    assert finding.reason in KubeletHealthzDetector.conditions[FAILING]
    assert finding.message.isprintable()
    assert len(finding.message) < 500
    return finding


def sample(result: CheckResult, name: str, *labels: str) -> float | None:
    return next((s.value for s in result.samples if s.name == name and s.labels == labels), None)


# --- well


def test_a_quick_ok_is_well() -> None:
    result = check(answered())
    assert not result.findings
    assert result.healthy == {FAILING: "the kubelet (pid 812) answered its healthz in 1 ms"}
    assert sample(result, "kubelet_healthz_seconds") == 0.001
    assert sample(result, "kubelet_healthz_phase_seconds", "connect") == 0.0001
    assert sample(result, "kubelet_healthz_phase_seconds", "total") == 0.001
    assert [sample(result, "kubelet_healthz_failures_total", r) for r in (TIMEOUT, REFUSED, NOT_OK, SLOW)] == [0.0] * 4


def test_a_restart_is_told() -> None:
    result = check(answered(), life=Lifetime(KUBELET, 31.4))
    assert result.healthy[FAILING].endswith("; it was started 31 s ago")


def test_an_answer_below_the_limit_is_well_whatever_the_second_connection_did() -> None:
    result = check(answered(2.9), unanswered(Ending.LEFT, 2.1, started=1))
    assert not result.findings


# --- timeout


def test_two_unanswered_connections_are_two_sightings() -> None:
    result = check(unanswered(), unanswered(seconds=9.0, started=1))
    finding = only(result)
    assert (finding.reason, finding.sightings, finding.timed) == (TIMEOUT, 2, True)
    assert finding.recommended_action is Action.RESTART_KUBELET
    assert finding.target == Target(TargetKind.KUBELET, pid=812, start_time=4000, boot_id=BOOT, address=URL)
    assert finding.values["phase"] == "first_byte"
    assert finding.values["total_seconds"] == 10.0
    assert "did not answer http://127.0.0.1:10248/healthz within 10 s, nor on a second connection" in finding.message
    assert "no byte comes" in finding.message
    assert "/proc/812/status" in finding.message
    assert sample(result, "kubelet_healthz_failures_total", TIMEOUT) == 1
    assert sample(result, "kubelet_healthz_seconds") == 10.0
    assert math.isnan(sample(result, "kubelet_healthz_phase_seconds", "first_byte") or 0)
    assert sample(result, "kubelet_healthz_phase_seconds", "total") == 10.0


def test_a_lost_connection_alone_is_a_suspicion() -> None:
    finding = only(check(unanswered(), answered(0.002, started=1)))
    assert (finding.reason, finding.sightings) == (TIMEOUT, 1)
    assert "A second connection beside it: answered after 2 ms." in finding.message


@pytest.mark.parametrize(
    ("phase", "text"),
    [(Phase.CONNECT, "not even the connection is accepted"), (Phase.TOTAL, "does not end")],
)
def test_the_phase_is_told(phase: Phase, text: str) -> None:
    assert text in only(check(unanswered(phase=phase), unanswered(started=1))).message


def test_without_a_process_no_restart_is_recommended() -> None:
    finding = only(check(unanswered(), unanswered(started=1), life=Lifetime()))
    assert finding.recommended_action is Action.NONE
    assert finding.target == Target(TargetKind.KUBELET, boot_id=BOOT, address=URL)


UNIT = "/system.slice/kubelet.service"


def test_a_kubelet_that_has_ended_is_started_where_its_unit_is_known() -> None:
    known = only(check(refused(), life=Lifetime(ended=KUBELET, cgroup=UNIT), refused_seconds=60, answered_before=True))
    assert known.recommended_action is Action.RESTART_KUBELET
    assert known.target == Target(TargetKind.KUBELET, boot_id=BOOT, cgroup=UNIT, address=URL)
    assert known.values["unit"] == "kubelet.service"
    assert "process 812 has ended. See systemctl show -p ActiveState,Result kubelet.service" in known.message
    unknown = only(check(refused(), life=Lifetime(ended=KUBELET), refused_seconds=60, answered_before=True))
    assert unknown.recommended_action is Action.NONE
    assert unknown.target == Target(TargetKind.KUBELET, boot_id=BOOT, address=URL)
    assert "systemctl list-unit-files '*kubelet*'" in unknown.message


def test_a_kubelet_that_never_answered_is_not_started() -> None:
    """Its port may be another one, or switched off."""
    life = Lifetime(ended=KUBELET, cgroup=UNIT)
    assert only(check(refused(), life=life, refused_seconds=60)).recommended_action is Action.NONE


def halt_of(halt: Halt, life: Lifetime = OLD) -> Finding:
    seen = Observation(URL, (unanswered(), unanswered(started=1)), life, 0.0, boot_id=BOOT, halt=halt)
    return only(detector().check(seen))


def test_a_frozen_kubelet_is_to_be_thawed() -> None:
    finding = halt_of(Halt("", UNIT), replace(OLD, cgroup=UNIT))
    assert (finding.reason, finding.recommended_action) == (TIMEOUT, Action.THAW_CGROUP)
    assert finding.values["frozen_cgroup"] == UNIT
    assert f"Process 812 is frozen with its cgroup {UNIT} (unit kubelet.service)" in finding.message
    assert "It may be stopped" not in finding.message


@pytest.mark.parametrize(("state", "text"), [("T", "`kill -CONT 812` lets it go on"), ("t", "First detach that")])
def test_a_stopped_kubelet_is_to_be_continued_first(state: str, text: str) -> None:
    finding = halt_of(Halt(state))
    assert (finding.values["process_state"], text in finding.message) == (state, True)
    assert finding.recommended_action is Action.RESTART_KUBELET


def test_what_keeps_the_kubelet_from_running_is_read_once_it_fails() -> None:
    asked: list[ProcessId] = []

    def halted(process: ProcessId) -> Halt:
        asked.append(process)
        return Halt("T")

    wiring: dict[str, Any] = {"kubelet_process": lambda: KUBELET, "process_age": lambda _: 99.0, "halted": halted}
    url = closed_url()
    assert detector(url, **wiring).probe().halt == Halt("T")
    assert asked == [KUBELET]
    port = int(url.rpartition(":")[2].partition("/")[0])
    with socket.create_server(("127.0.0.1", port)) as listener:
        threading.Thread(target=answer_once, args=(listener,), daemon=True).start()
        detector(url, **wiring).probe()
    assert asked == [KUBELET]


# --- slow


def test_slow_on_both_connections_at_different_times_is_two_sightings() -> None:
    finding = only(check(answered(5.2), unanswered(Ending.LEFT, 4.45, started=1)))
    assert (finding.reason, finding.sightings, finding.timed) == (SLOW, 2, True)
    assert finding.recommended_action is Action.NONE
    assert "took 5.2 s" in finding.message
    assert "limit is 3 s" in finding.message


@pytest.mark.parametrize(
    ("second", "why"),
    [
        (answered(0.002, started=1), "the second was quick"),
        (answered(8.5, started=1), "both were released by one moment"),
        (unanswered(Ending.LEFT, 2.8, started=1), "the second had not waited long enough"),
    ],
)
def test_one_slow_answer_is_a_suspicion(second: Attempt[HttpAnswer], why: str) -> None:
    assert only(check(answered(9.5), second)).sightings == 1, why


# --- not OK


def test_not_ok_names_the_checks() -> None:
    body = b"[+]ping ok\n[-]log failed: reason withheld\n[-]syncloop failed: reason withheld\nhealthz check failed\n"
    finding = only(check(answered(status=500, body=body)))
    assert (finding.reason, finding.sightings, finding.timed) == (NOT_OK, 1, False)
    assert finding.values["failing_checks"] == ("log", "syncloop")
    assert finding.values["status_code"] == 500
    assert "(HTTP 500); failing checks: log, syncloop" in finding.message
    assert finding.recommended_action is Action.RESTART_KUBELET


def test_not_ok_without_checks_quotes_safely() -> None:
    finding = only(check(answered(status=503, body=b"\x1b[2J\n" + b"x" * 5000)))
    assert "\\x1b[2J\\nxxx" in finding.message
    assert finding.values["failing_checks"] == ()


def test_a_wrong_url_is_no_reason_to_restart() -> None:
    finding = only(check(answered(status=404, body=b"404 page not found\n")))
    assert (finding.reason, finding.recommended_action) == (NOT_OK, Action.NONE)
    assert "Is kubelet.healthz_url right?" in finding.message


def test_an_endless_500_is_still_a_500() -> None:
    attempt = odd(Ending.TOO_LARGE, answer=HttpAnswer(500, b"[-]ping failed: x\n", whole=False))
    assert only(check(attempt)).values["failing_checks"] == ("ping",)


# --- unreadable


@pytest.mark.parametrize(
    ("attempt", "text"),
    [
        (odd(Ending.ERROR, detail="EMFILE: too many open files"), "EMFILE"),
        (odd(Ending.MALFORMED, detail="illegal status line"), "is not HTTP"),
        (odd(Ending.TOO_LARGE, detail="no whole answer"), "hardly"),
        (odd(Ending.TOO_LARGE, answer=HttpAnswer(200, b"", whole=False)), "hardly"),
    ],
)
def test_what_is_no_healthz_says_nothing_about_the_kubelet(attempt: Attempt[HttpAnswer], text: str) -> None:
    result = check(attempt)
    assert not result.findings
    assert text in result.unknown[FAILING]


# --- refused, and restarts


def test_a_port_that_never_answered_is_no_reason_to_restart_the_kubelet() -> None:
    assert only(check(refused())).recommended_action is Action.NONE


def test_refused_while_the_process_runs() -> None:
    finding = only(check(refused(), answered_before=True))
    assert (finding.reason, finding.recommended_action, finding.timed) == (REFUSED, Action.RESTART_KUBELET, False)
    assert "nothing listens at http://127.0.0.1:10248/healthz (ECONNREFUSED: connection refused)" in finding.message
    assert "has been running for 60 min" in finding.message
    assert "healthzPort" in finding.message


def test_dropped_connections_count_as_refused() -> None:
    finding = only(check(refused(Ending.CLOSED)))
    assert finding.reason == REFUSED
    assert "drops the connection" in finding.message


def test_refused_and_no_kubelet_was_ever_seen() -> None:
    finding = only(check(refused(), life=Lifetime()))
    assert "there is no single process named kubelet" in finding.message
    assert finding.recommended_action is Action.NONE


@pytest.mark.parametrize(
    ("life", "refused_seconds", "excused"),
    [
        (Lifetime(KUBELET, 3.0), 2.0, True),
        (Lifetime(KUBELET, 19.9), 2.0, True),
        (Lifetime(KUBELET, 20.1), 2.0, False),
        (Lifetime(KUBELET, 3.0), 20.1, False),  # a crash loop: always young
        (Lifetime(KUBELET, None), 0.0, False),
        (Lifetime(ended=KUBELET), 4.9, True),
        (Lifetime(ended=KUBELET), 5.1, False),
        (Lifetime(), 0.0, False),
    ],
)
def test_a_restart_excuses_for_a_while(life: Lifetime, refused_seconds: float, excused: bool) -> None:
    result = check(refused(), life=life, refused_seconds=refused_seconds)
    assert bool(result.findings) is not excused
    if excused:
        assert result.recheck_seconds == 1.0
        assert ("does not accept connections yet" in result.healthy[FAILING]) is (life.process is not None)
        assert sample(result, "kubelet_healthz_failures_total", REFUSED) == 0


# --- the pipeline's view


def looks(*results: CheckResult) -> list[str]:
    """Return the confirmed reasons after these looks at default thresholds."""
    memory = Hysteresis()
    for result in results:
        memory = advance(memory, result, Thresholds(SETTINGS.failure_threshold, SETTINGS.success_threshold), 0.0)
    return [active.finding.reason for active in memory.active(FAILING)]


def test_one_look_confirms_a_timeout_and_one_clears_it() -> None:
    hung = check(unanswered(), unanswered(started=1))
    released = check(answered(9.5), answered(8.5, started=1))
    assert looks(hung) == [TIMEOUT]
    assert looks(hung, released) == []
    assert looks(check(refused())) == []
    assert looks(check(refused()), check(refused())) == [REFUSED]


def test_the_defaults_name_a_hung_kubelet_within_15_seconds() -> None:
    longest_pause = SETTINGS.period_seconds * 1.1
    assert longest_pause + SETTINGS.deadline_seconds < 14
    slow = SETTINGS.slow_seconds + SETTINGS.hedge_seconds  # the slowest that needs a second look
    assert longest_pause + (slow + 0.3) + 0.5 + (slow + 0.3) < 14
    assert longest_pause + SETTINGS.ended_grace_seconds + 1.0 + 0.5 < 14
    assert SETTINGS.timeout_seconds > SETTINGS.deadline_seconds
    assert (SETTINGS.period_seconds, SETTINGS.deadline_seconds, SETTINGS.slow_seconds) == (3.0, 10.0, 3.0)


def test_every_setting_has_its_meaning() -> None:
    for item in KubeletHealthzSettings.__dataclass_fields__.values():
        assert rule_of(item.metadata).meaning


# --- probing


@pytest.mark.parametrize(
    ("more", "present"),
    [
        ({"explicit": False}, False),
        ({"explicit": False, "kubelet_process": lambda: KUBELET}, True),
        ({"explicit": False, "environ": {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}}, True),
        ({"explicit": True}, True),
    ],
    ids=["nothing", "process", "environment", "explicit"],
)
def test_absent_is_not_failed(more: dict[str, Any], present: bool) -> None:
    watch = detector(closed_url(), **more)
    if present:
        assert watch.probe().attempts[0].ending is Ending.REFUSED
    else:
        with pytest.raises(NotApplicableError, match="there is no kubelet on this machine"):
            watch.probe()


def test_an_empty_folder_is_no_kubelet_and_its_content_is(tmp_path: Path) -> None:
    watch = detector(closed_url(), explicit=False, kubelet_dir=tmp_path)
    with pytest.raises(NotApplicableError, match="nothing of a kubelet's in"):
        watch.probe()
    (tmp_path / "pki").mkdir()
    (tmp_path / "pki/kubelet.crt").write_text("-----BEGIN CERTIFICATE-----")
    assert only(watch.check(watch.probe())).reason == REFUSED


def test_a_kubelet_that_was_seen_and_is_gone_is_a_fault_until_its_unit_is_removed() -> None:
    there, removed = [KUBELET], set[str]()
    watch = detector(
        closed_url(),
        explicit=False,
        kubelet_process=lambda: there[0] if there else None,
        process_age=lambda process: 99.0 if process in there else None,
        process_cgroup=lambda _: "/system.slice/kubelet.service",
        removed=lambda unit: unit in removed,
        settings=KubeletHealthzSettings(ended_grace_seconds=0),
    )
    watch.probe()
    there.clear()
    assert only(watch.check(watch.probe())).reason == REFUSED
    removed.add("kubelet.service")
    with pytest.raises(NotApplicableError):
        watch.probe()


def test_a_process_of_that_name_that_systemd_did_not_run_is_no_kubelet_of_this_node() -> None:
    """Such as `kubelet --version`."""
    there = [KUBELET]
    watch = detector(
        closed_url(),
        explicit=False,
        kubelet_process=lambda: there[0] if there else None,
        process_age=lambda process: 99.0 if process in there else None,
        settings=KubeletHealthzSettings(ended_grace_seconds=0),
    )
    watch.probe()
    there.clear()
    with pytest.raises(NotApplicableError):
        watch.probe()


def test_a_kubelet_that_answered_before_its_process_was_seen_is_remembered() -> None:
    url = closed_url()
    port = int(url.rpartition(":")[2].partition("/")[0])
    there = [KUBELET]
    watch = detector(
        url,
        explicit=False,
        kubelet_process=lambda: there[0] if there else None,
        settings=KubeletHealthzSettings(ended_grace_seconds=0),
    )
    with socket.create_server(("127.0.0.1", port)) as listener:
        threading.Thread(target=answer_once, args=(listener,), daemon=True).start()
        assert not watch.check(watch.probe()).findings
    there.clear()
    assert only(watch.check(watch.probe())).reason == REFUSED


def closed_url() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}/healthz"


def test_a_url_that_cannot_be_asked() -> None:
    with pytest.raises(CannotSeeError, match=r"kubelet.healthz_url must have an IP address"):
        detector("http://node-1:10248/healthz").probe()


def test_a_network_of_our_own_accuses_nobody() -> None:
    with pytest.raises(CannotSeeError, match="hostNetwork"):
        detector(closed_url(), network_problem=lambda: denied_fault("set hostNetwork: true")).probe()


def test_probe_and_check_on_a_real_socket() -> None:
    clock = ManualClock()

    def serve() -> None:
        for pause in (0.0, 0.0, 0.25):
            connection, _ = listener.accept()
            connection.recv(4096)
            clock.advance(pause)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        watch = detector(
            f"http://127.0.0.1:{listener.getsockname()[1]}/healthz",
            settings=KubeletHealthzSettings(deadline_seconds=2, hedge_seconds=1, slow_seconds=0.2),
            clock=clock,
            kubelet_process=lambda: KUBELET,
            process_age=lambda _: 5.0,
        )
        assert not watch.check(watch.probe()).findings
        seen = watch.probe()
        assert (seen.lifetime, seen.boot_id) == (Lifetime(KUBELET, 5.0), BOOT)
        assert only(watch.check(watch.probe())).reason == SLOW


def test_a_refusal_is_timed_from_its_beginning_and_forgotten_after_an_answer() -> None:
    class Time(StallMeter):
        now = 100.0

        def awake(self) -> float:
            return self.now

    clock, url = Time(), closed_url()
    watch = detector(url, clock=clock, kubelet_process=lambda: KUBELET, process_age=lambda _: 2.0)
    assert not watch.check(watch.probe()).findings
    clock.now = 121.0
    assert watch.probe().refused_seconds == 21.0
    assert only(watch.check(watch.probe())).reason == REFUSED
    port = int(url.rpartition(":")[2].partition("/")[0])
    with socket.create_server(("127.0.0.1", port)) as listener:
        threading.Thread(target=answer_once, args=(listener,), daemon=True).start()
        assert not watch.check(watch.probe()).findings
    assert watch.probe().refused_seconds == 0.0


def answer_once(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
