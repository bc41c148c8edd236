"""When RestartKubelet acts, when it refuses, and what it then makes of what it sees."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from agent.acts import RefusalReason
from agent.detectors.kubelet_healthz import KubeletHealthzDetector
from agent.host.cgroups import Cgroups
from agent.host.exchange import Attempt, Ending, Phase
from agent.host.procfs import Process
from agent.model import Action, Finding, Target, TargetKind
from agent.remediation.actions import restart_kubelet
from agent.remediation.actions.restart_kubelet import RestartKubelet
from agent.remediation.remedy import ActError, Remedy
from agent.remediation.restart_case import RestartCase
from agent.remediation.services import Patience
from agent.remediation.systemd import Systemd
from tests.lab.kubelet_standin import KubeletMode, KubeletStandin, Reply
from tests.unit.builders import UNREAL_PID, RealClock
from tests.unit.remediation.fake_node import BOOT, PATIENCE, FakeNode, child, refusal, started

SOCKET = 77
FAILING = "KubeletHealthzFailing"


@dataclass
class Bench:
    """A node whose kubelet is a child of ours, while its healthz is answered by a stand-in."""

    node: FakeNode
    healthz: KubeletStandin
    process: subprocess.Popen[bytes]
    kubelet: Process

    def remedy(self, patience: Patience = PATIENCE, **more: Any) -> RestartKubelet:
        wiring: dict[str, Any] = {
            "procfs": self.node.procfs,
            "cgroups": Cgroups(str(self.node.root / "sys")),
            "listeners": self.node.listeners,
            "namespaces": ("k8s.io",),
            "systemd": Systemd(str(self.node.root / "no-bus"), RealClock()),
            "clock": RealClock(),
            "patience": patience,
        }
        return RestartKubelet(more.pop("url", self.healthz.url), **(wiring | more))

    def target(self, **changed: Any) -> Target:
        words: dict[str, Any] = {
            "pid": self.kubelet.pid,
            "start_time": self.kubelet.start_time,
            "boot_id": BOOT,
            "address": self.healthz.url,
        }
        return Target(TargetKind.KUBELET, **(words | changed))

    def confirm(self, reason: str, remedy: RestartKubelet | None = None, **changed: Any) -> Any:
        target = self.target(**changed)
        finding = Finding(FAILING, reason, "", Action.RESTART_KUBELET, target)
        return (remedy or self.remedy()).confirm(target, finding)

    def refused(self, reason: str, remedy: RestartKubelet | None = None, **changed: Any) -> tuple[RefusalReason, str]:
        def open_case() -> None:
            with self.confirm(reason, remedy, **changed):
                pass

        seen = refusal(open_case)
        assert self.process.poll() is None, "a refusal touches nothing"
        return seen.reason, seen.message

    def succeed(self, holds: tuple[int, ...] = (SOCKET + 1,)) -> Process:
        """Start another kubelet in place of the one that has ended."""
        self.node.proc.remove(self.kubelet.pid)
        new = self.node.add(UNREAL_PID, holds=holds, start_time=self.kubelet.start_time + 5)
        self.node.listen(tcp=dict.fromkeys(holds, self.healthz.port))
        return new


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    node = FakeNode(tmp_path)
    with KubeletStandin() as healthz, child() as process:
        kubelet = node.add(process.pid, holds=(SOCKET,))
        node.listen(tcp={SOCKET: healthz.port})
        yield Bench(node, healthz, process, kubelet)


def nobody_listens(bench: Bench) -> None:
    bench.healthz.set_mode(KubeletMode.REFUSE)
    bench.node.listen()


# --- what it is


def test_it_mends_what_the_detector_recommends_it_for() -> None:
    remedy: type[Remedy] = RestartKubelet
    (kind, reasons), *others = remedy.mends.items()
    assert not others
    known = KubeletHealthzDetector.conditions[kind]
    assert set(reasons) == set(known) - {"HealthzSlow"}
    assert remedy.targets == (TargetKind.KUBELET,)


# --- asked afresh


@pytest.mark.parametrize("reason", ["HealthzTimeout", "HealthzRefused", "HealthzNotOK"])
def test_a_healthy_kubelet_is_left_alone(bench: Bench, reason: str) -> None:
    why, message = bench.refused(reason)
    assert why is RefusalReason.NOT_CONFIRMED
    assert "asked afresh it does not show this fault now: answered" in message


@pytest.mark.parametrize(
    ("reason", "mode"),
    [
        ("HealthzTimeout", KubeletMode.NEVER),
        ("HealthzTimeout", KubeletMode.BACKLOG),
        ("HealthzTimeout", KubeletMode.TRICKLE_BODY),
        ("HealthzNotOK", KubeletMode.ERROR_500),
        ("HealthzRefused", KubeletMode.RESET),
    ],
)
def test_a_kubelet_that_still_fails_in_the_same_way_is_confirmed(bench: Bench, reason: str, mode: KubeletMode) -> None:
    bench.healthz.set_mode(mode)
    with bench.confirm(reason) as case:
        assert f"kubelet (pid {bench.kubelet.pid}) still fails at {bench.healthz.url}" in case.message
        assert "by signals, since there is no system bus" in case.message
    assert bench.process.poll() is None


def test_a_kubelet_that_does_not_listen_is_confirmed(bench: Bench) -> None:
    nobody_listens(bench)
    with bench.confirm("HealthzRefused") as case:
        assert "then refused after" in case.message


@pytest.mark.parametrize(
    ("reason", "mode"),
    [
        ("HealthzTimeout", KubeletMode.ERROR_500),
        ("HealthzTimeout", KubeletMode.RESET),
        ("HealthzRefused", KubeletMode.NEVER),
        ("HealthzNotOK", KubeletMode.NEVER),
        ("HealthzNotOK", KubeletMode.GARBAGE),
    ],
)
def test_another_fault_is_not_this_fault(bench: Bench, reason: str, mode: KubeletMode) -> None:
    bench.healthz.set_mode(mode)
    assert bench.refused(reason)[0] is RefusalReason.NOT_CONFIRMED


@pytest.mark.parametrize("second", [Ending.ANSWERED, Ending.LEFT, None])
def test_a_connection_that_was_merely_lost_is_no_timeout(bench: Bench, second: Ending | None) -> None:
    """The second one, beside it, was answered, or not given its time, or never made."""
    attempts: list[Attempt[Any]] = [
        Attempt(ending, Phase.FIRST_BYTE, 0.3) for ending in (Ending.TIMEOUT, second) if ending
    ]
    remedy = bench.remedy()
    remedy._ask = lambda *_: tuple(attempts)  # type: ignore[method-assign]
    assert bench.refused("HealthzTimeout", remedy)[0] is RefusalReason.NOT_CONFIRMED


def test_a_slow_kubelet_is_no_ground(bench: Bench) -> None:
    why, message = bench.refused("HealthzSlow")
    assert why is RefusalReason.NOT_CONFIRMED
    assert "no ground to restart a kubelet" in message


@pytest.mark.parametrize("status", [301, 404])
def test_a_wrong_url_is_no_fault_of_the_kubelet(bench: Bench, status: int) -> None:
    bench.healthz.routes["/healthz"] = Reply(b"", status, "x")
    why, message = bench.refused("HealthzNotOK")
    assert why is RefusalReason.NOT_CONFIRMED
    assert "kubelet.healthz_url is wrong" in message


def test_one_failure_is_not_enough(bench: Bench) -> None:
    """It recovers between the two looks."""
    bench.healthz.set_mode(KubeletMode.ERROR_500)
    remedy = bench.remedy()
    ask = remedy._ask

    def once(deadline: float, hedge: float) -> Any:
        attempts = ask(deadline, hedge)
        bench.healthz.set_mode(KubeletMode.HEALTHY)
        return attempts

    remedy._ask = once  # type: ignore[method-assign]
    assert bench.refused("HealthzNotOK", remedy)[0] is RefusalReason.NOT_CONFIRMED


def test_a_young_kubelet_is_left_to_start(bench: Bench) -> None:
    nobody_listens(bench)
    young = bench.node.add(bench.kubelet.pid, start_time=started(5))
    why, message = bench.refused("HealthzRefused", start_time=young.start_time)
    assert why is RefusalReason.NOT_CONFIRMED
    assert "may not listen yet" in message


def test_a_kubelet_that_ends_between_the_looks_is_gone(bench: Bench) -> None:
    bench.healthz.set_mode(KubeletMode.ERROR_500)
    remedy = bench.remedy(replace(PATIENCE, recheck=5.0))
    ask = remedy._ask

    def last(deadline: float, hedge: float) -> Any:
        attempts = ask(deadline, hedge)
        bench.process.kill()
        return attempts

    remedy._ask = last  # type: ignore[method-assign]

    def open_case() -> None:
        with bench.confirm("HealthzNotOK", remedy):
            pass

    assert refusal(open_case).reason is RefusalReason.TARGET_GONE


# --- who it is


def test_the_exact_process_alone_is_meant(bench: Bench) -> None:
    bench.healthz.set_mode(KubeletMode.NEVER)
    for changed, reason in (
        ({"start_time": bench.kubelet.start_time - 1}, RefusalReason.TARGET_CHANGED),
        ({"boot_id": "another"}, RefusalReason.OTHER_BOOT),
        ({"pid": None}, RefusalReason.TARGET_GONE),
        ({"pid": 1, "start_time": 100}, RefusalReason.PROTECTED_PROCESS),
        ({"address": "http://127.0.0.1:1/healthz"}, RefusalReason.TARGET_CHANGED),
    ):
        assert bench.refused("HealthzTimeout", **changed)[0] is reason


def test_a_socket_held_by_somebody_else_protects_the_process(bench: Bench) -> None:
    bench.healthz.set_mode(KubeletMode.NEVER)
    bench.node.listen(tcp={SOCKET + 5: bench.healthz.port})
    assert bench.refused("HealthzTimeout")[0] is RefusalReason.UNSAFE_NOW


def test_a_listener_that_cannot_be_seen_is_not_guessed(bench: Bench) -> None:
    """The connection is taken, but no table tells by whom: it may be anybody."""
    bench.healthz.set_mode(KubeletMode.NEVER)
    bench.node.listen()
    why, message = bench.refused("HealthzTimeout")
    assert why is RefusalReason.CANNOT_SEE
    assert "who listens there is not to be seen" in message


def test_from_another_network_nothing_can_be_confirmed(bench: Bench) -> None:
    bench.healthz.set_mode(KubeletMode.NEVER)
    remedy = bench.remedy(network_problem=lambda: "set hostNetwork: true in the pod's spec")
    why, message = bench.refused("HealthzTimeout", remedy)
    assert why is RefusalReason.CANNOT_SEE
    assert "hostNetwork" in message


def test_an_unsupervised_kubelet_is_not_ended(bench: Bench) -> None:
    bench.healthz.set_mode(KubeletMode.NEVER)
    bench.node.proc.add(1, "init", ppid=0)
    assert bench.refused("HealthzTimeout")[0] is RefusalReason.UNSAFE_NOW


# --- evidence, act, effect


def test_the_evidence_is_json_and_tells_who_how_and_whereby(bench: Bench) -> None:
    bench.healthz.set_mode(KubeletMode.NEVER)
    with bench.confirm("HealthzTimeout") as case:
        seen = json.loads(json.dumps(case.evidence()))
    assert seen["process"]["pid"] == bench.kubelet.pid
    assert [attempt["ending"] for attempt in seen["attempts"]] == ["timeout", "timeout"]
    assert seen["attempts"][0]["waitingFor"] == "first_byte"
    assert seen["listening"] == {"address": bench.healthz.url, "inodes": [SOCKET]}
    assert "signals" in seen["restartBy"]
    assert seen["unit"] is None


def performed(bench: Bench, case: RestartCase) -> None:
    assert "was killed (by signals" in case.perform()
    assert bench.process.wait(5) == -9


def test_a_successor_that_answers_is_a_mended_kubelet(bench: Bench) -> None:
    bench.healthz.set_mode(KubeletMode.NEVER)
    with bench.confirm("HealthzTimeout") as case:
        performed(bench, case)
        new = bench.succeed()
        bench.healthz.set_mode(KubeletMode.HEALTHY)
        seen = case.verify()
    assert seen.helped is True
    assert f"process {new.pid} (start time {new.start_time})" in seen.message


def test_a_successor_that_never_comes_did_not_help(bench: Bench) -> None:
    bench.healthz.set_mode(KubeletMode.NEVER)
    with bench.confirm("HealthzTimeout") as case:
        performed(bench, case)
        bench.healthz.set_mode(KubeletMode.HEALTHY)
        seen = case.verify()
    assert seen.helped is False
    assert (
        f"no new process of kubelet was seen within {PATIENCE.successor:g} s. "
        "See systemctl show -p ActiveState,Result kubelet" in seen.message
    )


@pytest.mark.parametrize("mode", [KubeletMode.NEVER, KubeletMode.ERROR_500, KubeletMode.REFUSE])
def test_a_successor_that_is_ill_too_did_not_help(
    bench: Bench, mode: KubeletMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restart_kubelet, "ASK_SECONDS", 0.3)
    bench.healthz.set_mode(KubeletMode.NEVER)
    with bench.confirm("HealthzTimeout") as case:
        performed(bench, case)
        bench.succeed()
        bench.healthz.set_mode(mode)
        seen = case.verify()
    assert seen.helped is False
    assert "is not well: its healthz" in seen.message


def test_a_kubelet_that_ended_by_itself_is_not_ended_again(bench: Bench) -> None:
    bench.healthz.set_mode(KubeletMode.NEVER)
    with bench.confirm("HealthzTimeout") as case:
        bench.process.kill()
        bench.process.wait(5)
        with pytest.raises(ActError, match="nothing was done"):
            case.perform()
