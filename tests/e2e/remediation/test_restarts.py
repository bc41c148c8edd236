"""Who is believed to start a service again, and how it is ended: on real processes, and over a real bus."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.acts import RefusalReason
from agent.host.procfs import Process
from agent.remediation.hands import Grip, held
from agent.remediation.remedy import ActError
from agent.remediation.restarts import Restarter, Way, service_unit
from agent.remediation.systemd import Systemd
from tests.lab.systemd_standin import DENY_RESTART, PrivateBus, SystemdStandin, UnitStandin
from tests.unit.builders import UNREAL_PID, RealClock
from tests.unit.remediation.fake_node import PATIENCE, FakeNode, child, refusal

KUBELET, PARENT, GONE = (UNREAL_PID + step for step in range(3))
DEAF = ("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1000; done")


@pytest.fixture(scope="module")
def bus() -> Iterator[PrivateBus]:
    with PrivateBus() as running:
        yield running


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return FakeNode(tmp_path)


@pytest.fixture
def kubelet() -> Iterator[subprocess.Popen[bytes]]:
    with child() as process:
        yield process


def restarter(node: FakeNode, bus: Path | None = None, deadline: float = 5.0) -> Restarter:
    socket = str(bus or node.root / "no-bus")
    return Restarter(node.procfs, Systemd(socket, RealClock(), deadline), PATIENCE)


def unit_of(pid: int, **more: str) -> Callable[[int], UnitStandin | None]:
    unit = UnitStandin(more.get("name", "kubelet.service"), pid)
    return lambda asked: unit if asked == pid else None


# --- who starts it again, by what can be seen without a bus


def test_a_service_of_systemd_is_started_again(node: FakeNode) -> None:
    way = restarter(node).way(node.add(KUBELET))
    assert way.unit is None
    assert "signals, since there is no system bus" in way.text
    assert "systemd (unit kubelet.service) is to start it again" in way.text


def test_what_has_a_parent_of_its_own_is_started_again_by_it(node: FakeNode) -> None:
    node.add(PARENT, comm="runsv", cgroup="/")
    assert (
        f"its parent, process {PARENT} (runsv)," in restarter(node).way(node.add(KUBELET, ppid=PARENT, cgroup="/")).text
    )


@pytest.mark.parametrize(
    ("init", "how"),
    [
        ("init", {}),
        ("systemd", {"cgroup": "/user.slice/session-3.scope"}),
        ("systemd", {"cgroup": "/"}),
        ("systemd", {"ppid": 0}),
        ("systemd", {"ppid": GONE}),
    ],
)
def test_what_nobody_is_seen_to_start_again_is_not_ended(tmp_path: Path, init: str, how: dict[str, object]) -> None:
    node = FakeNode(tmp_path, init)
    process = node.add(KUBELET, **how)  # type: ignore[arg-type]
    seen = refusal(lambda: restarter(node).way(process))
    assert seen.reason is RefusalReason.UNSAFE_NOW
    assert f"nobody is seen who would start process {KUBELET} again" in seen.message
    assert "there is no system bus" in seen.message


def test_a_parent_that_is_defunct_starts_nothing(node: FakeNode) -> None:
    node.add(PARENT, state="Z")
    assert refusal(lambda: restarter(node).way(node.add(KUBELET, ppid=PARENT))).reason is RefusalReason.UNSAFE_NOW


def test_our_own_service_is_never_restarted(node: FakeNode) -> None:
    node.add(os.getpid(), comm="nodediag", cgroup="/system.slice/kubelet.service/agent")
    assert refusal(lambda: restarter(node).way(node.add(KUBELET))).reason is RefusalReason.PROTECTED_PROCESS


@pytest.mark.parametrize(
    ("lines", "unit"),
    [
        (("0::/system.slice/kubelet.service",), "kubelet.service"),
        (("0::/../../../system.slice/containerd.service/payload",), "containerd.service"),
        (("9:name=systemd:/system.slice/kubelet.service", "4:memory:/x.service", "0::/"), "kubelet.service"),
        (("0::/user.slice/user-0.slice/session-1.scope",), ""),
        ((), ""),
    ],
)
def test_the_unit_is_read_from_the_cgroup(lines: tuple[str, ...], unit: str) -> None:
    assert service_unit(lines) == unit


# --- who starts it again, by systemd's own word


def test_systemds_word_is_taken_where_there_is_a_bus(node: FakeNode, bus: PrivateBus) -> None:
    with SystemdStandin(bus, unit_of(KUBELET)):
        way = restarter(node, bus.socket).way(node.add(KUBELET))
    assert way.text == "systemd, unit kubelet.service"
    assert way.unit is not None
    assert way.unit.main_pid == KUBELET


def test_where_systemd_knows_of_no_service_nothing_is_ended(node: FakeNode, bus: PrivateBus) -> None:
    """Also where its parent is not pid 1: that may be a shell somebody left."""
    node.add(PARENT, comm="bash")
    process = node.add(KUBELET, ppid=PARENT)
    with SystemdStandin(bus, unit_of(KUBELET, name="session-3.scope")):
        seen = refusal(lambda: restarter(node, bus.socket).way(process))
    assert seen.reason is RefusalReason.UNSAFE_NOW
    assert "session-3.scope, which is no service" in seen.message


def test_our_own_unit_is_never_restarted(node: FakeNode, bus: PrivateBus) -> None:
    unit = UnitStandin("kubelet.service", KUBELET)
    with SystemdStandin(bus, lambda _: unit):
        seen = refusal(lambda: restarter(node, bus.socket).way(node.add(KUBELET)))
    assert seen.reason is RefusalReason.PROTECTED_PROCESS


def test_where_systemd_does_not_answer_nothing_is_ended_that_systemd_starts_again(
    node: FakeNode, bus: PrivateBus
) -> None:
    """Process 1 is busy, and would not start it now."""
    with SystemdStandin(bus, unit_of(KUBELET), silent=frozenset({"GetUnitByPID"})):
        seen = refusal(lambda: restarter(node, bus.socket, 0.3).way(node.add(KUBELET)))
    assert seen.reason is RefusalReason.UNSAFE_NOW
    assert "has not answered within" in seen.message


def test_where_systemd_does_not_answer_another_supervisor_starts_it_again(node: FakeNode, bus: PrivateBus) -> None:
    node.add(PARENT, comm="runsv", cgroup="/")
    with SystemdStandin(bus, unit_of(KUBELET), silent=frozenset({"GetUnitByPID"})):
        way = restarter(node, bus.socket, 0.3).way(node.add(KUBELET, ppid=PARENT, cgroup="/"))
    assert way.unit is None
    assert "has not answered within" in way.text


# --- the end


def end(node: FakeNode, process: subprocess.Popen[bytes], act: Callable[[Grip, Process], str]) -> str:
    seen = node.add(process.pid)
    with held(seen.id, node.procfs) as grip:
        return act(grip, seen)


def end_by_systemd(node: FakeNode, process: subprocess.Popen[bytes], bus: PrivateBus, deadline: float = 5.0) -> str:
    client = restarter(node, bus.socket, deadline)
    return end(node, process, lambda grip, seen: client.restart(grip, client.way(seen)))


BY_SIGNALS = Way("signals")


def test_a_process_that_obeys_gets_sigterm_alone(node: FakeNode, kubelet: subprocess.Popen[bytes]) -> None:
    said = end(node, kubelet, lambda grip, _: restarter(node).restart(grip, BY_SIGNALS))
    assert said == f"process {kubelet.pid} was ended with SIGTERM (by signals)"
    assert kubelet.wait(5) == -signal.SIGTERM


def test_a_stopped_process_is_continued_so_that_it_can_obey(node: FakeNode, kubelet: subprocess.Popen[bytes]) -> None:
    kubelet.send_signal(signal.SIGSTOP)
    end(node, kubelet, lambda grip, _: restarter(node).restart(grip, BY_SIGNALS))
    assert kubelet.wait(5) == -signal.SIGTERM


def test_a_process_that_does_not_obey_is_killed(node: FakeNode) -> None:
    with child(*DEAF) as deaf:
        assert deaf.stdout is not None
        deaf.stdout.readline()
        said = end(node, deaf, lambda grip, _: restarter(node).restart(grip, BY_SIGNALS))
        assert "did not end within 0.2 s of SIGTERM and was killed" in said
        assert deaf.wait(5) == -signal.SIGKILL


def test_a_process_that_ended_by_itself_is_left_at_that(node: FakeNode, kubelet: subprocess.Popen[bytes]) -> None:
    def act(grip: Grip, _: Process) -> str:
        kubelet.kill()
        assert grip.ended(5)
        return restarter(node).restart(grip, BY_SIGNALS)

    with pytest.raises(ActError, match="nothing was done"):
        end(node, kubelet, act)


def test_a_process_the_kernel_does_not_let_go_is_told_of(
    node: FakeNode, kubelet: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Grip, "signal", lambda *_: None)
    with pytest.raises(ActError, match=r"SIGKILL sent, but process \d+ has not ended .*the kernel holds it"):
        end(node, kubelet, lambda grip, _: restarter(node).restart(grip, BY_SIGNALS))


def test_systemd_ends_it_and_we_do_not(node: FakeNode, bus: PrivateBus, kubelet: subprocess.Popen[bytes]) -> None:
    with SystemdStandin(bus, unit_of(kubelet.pid), lambda _: kubelet.send_signal(signal.SIGUSR1)):
        said = end_by_systemd(node, kubelet, bus)
    assert said == f"systemd restarted kubelet.service; its process {kubelet.pid} ended"
    assert kubelet.wait(5) == -signal.SIGUSR1, "no signal of ours"


def test_what_systemd_would_wait_long_for_is_killed(node: FakeNode, bus: PrivateBus) -> None:
    with child(*DEAF) as deaf, SystemdStandin(bus, unit_of(deaf.pid), lambda _: deaf.terminate()):
        assert deaf.stdout is not None
        deaf.stdout.readline()
        said = end_by_systemd(node, deaf, bus)
        assert "had not ended after 0.2 s and was killed" in said
        assert deaf.wait(5) == -signal.SIGKILL


def test_what_systemd_declines_is_not_done_by_signals(
    node: FakeNode, bus: PrivateBus, kubelet: subprocess.Popen[bytes]
) -> None:
    masked = SystemdStandin(bus, unit_of(kubelet.pid), declines="org.freedesktop.systemd1.UnitMasked")
    with (
        masked,
        pytest.raises(
            ActError, match=r"UnitMasked.*nothing was done\. See systemctl show -p LoadState,ActiveState,Result kubelet"
        ),
    ):
        end_by_systemd(node, kubelet, bus)
    assert kubelet.poll() is None


@pytest.mark.parametrize("method", ["ResetFailedUnit", "Get"])
def test_where_systemd_does_not_answer_before_the_restart_nothing_is_done(
    node: FakeNode, bus: PrivateBus, kubelet: subprocess.Popen[bytes], method: str
) -> None:
    """Nothing is killed while process 1 is busy: nobody would start it again."""

    def act(grip: Grip, seen: Process) -> str:
        client = restarter(node, bus.socket, 0.5)
        way = client.way(seen)
        manager.silent = frozenset({method})
        return client.restart(grip, way)

    manager = SystemdStandin(bus, unit_of(kubelet.pid))
    with manager, pytest.raises(ActError, match="nothing was done: systemd does not answer"):
        end(node, kubelet, act)
    assert kubelet.poll() is None
    assert "RestartUnit" not in {name for name, _ in manager.calls}


@pytest.mark.parametrize("ends", [True, False], ids=["ended", "is ending"])
def test_a_stop_by_an_administrator_meanwhile_is_not_undone(
    node: FakeNode, bus: PrivateBus, kubelet: subprocess.Popen[bytes], ends: bool
) -> None:
    def stop(method: str) -> None:
        if method != "ResetFailedUnit":
            return
        if ends:
            kubelet.kill()
            kubelet.wait()
        else:
            manager._put(UnitStandin("kubelet.service", kubelet.pid, active_state="deactivating"))

    manager = SystemdStandin(bus, unit_of(kubelet.pid), before=stop)
    why = "ended by itself.*nothing was done" if ends else "nothing was done: .*ActiveState=deactivating"
    with manager, pytest.raises(ActError, match=why):
        end_by_systemd(node, kubelet, bus)
    assert "RestartUnit" not in {name for name, _ in manager.calls}


def test_a_restart_that_went_unanswered_is_not_tried_in_another_way(
    node: FakeNode, bus: PrivateBus, kubelet: subprocess.Popen[bytes]
) -> None:
    manager = SystemdStandin(bus, unit_of(kubelet.pid), lambda _: None, silent=frozenset({"RestartUnit"}))
    with manager, pytest.raises(ActError, match="See systemctl list-jobs"):
        end_by_systemd(node, kubelet, bus, 0.5)
    assert kubelet.poll() is None


def test_a_restart_that_went_unanswered_but_came_is_told_so(
    node: FakeNode, bus: PrivateBus, kubelet: subprocess.Popen[bytes]
) -> None:
    quiet = frozenset({"RestartUnit"})
    with SystemdStandin(bus, unit_of(kubelet.pid), lambda _: kubelet.terminate(), silent=quiet):
        assert "has ended since" in end_by_systemd(node, kubelet, bus, 0.5)


def test_where_the_restart_alone_is_forbidden_signals_do_it(node: FakeNode, kubelet: subprocess.Popen[bytes]) -> None:
    with PrivateBus(DENY_RESTART) as bus, SystemdStandin(bus, unit_of(kubelet.pid)):
        said = end_by_systemd(node, kubelet, bus)
    assert "was killed (by signals, since RestartUnit of kubelet.service could not be called" in said
    assert "AccessDenied" in said
    assert kubelet.wait(5) == -signal.SIGKILL


def test_what_systemd_supervises_without_a_bus_does_not_end_cleanly(
    node: FakeNode, kubelet: subprocess.Popen[bytes]
) -> None:
    """With Restart=on-failure systemd starts nothing again that a SIGTERM ended."""
    said = end(node, kubelet, lambda grip, seen: (client := restarter(node)).restart(grip, client.way(seen)))
    assert "its Restart= and start limit cannot be read" in said
    assert kubelet.wait(5) == -signal.SIGKILL


def test_where_the_restart_is_forbidden_and_nobody_starts_it_again_nothing_is_done(
    tmp_path: Path, kubelet: subprocess.Popen[bytes]
) -> None:
    node = FakeNode(tmp_path, "init")
    nothing = pytest.raises(ActError, match="nothing was done: nobody is seen")
    with PrivateBus(DENY_RESTART) as bus, SystemdStandin(bus, unit_of(kubelet.pid)), nothing:
        end_by_systemd(node, kubelet, bus)
    assert kubelet.poll() is None
