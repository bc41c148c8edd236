"""The manifest as it is: every watch finds its faults with what the manifest gives it, and all of that is needed.

One tour is made for all tests here: the pod as it is and, beside it, one for each thing that can be taken away from it,
all with the same faults before them.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest

from agent.exporters import report_text
from agent.model import Action, DeploymentCause, DetectorState, NodeReport, Status
from tests.image.conftest import ROOT
from tests.image.deployed import NAMED_SECONDS, Deployed, ImageNode, memory_to_spare, read
from tests.image.faults import APART, TOGETHER, Fault, all_together
from tests.image.noticed import Noticed
from tests.lab.pod_spec import Manifest
from tests.lab.waiting import wait_until

MANIFEST = read(ROOT / "deploy" / "daemonset.yaml")


CAPABILITIES = {"DAC_READ_SEARCH": 2, "NET_ADMIN": 12, "SYS_PTRACE": 19}
"""Their numbers, of linux/capability.h."""


class Said(NamedTuple):
    """What must be said of a condition when something is missing: these words."""

    condition: str
    words: str


MISSING = {
    "NET_ADMIN": (Said("ConntrackDNSRace", "the agent needs CAP_NET_ADMIN"),),
    "DAC_READ_SEARCH": (
        Said("ContainerdShimHung", "the agent needs CAP_DAC_READ_SEARCH, because /run/containerd/s has mode 0600"),
    ),
    "SYS_PTRACE": (Said("ContainerdShimLeaked", "the agent needs CAP_SYS_PTRACE"),),
    "/run/containerd": (
        Said("ContainerRuntimeUnresponsive", "mount /run/containerd here"),
        Said("ContainerdShimHung", "no containerd here: /run/containerd/"),
        Said("ContainerdShimLeaked", "no containerd here: /run/containerd/"),
    ),
    "/sys/fs/cgroup": (
        Said("ContainerdShimHung", "/sys/fs/cgroup does not show the node's cgroups here"),
        Said("ExcessiveDefunctProcesses", "/sys/fs/cgroup does not show the node's cgroups here"),
    ),
}
"""By capability or path. What is not here is not shown to be needed, and has no place in the manifest."""


def taken_away() -> dict[str, Manifest]:
    """Return the manifest without each of its capabilities and paths, one at a time."""
    paths = {volume["name"]: volume["hostPath"]["path"] for volume in MANIFEST.pod["volumes"] if "hostPath" in volume}
    return {
        **{name: MANIFEST.without_capability(name) for name in MANIFEST.capabilities},
        **{path: MANIFEST.without_volume(name) for name, path in paths.items()},
    }


@dataclass
class Tour:
    """What was seen: seconds until the start, what each fault was told of, and what the others told of all."""

    agent: Deployed
    start_seconds: float
    earlier: str
    """A container that was there when the agent's was made, and has gone since."""
    problems: dict[str, str] = field(default_factory=dict)
    reports: dict[str, NodeReport] = field(default_factory=dict)
    healthy: NodeReport | None = None


@pytest.fixture(scope="module")
def tour(node: ImageNode) -> Iterator[Tour]:
    with ExitStack() as before, ExitStack() as stack:
        earlier = before.enter_context(node.running(MANIFEST))
        agent = stack.enter_context(node.running(MANIFEST))
        seen = Tour(agent, agent.pod.await_start(), earlier.pod.container_id)
        agent.pod.await_ready()
        before.close()
        agent.await_well()
        noticed = stack.enter_context(Noticed(agent))
        with all_together(node) as made:
            _find(seen, TOGETHER, noticed, made)
            seen.reports = _without(node)
        agent.await_well()
        for fault in APART:
            with fault.make(node):
                _find(seen, (fault,), noticed, {fault.name: time.time()})
            agent.await_well()
        seen.healthy = agent.report()
        yield seen


def _find(seen: Tour, faults: tuple[Fault, ...], noticed: Noticed, made: dict[str, float]) -> None:
    for fault in faults:
        try:
            seen.agent.found(fault.fits, f"{fault.name} is named")
            noticed.record(fault, made[fault.name])
        except AssertionError as error:
            seen.problems[fault.name] = f"{error}; it says {seen.agent.unsettled()}"


def _without(node: ImageNode) -> dict[str, NodeReport]:
    """Run one pod for each thing taken away, and return what each tells once it has seen all there is."""
    variants = taken_away()
    with ExitStack() as stack, ThreadPoolExecutor(len(variants)) as pool:
        starting = {name: pool.submit(stack.enter_context, node.running(each)) for name, each in variants.items()}
        running = {name: future.result().ready() for name, future in starting.items()}
        settling = {name: pool.submit(_settled, name, agent) for name, agent in running.items()}
        return {name: future.result() for name, future in settling.items()}


def _settled(name: str, agent: Deployed) -> NodeReport:
    """Wait until it tells of every fault, or says what it cannot see; return its last word either way."""

    def settled() -> bool:
        report = agent.report()
        named = {(active.finding.condition, active.finding.reason) for c in report.conditions for active in c.findings}
        unknown = {condition.type for condition in report.conditions if condition.status is Status.UNKNOWN}
        left = [
            each for each in TOGETHER if (each.condition, each.reason) not in named and each.condition not in unknown
        ]
        return not left and not unsaid(name, report)

    try:
        wait_until(settled, NAMED_SECONDS, "all is seen")
    except AssertionError as error:
        print(f"without {name}: {error}")
    return agent.report()


def unsaid(name: str, report: NodeReport) -> list[Said]:
    """Return what a report without something ought to say, and does not."""
    messages = {
        each.type: " ".join([each.message, *(active.finding.message for active in each.findings)])
        for each in report.conditions
    }
    return [each for each in MISSING.get(name, ()) if each.words not in messages.get(each.condition, "")]


# -- with all of it


@pytest.mark.parametrize("fault", [*TOGETHER, *APART], ids=lambda fault: fault.name)
def test_every_watch_finds_its_faults_and_names_the_pod(tour: Tour, fault: Fault) -> None:
    assert fault.name not in tour.problems, tour.problems[fault.name]


def test_a_healthy_node_is_found_to_be_healthy_by_every_detector(tour: Tour) -> None:
    assert tour.healthy is not None
    states = {each.name: each.state for each in tour.healthy.detectors}
    assert states.pop("kubelet_pleg") is DetectorState.NOT_APPLICABLE, "the kubelet's API is an overlay's"
    assert set(states.values()) == {DetectorState.OK}, states
    watched = {fault.condition for fault in (*TOGETHER, *APART)}
    assert watched < {each.type for each in tour.healthy.conditions}


def test_it_runs_with_exactly_the_rights_the_manifest_gives(tour: Tour) -> None:
    pid, security = tour.agent.pod.process.pid, MANIFEST.container["securityContext"]
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    wanted = sum(1 << CAPABILITIES[name] for name in security["capabilities"]["add"])
    assert {status[name] for name in ("CapEff", "CapPrm", "CapBnd")} == {f"{wanted:016x}"}
    assert {status["CapInh"], status["CapAmb"]} <= {f"{wanted:016x}", f"{0:016x}"}
    assert (status["NoNewPrivs"], status["Seccomp"], status["Uid"]) == ("1", "2", "0\t0\t0\t0")
    for kind in ("pid", "net"):
        assert Path(f"/proc/{pid}/ns/{kind}").readlink() == Path(f"/proc/1/ns/{kind}").readlink()
    mounts = {line.split()[4]: line.split()[5] for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()}
    read_only = {each["mountPath"] for each in MANIFEST.container["volumeMounts"] if each.get("readOnly")} | {"/"}
    assert {place for place in read_only if "ro" in mounts[place].split(",")} == read_only
    assert {place for place in ("/proc/sys", "/sys") if "ro" in mounts[place].split(",")} == {"/proc/sys", "/sys"}
    assert tour.agent.pod.memory_now().get("hierarchical_memory_limit", MANIFEST.memory_limit) == MANIFEST.memory_limit


def test_it_holds_no_mount_of_a_container_that_has_ended(tour: Tour) -> None:
    """Else what was unmounted on the node would stay in use for as long as the agent runs."""
    mounts = Path(f"/proc/{tour.agent.pod.process.pid}/mountinfo").read_text()
    assert f"/run/containerd/io.containerd.runtime.v2.task/k8s.io/{tour.agent.pod.container_id}/rootfs" in mounts
    assert tour.earlier not in mounts


# -- without some of it


@pytest.mark.parametrize("name", taken_away())
def test_without_it_a_watch_says_what_it_can_no_longer_see(tour: Tour, name: str) -> None:
    assert name in MISSING, f"nothing shows that {name} is needed: take it out of the manifest"
    assert not unsaid(name, tour.reports[name]), [f"{c.type}: {c.message}" for c in tour.reports[name].conditions]


def test_what_the_agent_needs_is_in_the_manifest_and_nothing_else() -> None:
    assert set(MISSING) == set(taken_away())


@pytest.mark.parametrize("name", taken_away())
def test_without_it_the_report_begins_with_it(tour: Tour, name: str) -> None:
    (fault,) = tour.reports[name].deployment
    kind = DeploymentCause.MOUNT if name.startswith("/") else DeploymentCause.CAPABILITY
    assert (fault.cause, fault.subject.removeprefix("CAP_")) == (kind, name)
    concerned = {each.condition for each in MISSING[name]}
    assert concerned <= {*fault.hides, *fault.impairs}
    reasons = {each.type: each.reason for each in tour.reports[name].conditions if each.status is Status.UNKNOWN}
    assert {reasons[kind] for kind in fault.hides} <= {fault.cause.reason}
    text = report_text.plain(tour.reports[name])
    assert text.index(fault.subject) < min(text.index(each) for each in concerned)


def test_with_all_of_it_the_deployment_has_no_fault(tour: Tour) -> None:
    assert tour.healthy is not None
    assert tour.healthy.deployment == ()


@pytest.mark.parametrize("name", taken_away())
def test_without_it_nobody_is_accused_who_is_well(tour: Tour, name: str) -> None:
    made = {(fault.condition, fault.reason) for fault in TOGETHER}
    for condition in tour.reports[name].conditions:
        for active in condition.findings:
            assert (active.finding.condition, active.finding.reason) in made, active.finding.message


def test_a_frozen_shim_is_not_recommended_to_be_killed_while_its_cgroup_is_to_be_seen(tour: Tour) -> None:
    actions = {
        active.finding.pod.name: active.finding.recommended_action
        for condition in tour.reports["NET_ADMIN"].conditions
        for active in condition.findings
        if active.finding.pod and condition.type == "ContainerdShimHung"
    }
    assert actions == {"frozen": Action.THAW_CGROUP, "stopped": Action.KILL_SHIM}


# -- and within its limits


def test_it_starts_under_its_cpu_limit_in_a_quarter_of_what_its_startup_probe_allows(tour: Tour) -> None:
    probe = MANIFEST.container["startupProbe"]
    assert tour.agent.pod.cpu_stat()["nr_throttled"] > 0, "the limit was not felt, so nothing was shown"
    assert tour.start_seconds < probe["periodSeconds"] * probe["failureThreshold"] / 4


def test_memory_stays_under_the_limit_with_a_quarter_to_spare_also_while_it_is_asked_inside(
    tour: Tour, capsys: pytest.CaptureFixture[str]
) -> None:
    report, check = ["nodediag", "report"], ["nodediag", "check", "--config", "/etc/nodediag"]
    told = memory_to_spare(tour.agent, "watch-only", report, check)
    with capsys.disabled():
        print(f"\n{told}; ready to serve after {tour.start_seconds:.1f} s")
