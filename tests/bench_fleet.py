"""What a fleet costs Prometheus: `python -m tests.bench_fleet [NODES]`, for 1,000 nodes, in four minutes.

What counts is the time of CPU, which other work on the machine does not lengthen as it does seconds of evaluation.

A real Prometheus scrapes, from one server that speaks for all, what the golden scrape says of one node, once for every
node; it evaluates the rules as they are deployed. First every node is well; then every node has a hung shim and a DNS
server that is down, so that every alert there is of these is pending or fires and is worded.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.e2e.agent_process import free_port
from tests.lab.waiting import wait_until

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "metrics.txt"
SCRAPE_SECONDS = 30
PHASE_SECONDS = 60
"""Two evaluations of what is evaluated twice a minute, one of the rest."""
_SAMPLE = re.compile(r"(?P<name>\w+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)\Z")


def main() -> None:
    """Print what scraping and rules take with every node well, and with every node ill."""
    nodes = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with tempfile.TemporaryDirectory() as folder, _fleet(nodes) as fleet, _prometheus(Path(folder), fleet) as url:
        for ill, title in ((False, "all well"), (True, "all ill")):
            fleet.ill = ill
            _wait(2 * SCRAPE_SECONDS)  # series are made, or change; what is measured is what goes on and on
            before = _cpu_seconds(url)
            _wait(PHASE_SECONDS)
            cores = (_cpu_seconds(url) - before) / PHASE_SECONDS
            _tell(url, f"{nodes} nodes, {title}: {cores:.3f} cores")


def _wait(seconds: float) -> None:
    end = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > end, seconds + 9, "some scrapes")


def _cpu_seconds(url: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:
        found = re.search(r"^process_cpu_seconds_total (\S+)", answer.read().decode(), re.MULTILINE)
    assert found
    return float(found[1])


class _Fleet(ThreadingHTTPServer):
    bodies: tuple[bytes, bytes]
    ill = False


class _Handler(BaseHTTPRequestHandler):
    server: _Fleet

    def do_GET(self) -> None:
        body = self.server.bodies[self.server.ill]
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def _fleet(nodes: int) -> Iterator[_Fleet]:
    server = _Fleet(("127.0.0.1", 0), _Handler)
    server.bodies = _exposition(nodes, ill=False), _exposition(nodes, ill=True)
    print(f"{len(server.bodies[0]) / nodes:.0f} bytes a node without compression")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()


def _exposition(nodes: int, *, ill: bool) -> bytes:
    lines = [line for line in GOLDEN.read_text().splitlines() if line and not line.startswith("#")]
    return "".join(f"{_sample(line, number, ill=ill)}\n" for line in lines for number in range(nodes)).encode()


def _sample(line: str, number: int, *, ill: bool) -> str:
    found = _SAMPLE.match(line)
    assert found, line
    name, labels, value = found["name"], found["labels"] or "", found["value"]
    if name == "nodediag_findings":
        pairs = dict(re.findall(r'(\w+)="(\w+)"', labels))
        wrong = (pairs["type"], pairs["reason"]) in (
            ("ContainerdShimHung", "ShimUnresponsive"),
            ("DNSUnavailable", "ServerUnreachable"),
        )
        value = str(int(ill and wrong))
    elif name == "nodediag_condition":
        value = str(int('status="False"' in labels))
    elif name == "nodediag_detector_last_run_timestamp_seconds":
        value = str(time.time() + 3600)  # a body is made once
    own = f'instance="10.{number >> 8}.{number & 255}.1:9797",node="worker-{number}"'
    return f"{name}{{{labels}{',' if labels else ''}{own}}} {value}"


@contextmanager
def _prometheus(folder: Path, fleet: _Fleet) -> Iterator[str]:
    program, port = shutil.which("prometheus"), free_port()
    assert program, "Debian's prometheus is not installed"
    own = f"127.0.0.1:{port}"
    every = f"{SCRAPE_SECONDS}s"
    jobs = [
        {"job_name": "nodediag", "honor_labels": True, "static_configs": [{"targets": [_address(fleet)]}]},
        {"job_name": "prometheus", "static_configs": [{"targets": [own]}]},
    ]
    (folder / "prometheus.json").write_text(
        json.dumps(
            {
                "global": {"scrape_interval": every, "scrape_timeout": every},
                "rule_files": [str(ROOT / "deploy" / "prometheus" / "rules.yaml")],
                "scrape_configs": jobs,
            }
        )
    )
    command = [program, f"--config.file={folder}/prometheus.json", f"--storage.tsdb.path={folder}/data"]
    process = subprocess.Popen([*command, f"--web.listen-address={own}", "--log.level=error"])
    try:
        wait_until(lambda: _answers(f"http://{own}/-/ready"), 30, "Prometheus is ready")
        yield f"http://{own}"
    finally:
        process.terminate()
        process.wait(timeout=60)


def _address(fleet: _Fleet) -> str:
    return f"127.0.0.1:{fleet.server_address[1]}"


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def _tell(url: str, title: str) -> None:
    print(title)
    for name, expr in {
        "series": "prometheus_tsdb_head_series",
        "resident GiB": 'process_resident_memory_bytes{job="prometheus"} / 2^30',
        "evaluations that failed": "prometheus_rule_evaluation_failures_total > 0",
        "alerts": "count by (alertname, alertstate) (ALERTS)",
        "seconds to scrape": 'scrape_duration_seconds{job="nodediag"}',
    }.items():
        for series in _ask(url, "query", query=expr)["result"]:
            labels = {k: v for k, v in series["metric"].items() if k in ("alertname", "alertstate")}
            print(f"  {name}: {float(series['value'][1]):.3g} {' '.join(labels.values())}")
    for group in _ask(url, "rules")["groups"]:
        print(f"  seconds to evaluate: {group['evaluationTime']:.3g} {group['name']}")
        for rule in sorted(group["rules"], key=lambda each: -each["evaluationTime"])[:5]:
            print(f"    {rule['evaluationTime']:.3g} {rule['name']} {rule['query'][:90]}")


def _ask(url: str, what: str, **parameters: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}", timeout=60) as answer:
        data: dict[str, Any] = json.loads(answer.read())["data"]
        return data


if __name__ == "__main__":
    main()
