"""A process is held by what it is, not by its number."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator

import pytest

from agent.acts import RefusalReason, RefusedError
from agent.host.procfs import Procfs
from agent.host.rights import Capability
from agent.model import ProcessId
from agent.remediation.hands import Grip, held, same_process
from agent.remediation.remedy import ActError
from tests.lab.waiting import wait_until
from tests.unit.builders import open_files
from tests.unit.doubles import rights_without

PROCFS = Procfs("/proc")


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def identity(pid: int) -> ProcessId:
    process = PROCFS.process(pid)
    assert process is not None
    return process.id


def refusal(process: ProcessId) -> RefusalReason:
    with pytest.raises(RefusedError) as raised, held(process, PROCFS):
        pass
    return raised.value.refusal.reason


def test_a_held_process_gets_its_signal_and_its_end_is_noticed(sleeper: "subprocess.Popen[bytes]") -> None:
    with held(identity(sleeper.pid), PROCFS) as grip:
        assert not grip.ended(0)
        grip.signal(signal.SIGKILL)
        assert grip.ended(5)
    assert sleeper.wait(30) == -signal.SIGKILL


def test_a_signal_to_one_that_has_ended_reaches_nobody(sleeper: "subprocess.Popen[bytes]") -> None:
    with held(identity(sleeper.pid), PROCFS) as grip:
        sleeper.kill()
        sleeper.wait(30)
        grip.signal(signal.SIGKILL)
        assert grip.ended(0)


def test_a_reused_pid_is_refused_and_not_signalled(sleeper: "subprocess.Popen[bytes]") -> None:
    now = identity(sleeper.pid)
    assert refusal(ProcessId(now.pid, now.start_time - 1)) is RefusalReason.TARGET_CHANGED
    assert sleeper.poll() is None


def test_what_is_gone_or_defunct_is_refused(sleeper: "subprocess.Popen[bytes]") -> None:
    now = identity(sleeper.pid)
    sleeper.send_signal(signal.SIGKILL)
    wait_until(lambda: getattr(PROCFS.process(now.pid), "state", "") == "Z", 30, "a zombie")
    assert refusal(now) is RefusalReason.TARGET_GONE
    sleeper.wait(30)
    assert refusal(now) is RefusalReason.TARGET_GONE


@pytest.mark.parametrize("pid", [1, 0, -1, os.getpid()], ids=["init", "none", "all", "ourselves"])
def test_the_first_process_and_ourselves_are_never_held(pid: int) -> None:
    assert refusal(ProcessId(pid, 1)) is RefusalReason.PROTECTED_PROCESS


def test_a_thread_is_no_process() -> None:
    gate = threading.Event()
    thread = threading.Thread(target=gate.wait)
    thread.start()
    try:
        assert thread.native_id is not None
        assert refusal(ProcessId(thread.native_id, 1)) is RefusalReason.TARGET_GONE
    finally:
        gate.set()


def test_a_process_without_fds_to_hold_it_by_is_not_gone(
    sleeper: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(pid: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", none_left)
    assert refusal(identity(sleeper.pid)) is RefusalReason.CANNOT_SEE


def test_a_forbidden_signal_names_the_capability(
    sleeper: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(signal, "pidfd_send_signal", forbidden)
    now = identity(sleeper.pid)
    for rights, words in (
        (rights_without(Capability.KILL), "the agent needs CAP_KILL, because process .* runs as uid 1000"),
        (rights_without(apparmor="cri-containerd.apparmor.d (enforce)"), "by the AppArmor profile cri-containerd"),
    ):
        with pytest.raises(ActError, match=words):
            Grip(now, -1, 1000, rights).signal(signal.SIGTERM)
    with pytest.raises(ActError, match="no capability is missing"):
        Grip(now, -1, 0, rights_without(Capability.KILL)).signal(signal.SIGTERM)


def test_no_descriptor_is_left_whatever_happens(sleeper: "subprocess.Popen[bytes]") -> None:
    now = identity(sleeper.pid)
    before = open_files()
    refusal(ProcessId(now.pid, 1))
    with held(now, PROCFS):
        pass
    assert open_files() == before


def test_the_same_process_is_told_as_it_is_now(sleeper: "subprocess.Popen[bytes]") -> None:
    assert same_process(identity(sleeper.pid), PROCFS).comm == "sleep"
