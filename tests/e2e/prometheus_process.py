"""Runs Debian's Prometheus on the loopback, with the rules and the scrape configuration as they are deployed.

Three things differ from a cluster, all of them about time and discovery: everything is scraped and evaluated every
second; what is held (`for`) is held for two; and the agent is found where it is, with the labels Kubernetes would give
it, since Debian's Prometheus is built without the discovery of Kubernetes.
"""

import json
import shutil
import signal
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from tests.e2e.agent_process import free_port
from tests.lab.waiting import wait_until

DEPLOY = Path(__file__).parents[2] / "deploy"
EVERY, HELD = "1s", "2s"
START_SECONDS = 20.0


class PrometheusProcess:
    """A Prometheus that watches the agent on a port of the loopback; as a context manager."""

    def __init__(self, folder: Path, agent_port: int, node: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._url = f"http://127.0.0.1:{free_port()}"
        self._log = folder / "prometheus.log"
        self.rules = _hastened(yaml.safe_load((DEPLOY / "prometheus" / "rules.yaml").read_text()))
        (folder / "rules.json").write_text(json.dumps(self.rules))  # JSON is YAML, too
        config = {
            "global": {"scrape_interval": EVERY, "evaluation_interval": EVERY},
            "rule_files": ["rules.json"],
            "scrape_configs": [_found_at(f"127.0.0.1:{agent_port}", node)],
        }
        (folder / "prometheus.json").write_text(json.dumps(config))

    def __enter__(self) -> Self:
        program = shutil.which("prometheus")
        assert program, "Debian's prometheus is not installed"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    program,
                    f"--config.file={self._folder / 'prometheus.json'}",
                    f"--storage.tsdb.path={self._folder / 'data'}",
                    f"--web.listen-address={self._url.removeprefix('http://')}",
                ],
                stdout=log,
                stderr=log,
            )
        try:
            wait_until(self._ready, START_SECONDS, "Prometheus is ready")
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        if error is not None:
            print(self._log.read_text()[-4000:])

    def query(self, expr: str) -> list[dict[str, Any]]:
        """Return the series an expression has now, each with its `metric` and `value`."""
        found: list[dict[str, Any]] = self._get("query", query=expr)["result"]
        return found

    def value(self, expr: str) -> float | None:
        """Return the value of an expression that has one series; None if it has none."""
        found = self.query(expr)
        return float(found[0]["value"][1]) if found else None

    def alerts(self) -> list[dict[str, Any]]:
        """Return the alerts that are pending or firing, each with `labels`, `annotations` and `state`."""
        found: list[dict[str, Any]] = self._get("alerts")["alerts"]
        return found

    def firing(self, alert: str, reason: str) -> dict[str, Any] | None:
        """Return an alert that fires for a reason."""
        for each in self.alerts():
            labels = each["labels"]
            if (labels["alertname"], labels.get("reason"), each["state"]) == (alert, reason, "firing"):
                return each
        return None

    def all_evaluated(self) -> bool:
        """Whether every rule has been evaluated, without an error."""
        return all(rule["health"] == "ok" for group in self._get("rules")["groups"] for rule in group["rules"])

    def _get(self, what: str, **parameters: str) -> dict[str, Any]:
        url = f"{self._url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            data: dict[str, Any] = json.loads(answer.read())["data"]
            return data

    def _ready(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()[-4000:]
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        self._process.wait(timeout=20)


def _hastened(rules: dict[str, Any]) -> dict[str, Any]:
    for group in rules["groups"]:
        group["interval"] = EVERY
        for rule in group["rules"]:
            for held in ("for", "keep_firing_for"):
                if rule.get(held, "0s") != "0s":
                    rule[held] = HELD
    return rules


def _found_at(address: str, node: str) -> dict[str, Any]:
    (job,) = yaml.safe_load((DEPLOY / "prometheus" / "scrape-config.yaml").read_text())
    assert job.pop("kubernetes_sd_configs")
    discovered = {"__meta_kubernetes_pod_node_name": node, "__meta_kubernetes_pod_container_port_name": "metrics"}
    job["static_configs"] = [{"targets": [address], "labels": discovered}]
    return {**job, "scrape_interval": EVERY, "scrape_timeout": EVERY}
