"""From the fault to its end through a real agent: named, asked for, mended, verified; and every way to be refused."""

import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from agent.acts import Outcome
from agent.client import Client, ClientError, ClientTls
from agent.model import Action
from agent.remediation.course import Step
from tests.detections import record_outcome
from tests.e2e.agent_process import AgentProcess, free_port
from tests.e2e.conftest import settings_for
from tests.e2e.mending import (
    about,
    all_gone,
    found,
    found_by,
    ledger_rows,
    mending,
    nodediag,
    reason_of,
    refusal_of,
    untouched,
)
from tests.lab import cgroups, shim_faults, zombies
from tests.lab.certificates import Authority, Projected
from tests.lab.containerd import Containerd
from tests.lab.containers import delete_container, run_container, run_containers
from tests.lab.dns_servers import DnsServer
from tests.lab.kubelet_standin import KubeletStandin
from tests.lab.pods import Container, Pod
from tests.lab.processes import has_ended
from tests.lab.waiting import wait_until

NEIGHBOURS = 4


@dataclass
class Mender:
    """A node with some healthy pods, and an agent that may mend."""

    containerd: Containerd
    kubelet: KubeletStandin
    dns: DnsServer
    neighbours: list[Container]
    agent: AgentProcess
    folder: Path

    @property
    def state_dir(self) -> Path:
        return self.folder / "state"

    def victim(self, name: str) -> Container:
        """Run one more pod, for a fault."""
        return run_container(self.containerd, pod=Pod(name=name, namespace="shop"))

    def settings(self, **changes: Any) -> dict[str, Any]:
        """The agent's settings, for another agent on the same node."""
        return {**settings_for(self.containerd, self.kubelet, self.dns), **mending(self.state_dir), **changes}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mender]:
    folder: Path = tmp_path_factory.mktemp("mender")
    with Containerd() as containerd, KubeletStandin() as kubelet, DnsServer() as dns:
        neighbours = run_containers(containerd, NEIGHBOURS)
        settings = {**settings_for(containerd, kubelet, dns), **mending(folder / "state")}
        with AgentProcess(folder, settings) as agent:
            wait_until(agent.all_well, 15, "a healthy node is found to be healthy")
            yield Mender(containerd, kubelet, dns, neighbours, agent, folder)


# -- mended


def test_a_hung_shim_is_killed_on_request_and_its_neighbours_are_untouched(node: Mender) -> None:
    victim = node.victim("hung")
    processes = cgroups.member_processes(victim.pod.cgroup)
    assert processes
    with shim_faults.stopped_shim(victim), untouched(node.neighbours):
        found(node.agent, about(victim), "the hung shim is named")
        done = nodediag(node.agent, "remediate", "KillShim", "--target", victim.id[:12], "--yes", "--reason", "a test")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "verified" in done.stdout
        record_outcome("KillShim", "shim stopped", "lab", "verified")
        assert all_gone([victim.shim, *processes])
    node.containerd.forget(victim)
    assert node.agent.metric("nodediag_remediations_total", action="KillShim", outcome="verified") == 1
    wait_until(node.agent.all_well, 20, "the node is well again")
    (row, *_) = ledger_rows(node.agent)
    assert (row["action"], row["outcome"], row["reason"]) == ("KillShim", "verified", "a test")
    evidence = nodediag(node.agent, "evidence", row["evidenceId"])
    assert evidence.returncode == 0, evidence.stderr
    assert f'"pid": {victim.shim_pid}' in evidence.stdout


@pytest.mark.parametrize("action", ["KillShim", "ThawCgroup"])
def test_a_frozen_shim_is_mended_by_a_kill_or_by_thawing_it(node: Mender, action: str) -> None:
    victim = node.victim(f"frozen-{action.lower()}")
    with shim_faults.frozen_shim(victim), untouched(node.neighbours):
        found(node.agent, about(victim), "the frozen shim is named")
        done = nodediag(node.agent, "remediate", action, "--target", f"shop/{victim.pod.name}", "--yes")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "verified" in done.stdout
        record_outcome(action, "shim frozen", "lab", "verified")
        assert has_ended(victim.shim) is (action == "KillShim")
    wait_until(node.agent.all_well, 20, "the node is well again")
    if action == "ThawCgroup":
        delete_container(node.containerd, victim)
    else:
        node.containerd.forget(victim)


def test_a_parent_that_does_not_reap_is_killed_and_its_zombies_go(node: Mender) -> None:
    with (
        untouched(node.neighbours),
        zombies.zombies_under_container(node.containerd, 200, pod=Pod(name="maker", namespace="shop")) as bred,
    ):
        finding = found(node.agent, lambda f: f.target.pid == bred.process.pid, "the parent is named")
        with Client(node.agent.endpoint) as client:
            done = client.remediate(Action.KILL_PARENT, finding.target, fencing_token=1)
        assert done.outcome is Outcome.VERIFIED, done.message
        record_outcome("KillParent", "zombies of a parent that does not reap", "lab", done.outcome)
    wait_until(node.agent.all_well, 20, "the node is well again")


# -- refused


def test_every_refusal_says_its_word_and_nothing_is_done(node: Mender) -> None:
    victim = node.victim("refused")
    agent, kill = node.agent, Action.KILL_SHIM
    with shim_faults.stopped_shim(victim), untouched([*node.neighbours]):
        finding = found(agent, about(victim), "the hung shim is named")
        target = finding.target
        assert target.pid is not None
        assert target.start_time is not None
        token = 10
        with Client(agent.endpoint) as client:
            dry = client.remediate(kill, target, dry_run=True, fencing_token=token)
        assert dry.outcome is Outcome.DRY_RUN
        (node.state_dir / "paused").write_text("the test\n")
        paused = refusal_of(agent, kill, target, fencing_token=token)
        (node.state_dir / "paused").unlink()
        neighbour = node.neighbours[0]
        healthy = replace(
            target, container_id=neighbour.id, pid=neighbour.shim.pid, start_time=neighbour.shim.start_time
        )
        refusals = {
            "PAUSED": paused,
            "STALE_FENCING_TOKEN": refusal_of(agent, kill, target, fencing_token=token - 1),
            "TARGET_CHANGED": refusal_of(
                agent, kill, replace(target, start_time=target.start_time - 1), fencing_token=token
            ),
            "OTHER_BOOT": refusal_of(agent, kill, replace(target, boot_id=str(uuid.uuid4())), fencing_token=token),
            "CONDITION_NOT_TRUE": refusal_of(agent, kill, healthy, fencing_token=token),
            "WRONG_TARGET_KIND": refusal_of(agent, Action.KILL_PARENT, target, fencing_token=token),
            "PROTECTED_PROCESS": refusal_of(
                agent, kill, replace(target, pid=1, start_time=_start_time(1)), fencing_token=token
            ),
        }
        assert {word: reason_of(error) for word, error in refusals.items()} == {word: word for word in refusals}
        assert not has_ended(victim.shim)
    with Client(agent.endpoint) as client:  # it is continued: the board may still say that it is hung
        error = refusal_of(agent, kill, target, fencing_token=token)
        assert reason_of(error) in {"NOT_CONFIRMED", "CONDITION_NOT_TRUE"}
        assert client.list_actions().highest_token == token
    assert not has_ended(victim.shim)
    wait_until(node.agent.all_well, 20, "the node is well again")
    error = refusal_of(agent, kill, target, fencing_token=token)
    assert reason_of(error) == "CONDITION_NOT_TRUE"
    delete_container(node.containerd, victim)


def _start_time(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def test_cool_down_budget_disabled_and_a_folder_that_cannot_be_written(node: Mender, tmp_path: Path) -> None:
    first, second = node.victim("limited-1"), node.victim("limited-2")
    limits = {"KillShim": {"cooldown_seconds": 5, "max_per_hour": 1}}
    with shim_faults.stopped_shim(first), shim_faults.stopped_shim(second), untouched(node.neighbours):
        limited = node.settings(**mending(tmp_path / "limited", **limits))
        with AgentProcess(tmp_path / "a", limited) as agent:
            targets = [found(agent, about(each), "the hung shim is named").target for each in (first, second)]
            with Client(agent.endpoint) as client:
                assert client.remediate(Action.KILL_SHIM, targets[0]).outcome is Outcome.VERIFIED
            cooling = refusal_of(agent, Action.KILL_SHIM, targets[1])
            assert reason_of(cooling) == "COOLING_DOWN"
            assert cooling.refusal is not None
            assert 0 < (cooling.refusal.retry_seconds or 0) <= 5
            spent = wait_until(
                lambda: _unless(refusal_of(agent, Action.KILL_SHIM, targets[1]), "COOLING_DOWN"), 10, "it has cooled"
            )
            assert reason_of(spent) == "BUDGET_SPENT"
        with AgentProcess(tmp_path / "b", node.settings(remediation={"enabled": False})) as agent:
            assert reason_of(refusal_of(agent, Action.KILL_SHIM, targets[1])) == "REMEDIATION_DISABLED"
        with (
            read_only(tmp_path / "fixed") as fixed,
            AgentProcess(tmp_path / "c", node.settings(**mending(fixed))) as agent,
        ):
            found(agent, about(second), "watching goes on without a ledger")
            error = refusal_of(agent, Action.KILL_SHIM, targets[1])
            assert reason_of(error) == "LEDGER_UNUSABLE"
            assert str(fixed) in str(error)
        assert not has_ended(second.shim)
    node.containerd.forget(first)
    delete_container(node.containerd, second)
    wait_until(node.agent.all_well, 20, "the node is well again")


@contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """A folder on a file system that takes no writes."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=64k", "nodediag-test", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _unless(error: ClientError, word: str) -> ClientError | None:
    return None if reason_of(error) == word else error


def test_over_tcp_only_those_callers_act_whom_the_settings_allow_it(node: Mender, tmp_path: Path) -> None:
    victim = node.victim("over-tcp")
    authority = Authority("callers and agents")
    files = Projected(tmp_path / "server")
    files.swap(authority.issue("127.0.0.1"), authority.pem)
    tls = {"cert_file": str(files.cert), "key_file": str(files.key), "client_ca_file": str(files.ca)}
    callers = [
        {"identity": "killer.ops", "actions": ["KillShim"]},
        {"identity": "thawer.ops", "actions": ["ThawCgroup"]},
    ]
    endpoint = f"127.0.0.1:{free_port()}"
    settings = node.settings(**mending(tmp_path / "state"), grpc={"listen": endpoint, "tls": tls, "callers": callers})

    def client(name: str) -> Client:
        cert, key = authority.issue(name).write(tmp_path, name)
        return Client(endpoint, tls=ClientTls(str(cert), str(key), str(files.ca)))

    with (
        shim_faults.stopped_shim(victim),
        untouched(node.neighbours),
        AgentProcess(tmp_path, settings),
        client("killer.ops") as killer,
        client("thawer.ops") as thawer,
        client("stranger.ops") as stranger,
    ):
        target = found_by(killer, about(victim), "the hung shim is named").target
        with pytest.raises(ClientError) as unknown:
            stranger.remediate(Action.KILL_SHIM, target)
        with pytest.raises(ClientError) as not_allowed:
            thawer.remediate(Action.KILL_SHIM, target)
        assert not has_ended(victim.shim)
        done = killer.remediate(Action.KILL_SHIM, target)
        assert done.outcome is Outcome.VERIFIED, done.message
        assert done.request.caller == "killer.ops"
        (listed,) = (each for each in killer.list_remediations() if each.outcome is not Outcome.REFUSED)
        assert listed == done
    assert unknown.value.code is grpc.StatusCode.PERMISSION_DENIED
    assert "stranger.ops" in str(unknown.value)
    assert reason_of(not_allowed.value) == "CALLER_NOT_ALLOWED"
    node.containerd.forget(victim)
    wait_until(node.agent.all_well, 20, "the node is well again")


# -- at most once


def test_fifty_times_the_same_request_from_ten_clients_acts_once(node: Mender) -> None:
    victim = node.victim("fifty")
    request_id = str(uuid.uuid4())
    with shim_faults.stopped_shim(victim), untouched(node.neighbours):
        target = found(node.agent, about(victim), "the hung shim is named").target
        before = len(ledger_rows(node.agent))
        start = threading.Barrier(50)
        clients = [Client(node.agent.endpoint) for _ in range(10)]

        def ask(number: int) -> object:
            start.wait(20)
            return clients[number % 10].remediate(Action.KILL_SHIM, target, request_id=request_id, fencing_token=20)

        with ThreadPoolExecutor(50) as pool:
            answers = list(pool.map(ask, range(50)))
        for client in clients:
            client.close()
    assert len(set(answers)) == 1
    assert len(ledger_rows(node.agent)) == before + 1
    node.containerd.forget(victim)
    wait_until(node.agent.all_well, 20, "the node is well again")


def test_an_agent_killed_at_any_step_leaves_it_interrupted_and_nothing_acts_twice(node: Mender, tmp_path: Path) -> None:
    """One agent and one victim a step, all at once."""
    with untouched(node.neighbours), ThreadPoolExecutor(len(Step)) as pool:
        for done in [pool.submit(_killed_at, node, tmp_path / step.name.lower(), step) for step in Step]:
            done.result()
    wait_until(node.agent.all_well, 20, "the node is well again")


def _killed_at(node: Mender, folder: Path, step: Step) -> None:
    victim = node.victim(f"crash-{step.name.lower().replace('_', '-')}")
    request_id = str(uuid.uuid4())
    settings = node.settings(**mending(folder / "state"))

    def start_crashing(argv: list[str], **options: Any) -> "subprocess.Popen[bytes]":
        crashing = [sys.executable, "-m", "tests.e2e.crashing_agent", step.value, *argv[argv.index("run") :]]
        return subprocess.Popen(crashing, **options)

    with shim_faults.stopped_shim(victim):
        with AgentProcess(folder, settings, start=start_crashing) as agent:
            target = found(agent, about(victim), "the hung shim is named").target
            with Client(agent.endpoint) as client, pytest.raises(ClientError):
                client.remediate(Action.KILL_SHIM, target, request_id=request_id)
            assert agent.process.wait(10) == -signal.SIGKILL
        acted = step in {Step.ACTED, Step.VERIFIED}
        assert has_ended(victim.shim) is acted, step
        with AgentProcess(folder, settings) as agent, Client(agent.endpoint) as client:
            again = client.remediate(Action.KILL_SHIM, target, request_id=request_id)
            assert again.outcome is Outcome.INTERRUPTED, step
            assert again.acted is (acted or step is Step.ABOUT_TO_ACT), step
            assert again == client.get_remediation(request_id)
            assert has_ended(victim.shim) is acted, "the repeat did nothing"
    if has_ended(victim.shim):
        node.containerd.forget(victim)
    else:
        delete_container(node.containerd, victim)


# -- by a controller


def test_the_example_controller_mends_what_it_is_told_to_watch_for(node: Mender, tmp_path: Path) -> None:
    victim = node.victim("example")
    lease = tmp_path / "lease"
    lease.write_text(f"{1000:020d}")  # later than every token seen so far
    example = [sys.executable, "examples/controller.py", "--endpoint", node.agent.endpoint, "--lease", str(lease)]
    with (
        shim_faults.frozen_shim(victim),
        untouched(node.neighbours),
        subprocess.Popen(example, stderr=subprocess.DEVNULL) as controller,
    ):
        try:
            wait_until(lambda: _outcome_about(node.agent, victim), 60, "the controller had it mended")
        finally:
            controller.terminate()
        assert _outcome_about(node.agent, victim) == "verified"
    wait_until(node.agent.all_well, 20, "the node is well again")
    delete_container(node.containerd, victim)


def _outcome_about(agent: AgentProcess, victim: Container) -> str:
    """What came of the last thing that was asked about a container and is over; empty if nothing."""
    about_it = [row for row in ledger_rows(agent) if row["target"].get("containerId") == victim.id]
    return next((row["outcome"] for row in about_it if row["outcome"] not in {"running", "refused"}), "")
