"""Queries the host's systemd over D-Bus about units, and has it start, restart and thaw them.

Methods of org.freedesktop.systemd1 (org.freedesktop.systemd1(5)) over the system bus: Manager.GetUnitByPID, GetUnit and
LoadUnit, the standard Properties.Get, and Manager.ResetFailedUnit, RestartUnit, StartUnit and ThawUnit. Each is one
short conversation on a connection of its own, held by
`host.exchange`: one deadline in awake time, bounded in size, and never asked twice. The wire is jeepney's, without its
sockets, which have no such deadline; it is loaded only where there is a bus.

What cannot be asked (`BusError`) and what was answered in the negative (`NoServiceError`) are told apart: after the
first a caller may go another way, after the second systemd has said that there is none.
"""

import re
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.clock import Clock
from agent.durations import measured_duration
from agent.host.exchange import Attempt, Ending, NoAnswerError, Peer, converse
from agent.printable import printable

DEADLINE_SECONDS = 3.0
"""For one call; systemd answers in milliseconds, also RestartUnit, which only queues the job."""
MAX_MESSAGE_BYTES = 32 * 1024
MAX_TEXT = 200

MANAGER = ("/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")
UNIT = "org.freedesktop.systemd1.Unit"
SERVICE = "org.freedesktop.systemd1.Service"
UNIT_PATHS = "/org/freedesktop/systemd1/unit/"
SERVICE_NAME = re.compile(r"[A-Za-z0-9:_.\\@-]{1,247}\.service")
"""systemd.unit(5): at most 255 characters."""
CGROUP_UNITS = {
    "service": SERVICE,
    "scope": "org.freedesktop.systemd1.Scope",
    "slice": "org.freedesktop.systemd1.Slice",
}
"""The types of units that own a cgroup with processes, and the interface that has its ControlGroup."""
FROZEN = frozenset({"freezing", "frozen", "freezing-by-parent", "frozen-by-parent"})
"""Values of a unit's FreezerState while systemd keeps it frozen; those by a parent came with systemd 256."""

_ERROR = "org.freedesktop.DBus.Error."
KEPT_OUT = frozenset(
    _ERROR + name
    for name in ("AccessDenied", "AuthFailed", "InteractiveAuthorizationRequired", "ServiceUnknown", "NameHasNoOwner")
)
"""Errors that say: you may not ask for that, or there is nobody to ask; nothing was begun."""
UNANSWERED = frozenset(_ERROR + name for name in ("NoReply", "Timeout", "TimedOut", "Disconnected"))
"""Errors by which the bus says that there was no answer, which tells nothing about what was done."""
NO_SUCH_UNIT = frozenset({"org.freedesktop.systemd1.NoUnitForPID", "org.freedesktop.systemd1.NoSuchUnit"})
NO_SUCH_PROPERTY = frozenset({_ERROR + "UnknownProperty", _ERROR + "UnknownInterface"})
"""Answers of a systemd older than the property that is read."""

_HELLO, _CALL = 1, 2
"""Serial numbers of the two messages of a conversation."""


class BusError(Exception):
    """systemd could not be asked, or did not answer. `asked`: it may be doing what it was asked for all the same."""

    def __init__(self, text: str, *, asked: bool) -> None:
        super().__init__(text)
        self.asked = asked


class NoServiceError(Exception):
    """systemd says that this process is not the main process of a service."""


class DeclinedError(Exception):
    """systemd says that it does not do what it was asked for; it has begun nothing."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A service unit and its main process. `kill_mode`: what systemd ends with it (systemd.kill(5), KillMode=).

    `refuses_start`, `refuses_stop`: systemd starts or stops it only with another unit, not on request (systemd.unit(5),
    RefuseManualStart=, RefuseManualStop=).
    """

    name: str
    path: str
    main_pid: int
    kill_mode: str
    refuses_start: bool = False
    refuses_stop: bool = False


START_LIMIT_HIT = "start-limit-hit"
"""A unit's Result once systemd refuses to start it for a while (systemd.unit(5), StartLimitBurst=)."""
RESTARTED_AFTER_FAILURE = {"always", "on-failure"}
"""Values of Restart= with which a unit that fails is started again, and so does not stay failed."""


@dataclass(frozen=True, slots=True)
class UnitState:
    """What systemd reports of a service unit, in its own words (org.freedesktop.systemd1(5)).

    `load_state` is `masked` or `not-found` where an administrator masked it or its file is gone; `result` is why it
    ended last, such as `start-limit-hit`; `restart` is when systemd starts it again by itself.
    """

    unit: Unit
    load_state: str
    unit_file_state: str
    active_state: str
    sub_state: str
    result: str
    restart: str

    @property
    def gave_up(self) -> bool:
        """Whether systemd does not start it again although it would after such an end: its start limit is used up.

        `result` is start-limit-hit only where it ended well before; after a failure it stays what that was.
        """
        failed = self.active_state == "failed" and self.restart in RESTARTED_AFTER_FAILURE
        return failed or self.result == START_LIMIT_HIT

    def __str__(self) -> str:
        """The states an administrator would read with `systemctl show`."""
        return f"ActiveState={self.active_state}, SubState={self.sub_state}, Result={self.result}"


class Systemd:
    """The host's systemd behind the socket of its system bus."""

    def __init__(self, bus_socket: str, clock: Clock, deadline_seconds: float = DEADLINE_SECONDS) -> None:
        self._socket = bus_socket
        self._clock = clock
        self._deadline = deadline_seconds

    def service_of(self, pid: int) -> Unit:
        """Return the service whose main process this is. Raises BusError, NoServiceError."""
        path = self.unit_path(pid)
        if path is None:
            raise NoServiceError(f"systemd knows of no unit to which process {pid} belongs")
        name = self._property(path, UNIT, "Id", "s")
        if not SERVICE_NAME.fullmatch(name):
            raise NoServiceError(f"systemd has process {pid} in {printable(name, MAX_TEXT)}, which is no service")
        main_pid = self._property(path, SERVICE, "MainPID", "u")
        if main_pid != pid:
            raise NoServiceError(f"the main process of {name} is {main_pid}, not {pid}, so it would not be restarted")
        return self._unit(name, path, main_pid)

    def unit_path(self, pid: int) -> str | None:
        """Return the object path of the unit a process belongs to; None if it belongs to none. Raises BusError."""
        reply = self._call(*MANAGER, "GetUnitByPID", "u", (pid,), "o")
        if reply.error in NO_SUCH_UNIT:
            return None
        return self._path(reply, "GetUnitByPID")

    def state(self, name: str) -> UnitState:
        """Return what systemd reports of a service, which it loads for that if need be. Raises BusError."""
        path = self._path(self._call(*MANAGER, "LoadUnit", "s", (name,), "o"), "LoadUnit")
        main_pid = self._property(path, SERVICE, "MainPID", "u")
        unit = self._unit(self._text(path, UNIT, "Id"), path, main_pid)
        return UnitState(
            unit,
            load_state=self._text(path, UNIT, "LoadState"),
            unit_file_state=self._text(path, UNIT, "UnitFileState"),
            active_state=self._text(path, UNIT, "ActiveState"),
            sub_state=self._text(path, UNIT, "SubState"),
            result=self._text(path, SERVICE, "Result"),
            restart=self._text(path, SERVICE, "Restart"),
        )

    def _unit(self, name: str, path: str, main_pid: int) -> Unit:
        return Unit(
            name,
            path,
            main_pid,
            self._text(path, SERVICE, "KillMode"),
            refuses_start=self._property(path, UNIT, "RefuseManualStart", "b"),
            refuses_stop=self._property(path, UNIT, "RefuseManualStop", "b"),
        )

    def freezer_state(self, name: str, cgroup: str) -> str:
        """Return FreezerState of the unit that owns a cgroup; empty if that unit does not exist or owns another cgroup.

        A container that runs a systemd of its own has cgroups with names of units, too. Raises BusError.
        """
        interface = CGROUP_UNITS.get(name.rpartition(".")[2], "")
        reply = self._call(*MANAGER, "GetUnit", "s", (name,), "o")
        if not interface or reply.error in NO_SUCH_UNIT:
            return ""
        path = self._path(reply, "GetUnit")
        if self._text(path, interface, "ControlGroup") != cgroup:
            return ""
        return self._text(path, UNIT, "FreezerState", optional=True)

    def reset_failed(self, unit: Unit) -> None:
        """Reset what systemd counts of a unit's starts; nothing else changes. Raises BusError, DeclinedError.

        Needed before each restart and start: systemd would stop a unit whose start limit is used up and then not start
        it. A unit that is not loaded has no count.
        """
        self._order("ResetFailedUnit", unit.name, "s", (unit.name,), "", harmless=NO_SUCH_UNIT)

    def active_state(self, unit: Unit) -> str:
        """Return ActiveState of a loaded unit. Raises BusError."""
        return self._text(unit.path, UNIT, "ActiveState")

    def restart(self, unit: Unit) -> None:
        """Queue a job that restarts the unit; it goes on by itself. Raises BusError, DeclinedError."""
        self._order("RestartUnit", unit.name, "ss", (unit.name, "replace"), "o")

    def start(self, unit: Unit) -> None:
        """Queue a job that starts the unit; nothing happens if it runs. Raises BusError, DeclinedError."""
        self._order("StartUnit", unit.name, "ss", (unit.name, "replace"), "o")

    def thaw(self, name: str) -> None:
        """Thaw the cgroup of a unit; returns once it is thawed. Raises BusError, DeclinedError."""
        self._order("ThawUnit", name, "s", (name,), "")

    def _order(
        self,
        method: str,
        name: str,
        signature: str,
        body: tuple[Any, ...],
        expected: str,
        harmless: frozenset[str] = frozenset(),
    ) -> None:
        """Call a method that changes something; `harmless`: errors by which there is nothing to change."""
        reply = self._call(*MANAGER, method, signature, body, expected)
        if reply.error in KEPT_OUT | UNANSWERED:
            why = f"{method} of {name} could not be called: {reply.problem}"
            raise BusError(why, asked=reply.error in UNANSWERED)
        if reply.error and reply.error not in harmless:
            raise DeclinedError(f"systemd declines {method} of {name}: {reply.problem}")

    def _path(self, reply: "Reply", what: str) -> str:
        path = self._value(reply, what)
        if not path.startswith(UNIT_PATHS):
            raise BusError(f"systemd names a unit {printable(path, MAX_TEXT)}, which is none", asked=False)
        return str(path)

    def _text(self, path: str, interface: str, name: str, *, optional: bool = False) -> str:
        value = self._property(path, interface, name, "s", optional=optional)
        return printable(value or "", MAX_TEXT)

    def _property(self, path: str, interface: str, name: str, kind: str, *, optional: bool = False) -> Any:  # noqa: ANN401
        """Read a property of the type `kind`; None if it is optional and this systemd has none."""
        properties = "org.freedesktop.DBus.Properties"
        reply = self._call(path, properties, "Get", "ss", (interface, name), "v" + kind)
        if optional and reply.error in NO_SUCH_PROPERTY:
            return None
        return self._value(reply, name)

    def _value(self, reply: "Reply", what: str) -> Any:  # noqa: ANN401 - as was asked for
        if reply.error:
            raise BusError(f"systemd does not tell {what}: {reply.problem}", asked=False)
        return reply.value

    def _call(
        self, path: str, interface: str, method: str, signature: str, body: tuple[Any, ...], expected: str
    ) -> "Reply":
        """Call a method and return its reply, an error too. `expected`: its signature, `vX` for a variant of X."""
        self._look_for_socket()
        wire = _jeepney()
        address = wire.DBusAddress(path, bus_name="org.freedesktop.systemd1", interface=interface)
        message = wire.new_method_call(address, method, signature, body)
        message.header.flags = wire.MessageFlag.no_auto_start
        talk = _Conversation(wire, message, expected)
        peer = Peer(socket.AF_UNIX, self._socket)
        # A second question would be a second restart: so the hedge lies beyond the deadline.
        (attempt,) = converse(peer, lambda: talk, deadline=self._deadline, hedge=2 * self._deadline, clock=self._clock)
        if attempt.answer is None:
            raise BusError(f"the system bus at {self._socket} {_why(attempt)}", asked=talk.sent_call)
        return attempt.answer

    def _look_for_socket(self) -> None:
        try:
            mode = Path(self._socket).stat().st_mode
        except OSError as error:
            raise BusError(f"there is no system bus at {self._socket} ({error.strerror})", asked=False) from None
        if not stat.S_ISSOCK(mode):
            raise BusError(f"{self._socket} is no socket", asked=False)


@dataclass(frozen=True, slots=True)
class Reply:
    """A value, or the name and text of an error."""

    value: Any = None
    error: str = ""
    text: str = ""

    @property
    def problem(self) -> str:
        """The error in a line."""
        return f"{self.error} {self.text}".strip()


class _Conversation:
    """One authenticated method call and its reply (a Talk of `host.exchange`)."""

    def __init__(self, wire: Any, call: Any, expected: str) -> None:  # noqa: ANN401 - jeepney has no types
        self._wire = wire
        self._call = call
        self._expected = expected
        self._login = wire.auth.Authenticator()
        self._buffer = b""
        self.question: bytes = self._login.data_to_send()
        self.answer: Reply | None = None
        self.sent_call = False

    def hear(self, data: bytes) -> bytes:
        """Take what arrived and return what to send back. Raises NoAnswerError."""
        try:
            if not self._login.authenticated:
                self._login.feed(data)
                return self._begin() if self._login.authenticated else b""
            self._take(data)
        except self._wire.AuthenticationError as error:
            said = printable(bytes(error.data), MAX_TEXT)
            raise NoAnswerError(Ending.ERROR, f"does not let us in: {said}") from None
        except NoAnswerError:
            raise
        except Exception as error:  # noqa: BLE001 - a library's parser meets bytes of any kind, and fails in many ways
            raise NoAnswerError(Ending.MALFORMED, printable(f"{type(error).__name__}: {error}", MAX_TEXT)) from None
        return b""

    def _begin(self) -> bytes:
        wire = self._wire
        self.sent_call = True
        hello = wire.DBusAddress("/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus")
        greeting: bytes = wire.new_method_call(hello, "Hello").serialise(serial=_HELLO)
        call: bytes = self._call.serialise(serial=_CALL)
        return bytes(wire.auth.BEGIN) + greeting + call

    def _take(self, data: bytes) -> None:
        self._buffer += data
        while self.answer is None and len(self._buffer) >= 16:
            size = self._wire.low_level.calc_msg_size(self._buffer[:16])
            if size > MAX_MESSAGE_BYTES:
                raise NoAnswerError(Ending.TOO_LARGE, f"a message of {size} bytes")
            if len(self._buffer) < size:
                return
            message, self._buffer = self._buffer[:size], self._buffer[size:]
            self._read(message)

    def _read(self, message: bytes) -> None:
        wire = self._wire
        order = "little" if message[:1] == b"l" else "big"
        fields_end = 16 + int.from_bytes(message[12:16], order)  # type: ignore[arg-type]
        if b"()" in message[:fields_end]:
            raise NoAnswerError(Ending.MALFORMED, "an empty struct")  # jeepney would read an array of them for ever
        header, at = wire.Header.from_buffer(message)
        at += -at % 8
        fields = header.fields
        serial, kind = fields.get(wire.HeaderFields.reply_serial), header.message_type
        signature = fields.get(wire.HeaderFields.signature, "")
        if kind is wire.MessageType.error and serial in {_HELLO, _CALL}:
            text = self._value(header, message, at, "s") if signature[:1] == "s" else ""
            name = str(fields.get(wire.HeaderFields.error_name, "an error without a name"))
            self.answer = Reply(error=printable(name, MAX_TEXT), text=printable(text, MAX_TEXT))
        elif kind is wire.MessageType.method_return and serial == _CALL:
            self.answer = Reply(self._result(header, message, at, signature))

    def _result(self, header: Any, message: bytes, at: int, signature: str) -> Any:  # noqa: ANN401
        variant, kind = self._expected[:1] == "v", self._expected[-1:]
        if signature != self._expected[:1]:
            raise NoAnswerError(Ending.MALFORMED, f"an answer of type {printable(signature, 20)!r}")
        if not kind:
            return None
        if not variant:
            return self._value(header, message, at, kind)
        if message[at : at + 3] != b"\x01" + kind.encode() + b"\0":
            raise NoAnswerError(Ending.MALFORMED, f"a value that is not of type {kind!r}")
        return self._value(header, message, at, "v")[1]

    def _value(self, header: Any, message: bytes, at: int, kind: str) -> Any:  # noqa: ANN401
        return self._wire.low_level.parse_signature([kind]).parse_data(message, at, header.endianness)[0]


def _why(attempt: Attempt[Reply]) -> str:
    match attempt.ending:
        case Ending.TIMEOUT:
            return f"has not answered within {measured_duration(attempt.total_seconds)}"
        case Ending.REFUSED:
            return f"takes no connections ({attempt.detail})"
        case Ending.ERROR:
            return attempt.detail
        case ending:
            return f"gave no answer that can be used ({ending}: {attempt.detail})"


def _jeepney() -> Any:  # noqa: ANN401 - it has no types
    """Load jeepney where there is a bus; elsewhere it is not needed."""
    import jeepney  # noqa: PLC0415

    return jeepney
