"""Runs the agent as its users do, and reads what it tells: its log and its metrics."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from prometheus_client.parser import text_string_to_metric_families

from tests.lab import marked
from tests.lab.waiting import wait_until

READY_SECONDS = 30.0
DEFAULT_SOCKET_FOLDER = Path("/run/nodediag")
"""Where an agent that serves over TCP has the default Unix socket; removed after it, if it was not there before."""


@dataclass(frozen=True)
class Change:
    """One line of the agent's log about a condition."""

    type: str
    status: str
    reason: str
    message: str
    at: float


def free_port() -> int:
    """Return a port on the loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class AgentProcess:
    """`nodediag run` with some settings, in a folder of its own."""

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        *,
        start: Callable[..., Any] = subprocess.Popen,
        connect: Callable[[int], socket.socket] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self._folder = folder
        self.endpoint = f"unix:{folder}/nodediag.sock"
        own = {"http": {"listen": f"127.0.0.1:{self.port}"}, "grpc": {"listen": self.endpoint}, "node_name": "lab"}
        self._settings = {**own, **settings}
        self._log = folder / "log.json"
        self._start = start
        self._connect = connect or (lambda port: socket.create_connection(("127.0.0.1", port), timeout=10))
        self.process: Any = None

    def __enter__(self) -> Self:
        marked.mark_when_made(DEFAULT_SOCKET_FOLDER)
        config = self._folder / "nodediag.yaml"
        config.write_text(json.dumps(self._settings))
        with self._log.open("wb") as log:
            self.process = self._start(
                [sys.executable, "-m", "agent", "run", "--config", str(config)], stderr=log, stdout=log
            )
        try:
            wait_until(self.ready, READY_SECONDS, "the agent is ready")
        except BaseException:
            self.stop()
            print(self._log.read_text()[-4000:])
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if error is not None:
            print(self._log.read_text()[-6000:])

    def stop(self) -> float:
        """End the agent with SIGTERM and return how many seconds it took."""
        began = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=15)
        took = time.monotonic() - began
        marked.remove_if_empty(DEFAULT_SOCKET_FOLDER)
        return took

    def get(self, path: str) -> tuple[int, str]:
        """Ask the agent's HTTP server: (status, body)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.sock = self._connect(self.port)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def ready(self) -> bool:
        """Whether every detector has looked once."""
        if self.process.poll() is not None:
            raise AssertionError(f"the agent ended with {self.process.poll()}: {self._log.read_text()[-2000:]}")
        try:
            return self.get("/readyz")[0] == 200
        except OSError:
            return False

    def metric(self, name: str, **labels: str) -> float | None:
        """Return one sample of /metrics; None if there is none. For samples that belong together see `metrics`."""
        return self.metrics((name, labels))[0]

    def metrics(self, *wanted: tuple[str, dict[str, str]]) -> list[float | None]:
        """Return several samples of one scrape, each by name and labels: between two scrapes an agent goes on."""
        families = text_string_to_metric_families(self.get("/metrics")[1])
        samples = [sample for family in families for sample in family.samples]
        return [
            next(
                (float(each.value) for each in samples if each.name == name and labels.items() <= each.labels.items()),
                None,
            )
            for name, labels in wanted
        ]

    def statuses(self) -> dict[str, str]:
        """Return the status of every condition."""
        return {
            sample.labels["type"]: sample.labels["status"]
            for family in text_string_to_metric_families(self.get("/metrics")[1])
            for sample in family.samples
            if sample.name == "nodediag_condition" and sample.value == 1
        }

    def changes(self) -> Iterator[Change]:
        """Yield every change of a condition the agent has logged so far."""
        for line in self._log.read_text(errors="replace").splitlines():
            if '"condition changed"' not in line:
                continue
            try:
                data = json.loads(line)
            except ValueError:
                continue  # a line still being written
            at = _seconds(data["time"])
            yield Change(data["condition"], data["status"], data["reason"], data["condition_message"], at)

    def accusations(self, since: float = 0.0) -> list[Change]:
        """Return the conditions that turned True since a moment (epoch seconds)."""
        return [change for change in self.changes() if change.status == "True" and change.at >= since]

    def all_well(self) -> bool:
        """Whether no condition is anything but False."""
        return set(self.statuses().values()) == {"False"}


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
