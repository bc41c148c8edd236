"""Asks the host's systemd over D-Bus whose process a pid is, and to restart that unit.

Three methods of org.freedesktop.systemd1 (org.freedesktop.systemd1(5)) over the system bus: Manager.GetUnitByPID, the
standard Properties.Get, and Manager.RestartUnit. Each is one short conversation on a connection of its own, held by
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

_ERROR = "org.freedesktop.DBus.Error."
KEPT_OUT = frozenset(
    _ERROR + name
    for name in ("AccessDenied", "AuthFailed", "InteractiveAuthorizationRequired", "ServiceUnknown", "NameHasNoOwner")
)
"""Errors that say: you may not ask for that, or there is nobody to ask; nothing was begun."""
UNANSWERED = frozenset(_ERROR + name for name in ("NoReply", "Timeout", "TimedOut", "Disconnected"))
"""Errors by which the bus says that there was no answer, which tells nothing about what was done."""
NO_SUCH_UNIT = frozenset({"org.freedesktop.systemd1.NoUnitForPID", "org.freedesktop.systemd1.NoSuchUnit"})

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
    """A service unit and its main process. `kill_mode`: what systemd ends with it (systemd.kill(5), KillMode=)."""

    name: str
    path: str
    main_pid: int
    kill_mode: str


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
        return Unit(name, path, main_pid, printable(self._property(path, SERVICE, "KillMode", "s"), MAX_TEXT))

    def unit_path(self, pid: int) -> str | None:
        """Return the object path of the unit a process belongs to; None if it belongs to none. Raises BusError."""
        reply = self._call(*MANAGER, "GetUnitByPID", "u", (pid,), "o")
        if reply.error in NO_SUCH_UNIT:
            return None
        path = self._value(reply, "GetUnitByPID")
        if not path.startswith(UNIT_PATHS):
            raise BusError(f"systemd names a unit {printable(path, MAX_TEXT)}, which is none", asked=False)
        return str(path)

    def restart(self, unit: Unit) -> None:
        """Queue a job that restarts the unit; it goes on by itself. Raises BusError, DeclinedError."""
        reply = self._call(*MANAGER, "RestartUnit", "ss", (unit.name, "replace"), "o")
        if reply.error in KEPT_OUT | UNANSWERED:
            why = f"systemd could not be asked to restart {unit.name}: {reply.problem}"
            raise BusError(why, asked=reply.error in UNANSWERED)
        if reply.error:
            raise DeclinedError(f"systemd does not restart {unit.name}: {reply.problem}")

    def _property(self, path: str, interface: str, name: str, kind: str) -> Any:  # noqa: ANN401 - as `kind` says
        properties = "org.freedesktop.DBus.Properties"
        reply = self._call(path, properties, "Get", "ss", (interface, name), "v" + kind)
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
            return f"has not answered within {attempt.total_seconds:.0f} s"
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
