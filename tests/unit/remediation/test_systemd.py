"""That systemd is asked over a real bus as it is meant to be, and that no bus can hold us up or lead us astray."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import jeepney
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jeepney import DBusAddress, new_error, new_method_call, new_method_return

from agent.host.exchange import NoAnswerError
from agent.remediation.systemd import (
    MAX_MESSAGE_BYTES,
    BusError,
    DeclinedError,
    NoServiceError,
    Systemd,
    Unit,
    _Conversation,
)
from tests.lab.systemd_standin import DENY_RESTART, PrivateBus, SystemdStandin, UnitStandin
from tests.unit.builders import RealClock, open_files

KUBELET = UnitStandin("kubelet.service", 812)
HELLO, CALL = 1, 2


@pytest.fixture(scope="module")
def bus() -> Iterator[PrivateBus]:
    with PrivateBus() as running:
        yield running


def systemd(bus_socket: Path, deadline: float = 5.0) -> Systemd:
    return Systemd(str(bus_socket), RealClock(), deadline)


def only(unit: UnitStandin) -> Callable[[int], UnitStandin | None]:
    return lambda pid: unit if pid == 812 else None


# --- a real bus


def test_the_service_of_its_main_process_is_found(bus: PrivateBus) -> None:
    with SystemdStandin(bus, only(KUBELET)) as manager:
        unit = systemd(bus.socket).service_of(812)
    assert unit == Unit("kubelet.service", KUBELET.path, 812, "process")
    assert manager.calls[0] == ("GetUnitByPID", (812,))


@pytest.mark.parametrize(("start", "stop"), [(True, False), (False, True)])
def test_what_a_unit_refuses_on_request_is_read(bus: PrivateBus, start: bool, stop: bool) -> None:
    refusing = replace(KUBELET, refuse_manual_start=start, refuse_manual_stop=stop)
    with SystemdStandin(bus, only(refusing), units=(refusing,)):
        for unit in (systemd(bus.socket).service_of(812), systemd(bus.socket).state("kubelet.service").unit):
            assert (unit.refuses_start, unit.refuses_stop) == (start, stop)


def test_a_process_of_no_unit_has_none(bus: PrivateBus) -> None:
    with SystemdStandin(bus, only(KUBELET)):
        assert systemd(bus.socket).unit_path(813) is None
        with pytest.raises(NoServiceError, match="no unit to which process 813 belongs"):
            systemd(bus.socket).service_of(813)


@pytest.mark.parametrize(
    ("unit", "why"),
    [
        (UnitStandin("session-3.scope", 812), "session-3.scope, which is no service"),
        (UnitStandin("k3s.service", 700), "the main process of k3s.service is 700, not 812"),
        (UnitStandin("kubelet.service", 0), "is 0, not 812"),
        (UnitStandin("kube let.service", 812), "which is no service"),
        (UnitStandin("x" * 300 + ".service", 812), "which is no service"),
    ],
)
def test_only_the_main_process_of_a_service_will_do(bus: PrivateBus, unit: UnitStandin, why: str) -> None:
    with SystemdStandin(bus, only(unit)), pytest.raises(NoServiceError, match=why):
        systemd(bus.socket).service_of(812)


def test_a_unit_is_restarted_once_and_replaces_other_jobs(bus: PrivateBus) -> None:
    restarted: list[str] = []
    with SystemdStandin(bus, only(KUBELET), restarted.append) as manager:
        client = systemd(bus.socket)
        client.restart(client.service_of(812))
    assert restarted == ["kubelet.service"]
    assert manager.calls[-1] == ("RestartUnit", ("kubelet.service", "replace"))


def test_what_systemd_counts_of_the_starts_is_reset(bus: PrivateBus) -> None:
    """Otherwise one whose start limit is used up would be stopped and not be started."""
    restarted: list[str] = []
    manager = SystemdStandin(bus, only(KUBELET), restarted.append, limited={"kubelet.service"})
    with manager:
        client = systemd(bus.socket)
        unit = client.service_of(812)
        client.reset_failed(unit)
        client.restart(unit)
    assert restarted == ["kubelet.service"]


def test_a_unit_that_is_not_loaded_has_no_count_to_reset(bus: PrivateBus) -> None:
    """systemd answers NoSuchUnit, and StartUnit loads the unit then."""
    started: list[str] = []
    unit = Unit("kubelet.service", KUBELET.path, 0, "process")
    with SystemdStandin(bus, lambda _: None, start=started.append) as manager:
        client = systemd(bus.socket)
        client.reset_failed(unit)
        client.start(unit)
    assert [method for method, _ in manager.calls] == ["ResetFailedUnit", "StartUnit"]
    assert started == ["kubelet.service"]


def test_a_reset_without_an_answer_says_so(bus: PrivateBus) -> None:
    with SystemdStandin(bus, only(KUBELET), silent=frozenset({"ResetFailedUnit"})):
        client = systemd(bus.socket, 0.3)
        unit = client.service_of(812)
        with pytest.raises(BusError) as error:
            client.reset_failed(unit)
    assert error.value.asked


def test_a_unit_that_has_ended_is_started(bus: PrivateBus) -> None:
    started: list[str] = []
    ended = UnitStandin("kubelet.service", 0, active_state="failed", sub_state="failed", result="start-limit-hit")
    with SystemdStandin(bus, only(KUBELET), start=started.append, units=(ended,), limited={ended.name}) as manager:
        client = systemd(bus.socket)
        state = client.state("kubelet.service")
        client.reset_failed(state.unit)
        client.start(state.unit)
    assert state.unit == Unit("kubelet.service", ended.path, 0, "process")
    assert str(state) == "ActiveState=failed, SubState=failed, Result=start-limit-hit"
    assert (state.load_state, state.unit_file_state) == ("loaded", "enabled")
    assert started == ["kubelet.service"]
    assert manager.calls[-1] == ("StartUnit", ("kubelet.service", "replace"))


def test_a_unit_that_is_not_there_is_reported_as_such(bus: PrivateBus) -> None:
    with SystemdStandin(bus, only(KUBELET)):
        assert systemd(bus.socket).state("kubelet2.service").load_state == "not-found"


FROZEN = UnitStandin(
    "containerd.service", 700, freezer_state="frozen", control_group="/system.slice/containerd.service"
)


def test_a_frozen_unit_is_thawed(bus: PrivateBus) -> None:
    thawed: list[str] = []
    with SystemdStandin(bus, only(KUBELET), units=(FROZEN,), thaw=thawed.append):
        client = systemd(bus.socket)
        assert client.freezer_state(FROZEN.name, FROZEN.control_group) == "frozen"
        client.thaw(FROZEN.name)
        assert client.freezer_state(FROZEN.name, FROZEN.control_group) == "running"
    assert thawed == ["containerd.service"]


@pytest.mark.parametrize(
    ("name", "cgroup"),
    [
        ("containerd.service", "/kubepods/pod1/abc/system.slice/containerd.service"),
        ("kubelet.service", FROZEN.control_group),
        ("containerd.timer", FROZEN.control_group),
        ("", ""),
    ],
    ids=["of a systemd in a container", "not loaded", "has no cgroup", "no name"],
)
def test_a_cgroup_that_is_not_the_units_own_says_nothing_of_it(bus: PrivateBus, name: str, cgroup: str) -> None:
    with SystemdStandin(bus, only(KUBELET), units=(FROZEN,)):
        assert systemd(bus.socket).freezer_state(name, cgroup) == ""


def test_a_systemd_that_is_too_old_to_freeze_says_nothing(bus: PrivateBus) -> None:
    with SystemdStandin(bus, only(KUBELET), units=(FROZEN,), lacks=frozenset({"FreezerState"})):
        assert systemd(bus.socket).freezer_state(FROZEN.name, FROZEN.control_group) == ""


def test_what_systemd_declines_is_told_and_was_not_begun(bus: PrivateBus) -> None:
    with SystemdStandin(bus, only(KUBELET), declines="org.freedesktop.systemd1.UnitMasked"):
        client = systemd(bus.socket)
        unit = client.service_of(812)
        with pytest.raises(DeclinedError, match=r"kubelet\.service: org\.freedesktop\.systemd1\.UnitMasked it is not"):
            client.restart(unit)


def test_a_bus_whose_policy_forbids_the_restart_leaves_another_way() -> None:
    with PrivateBus(DENY_RESTART) as bus, SystemdStandin(bus, only(KUBELET)):
        client = systemd(bus.socket)
        unit = client.service_of(812)
        with pytest.raises(BusError, match="AccessDenied") as error:
            client.restart(unit)
    assert not error.value.asked


def test_a_bus_without_systemd_leaves_another_way(bus: PrivateBus) -> None:
    with pytest.raises(BusError, match="NameHasNoOwner") as error:
        systemd(bus.socket).service_of(812)
    assert not error.value.asked


def test_a_manager_that_does_not_answer_is_waited_for_no_longer_than_the_deadline(bus: PrivateBus) -> None:
    with SystemdStandin(bus, only(KUBELET), silent=frozenset({"GetUnitByPID"})):
        began = time.monotonic()
        with pytest.raises(BusError, match="has not answered within"):
            systemd(bus.socket, 0.3).service_of(812)
        assert 0.25 < time.monotonic() - began < 20


def test_a_restart_without_an_answer_may_have_been_begun(bus: PrivateBus) -> None:
    with SystemdStandin(bus, only(KUBELET), lambda _: None, silent=frozenset({"RestartUnit"})) as manager:
        client = systemd(bus.socket, 0.3)
        unit = client.service_of(812)
        with pytest.raises(BusError) as error:
            client.restart(unit)
    assert error.value.asked
    assert [method for method, _ in manager.calls].count("RestartUnit") == 1, "never asked twice"


def test_nothing_stays_open(bus: PrivateBus) -> None:
    with SystemdStandin(bus, only(KUBELET)):
        client = systemd(bus.socket)
        client.service_of(812)
        before = open_files()
        for _ in range(3):
            client.service_of(812)
        assert open_files() == before


# --- no bus, or a strange one


@contextmanager
def strange_bus(folder: Path, *chunks: bytes, hang_up: bool = True) -> Iterator[Path]:
    """A socket that takes what it is told and says these chunks one after the other, then hangs up or keeps silent."""
    path = folder / "bus"
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    over = threading.Event()

    def serve() -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            try:
                for chunk in chunks:
                    connection.recv(65536)
                    connection.sendall(chunk)
                if not hang_up:
                    over.wait(10)
            except OSError:
                return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield path
    finally:
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(30)


OK = b"OK 1234deadbeef\r\n"
ADDRESS = DBusAddress("/", "org.freedesktop.systemd1", "org.freedesktop.systemd1.Manager")


def reply(signature: str, *body: object, to: int = CALL) -> bytes:
    """A method return on the wire."""
    call = new_method_call(ADDRESS, "X")
    call.header.serial = to
    return bytes(new_method_return(call, signature, body).serialise(serial=7))


def error_reply(name: str, *, to: int = CALL) -> bytes:
    call = new_method_call(ADDRESS, "X")
    call.header.serial = to
    return bytes(new_error(call, name).serialise(serial=7))


def empty_structs() -> bytes:
    """A header field that is an array of empty structs: a parser that takes it seriously never comes to its end."""
    field = b"\x09" + b"\x03a()\0" + b"\0\0" + (64).to_bytes(4, "little") + b"\0" * 68
    head = b"l\x02\0\x01" + (0).to_bytes(4, "little") + (7).to_bytes(4, "little")
    message = head + len(field).to_bytes(4, "little") + field
    return message + b"\0" * (-len(message) % 8)


@pytest.mark.parametrize(
    ("chunks", "why"),
    [
        ((b"REJECTED EXTERNAL ANONYMOUS\r\n",), "does not let us in: REJECTED EXTERNAL"),
        ((b"HTTP/1.1 400 Bad Request\r\n\r\n",), "does not let us in|gave no answer"),
        ((b"x" * 10_000,), "does not let us in"),
        ((OK + b"more",), "does not let us in"),
        ((), "gave no answer that can be used"),
        ((OK, b"\0" * 64), "gave no answer that can be used"),
        ((OK, b"garbage, and plenty of it, in place of a message"), "gave no answer that can be used"),
        ((OK, reply("o", "/x")[:30]), "gave no answer that can be used"),
        ((OK, reply("s", "/not/a/path")), "an answer of type 's'"),
        ((OK, reply("ao", ["/x"])), "an answer of type 'ao'"),
        ((OK, reply("o", "/org/freedesktop/evil")), "which is none"),
        ((OK, error_reply("org.freedesktop.DBus.Error.LimitsExceeded", to=HELLO)), "LimitsExceeded"),
        ((OK, b"l\x02\0\x01" + (MAX_MESSAGE_BYTES).to_bytes(4, "little") + b"\x07\0\0\0\0\0\0\0"), "a message of"),
        ((OK, empty_structs()), "an empty struct"),
        ((OK, reply("s", "x", to=99) * 2000), "gave no answer that can be used"),
    ],
)
def test_a_strange_bus_is_no_bus(tmp_path: Path, chunks: tuple[bytes, ...], why: str) -> None:
    with strange_bus(tmp_path, *chunks) as path, pytest.raises(BusError, match=why) as error:
        systemd(path).unit_path(812)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("value", [("u", 812), ("x", 5), ("a()", []), ("v", ("s", "kubelet.service"))])
def test_a_property_of_another_type_is_not_believed(tmp_path: Path, value: tuple[str, object]) -> None:
    with strange_bus(tmp_path, OK, reply("v", value)) as path, pytest.raises(BusError, match="not of type 's'"):
        systemd(path)._property("/x", "org.freedesktop.systemd1.Unit", "Id", "s")


def test_a_silent_bus_is_waited_for_no_longer_than_the_deadline(tmp_path: Path) -> None:
    for number, chunks in enumerate([(), (b"",), (OK,), (OK, b"l\x02")]):
        folder = tmp_path / str(number)
        folder.mkdir()
        began = time.monotonic()
        with strange_bus(folder, *chunks, hang_up=False) as path, pytest.raises(BusError, match=r"within \d+ ms"):
            systemd(path, 0.2).unit_path(812)
        assert time.monotonic() - began < 20


def test_before_the_login_nothing_was_asked_and_after_it_perhaps(tmp_path: Path) -> None:
    for chunks, asked in (((b"REJECTED\r\n",), False), ((OK,), True), ((OK, b"\0" * 64), True)):
        with strange_bus(tmp_path, *chunks) as path, pytest.raises(BusError) as error:
            systemd(path).thaw("kubelet.service")
        assert error.value.asked is asked


def test_an_answer_that_never_came_was_asked_for(tmp_path: Path) -> None:
    no_reply = error_reply("org.freedesktop.DBus.Error.NoReply")
    with strange_bus(tmp_path, OK, no_reply) as path, pytest.raises(BusError) as error:
        systemd(path).thaw("kubelet.service")
    assert error.value.asked


def test_no_bus_is_said_without_loading_anything(tmp_path: Path) -> None:
    with pytest.raises(BusError, match=r"there is no system bus at .*/bus \(No such file or directory\)"):
        systemd(tmp_path / "bus").service_of(812)
    (tmp_path / "bus").write_text("")
    with pytest.raises(BusError, match="is no socket"):
        systemd(tmp_path / "bus").service_of(812)


def test_a_bus_nobody_listens_on_takes_no_connections(tmp_path: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "bus"))
    left.close()
    with pytest.raises(BusError, match="takes no connections") as error:
        systemd(tmp_path / "bus").service_of(812)
    assert not error.value.asked


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cut=st.integers(0, 60),
    damage=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4),
    more=st.binary(max_size=64),
)
def test_any_bytes_end_in_a_path_none_or_a_bus_error(cut: int, damage: list[tuple[int, int]], more: bytes) -> None:
    message = bytearray(reply("o", KUBELET.path))
    for at, value in damage:
        message[at % len(message)] = value
    talk = _Conversation(jeepney, new_method_call(ADDRESS, "X"), "o")
    talk.hear(OK)
    try:
        for part in (bytes(message[:cut]), bytes(message[cut:]), more):
            talk.hear(part)
    except NoAnswerError:
        return
    assert talk.answer is None or isinstance(talk.answer.value, str | None)
