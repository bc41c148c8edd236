"""SignalParent and KillParent on zombies under real containers."""

import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from agent.acts import RefusalReason, RefusedError
from agent.clock import StallMeter
from agent.host.cgroups import Cgroups
from agent.host.procfs import Procfs
from agent.model import Action, Finding, PodRef, Target, TargetKind
from agent.remediation.actions.kill_parent import KillParent
from agent.remediation.actions.signal_parent import SignalParent
from agent.remediation.remedy import Remedy, Verification
from agent.remediation.zombies import Parents
from tests.lab.containerd import Containerd
from tests.lab.containers import fifos_of, running_container
from tests.lab.pods import Container, Pod
from tests.lab.processes import Process, Stat, children_of, has_ended, read_stat, send_signal, stat_of
from tests.lab.shim_faults import has_shim
from tests.lab.waiting import wait_until
from tests.lab.zombies import Breeder, breeder_container, plain_zombies, reaping_parent, zombies_of

MIN_ZOMBIES = 31
ZOMBIES = 500
POD = Pod(name="cache-0", namespace="shop")

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def containerd() -> Iterator[Containerd]:
    with Containerd() as running:
        yield running


@pytest.fixture(scope="module")
def clock() -> Iterator[StallMeter]:
    meter = StallMeter()
    meter.start()
    yield meter
    meter.stop()


@pytest.fixture(scope="module")
def parents(clock: StallMeter) -> Parents:
    return Parents(Procfs("/proc"), Cgroups("/sys"), ("k8s.io",), clock, MIN_ZOMBIES)


@pytest.fixture(scope="module")
def neighbour(containerd: Containerd) -> Iterator[Container]:
    with running_container(containerd) as container:
        yield container


@pytest.fixture
def breeder(containerd: Containerd) -> Iterator[Breeder]:
    with breeder_container(containerd, pod=replace(POD, sandbox_id=secrets.token_hex(32))) as made:
        yield made


def target_of(breeder: Breeder) -> Target:
    """Return what the detector would accuse."""
    container = breeder.container
    return Target(
        TargetKind.PROCESS,
        pid=breeder.process.pid,
        start_time=breeder.process.start_time,
        container_id=container.id if container else "",
        cgroup=container.cgroup if container else "",
    )


def finding_on(target: Target) -> Finding:
    pod = PodRef("shop", "cache-0", container="redis")
    return Finding("ExcessiveDefunctProcesses", "ParentNotReaping", "", Action.SIGNAL_PARENT, target, pod)


def done_by(remedy: Remedy, target: Target) -> tuple[str, Verification]:
    with remedy.confirm(target, finding_on(target)) as case:
        assert case.evidence()["zombies"] >= MIN_ZOMBIES
        return case.perform(), case.verify()


def refused_by(remedy: Remedy, target: Target) -> tuple[RefusalReason, str]:
    with pytest.raises(RefusedError) as caught, remedy.confirm(target, finding_on(target)):
        pass
    return caught.value.refusal.reason, caught.value.refusal.message


def gone(zombies: list[Stat]) -> bool:
    return not any(stat_of(Process(each.pid, each.start_time)) for each in zombies)


def test_a_parent_that_reaps_when_reminded(parents: Parents, clock: StallMeter, breeder: Breeder) -> None:
    with zombies_of(breeder, ZOMBIES):
        breeder.heed_sigchld()
        done, outcome = done_by(SignalParent(parents, clock), target_of(breeder))
        assert done == f"sent SIGCHLD to process {breeder.process.pid} (breeder) of pod shop/cache-0 (container redis)"
        assert outcome.helped is True
        assert outcome.message.startswith(f"{ZOMBIES} of {ZOMBIES} zombies")
        assert breeder.zombies() == []
        assert not has_ended(breeder.process)


def test_pid_1_that_ignores_both_sigchld_and_sigterm_is_killed_and_its_zombies_reaped(
    parents: Parents, clock: StallMeter, breeder: Breeder, neighbour: Container
) -> None:
    assert breeder.container is not None
    with zombies_of(breeder, ZOMBIES):
        zombies, target = breeder.zombies(), target_of(breeder)
        _, outcome = done_by(SignalParent(parents, clock, verify_seconds=1.0), target)
        assert outcome.helped is False
        assert outcome.message.startswith(f"0 of {ZOMBIES} zombies")

        done, outcome = done_by(KillParent(parents, clock, grace_seconds=1.0), target)
        # the kernel keeps SIGTERM from a namespace's first process that has no handler for it
        assert done.startswith(f"sent SIGKILL to process {breeder.process.pid} (breeder)")
        assert outcome.helped is True
        assert f"its {ZOMBIES} zombies are reaped" in outcome.message
        assert gone(zombies)
        assert refused_by(KillParent(parents, clock), target)[0] is RefusalReason.TARGET_GONE
    assert has_shim(neighbour)
    assert not has_ended(neighbour.init)


@contextmanager
def second_breeder(containerd: Containerd, breeder: Breeder) -> Iterator[Breeder]:
    """Run one more in the same container, as an exec does: its orphans fall to the first."""
    container = breeder.container
    assert container is not None
    before = {child.pid for child in children_of(container.shim_pid)}
    command = ("--exec-id", f"e{secrets.token_hex(4)}", container.id, "/bin/breeder", "/control/t")
    containerd.ctr("tasks", "exec", "--detach", *fifos_of(containerd), *command, namespace=container.namespace)
    control = breeder.control.with_name("t")
    wait_until(control.exists, 10, "the second breeder's socket")
    (process,) = (child for child in children_of(container.shim_pid) if child.pid not in before)
    yield Breeder(process, control, container)


def test_zombies_that_fall_to_a_pid_1_that_does_not_reap(
    containerd: Containerd, parents: Parents, clock: StallMeter, breeder: Breeder
) -> None:
    with second_breeder(containerd, breeder) as second:
        second.breed(60)
        wait_until(lambda: len(second.zombies()) == 60, 10, "sixty zombies")
        done, outcome = done_by(KillParent(parents, clock, verify_seconds=2.0), target_of(second))
    assert "with SIGTERM" in done
    assert outcome.helped is False
    assert "60 of 60 zombies are left" in outcome.message
    assert f"now belong to process {breeder.process.pid} (breeder), which does not reap" in outcome.message
    assert not has_ended(breeder.process)
    breeder.reap()


def test_a_parent_that_reaps_is_not_touched(parents: Parents, clock: StallMeter, breeder: Breeder) -> None:
    with reaping_parent(breeder, per_second=200, lifetime=0.4):
        wait_until(lambda: len(breeder.zombies()) > MIN_ZOMBIES, 10, "zombies that come and go")
        for remedy in (SignalParent(parents, clock), KillParent(parents, clock)):
            reason, message = refused_by(remedy, target_of(breeder))
            assert reason is RefusalReason.NOT_CONFIRMED
            assert "has 0 lasting zombies now" in message
        assert not has_ended(breeder.process)


def test_a_pid_that_was_reused_is_not_touched(parents: Parents, clock: StallMeter, breeder: Breeder) -> None:
    with zombies_of(breeder, 60):
        before = replace(target_of(breeder), start_time=breeder.process.start_time - 1)
        assert refused_by(KillParent(parents, clock), before)[0] is RefusalReason.TARGET_CHANGED
        assert not has_ended(breeder.process)


def test_a_process_of_no_container_is_not_touched(parents: Parents, clock: StallMeter) -> None:
    with plain_zombies(60) as breeder:
        for remedy in (SignalParent(parents, clock), KillParent(parents, clock)):
            assert refused_by(remedy, target_of(breeder))[0] is RefusalReason.PROTECTED_PROCESS
        assert not has_ended(breeder.process)


def test_a_shim_is_not_touched(containerd: Containerd, parents: Parents, clock: StallMeter) -> None:
    with running_container(containerd) as container:
        target = Target(
            TargetKind.PROCESS,
            pid=container.shim_pid,
            start_time=container.shim.start_time,
            container_id=container.id,
        )
        assert refused_by(KillParent(parents, clock), target)[0] is RefusalReason.PROTECTED_PROCESS
        assert has_shim(container)


def test_a_frozen_parent_is_left_to_be_thawed(
    containerd: Containerd, parents: Parents, clock: StallMeter, breeder: Breeder
) -> None:
    container = breeder.container
    assert container is not None
    with zombies_of(breeder, 60):
        containerd.ctr("tasks", "pause", container.id, namespace=container.namespace)
        try:
            reason, message = refused_by(KillParent(parents, clock), target_of(breeder))
        finally:
            containerd.ctr("tasks", "resume", container.id, namespace=container.namespace)
    assert reason is RefusalReason.NOT_CONFIRMED
    assert container.cgroup in message
    assert "ThawCgroup" in message


def test_a_stopped_parent_is_left_to_be_continued(parents: Parents, clock: StallMeter, breeder: Breeder) -> None:
    with zombies_of(breeder, 60):
        send_signal(breeder.process, signal.SIGSTOP)
        try:
            wait_until(lambda: (stat := read_stat(breeder.process.pid)) and stat.state == "T", 5, "it is stopped")
            reason, _ = refused_by(KillParent(parents, clock), target_of(breeder))
        finally:
            send_signal(breeder.process, signal.SIGCONT)
    assert reason is RefusalReason.NOT_CONFIRMED
