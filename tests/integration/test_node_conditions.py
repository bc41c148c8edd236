"""`nodediag run` with node conditions on: a real agent, a kubelet that goes and comes back, a strict API server."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.delivery.deploy.kustomize import Object, of_kind, overlay, settings_files
from tests.integration.test_run import STOP_SECONDS, get
from tests.lab.api_standin import ApiMode, ApiStandin
from tests.lab.kubelet_standin import KubeletMode, KubeletStandin
from tests.lab.waiting import wait_until
from tests.unit.cli.processes import SECONDS, command, config_file, ended, log_line, running

NODE = "worker-3"
HEALTHZ = "KubeletHealthzFailing"
WHOLE_PACKAGE = """
import re
rss = lambda: int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1])
import json, logging, ssl, http.client
before = rss()
import kubernetes.client
print(rss() - before)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiStandin]:
    (tmp_path / "api").mkdir()
    with ApiStandin(tmp_path / "api", NODE) as standin:
        yield standin
        assert standin.complaints == []


@contextmanager
def agent(folder: Path, kubelet: KubeletStandin, table: dict[str, Any]) -> Iterator[tuple[Any, str]]:
    """An agent that watches this kubelet alone: the process, and where it serves."""
    file = config_file(folder, kubelet.port)
    settings = json.loads(file.read_text())
    settings["node_conditions"] = table
    settings["detectors"]["kubelet_healthz"] |= {"period_seconds": 1.0}
    file.write_text(json.dumps(settings))
    with running(command("run", "--config", file)) as process:
        assert process.stderr is not None
        yield process, log_line(process.stderr, "started")["listen"]


def prompt(server: ApiStandin, **more: Any) -> dict[str, Any]:
    return {**server.settings, "min_interval_seconds": 1.0, **more}


def status(server: ApiStandin, kind: str = HEALTHZ) -> str:
    return str(server.conditions.get(kind, {}).get("status", "(none)"))


def resident_kib(process: Any) -> int:
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
    assert found is not None
    return int(found[1])


def test_a_condition_turns_true_on_the_fault_and_clears_with_it(tmp_path: Path, server: ApiStandin) -> None:
    foreign = server.document["status"]["conditions"]
    server.plant({**server.conditions["Ready"], "type": "DNSUnavailable", "status": "True"})
    with KubeletStandin() as kubelet, agent(tmp_path, kubelet, prompt(server)) as (process, listen):
        wait_until(lambda: status(server) == "False", SECONDS, "the kubelet is well")
        assert status(server, "DNSUnavailable") == "(none)", "a detector that is off leaves nothing of its own behind"
        kubelet.set_mode(KubeletMode.REFUSE)
        wait_until(lambda: status(server) == "True", SECONDS, "the fault is told")
        told = server.conditions[HEALTHZ]
        assert told["reason"] == "HealthzRefused"
        (event,) = wait_until(lambda: server.events, SECONDS, "the finding is told").values()
        assert (event["reason"], event["involvedObject"]["name"]) == ("HealthzRefused", NODE)
        assert event["message"].startswith(f"{HEALTHZ}: ")
        kubelet.set_mode(KubeletMode.HEALTHY)
        wait_until(lambda: status(server) == "False", SECONDS, "its end is told")
        assert server.conditions[HEALTHZ]["lastTransitionTime"] >= told["lastTransitionTime"]
        counted = 'nodediag_node_conditions_requests_total{code="200",resource="nodes/status",verb="patch"} 3.0'
        wait_until(lambda: counted in get(listen, "/metrics")[1], SECONDS, "the agent counts three answers")
        code, seconds, _, _ = ended(process, signal.SIGTERM)
    assert (code, seconds < STOP_SECONDS) == (0, True)
    assert status(server) == "False", "the end of the agent changes no condition"
    assert server.document["status"]["conditions"][: len(foreign)] == foreign
    assert {asked.verb for asked in server.asked} == {"patch", "create"}


def test_an_api_server_that_hangs_fails_neither_readiness_nor_the_end(tmp_path: Path, server: ApiStandin) -> None:
    server.mode = ApiMode.HANG
    with KubeletStandin() as kubelet, agent(tmp_path, kubelet, prompt(server)) as (process, listen):
        wait_until(lambda: server.asked, SECONDS, "a request hangs")
        assert get(listen, "/readyz") == (200, "ok\n")
        assert "nodediag_node_conditions_pending" in get(listen, "/metrics")[1]
        code, seconds, _, errors = ended(process, signal.SIGTERM)
    assert (code, seconds < STOP_SECONDS) == (0, True)
    assert "Traceback" not in errors
    assert server.conditions.get(HEALTHZ) is None


def test_a_missing_right_is_named_in_the_log_and_the_node_watched_all_the_same(
    tmp_path: Path, server: ApiStandin
) -> None:
    server.modes = {"nodes/status": ApiMode.FORBIDDEN}
    with KubeletStandin(KubeletMode.REFUSE) as kubelet, agent(tmp_path, kubelet, prompt(server)) as (process, listen):
        line = log_line(process.stderr, "the API server cannot be told")
        assert 'lacks: {apiGroups: [""], resources: [nodes/status], verbs: [patch]}' in line["why"]
        wait_until(lambda: server.events, SECONDS, "the events have the right they need")
        assert 'nodediag_condition{status="True",type="KubeletHealthzFailing"} 1.0' in get(listen, "/metrics")[1]
        assert get(listen, "/readyz") == (200, "ok\n")


def test_outside_of_a_pod_it_says_what_is_missing_and_watches(tmp_path: Path) -> None:
    nowhere = {"enabled": True, "min_interval_seconds": 1.0}
    with KubeletStandin() as kubelet, agent(tmp_path, kubelet, nowhere) as (process, listen):
        line = log_line(process.stderr, "the API server cannot be told")
        assert line["code"] == "unusable"
        assert "/var/run/secrets/kubernetes.io/serviceaccount/token" in line["why"]
        assert get(listen, "/readyz") == (200, "ok\n")


def test_the_rights_in_the_overlay_are_exactly_those_it_uses(tmp_path: Path, server: ApiStandin) -> None:
    every = overlay("node-conditions")
    table = yaml.safe_load(settings_files(every)["node-conditions.yaml"])["node_conditions"]
    with KubeletStandin(KubeletMode.REFUSE) as kubelet:
        for used in (2, 3):  # the second agent finds the first one's Event, and renews it
            with agent(tmp_path, kubelet, prompt(server, **table)) as (process, _):
                wait_until(lambda used=used: len(server.used) == used, SECONDS, "all is told")  # type: ignore[misc]
                assert ended(process, signal.SIGTERM)[0] == 0
    assert len(server.events) == 1, "however often the agent is started, a finding has one Event"
    assert set(server.used) == granted(every)


def granted(every: tuple[Object, ...]) -> set[tuple[str, str, str, str]]:
    """What the roles of these manifests allow: API group, resource, namespace and verb."""
    return {
        (group, resource, role["metadata"].get("namespace", ""), verb)
        for role in (*of_kind(every, "ClusterRole"), *of_kind(every, "Role"))
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_it_costs_little_and_less_than_half_of_what_the_whole_package_would(
    tmp_path: Path, server: ApiStandin, record_property: Any
) -> None:
    sizes = []
    for table in ({"enabled": False}, prompt(server)):
        with KubeletStandin() as kubelet, agent(tmp_path, kubelet, table) as (process, listen):
            wait_until(lambda listen=listen: get(listen, "/readyz")[0] == 200, SECONDS, "it has looked")  # type: ignore[misc]
            if table["enabled"]:
                wait_until(lambda: status(server) == "False", SECONDS, "it has told")
                wait_until(lambda listen=listen: "pending 0.0" in get(listen, "/metrics")[1], SECONDS, "it is done")  # type: ignore[misc]
            sizes.append(resident_kib(process))
    done = subprocess.run(
        [sys.executable, "-c", WHOLE_PACKAGE], capture_output=True, text=True, timeout=SECONDS, check=True
    )
    off, on, whole = *sizes, int(done.stdout)
    record_property("resident_kib", {"off": off, "on": on, "package": whole})
    print(f"resident: off {off} KiB, on {on} KiB ({on / off:.2f} times); the whole package alone {whole} KiB")
    assert on - off < whole / 2


def test_switched_off_it_asks_nobody_and_loads_nothing(tmp_path: Path, server: ApiStandin) -> None:
    program = (
        "import sys\n"
        "from agent.cli.parser import parse\n"
        "function, arguments = parse(None)\n"
        "code = function(arguments)\n"
        "print(sorted(n for n in sys.modules if n in {'kubernetes', 'urllib3'} or 'node_conditions' in n))\n"
        "sys.exit(code)\n"
    )
    with KubeletStandin() as kubelet:
        file = config_file(tmp_path, kubelet.port)
        settings = {**json.loads(file.read_text()), "node_conditions": {**server.settings, "enabled": False}}
        file.write_text(json.dumps(settings))
        with running([sys.executable, "-c", program, "run", "--config", str(file)]) as process:
            assert process.stderr is not None
            listen = log_line(process.stderr, "started")["listen"]
            wait_until(lambda: get(listen, "/readyz")[0] == 200, SECONDS, "it has looked")
            code, _, output, _ = ended(process, signal.SIGTERM)
    assert (code, output) == (0, "[]\n")
    assert server.asked == []
