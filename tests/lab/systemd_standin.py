"""A real system bus with a stand-in of systemd on it, for machines that have no systemd.

The bus is Debian's dbus-daemon, private, with a socket and a configuration of its own. The manager answers the three
calls by which a unit is found and restarted, with the names and errors of org.freedesktop.systemd1(5).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
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

    @property
    def path(self) -> str:
        """Its object path: what is no letter or digit is written as _XX."""
        return _UNITS + re.sub(r"[^A-Za-z0-9]", lambda found: f"_{ord(found[0]):02x}", self.name)


def _no_restart(name: str) -> None:
    raise AssertionError(f"{name} was to be left alone")


@dataclass
class SystemdStandin:
    """The manager, as a context manager on a bus.

    ``unit_of`` tells the unit of a pid; ``restart`` does what a restart does, after its answer was sent. ``silent``:
    methods that are not answered. ``calls`` are the methods called, with what was told.
    """

    bus: PrivateBus
    unit_of: Callable[[int], UnitStandin | None]
    restart: Callable[[str], None] = _no_restart
    silent: frozenset[str] = frozenset()
    declines: str = ""
    calls: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._units: dict[str, UnitStandin] = {}
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
        reply = self._reply(message, method, fields[HeaderFields.path])
        if method not in self.silent:
            connection.send(reply)
        if method == "RestartUnit" and not self.declines:
            self.restart(message.body[0])

    def _reply(self, message: Message, method: str, path: str) -> Message:
        if method == "GetUnitByPID":
            unit = self.unit_of(message.body[0])
            if unit is None:
                text = f"PID {message.body[0]} does not belong to any loaded unit."
                return new_error(message, f"{_NAME}.NoUnitForPID", "s", (text,))
            self._units[unit.path] = unit
            return new_method_return(message, "o", (unit.path,))
        if method == "RestartUnit":
            if self.declines:
                return new_error(message, self.declines, "s", ("it is not to be",))
            return new_method_return(message, "o", (f"/org/freedesktop/systemd1/job/{len(self.calls)}",))
        if method == "Get":
            unit, (interface, name) = self._units[path], message.body
            values = {"Id": ("s", unit.name), "MainPID": ("u", unit.main_pid), "KillMode": ("s", unit.kill_mode)}
            assert interface == (f"{_NAME}.Unit" if name == "Id" else f"{_NAME}.Service")
            return new_method_return(message, "v", (values[name],))
        return new_error(message, "org.freedesktop.DBus.Error.UnknownMethod", "s", (method,))
