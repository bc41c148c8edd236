"""The command line as a process of its own, as its users and their shells run it."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

OTHERS = ("containerd_shim", "defunct_processes", "conntrack_dns", "container_runtime", "kubelet_pleg")
SECONDS = 20
"""No process of a test lives longer."""


def config_file(folder: Path, kubelet_port: int, listen: str = "127.0.0.1:0") -> Path:
    """Settings that watch nothing but a kubelet on the loopback."""
    file = folder / "nodediag.yaml"
    settings = {
        "node_name": "worker-3",
        "http": {"listen": listen},
        "grpc": {"listen": endpoint(folder)},
        "kubelet": {"healthz_url": f"http://127.0.0.1:{kubelet_port}/healthz"},
        "dns": {"servers": ["127.0.0.1:9"]},
        "detectors": {name: {"enabled": False} for name in OTHERS} | {"kubelet_healthz": {"failure_threshold": 1}},
    }
    file.write_text(json.dumps(settings))
    return file


def endpoint(folder: Path) -> str:
    """Where an agent with the settings of `config_file` serves its API."""
    return f"unix:{folder}/nodediag.sock"


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "agent", *map(str, words)]


@contextmanager
def running(arguments: list[str]) -> Iterator["subprocess.Popen[str]"]:
    """The process, as a terminal starts it: a job in the background would inherit that SIGINT is ignored."""
    words = ["env", "--default-signal=INT", *arguments]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        try:
            yield process
        finally:
            process.kill()


def ended(process: "subprocess.Popen[str]", *signals: signal.Signals) -> tuple[int, float, str, str]:
    """Send the signals; return code, seconds until the end, standard output and standard error."""
    began = time.monotonic()
    for number in signals:
        process.send_signal(number)
    output, errors = process.communicate(timeout=SECONDS)
    return process.returncode, time.monotonic() - began, output, errors


def log_line(stream: IO[str], message: str) -> dict[str, Any]:
    """Read the log up to the line with this message."""
    for line in stream:
        record: dict[str, Any] = json.loads(line)
        if record["message"] == message:
            return record
    raise AssertionError(f"the log ended without: {message}")


@contextmanager
def silent_kubelet() -> Iterator[socket.socket]:
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(SECONDS)
        yield server


@contextmanager
def closed_port() -> Iterator[int]:
    """A port nobody listens on, and nobody else gets."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield int(taken.getsockname()[1])
