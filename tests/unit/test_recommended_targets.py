"""An action is recommended only if the gate accepts the finding's target as it is given."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest

from agent.acts import Caller, Limits, RefusalReason, Request
from agent.detectors import container_runtime, healthz_findings
from agent.detectors.container_runtime import ContainerRuntimeDetector, ContainerRuntimeSettings
from agent.detectors.defunct_findings import Parent, not_reaping
from agent.host.cgroups import CgroupOwner
from agent.host.exchange import Attempt, Ending, Phase
from agent.host.inventory import SHIM_COMM
from agent.host.kubelet import HttpAnswer
from agent.host.procfs import Process
from agent.host.service import RUNS, Halt, Lifetime
from agent.model import Action, Finding, ProcessId
from agent.remediation.gate import decide
from agent.remediation.gate_facts import ProcessFacts, Standing
from tests.unit.detectors.test_container_runtime import detector as runtime
from tests.unit.detectors.test_kubelet_healthz import detector as healthz

BOOT = "7c5d0e0e-0a4c-4f0e-9c55-6f4c3c1c9d11"
PROCESS, CGROUP = ProcessId(812, 4000), "/system.slice/x.service"
LIVES = (
    Lifetime(PROCESS, 3600.0),
    Lifetime(PROCESS, 3600.0, cgroup=CGROUP),
    Lifetime(ended=PROCESS),
    Lifetime(ended=PROCESS, cgroup=CGROUP),
    Lifetime(),
    Lifetime(cgroup=CGROUP),
)
HALTS = (RUNS, Halt("T"), Halt("", CGROUP))


def findings() -> Iterator[Finding]:
    """Every finding about the kubelet and containerd, in every state their process may be in."""
    for ending, life, halt in product(Ending, LIVES, HALTS):
        attempt: Attempt[Any] = Attempt(ending, Phase.FIRST_BYTE, 10.0)
        runtimes = container_runtime.Observation("/c.sock", (attempt, attempt), life, 99.0, BOOT, halt)
        yield from runtime(settings=ContainerRuntimeSettings()).check(runtimes).findings
        for answer, before in product((None, HttpAnswer(500, b"no"), HttpAnswer(404, b"")), (True, False)):
            answered: Attempt[Any] = Attempt(ending, Phase.FIRST_BYTE, 10.0, answer=answer)
            kubelet = healthz_findings.Observation("http://u", (answered, answered), life, 99.0, before, BOOT, halt)
            if ending not in {Ending.ANSWERED, Ending.TOO_LARGE} or answer is not None:
                yield from healthz().check(kubelet).findings


def refusal_of(finding: Finding, process: ProcessFacts | None = None) -> str:
    target, action = finding.target, finding.recommended_action
    process = process or ProcessFacts(812, 4000, str(target.kind), "S", in_container=False, nested=False)
    request = Request("6a1c6f0e-0000-4000-8000-000000000001", action, target, "controller")
    standing = Standing(
        enabled=True,
        limits={action: Limits()},
        max_per_hour=9,
        caller=Caller("controller", frozenset({action})),
        targets=(target.kind,),
        highest_token=0,
        known=None,
        history=(),
        paused="",
        trouble="",
        boot_id=BOOT,
        boot_seconds=1e6,
        own_pid=1,
        process=process if target.pid else None,
    )
    refusal = decide(request, standing)
    return "" if refusal is None else f"{refusal.reason}: {refusal.message}"


def test_what_is_recommended_for_a_service_passes_the_gate_as_it_is() -> None:
    seen = list(findings())
    recommended = [each for each in seen if each.recommended_action is not Action.NONE]
    assert {each.recommended_action for each in recommended} == {
        Action.RESTART_KUBELET,
        Action.RESTART_CONTAINERD,
        Action.THAW_CGROUP,
    }
    for finding in recommended:
        assert not refusal_of(finding), finding
    assert any(each.target.pid is None for each in recommended), "one that has ended"


def test_the_check_can_fail() -> None:
    nothing_known = runtime().check(
        container_runtime.Observation("/c.sock", (Attempt(Ending.REFUSED, Phase.CONNECT, 0.1),), Lifetime(), 99.0, BOOT)
    )
    (finding,) = nothing_known.findings
    assert finding.recommended_action is Action.NONE
    wrong = Finding(finding.condition, finding.reason, "", Action.RESTART_CONTAINERD, finding.target)
    assert refusal_of(wrong).startswith(RefusalReason.INEXACT_TARGET)


@pytest.mark.parametrize("reason", ContainerRuntimeDetector.conditions["ContainerRuntimeUnresponsive"])
def test_every_reason_is_among_those_checked(reason: str) -> None:
    assert reason in {each.reason for each in findings()}


def parents() -> Iterator[Parent]:
    """Parents of zombies: in a container or not, frozen, stopped, or named as something that is never touched."""
    owner = CgroupOwner("/kubepods/pod1/abc", "abc")
    for pid, comm, state, of, frozen in product(
        (812, 1), ("sh", SHIM_COMM), ("S", "T"), (owner, None), ("", "/system.slice/x.service")
    ):
        process = Process(pid, comm, state, 1, 4000)
        yield Parent(pid, process, 99, 60.0, "sleep", 99, owner=of, frozen_cgroup=frozen)


def test_what_is_recommended_for_a_parent_of_zombies_passes_the_gate_as_it_is() -> None:
    recommended = 0
    for parent in parents():
        assert parent.process is not None
        finding = not_reaping(parent, parent.process, BOOT)
        if finding.recommended_action is Action.NONE:
            continue
        recommended += 1
        in_container = parent.owner is not None
        process = ProcessFacts(parent.pid, 4000, parent.process.comm, parent.process.state, in_container, nested=False)
        assert not refusal_of(finding, process), finding
    assert recommended
