"""The advice for shims and their containers, followed to the letter on a real containerd.

The findings are the detector's own, and the commands are those of the report, run by a shell as they stand.
"""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from agent.detectors.containerd_shim import ContainerdShimDetector, ContainerdShimSettings
from agent.exporters.advice import advise
from agent.exporters.advice_steps import Step
from agent.host.bundles import Bundles
from agent.host.cgroups import Cgroups
from agent.host.inventory import InventorySense
from agent.host.pods import Pods
from agent.host.procfs import Procfs
from agent.host.shims import ShimSense
from agent.model import Finding
from agent.remediation.actions.kill_shim import KillShim
from tests.lab import cgroups as lab_cgroups
from tests.lab import shim_faults
from tests.lab.containerd import Containerd
from tests.lab.containers import delete_container, run_container, run_pod
from tests.lab.cri_pods import cri_pod
from tests.lab.pods import Container, Pod
from tests.lab.processes import Process, children_of, has_ended, stat_of
from tests.lab.shim_ping import connect_answers, state_answers
from tests.lab.waiting import wait_until
from tests.unit.builders import RealClock
from tests.unit.remediation.sleepers import TREES

PROCFS, CGROUPS, CLOCK = Procfs("/proc"), Cgroups("/sys"), RealClock()
NAMESPACES = ("k8s.io",)
QUICK = ContainerdShimSettings(ping_seconds=0.3, hung_seconds=1, stuck_seconds=1, leak_seconds=1)
THREE = ("/bin/sh", "-c", "sleep 1000 & sleep 1000 & wait")

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def containerd() -> Iterator[Containerd]:
    with Containerd() as running:
        yield running


@contextmanager
def pod(containerd: Containerd, *argv: str) -> Iterator[Container]:
    container = run_container(containerd, argv=argv or ("/bin/sleep", "1000"))
    try:
        yield container
    finally:
        shim_faults.bury(containerd, container)


def inventory(containerd: Containerd) -> InventorySense:
    bundles = Bundles(str(containerd.state_dir), NAMESPACES)
    return InventorySense(bundles, PROCFS, Pods(bundles, PROCFS), NAMESPACES)


def found(containerd: Containerd, reason: str, container: Container) -> Finding:
    """What the detector says of a container or its shim, once it does."""
    detector = ContainerdShimDetector(
        QUICK, inventory(containerd), ShimSense(CLOCK), PROCFS, CGROUPS, lambda: None, CLOCK, expected=True
    )

    def named() -> Finding | None:
        findings = detector.check(detector.probe()).findings
        return next((f for f in findings if (f.reason, f.target.container_id) == (reason, container.id)), None)

    return wait_until(named, 30, f"{reason} of {container.id}")


def step(finding: Finding, words: str) -> Step:
    """The step of a finding's advice whose instruction begins so."""
    return next(each for each in advise(finding).steps if each.do.startswith(words))


def follow(taken: Step) -> str:
    """Type a step's commands and return what they print."""
    done = subprocess.run(
        ["sh", "-c", "\n".join(taken.commands)], capture_output=True, text=True, timeout=60, check=False
    )
    ended = ("No such process", "No such file or directory")
    complaints = [line for line in done.stderr.splitlines() if line and not line.endswith(ended)]
    assert complaints == [], "a process that has ended with another one meanwhile is all there is to complain of"
    return done.stdout


def members(container: Container, count: int) -> list[Process]:
    def all_there() -> list[Process] | None:
        there = lab_cgroups.member_processes(container.cgroup)
        return there if len(there) >= count else None

    return wait_until(all_there, 10, f"{count} processes in {container.cgroup}")


def test_a_stopped_shim_is_continued_by_the_first_step_and_loses_nothing(containerd: Containerd) -> None:
    with pod(containerd) as web, shim_faults.stopped_shim(web):
        finding = found(containerd, "ShimUnresponsive", web)
        first = advise(finding).steps[0]
        assert follow(first) == "containerd-shim\n"
        wait_until(lambda: connect_answers(web.shim_socket, web.id), 10, "the continued shim's answer")
        assert not has_ended(web.init)


def test_the_kill_by_hand_ends_what_survives_it_and_nothing_else(containerd: Containerd) -> None:
    """containerd is held meanwhile, so that it ends nothing: what containerd 2.x leaves alive by itself."""
    with pod(containerd, *THREE) as web, pod(containerd) as neighbour, shim_faults.stopped_shim(web):
        inside = members(web, 3)
        finding = found(containerd, "ShimUnresponsive", web)
        containerd.pause()
        try:
            assert follow(step(finding, "Kill the shim by hand")) == "containerd-shim\n"
            wait_until(lambda: all(map(has_ended, [web.shim, *inside])), 10, "the end of the shim and its containers")
            left = follow(step(finding, "List what is left")).splitlines()
            assert [line for line in left if not line.endswith("Z (zombie)")] == []
            assert follow(step(finding, "End what is left")) == ""
        finally:
            containerd.resume()
        assert not has_ended(neighbour.init)
        assert connect_answers(neighbour.shim_socket, neighbour.id)


def test_what_survives_a_kill_is_listed_and_ended_by_its_pid(containerd: Containerd) -> None:
    with pod(containerd, *THREE) as web, shim_faults.stopped_shim(web):
        inside = members(web, 3)
        finding = found(containerd, "ShimUnresponsive", web)
        listed = follow(step(finding, "List what is left")).splitlines()
        assert {int(line.split()[0]) for line in listed} == {process.pid for process in inside}
        assert all(line.endswith("State: S (sleeping)") for line in listed)
        follow(step(finding, "End what is left"))
        wait_until(lambda: all(map(has_ended, inside)), 10, "the end of the container's processes")


def test_the_runc_that_holds_the_lock_is_named_kept_as_evidence_and_ended_without_loss(containerd: Containerd) -> None:
    with shim_faults.stuck_state(containerd) as stuck:
        (runc,) = [stat for stat in map(stat_of, children_of(stuck.shim_pid)) if stat and stat.comm == b"runc"]
        finding = found(containerd, "ShimOperationStuck", stuck)
        assert finding.values["runcPid"] == runc.pid
        assert isinstance(finding.values["runcAgeSeconds"], float)
        assert f"its child runc {runc.pid}, running for " in finding.message
        assert (finding.target.container_id, finding.pod and finding.pod.name) == (stuck.id, stuck.pod_name)
        killer = KillShim(inventory(containerd), PROCFS, CGROUPS, CLOCK, sysfs="/sys", probe_seconds=1)
        with killer.confirm(finding.target, finding) as case:
            kept = json.loads(json.dumps(dict(case.evidence())))
        assert [each["stat"].split()[:2] for each in kept["runtimes"]] == [[str(runc.pid), "(runc)"]]
        assert follow(step(finding, "End the runc")) == "runc\n"
        wait_until(lambda: state_answers(stuck.shim_socket, stuck.id), 10, "State answered again")
        assert not has_ended(stuck.init)


def test_an_operation_stuck_on_one_of_a_pods_containers_is_told_with_that_containers_name_and_id(
    containerd: Containerd,
) -> None:
    sandbox, app = run_pod(containerd, ("app",), pod=Pod(name="duo", namespace="shop"))
    try:
        with shim_faults.stuck_state(containerd, sandbox.pod) as side:
            assert side.shim == sandbox.shim
            finding = found(containerd, "ShimOperationStuck", side)
            assert finding.pod is not None
            assert (finding.pod.container, finding.target.container_id) == (side.name, side.id)
            assert f"pod shop/duo, container {side.name} ({side.id[:12]}) has been stuck" in finding.message
            assert set(finding.values["containerIds"] or ()) > {sandbox.id, side.id}  # type: ignore[arg-type]
    finally:
        for container in (app, sandbox):
            delete_container(containerd, container)


@pytest.mark.parametrize("version", [tree.version for tree in TREES])
def test_a_frozen_shim_is_thawed_by_the_file_of_the_hierarchy_that_froze_it(
    containerd: Containerd, version: int
) -> None:
    with pod(containerd) as cold, shim_faults.frozen_shim(cold, version):
        finding = found(containerd, "ShimUnresponsive", cold)
        assert str(finding.values["thawFile"]).endswith("freezer.state" if version == 1 else "cgroup.freeze")
        follow(step(finding, "Thaw the cgroup by hand"))
        wait_until(lambda: connect_answers(cold.shim_socket, cold.id), 10, "the thawed shim's answer")


def test_all_processes_without_a_shim_are_counted_listed_and_ended(containerd: Containerd) -> None:
    container = run_container(containerd, argv=THREE)
    inside = members(container, 3)
    with shim_faults.processes_without_shim(containerd, container):
        finding = found(containerd, "ProcessesWithoutShim", container)
        assert finding.values["processes"] == 3
        assert "3 processes, the first is process" in finding.message
        listed = {int(line.split()[0]) for line in follow(step(finding, "List the processes")).splitlines()}
        assert listed == {process.pid for process in inside}
        follow(step(finding, "End what is left"))
        wait_until(lambda: all(map(has_ended, inside)), 10, "the end of the processes")


def test_the_kill_by_hand_leaves_no_second_writer_where_a_kubelets_pod_survives_its_shim() -> None:
    """containerd#10727: on 2.x the containers of a CRI pod survive the kill of their shim; nothing is imitated here."""
    with Containerd(cri=True) as containerd, cri_pod(containerd, ("app", "side")) as containers:
        shim, inits = containers[0].shim, [container.init for container in containers]
        with shim_faults.stopped_shim(containers[0]):
            finding = found(containerd, "ShimUnresponsive", replace(containers[0], id=containers[0].sandbox_id))
            assert {container.id for container in containers} < set(finding.values["containerIds"])  # type: ignore[arg-type]
            assert follow(step(finding, "Kill the shim by hand")) == "containerd-shim\n"
        wait_until(lambda: all(map(has_ended, [shim, *inits])), 10, "the end of the shim and its containers")
        left = follow(step(finding, "List what is left")).splitlines()
        assert [line for line in left if not line.endswith("Z (zombie)")] == []
