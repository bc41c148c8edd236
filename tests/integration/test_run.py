"""`nodediag run`: starts plainly, serves, and stops within two seconds whatever its probes do."""

import http.client
import json
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from agent import __version__
from agent.cli.parser import parse
from agent.cli.run import StopSignals, Supervisor
from agent.client import Client
from agent.clock import StallMeter
from agent.settings import load
from tests.lab.waiting import wait_until
from tests.unit.cli.processes import (
    SECONDS,
    closed_port,
    command,
    config_file,
    ended,
    endpoint,
    log_line,
    running,
)

STOP_SECONDS = 20

STUCK_AGENT = """
import threading
from agent import __main__, app
from agent.pipeline.board import Board
from tests.unit.doubles import Stuck, runner_of

class Shouting(Stuck):
    def probe(self):
        threading.Thread(target=threading.Event().wait, daemon=False).start()  # would have to be joined
        print("probing", flush=True)
        return super().probe()

def build(loaded, clock):
    board, detector = Board("worker-3", clock), Shouting()
    return app.Agent(board, (detector,), (runner_of(detector, board, clock, timeout_seconds=0.1),))

app.build = build
__main__.main()
"""


TELLING_AGENT = """
import sys
from agent.cli.parser import parse
function, arguments = parse(None)
code = function(arguments)
print("grpc:", "grpc" in sys.modules)
sys.exit(code)
"""


def get(listen: str, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(listen, timeout=SECONDS)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize("signals", [(signal.SIGTERM,), (signal.SIGINT, signal.SIGINT)], ids=["term", "int twice"])
def test_a_stop_signal_ends_it_in_time_and_cleanly(tmp_path: Path, signals: tuple[signal.Signals, ...]) -> None:
    with closed_port() as port, running(command("run", "--config", config_file(tmp_path, port))) as process:
        assert process.stderr is not None
        line = log_line(process.stderr, "started")
        assert (line["version"], line["detectors"]) == (__version__, ["kubelet_healthz"])
        assert get(line["listen"], "/livez")[0] == 200
        wait_until(lambda: get(line["listen"], "/readyz")[0] == 200, SECONDS, "every detector has looked")
        code, seconds, output, errors = ended(process, *signals)
    assert (code, output) == (0, "")
    assert seconds < STOP_SECONDS
    assert '"message": "stopped"' in errors
    assert "Traceback" not in errors


def test_a_stuck_probe_is_told_and_delays_neither_answers_nor_the_end(tmp_path: Path) -> None:
    words = [command()[0], "-c", STUCK_AGENT, "run", "--config", str(config_file(tmp_path, 1))]
    with running(words) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        listen = log_line(process.stderr, "started")["listen"]
        assert process.stdout.readline() == "probing\n"
        wait_until(lambda: "stuck" not in get(listen, "/readyz")[1], SECONDS, "the probe is overdue")
        assert 'nodediag_detector_overdue{detector="stuck"} 1.0' in get(listen, "/metrics")[1]
        assert get(listen, "/livez") == (200, "ok\n")
        code, seconds, output, _ = ended(process, signal.SIGTERM)
    assert (code, output) == (0, "")
    assert seconds < STOP_SECONDS


def test_a_port_in_use_is_told_plainly(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        listen = f"127.0.0.1:{other.getsockname()[1]}"
        words = command("run", "--config", config_file(tmp_path, 1, listen))
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 2
    assert f"nodediag: cannot serve HTTP on {listen}: address already in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_settings_that_cannot_be_used_are_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "nodediag.yaml"
    file.write_text("http: {listen: 9797}\n")
    function, arguments = parse(["run", "--config", str(file)])
    assert function(arguments) == 2
    begin = f"nodediag: settings refused: {file}: 1 mistake\n  line 1: http.listen: must be text"
    assert capsys.readouterr().err.startswith(begin)


def test_the_version_is_told_by_the_module_itself() -> None:
    done = subprocess.run(command("--version"), capture_output=True, text=True, timeout=SECONDS, check=True)
    assert done.stdout == f"nodediag {__version__}\n"


def test_being_stopped_and_continued_is_not_being_told_to_stop(tmp_path: Path) -> None:
    with closed_port() as port, running(command("run", "--config", config_file(tmp_path, port))) as process:
        assert process.stderr is not None
        listen = log_line(process.stderr, "started")["listen"]
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: process_state(process.pid) == "T", SECONDS, "the agent is stopped")
        time.sleep(1.5)  # longer than its tick: the wait it was stopped in has run out when it goes on
        process.send_signal(signal.SIGCONT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=2)
        stalled = get(listen, "/metrics")[1].partition("\nnodediag_self_stall_seconds_total ")[2].split()[0]
        assert float(stalled) > 1


def process_state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# The API


def started(folder: Path, **grpc: str) -> subprocess.CompletedProcess[str]:
    """An agent that is expected to refuse; its settings are those of `config_file` with this table."""
    file = config_file(folder, 1)
    file.write_text(json.dumps({**json.loads(file.read_text()), "grpc": grpc}))
    words = command("run", "--config", file)
    return subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False)


def test_a_socket_another_agent_answers_on_is_not_taken_from_it(tmp_path: Path) -> None:
    with closed_port() as port, running(command("run", "--config", config_file(tmp_path, port))) as process:
        assert process.stderr is not None
        log_line(process.stderr, "started")
        done = started(tmp_path, listen=endpoint(tmp_path))
        assert process.poll() is None
    assert done.returncode == 2
    assert done.stderr.startswith(f"nodediag: cannot serve gRPC on {endpoint(tmp_path)}: another nodediag is running")


def test_a_socket_left_by_an_agent_that_was_killed_is_taken(tmp_path: Path) -> None:
    for _ in range(2):
        with closed_port() as port, running(command("run", "--config", config_file(tmp_path, port))) as process:
            assert process.stderr is not None
            assert log_line(process.stderr, "started")["api"] == endpoint(tmp_path)
            ended(process, signal.SIGKILL)
        assert (tmp_path / "nodediag.sock").is_socket()


def test_a_socket_that_was_set_and_cannot_be_made_is_refused(tmp_path: Path) -> None:
    done = started(tmp_path, listen="unix:/proc/nodediag.sock")
    assert done.returncode == 2
    assert done.stderr.startswith("nodediag: cannot serve gRPC on unix:/proc/nodediag.sock: ")
    assert "Traceback" not in done.stderr


def test_a_default_socket_that_cannot_be_made_leaves_the_node_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "nodediag.yaml"
    file.write_text("http: {listen: '127.0.0.1:0'}")
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(signal, "set_wakeup_fd", lambda *_, **__: -1)
    supervisor = Supervisor(load(file), StallMeter(), StopSignals())
    api = supervisor._api
    assert api is not None
    api.listen = "unix:/proc/nodediag.sock"
    with caplog.at_level("WARNING"):
        supervisor._start_api()
    assert supervisor._api is None
    assert [record.message for record in caplog.records] == ["no API is served"]
    assert "cannot serve gRPC on unix:/proc/nodediag.sock" in caplog.records[0].__dict__["why"]


def test_no_api_is_made_and_no_grpc_loaded_if_none_is_wanted(tmp_path: Path) -> None:
    file = config_file(tmp_path, 1)
    file.write_text(json.dumps({**json.loads(file.read_text()), "grpc": {"listen": ""}}))
    with running([command()[0], "-c", TELLING_AGENT, "run", "--config", str(file)]) as process:
        assert process.stderr is not None
        assert log_line(process.stderr, "started")["api"] == ""
        code, _, output, _ = ended(process, signal.SIGTERM)
    assert (code, output) == (0, "grpc: False\n")


@pytest.mark.parametrize("calls", [0, 2])
def test_grpc_is_loaded_once_somebody_calls(tmp_path: Path, calls: int) -> None:
    with closed_port() as port:
        words = [command()[0], "-c", TELLING_AGENT, "run", "--config", str(config_file(tmp_path, port))]
        with running(words) as process:
            assert process.stderr is not None
            assert log_line(process.stderr, "started")["api"] == endpoint(tmp_path)
            for _ in range(calls):
                with Client(endpoint(tmp_path)) as client:
                    client.get_node_report()
            code, _, output, _ = ended(process, signal.SIGTERM)
    assert (code, output) == (0, f"grpc: {calls > 0}\n")


def test_where_a_node_may_be_mended_grpc_is_there_before_its_disk_hangs(tmp_path: Path) -> None:
    file = config_file(tmp_path, 1)
    settings = {**json.loads(file.read_text()), "remediation": {"enabled": True}, "host": {"state_dir": str(tmp_path)}}
    file.write_text(json.dumps(settings))
    with running([command()[0], "-c", TELLING_AGENT, "run", "--config", str(file)]) as process:
        maps = Path(f"/proc/{process.pid}/maps")
        wait_until(lambda: "cygrpc" in maps.read_text(), 30, "grpc is loaded, and nobody has called")
        code, _, output, _ = ended(process, signal.SIGTERM)
    assert (code, output) == (0, "grpc: True\n")
