"""A node of its own: fresh pid, network and mount namespaces to run an agent in.

Conntrack's table and counters belong to a network namespace, and an agent is
to refuse to judge one that is not the host's, which it tells by pid 1.  So the
lab gives it a pid 1 of its own in the same network namespace: seen from within
this is a whole node, and the machine's real network is not touched.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, Self

from .processes import Process, children_of, has_ended, identify, kill, send_signal, state_of
from .waiting import wait_until

_CLONE_NEWNET = 0x40000000
# The first process of the namespace: it reaps whatever falls to it and waits.
_INIT = """
import pathlib, signal, sys
pathlib.Path("/proc/self/comm").write_text(sys.argv[1])
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("ready", flush=True)
while True:
    signal.pause()
"""


@dataclass(frozen=True)
class NodeProcess:
    """A command running in a node; ``process`` is the command itself, seen from outside.

    Between the two stands the helper that entered the namespaces and waits.
    """

    helper: subprocess.Popen[bytes]
    process: Process

    @property
    def pid(self) -> int:
        """The command's pid in the namespace of the lab."""
        return self.process.pid

    @property
    def stdout(self) -> IO[bytes] | None:
        """The command's standard output, if it was piped."""
        return self.helper.stdout

    @property
    def stderr(self) -> IO[bytes] | None:
        """The command's standard error, if it was piped."""
        return self.helper.stderr

    def send_signal(self, number: signal.Signals) -> None:
        """Signal the command.  The helper stops along with it, a little later, so it is continued too."""
        helper = identify(self.helper.pid)
        send_signal(self.process, number)
        if number is signal.SIGSTOP:
            wait_until(lambda: state_of(helper) in ("T", "Z"), 20.0, "the helper stopped")
        if number is signal.SIGCONT:
            self.helper.send_signal(signal.SIGCONT)

    def poll(self) -> int | None:
        """Return the exit status, None while it runs."""
        return self.helper.poll()

    def wait(self, timeout: float) -> int:
        """Wait for the end and return the exit status."""
        return self.helper.wait(timeout)

    def kill(self) -> None:
        """Kill the command and reap the helper."""
        kill([self.process])
        self.helper.kill()
        self.helper.wait(10.0)


class Node:
    """A node, as a context manager: pid 1, ``/proc`` of its own, and ``lo`` up.

    All that was started in it ends with it, and its network with that.
    """

    def __init__(self, init_name: str = "containerd") -> None:
        """`init_name` is what pid 1 is called: by a containerd an agent knows the processes of a node."""
        self._init_name = init_name
        self._launcher: subprocess.Popen[bytes] | None = None
        self._init: Process | None = None
        self._started: list[NodeProcess] = []

    def __enter__(self) -> Self:
        unshare = ["unshare", "--fork", "--kill-child", "--pid", "--net", "--mount", "--mount-proc", "--"]
        launcher = subprocess.Popen(
            [*unshare, sys.executable, "-I", "-S", "-c", _INIT, self._init_name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        self._launcher = launcher
        try:
            _await_ready(launcher)
            (self._init,) = children_of(launcher.pid)
            self.run("ip", "link", "set", "lo", "up")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    @property
    def init(self) -> Process:
        """The node's pid 1, seen from outside."""
        if self._init is None:
            raise RuntimeError("the node is not up")
        return self._init

    def command(self, *argv: str) -> list[str]:
        """Return the command line that runs ``argv`` in the node."""
        return ["nsenter", f"--target={self.init.pid}", "--pid", "--net", "--mount", "--", *argv]

    def run(
        self, *argv: str, timeout: float = 30.0, check: bool = True, given: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the node to its end."""
        done = subprocess.run(
            self.command(*argv), capture_output=True, text=True, timeout=timeout, check=False, input=given
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip()}")
        return done

    def start(self, *argv: str, **popen_options: Any) -> NodeProcess:
        """Start a command in the node and return once it runs there."""
        helper = subprocess.Popen(self.command(*argv), **popen_options)

        def child() -> list[Process]:
            if helper.poll() is not None:
                raise RuntimeError(f"{' '.join(argv)} ended at once with {helper.returncode}")
            return children_of(helper.pid)

        process = wait_until(child, 10.0, f"start of {argv[0]} in the node")[0]
        started = NodeProcess(helper, process)
        self._started.append(started)
        return started

    def make_socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Make a socket that lives in the node's network, for use by the lab's own process.

        A thread enters the network namespace, makes the socket and ends; a
        socket stays where it was born.
        """
        made: list[socket.socket | OSError] = []

        def make() -> None:
            try:
                _enter_network(self.init.pid)
                made.append(socket.socket(family, kind, protocol))
            except OSError as error:
                made.append(error)

        thread = threading.Thread(target=make, name="lab-netns")
        thread.start()
        thread.join()
        (outcome,) = made
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    def add_address(self, address: str, device: str = "lo") -> None:
        """Give the node one more address (``10.0.0.1`` or ``10.0.0.1/24``)."""
        width = "" if "/" in address else "/128" if ":" in address else "/32"
        duplicate_check = ["nodad"] if ":" in address else []
        self.run("ip", "address", "add", f"{address}{width}", "dev", device, *duplicate_check)

    def _end(self) -> None:
        if self._launcher is not None:
            # Its end is the end of the node's pid 1, and that the end of all in the pid namespace.
            self._launcher.kill()
            self._launcher.wait(10.0)
            if self._launcher.stdout is not None:
                self._launcher.stdout.close()
        if self._init is not None:
            kill([self._init])
        for started in self._started:
            wait_until(lambda s=started: has_ended(s.process), 10.0, "end of the node's processes")  # type: ignore[misc]
            started.helper.kill()
            started.helper.wait(10.0)
            for stream in (started.helper.stdin, started.helper.stdout, started.helper.stderr):
                if stream is not None:
                    stream.close()
        self._init = None


@contextmanager
def linked(node: Node, node_address: str = "10.244.0.1", pod_address: str = "10.244.0.2") -> Iterator[Node]:
    """Attach a second network to the node by a veth pair, as a pod is; yield it.

    The node forwards, and the pod's default route leads to it.
    """
    with Node() as pod:
        outside = f"veth{secrets.token_hex(3)}"
        # Only the network is entered, so that the pid means the same to both.
        into_network = ["nsenter", f"--target={node.init.pid}", "--net", "--"]
        veth = ["ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", str(pod.init.pid)]
        subprocess.run([*into_network, *veth], check=True)
        node.run("ip", "address", "add", f"{node_address}/24", "dev", outside)
        node.run("ip", "link", "set", outside, "up")
        node.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        pod.run("ip", "address", "add", f"{pod_address}/24", "dev", "eth0")
        pod.run("ip", "link", "set", "eth0", "up")
        pod.run("ip", "route", "add", "default", "via", node_address)
        wait_until(lambda: "state UP" in pod.run("ip", "link", "show", "eth0").stdout, 10.0, "carrier on eth0")
        try:
            yield pod
        finally:
            node.run("ip", "link", "delete", outside, check=False)


def _await_ready(launcher: subprocess.Popen[bytes]) -> None:
    if launcher.stdout is None or launcher.stdout.readline() != b"ready\n":
        raise RuntimeError("the node's first process did not start")


def _enter_network(pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/proc/{pid}/ns/net") as namespace:  # noqa: PTH123 - a file descriptor is wanted
        if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
