"""A real system bus with a stand-in of systemd on it, for machines that have no systemd.

The bus is Debian's dbus-daemon, private, with a socket and a configuration of its own. The manager answers the calls by
which units are found, started, restarted and thawed, with the names and errors of org.freedesktop.systemd1(5), and does
what systemd was measured to do in tests/vm: a restart of a unit whose start limit is used up stops it and does not
start it, unless its count was reset before; LoadUnit finds every name, GetUnit and ResetFailedUnit only loaded units.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from jeepney import HeaderFields, Message, MessageType, new_error, new_method_return
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import DBusConnection, Proxy, open_dbus_connection

_NAME = "org.freedesktop.systemd1"
_UNITS = "/org/freedesktop/systemd1/unit/"
_CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
    <allow own="*"/>
    {more}
  </policy>
</busconfig>
"""
DENY_RESTART = f'<deny send_destination="{_NAME}" send_interface="{_NAME}.Manager" send_member="RestartUnit"/>'
"""A line of policy: systemd may be asked everything but to restart a unit."""


class PrivateBus:
    """A dbus-daemon of the lab's own, as a context manager. ``policy``: more lines of its default policy.

    ``socket``: where it listens, if that matters.
    """

    def __init__(self, policy: str = "", socket: Path | None = None) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="ndlab-bus-"))
        self.socket = socket or self.base / "bus"
        self._policy = policy
        self._daemon: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        config = self.base / "bus.conf"
        config.write_text(_CONFIG.format(socket=self.socket, more=self._policy))
        try:
            self._daemon = subprocess.Popen(
                ["dbus-daemon", f"--config-file={config}", "--nofork", "--nosyslog", "--print-address"],
                stdout=subprocess.PIPE,
                text=True,
            )
            assert self._daemon.stdout is not None
            assert self._daemon.stdout.readline(), "dbus-daemon ended at once"
        except BaseException:
            self._clean_up()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clean_up()

    def _clean_up(self) -> None:
        if self._daemon is not None:
            self._daemon.kill()
            self._daemon.communicate()
        shutil.rmtree(self.base, ignore_errors=True)


@dataclass(frozen=True)
class UnitStandin:
    """A unit as the manager tells of it."""

    name: str
    main_pid: int
    kill_mode: str = "process"
    active_state: str = "active"
    sub_state: str = "running"
    result: str = "success"
    load_state: str = "loaded"
    unit_file_state: str = "enabled"
    freezer_state: str = "running"
    restart: str = "always"
    control_group: str = ""
    refuse_manual_start: bool = False
    refuse_manual_stop: bool = False

    @property
    def path(self) -> str:
        """Its object path: what is no letter or digit is written as _XX."""
        return _UNITS + re.sub(r"[^A-Za-z0-9]", lambda found: f"_{ord(found[0]):02x}", self.name)


_TYPES: dict[type, str] = {bool: "b", int: "u", str: "s"}
"""The D-Bus types of the properties."""
JOBS = frozenset({"RestartUnit", "StartUnit", "ResetFailedUnit", "ThawUnit"})
NOT_FOUND: dict[str, Any] = {
    "load_state": "not-found",
    "unit_file_state": "",
    "active_state": "inactive",
    "sub_state": "dead",
}


def _no_restart(name: str) -> None:
    raise AssertionError(f"{name} was to be left alone")


@dataclass
class SystemdStandin:
    """The manager, as a context manager on a bus.

    ``unit_of`` tells the unit of a pid; ``restart`` does what a restart does, after its answer was sent, ``start`` and
    ``thaw`` likewise, and ``stop`` what is left of a restart once the start limit is used up. ``units`` are loaded from
    the beginning, ``limited`` the names of those whose start limit is used up. ``silent``: methods that are not
    answered; ``declines``: the error that a job is answered with; ``lacks``: properties this systemd is too old for.
    ``before`` is called with each method before it is answered.
    ``calls`` are the methods called, with what was told.
    """

    bus: PrivateBus
    unit_of: Callable[[int], UnitStandin | None]
    restart: Callable[[str], None] = _no_restart
    silent: frozenset[str] = frozenset()
    declines: str = ""
    start: Callable[[str], None] = _no_restart
    stop: Callable[[str], None] = _no_restart
    thaw: Callable[[str], None] = _no_restart
    units: tuple[UnitStandin, ...] = ()
    limited: set[str] = field(default_factory=set)
    lacks: frozenset[str] = frozenset()
    before: Callable[[str], None] = lambda _: None
    calls: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._units = {unit.path: unit for unit in self.units}
        self._thread = threading.Thread(target=self._serve, name="lab-systemd", daemon=True)
        self._connection: DBusConnection | None = None

    def __enter__(self) -> Self:
        self._connection = open_dbus_connection(f"unix:path={self.bus.socket}")
        Proxy(message_bus, self._connection, timeout=5).RequestName(_NAME)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(5.0)
        if self._connection is not None:
            self._connection.close()

    def _serve(self) -> None:
        connection = self._connection
        assert connection is not None
        while not self._stop.is_set():
            try:
                message = connection.receive(timeout=0.05)
            except TimeoutError:
                continue
            except ConnectionError:
                return
            if message.header.message_type is MessageType.method_call:
                self._take(connection, message)

    def _take(self, connection: DBusConnection, message: Message) -> None:
        fields = message.header.fields
        method = fields[HeaderFields.member]
        self.calls.append((method, message.body))
        self.before(method)
        reply = self._reply(message, method, fields[HeaderFields.path])
        if method not in self.silent:
            connection.send(reply)
        if method in JOBS and not self.declines and reply.header.message_type is not MessageType.error:
            self._work(method, message.body[0])

    def _work(self, method: str, name: str) -> None:
        unit = self._named(name)
        if method == "ThawUnit":
            if unit.freezer_state != "running":
                self._put(replace(unit, freezer_state="running"))
                self.thaw(name)
        elif method == "ResetFailedUnit":
            self.limited.discard(name)
        elif method == "StartUnit" and unit.active_state == "active":
            return
        elif name in self.limited:
            self._put(replace(unit, active_state="failed", sub_state="failed", result="start-limit-hit", main_pid=0))
            if method == "RestartUnit":
                self.stop(name)
        else:
            (self.restart if method == "RestartUnit" else self.start)(name)

    def _named(self, name: str) -> UnitStandin:
        return self._units.get(UnitStandin(name, 0).path, UnitStandin(name, 0, **NOT_FOUND))

    def _put(self, unit: UnitStandin) -> None:
        self._units[unit.path] = unit

    def _reply(self, message: Message, method: str, path: str) -> Message:
        if method in {"GetUnitByPID", "GetUnit", "LoadUnit"}:
            return self._found(message, method)
        if method in JOBS:
            return self._taken(message, method)
        if method == "Get":
            return self._property(message, self._units[path], *message.body)
        return new_error(message, "org.freedesktop.DBus.Error.UnknownMethod", "s", (method,))

    def _found(self, message: Message, method: str) -> Message:
        if method == "GetUnitByPID":
            unit = self.unit_of(message.body[0])
            error, text = "NoUnitForPID", f"PID {message.body[0]} does not belong to any loaded unit."
        else:
            named = self._named(message.body[0])
            unit = named if method == "LoadUnit" or named.path in self._units else None
            error, text = "NoSuchUnit", f"Unit {named.name} not loaded."
        if unit is None:
            return new_error(message, f"{_NAME}.{error}", "s", (text,))
        self._put(unit)
        return new_method_return(message, "o", (unit.path,))

    def _taken(self, message: Message, method: str) -> Message:
        named = self._named(message.body[0])
        if method == "ResetFailedUnit" and named.path not in self._units:
            return new_error(message, f"{_NAME}.NoSuchUnit", "s", (f"Unit {named.name} not loaded.",))
        if method in {"ResetFailedUnit", "ThawUnit"}:
            return new_method_return(message)
        if self.declines:
            return new_error(message, self.declines, "s", ("it is not to be",))
        unit = self._named(message.body[0])
        if unit.refuse_manual_start or (unit.refuse_manual_stop and method == "RestartUnit"):
            text = f"Operation refused, unit {unit.name} may be requested by dependency only."
            return new_error(message, f"{_NAME}.OnlyByDependency", "s", (text,))
        return new_method_return(message, "o", (f"/org/freedesktop/systemd1/job/{len(self.calls)}",))

    def _property(self, message: Message, unit: UnitStandin, interface: str, name: str) -> Message:
        own = f"{_NAME}.{unit.name.rpartition('.')[2].capitalize()}"
        values: dict[str, dict[str, Any]] = {
            f"{_NAME}.Unit": {
                "Id": unit.name,
                "LoadState": unit.load_state,
                "UnitFileState": unit.unit_file_state,
                "ActiveState": unit.active_state,
                "SubState": unit.sub_state,
                "FreezerState": unit.freezer_state,
                "RefuseManualStart": unit.refuse_manual_start,
                "RefuseManualStop": unit.refuse_manual_stop,
            },
            own: {
                "MainPID": unit.main_pid,
                "KillMode": unit.kill_mode,
                "Result": unit.result,
                "Restart": unit.restart,
                "ControlGroup": unit.control_group,
            },
        }
        value = values.get(interface, {}).get(name)
        if value is None or name in self.lacks:
            return new_error(message, "org.freedesktop.DBus.Error.UnknownProperty", "s", (f"Unknown property {name}",))
        return new_method_return(message, "v", ((_TYPES[type(value)], value),))
