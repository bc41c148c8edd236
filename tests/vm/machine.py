"""A virtual machine: boots, runs commands over its channel, goes back to a snapshot, and leaves nothing behind."""

import json
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

BOOT_SECONDS = 300.0
"""A boot takes 10 s on two idle cores, and several times that beside another load."""
COMMAND_SECONDS = 120.0
SNAPSHOT_SECONDS = 120.0
GRACE_SECONDS = 60.0
"""How much later than the command's own timeout the host gives up waiting for the guest's reply."""
MEMORY_MIB = 1024


class MachineError(AssertionError):
    """The virtual machine did not do what it was told to."""


@dataclass(frozen=True)
class Done:
    """What became of a command in the guest."""

    command: str
    code: int
    output: str
    seconds: float


@dataclass(frozen=True)
class Kernel:
    """What is booted: a kernel with its initrd."""

    image: Path
    initrd: Path


class Machine:
    """One virtual machine. Its root is written to nowhere but a temporary file, which goes with it."""

    def __init__(self, root: Path, kernel: Kernel, payload: Path, folder: Path) -> None:
        self._console = folder / "console"
        self._errors = folder / "qemu"
        self._channel, channel = socket.socketpair()
        self._monitor, monitor = socket.socketpair()
        # KVM is not used even where it is offered: nested, it may be there and not work.
        command = [
            # The machine ends with the process that started it, even if that is killed.
            *("setpriv", "--pdeathsig", "KILL"),
            *("qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"),
            *("-smp", "2", "-m", str(MEMORY_MIB), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-nic", "none", "-kernel", str(kernel.image), "-initrd", str(kernel.initrd)),
            *("-append", "console=ttyS0 root=/dev/vda rw panic=-1 apparmor=1 security=apparmor quiet"),
            *("-drive", f"file={root},format=raw,if=virtio,snapshot=on,cache=unsafe"),
            *("-drive", f"file={payload},format=raw,if=virtio,readonly=on"),
            *("-serial", f"file:{self._console}", "-device", "virtio-serial-pci"),
            *("-chardev", f"socket,id=channel,fd={channel.fileno()}"),
            *("-device", "virtserialport,chardev=channel,name=channel"),
            *("-chardev", f"socket,id=monitor,fd={monitor.fileno()}", "-mon", "chardev=monitor,mode=control"),
        ]
        with channel, monitor, self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=(channel.fileno(), monitor.fileno()),
                env={"PATH": "/usr/bin:/usr/sbin:/bin:/sbin", "TMPDIR": str(folder)},
            )
        self._replies = _Lines(self._channel)
        self._events = _Lines(self._monitor)

    def __enter__(self) -> Self:
        try:
            self._receive(self._replies, BOOT_SECONDS, "the guest has booted")
            self._qmp("qmp_capabilities")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the machine, without a word to the guest."""
        self._process.kill()
        self._process.wait()
        self._channel.close()
        self._monitor.close()

    @property
    def pid(self) -> int:
        """The machine's process on this host."""
        return self._process.pid

    def run(self, command: str, timeout: float = COMMAND_SECONDS) -> Done:
        """Run a command in the guest's bash, as root. Code 124 means that it did not end in time."""
        self._channel.sendall(json.dumps({"command": command, "timeout": timeout}).encode() + b"\n")
        reply = self._receive(self._replies, timeout + GRACE_SECONDS, f"the guest has run: {command}")
        return Done(command, reply["code"], reply["output"], reply["seconds"])

    def output(self, command: str, timeout: float = COMMAND_SECONDS) -> str:
        """Run a command that must succeed, and return what it wrote."""
        done = self.run(command, timeout)
        if done.code != 0:
            raise MachineError(f"exit code {done.code} in the guest: {command}\n{done.output}")
        return done.output.rstrip("\n")

    def save(self, name: str) -> None:
        """Take a snapshot of the whole machine, memory and all."""
        self._human(f"savevm {name}")

    def restore(self, name: str) -> None:
        """Go back to a snapshot. Must not be called while a command runs."""
        self._human(f"loadvm {name}")

    def _human(self, command: str) -> None:
        said = self._qmp("human-monitor-command", **{"command-line": command})
        if said:
            raise MachineError(f"qemu: {command}: {said}")

    def _qmp(self, command: str, **arguments: Any) -> Any:
        self._monitor.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        deadline = time.monotonic() + SNAPSHOT_SECONDS
        while True:
            message = self._receive(self._events, deadline - time.monotonic(), f"qemu has done {command}")
            if "error" in message:
                raise MachineError(f"qemu: {command}: {message['error']}")
            if "return" in message:
                return message["return"]

    def _receive(self, lines: "_Lines", timeout: float, what: str) -> Any:
        try:
            return json.loads(lines.next(timeout))
        except (TimeoutError, EOFError, OSError) as error:
            state = self._process.poll()
            raise MachineError(
                f"{'no reply in time' if state is None else f'qemu ended with {state}'}, before {what} ({error!r})\n"
                f"qemu: {_tail(self._errors)}\nconsole: {_tail(self._console)}"
            ) from error


class _Lines:
    """Lines from a socket, each by a deadline."""

    def __init__(self, source: socket.socket) -> None:
        self._source = source
        self._received = b""

    def next(self, timeout: float) -> bytes:
        deadline = time.monotonic() + timeout
        while b"\n" not in self._received:
            self._source.settimeout(max(0.001, deadline - time.monotonic()))
            chunk = self._source.recv(1 << 16)
            if not chunk:
                raise EOFError
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        return line


def _tail(path: Path) -> str:
    return path.read_text(errors="replace")[-3000:] if path.exists() else "nothing"
