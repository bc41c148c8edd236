"""What defunct_processes decides from plain values, and what it sees on a /proc of files and of real zombies."""

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.detectors.defunct_findings import EXCESSIVE, Parent
from agent.detectors.defunct_processes import (
    TOP_K,
    TREND_LOOKS,
    DefunctProcessesDetector,
    DefunctProcessesSettings,
    Observation,
    _trend,
)
from agent.exporters.wording import measured
from agent.host.cgroups import CgroupOwner, Cgroups, PidsLimit
from agent.host.inventory import SHIM_COMM
from agent.host.procfs import Process, Procfs
from agent.model import Action, CannotSeeError, CheckResult, DeploymentFault, PodRef, TargetKind, Value
from tests.unit.builders import (
    POD_UID,
    WEB,
    FakeProc,
    ManualClock,
    container_id,
    kubepods,
    only,
    sample_values,
    stat_line,
)
from tests.unit.doubles import denied_fault

ID = container_id(1)
MAX_TOTAL, MAX_PER_PARENT, LASTING = 1000, 30, 4.0
OWNER = CgroupOwner(kubepods(ID), ID, POD_UID)


def no_pod(container: str) -> PodRef | None:
    return None


def make_detector(
    root: Path, clock: ManualClock, pod_of: Callable[[str], PodRef | None] = no_pod
) -> DefunctProcessesDetector:
    return DefunctProcessesDetector(
        DefunctProcessesSettings(),
        Procfs(str(root / "proc")),
        Cgroups(str(root / "sys")),
        ("k8s.io",),
        pod_of,
        lambda: None,
        clock,
    )


@pytest.fixture
def detector(tmp_path: Path) -> DefunctProcessesDetector:
    return make_detector(tmp_path, ManualClock())


def parent(zombies: int = MAX_PER_PARENT + 1, *, comm: str = "server", state: str = "S", **fields: object) -> Parent:
    """A container's process with zombies."""
    usual = Parent(
        pid=500,
        process=Process(500, comm, state, 400, 77),
        zombies=zombies,
        oldest_seconds=61.24,
        comm="redis-cli",
        comm_count=zombies - 1,
        pod=WEB,
        owner=OWNER,
    )
    return replace(usual, **fields)  # type: ignore[arg-type]


def limit(used: int, most: int, cgroup: str = f"/kubepods/burstable/pod{POD_UID}") -> PidsLimit:
    return PidsLimit(used, most, cgroup)


def seen(
    *parents: Parent,
    lasting: int | None = None,
    young: int = 0,
    growth: float | None = 0.0,
    tasks: int | None = 400,
    pid_max: int | None = 32768,
) -> Observation:
    total = sum(p.zombies for p in parents) if lasting is None else lasting
    return Observation({"S": 100, "Z": total + young}, total, young, parents, growth, tasks, pid_max, "boot")


def reasons(result: CheckResult) -> list[str]:
    return [finding.reason for finding in result.findings]


def test_a_node_without_zombies_is_well(detector: DefunctProcessesDetector) -> None:
    result = detector.check(seen())
    assert (result.findings, result.unknown, result.recheck_seconds) == ((), {}, None)
    assert result.healthy[EXCESSIVE] == "0 defunct processes, 0 of them lasting"


def test_the_same_observation_gives_the_same_result(detector: DefunctProcessesDetector) -> None:
    observation = seen(parent(16018, pids=limit(90, 100)), young=40)
    assert detector.check(observation) == detector.check(observation)


class TestParentNotReaping:
    def test_a_parent_with_more_zombies_than_allowed_is_named(self, detector: DefunctProcessesDetector) -> None:
        finding = only(detector.check(seen(parent(pids=limit(40, 1000)))))
        assert (finding.condition, finding.reason) == (EXCESSIVE, "ParentNotReaping")
        assert finding.recommended_action is Action.SIGNAL_PARENT
        assert finding.message == (
            "pod shop/web-0 (container app): process 500 (server) does not reap: "
            "31 zombies, 30 of them named redis-cli, the oldest seen for 61 s; "
            "look for an exec probe or a script that runs redis-cli"
        )
        target = finding.target
        assert (target.kind, target.pid, target.start_time) == (TargetKind.PROCESS, 500, 77)
        assert (target.boot_id, target.container_id, target.cgroup) == ("boot", ID, kubepods(ID))
        assert finding.pod == WEB
        assert finding.values == {
            "zombies": 31,
            "comm": "server",
            "parentState": "S",
            "zombieComm": "redis-cli",
            "zombieCommCount": 30,
            "oldestSeconds": 61.2,
            "unit": None,
            "podPids": 40,
            "podPidsMax": 1000,
            "growthPerSecond": None,
            "frozenCgroup": None,
            "thawFile": None,
        }

    @pytest.mark.parametrize(
        ("cgroup", "values", "words"),
        [
            (
                "/system.slice/cron.service",
                {"unit": "cron.service", "unitTasks": 40, "unitTasksMax": 2361},
                {"unit: cron.service", "unit tasks: 40", "unit tasks max: 2,361"},
            ),
            ("/system.slice", {"unit": "system.slice", "unitTasks": 40, "unitTasksMax": 2361}, {"unit: system.slice"}),
            (
                kubepods(ID),
                {"pidsCgroup": kubepods(ID), "cgroupPids": 40, "cgroupPidsMax": 2361},
                {"cgroup pids max: 2,361"},
            ),
        ],
    )
    def test_a_limit_is_called_a_pods_only_if_it_is_one(
        self, detector: DefunctProcessesDetector, cgroup: str, values: dict[str, Value], words: set[str]
    ) -> None:
        finding = only(detector.check(seen(parent(pids=limit(40, 2361, cgroup)))))
        assert values.items() <= finding.values.items()
        assert not [key for key in finding.values if key.startswith("pod")]
        shown = {f"{name}: {text}" for name, text in (measured(*each) for each in finding.values.items())}
        assert words <= shown

    def test_the_unit_to_restart_is_named(self, detector: DefunctProcessesDetector) -> None:
        finding = only(detector.check(seen(parent(owner=None, pod=None, unit="cron.service"))))
        assert finding.message.startswith("unit cron.service: process 500 (server) does not reap")
        assert finding.message.endswith("it is no container's process: restart its unit, cron.service")
        assert finding.values["unit"] == "cron.service"

    def test_a_login_session_is_named_and_not_to_be_restarted(self, detector: DefunctProcessesDetector) -> None:
        finding = only(detector.check(seen(parent(owner=None, pod=None, unit="session-3.scope"))))
        assert finding.message.startswith("unit session-3.scope: ")
        assert finding.message.endswith("it is no container's process: restart the program itself")

    def test_what_thaws_the_parent_is_told_with_the_cgroup_that_is_frozen(
        self, detector: DefunctProcessesDetector
    ) -> None:
        file = "/sys/fs/cgroup/freezer/kubepods/pod1/freezer.state"
        finding = only(detector.check(seen(parent(frozen_cgroup="/kubepods/pod1", thaw_file=file))))
        assert (finding.values["frozenCgroup"], finding.values["thawFile"]) == ("/kubepods/pod1", file)

    def test_not_one_with_just_as_many_as_allowed(self, detector: DefunctProcessesDetector) -> None:
        assert detector.check(seen(parent(MAX_PER_PARENT))).findings == ()

    def test_a_parent_that_went_away_meanwhile_is_not_accused(self, detector: DefunctProcessesDetector) -> None:
        result = detector.check(seen(parent(500, process=None)))
        assert result.findings == ()
        assert next(iter(sample_values(result, "defunct_processes_by_parent")))[1] == "gone"

    @pytest.mark.parametrize(
        ("what", "text", "action"),
        [
            (parent(frozen_cgroup="/kubepods/pod1"), "its cgroup /kubepods/pod1 is frozen", Action.THAW_CGROUP),
            (parent(state="T"), "it is stopped (state T) and reaps once it is continued", Action.NONE),
            (parent(pid=1, owner=None), "it is the node's init", Action.NONE),
            (parent(comm=SHIM_COMM, owner=None), "a shim does not reap what an exec left behind", Action.NONE),
            (parent(comm=SHIM_COMM), "it is named as a shim", Action.NONE),
            (
                parent(owner=None, frozen_cgroup="/system.slice/cron.service"),
                "so it is thawed by hand (first: systemctl show -p FreezerState cron.service)",
                Action.NONE,
            ),
            (
                parent(owner=None, frozen_cgroup="/batch", thaw_file="/sys/fs/cgroup/batch/cgroup.freeze"),
                "(first: cat /sys/fs/cgroup/batch/cgroup.freeze)",
                Action.NONE,
            ),
            (parent(owner=None), "it is no container's process", Action.NONE),
        ],
        ids=["frozen", "stopped", "init", "shim", "calls itself a shim", "frozen service", "frozen by hand", "service"],
    )
    def test_why_it_does_not_reap_decides_what_helps(
        self, detector: DefunctProcessesDetector, what: Parent, text: str, action: Action
    ) -> None:
        finding = only(detector.check(seen(what)))
        assert text in finding.message
        assert finding.recommended_action is action

    @pytest.mark.parametrize(
        ("what", "text"),
        [
            (parent(pod=PodRef("", "", POD_UID)), f"pod uid {POD_UID}: process"),
            (parent(pod=None), f"container {ID[:12]}: process"),
            (parent(pod=None, owner=None), "outside any container: process"),
        ],
    )
    def test_whose_it_is_is_told_as_far_as_it_is_known(
        self, detector: DefunctProcessesDetector, what: Parent, text: str
    ) -> None:
        assert only(detector.check(seen(what))).message.startswith(text)


class TestTooMany:
    def test_sixteen_thousand_under_one_parent_are_both_findings(self, detector: DefunctProcessesDetector) -> None:
        result = detector.check(seen(parent(16018), tasks=16500, pid_max=4194304))
        assert reasons(result) == ["ParentNotReaping", "TooManyDefunctProcesses"]
        total = result.findings[1]
        assert total.message == "16018 zombies on this node (limit 1000); 16018 of them under process 500 (server)"
        assert (total.target.kind, total.recommended_action) == (TargetKind.NODE, Action.NONE)

    def test_many_parents_with_few_each_are_too_many_together(self, detector: DefunctProcessesDetector) -> None:
        scattered = [parent(5, pid=500 + n) for n in range(TOP_K)]
        assert reasons(detector.check(seen(*scattered, lasting=MAX_TOTAL + 1))) == ["TooManyDefunctProcesses"]
        assert detector.check(seen(*scattered, lasting=MAX_TOTAL)).findings == ()

    def test_short_lived_zombies_are_nobodys_fault(self, detector: DefunctProcessesDetector) -> None:
        result = detector.check(seen(lasting=0, young=5000))
        assert result.findings == ()
        assert sample_values(result, "defunct_processes") == {(): 5000}

    @pytest.mark.parametrize(("young", "recheck"), [(MAX_PER_PARENT, None), (MAX_PER_PARENT + 1, LASTING + 0.1)])
    def test_many_young_ones_are_looked_at_again_once_they_would_be_lasting(
        self, detector: DefunctProcessesDetector, young: int, recheck: float | None
    ) -> None:
        assert detector.check(seen(young=young)).recheck_seconds == recheck


class TestExhaustion:
    @pytest.mark.parametrize(("tasks", "near"), [(849, False), (850, True)])
    def test_the_node_is_near_its_end_by_share(
        self, detector: DefunctProcessesDetector, tasks: int, near: bool
    ) -> None:
        result = detector.check(seen(lasting=600, tasks=tasks, pid_max=1000))
        assert reasons(result) == (["PidExhaustionAhead"] if near else [])
        if near:
            assert "850 of 1000 in use, 600 by zombies; 85% are gone" in only(result).message
            assert only(result).target.kind is TargetKind.NODE

    @pytest.mark.parametrize(
        ("growth", "near"), [(None, False), (0.0, False), (-5.0, False), (0.16, False), (0.17, True)]
    )
    def test_the_node_is_near_its_end_by_trend(
        self, detector: DefunctProcessesDetector, growth: float | None, near: bool
    ) -> None:
        result = detector.check(seen(lasting=300, growth=growth, tasks=400, pid_max=1000))
        assert reasons(result) == (["PidExhaustionAhead"] if near else [])
        if near:
            assert "at 0.17 more a second none is left in 58 min 49 s" in only(result).message

    def test_living_processes_that_use_up_the_pids_are_another_trouble(
        self, detector: DefunctProcessesDetector
    ) -> None:
        assert detector.check(seen(lasting=225, tasks=900, pid_max=1000)).findings == ()
        assert reasons(detector.check(seen(lasting=226, tasks=900, pid_max=1000))) == ["PidExhaustionAhead"]

    def test_few_zombies_are_never_the_trouble(self, detector: DefunctProcessesDetector) -> None:
        assert detector.check(seen(lasting=MAX_PER_PARENT, tasks=40, pid_max=40)).findings == ()

    @pytest.mark.parametrize(("tasks", "pid_max"), [(None, 1000), (1000, None), (1000, 0)])
    def test_what_cannot_be_read_is_not_guessed(
        self, detector: DefunctProcessesDetector, tasks: int | None, pid_max: int | None
    ) -> None:
        assert detector.check(seen(lasting=900, tasks=tasks, pid_max=pid_max)).findings == ()

    @pytest.mark.parametrize(("used", "near"), [(84, False), (85, True), (100, True)])
    def test_a_pod_is_near_its_end_by_share(self, detector: DefunctProcessesDetector, used: int, near: bool) -> None:
        result = detector.check(seen(parent(pids=limit(used, 100))))
        assert reasons(result) == (["PidExhaustionAhead"] if near else []) + ["ParentNotReaping"]
        if near:
            finding = result.findings[0]
            assert (
                f"runs out of pids: {used} of 100 in use (the pod's limit), 31 by zombies of process 500 (server)"
                in finding.message
            )
            assert (finding.recommended_action, finding.pod) == (Action.SIGNAL_PARENT, WEB)

    def test_a_containers_own_limit_is_named_by_its_cgroup(self, detector: DefunctProcessesDetector) -> None:
        result = detector.check(seen(parent(pids=limit(99, 100, kubepods(ID)))))
        assert f"99 of 100 in use (limit of cgroup {kubepods(ID)})" in result.findings[0].message

    def test_what_mends_it_is_what_keeps_the_parent_from_reaping(self, detector: DefunctProcessesDetector) -> None:
        frozen, gone = (
            parent(pids=limit(100, 100), frozen_cgroup="/kubepods/pod1"),
            parent(pids=limit(100, 100), process=None),
        )
        assert {each.recommended_action for each in detector.check(seen(frozen)).findings} == {Action.THAW_CGROUP}
        assert only(detector.check(seen(gone))).recommended_action is Action.NONE

    def test_a_pod_is_near_its_end_by_its_own_trend(self, detector: DefunctProcessesDetector) -> None:
        slow, fast = (parent(pids=limit(100, 1000), growth_per_second=growth) for growth in (0.2, 0.3))
        assert reasons(detector.check(seen(slow, growth=100.0, tasks=None))) == ["ParentNotReaping"]
        result = detector.check(seen(fast, tasks=None))
        assert reasons(result) == ["PidExhaustionAhead", "ParentNotReaping"]
        assert result.findings[0].values["growthPerSecond"] == 0.3

    def test_a_limit_of_nothing_is_used_up(self, detector: DefunctProcessesDetector) -> None:
        assert reasons(detector.check(seen(parent(pids=limit(40, 0))))) == ["PidExhaustionAhead", "ParentNotReaping"]

    def test_a_service_has_no_pod_to_run_out(self, detector: DefunctProcessesDetector) -> None:
        result = detector.check(seen(parent(pids=limit(99, 100), owner=None, pod=None)))
        assert reasons(result) == ["ParentNotReaping"]


class TestTrend:
    def test_it_is_unknown_before_there_are_looks_enough(self) -> None:
        assert _trend([(8.0 * n, 10 * n) for n in range(TREND_LOOKS - 1)]) is None

    def test_a_steady_leak_is_its_rate(self) -> None:
        assert _trend([(8.0 * n, 16 * n) for n in range(TREND_LOOKS)]) == 2.0

    @pytest.mark.parametrize("at", range(1, TREND_LOOKS))
    def test_a_single_burst_is_no_trend(self, at: int) -> None:
        assert _trend([(8.0 * n, 0 if n < at else 20000) for n in range(TREND_LOOKS)]) == 0.0

    def test_two_looks_at_the_same_moment_do_no_harm(self) -> None:
        assert _trend([(5.0, n) for n in range(TREND_LOOKS)]) == 10.0


class TestSamples:
    def test_processes_are_counted_by_known_states(self, detector: DefunctProcessesDetector) -> None:
        odd = replace(seen(), states={"R": 2, "S": 50, "D": 1, "I": 30, "Z": 4, "x": 1, "P": 1})
        counts = {labels[0]: value for labels, value in sample_values(detector.check(odd), "processes").items()}
        assert counts == {
            "running": 2,
            "sleeping": 50,
            "disk_sleep": 1,
            "zombie": 4,
            "stopped": 0,
            "traced": 0,
            "idle": 30,
            "dead": 0,
            "other": 2,
        }

    def test_a_parent_is_a_series_with_its_pod(self, detector: DefunctProcessesDetector) -> None:
        series = sample_values(detector.check(seen(parent(7))), "defunct_processes_by_parent")
        assert series == {("500", "server", "shop", "web-0", "app"): 7}


class Node:
    """A /proc of files, with a detector that looks at it by a clock we turn."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.proc = FakeProc(root / "proc")
        self.proc.add(1, "systemd", ppid=0)
        self.clock = ManualClock()
        self.pods: dict[str, PodRef] = {}
        self.detector = make_detector(root, self.clock, self.pods.get)
        self._pids: Iterator[int] = iter(range(10_000, 100_000))

    def zombies(self, count: int, ppid: int, comm: bytes = b"redis-cli") -> None:
        for _ in range(count):
            pid = next(self._pids)
            self.proc.write(f"{pid}/stat", stat_line(pid, comm, "Z", ppid, pid))

    def look(self, later: float = 0.0) -> Observation:
        self.clock.advance(later)
        return self.detector.probe()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


class TestProbe:
    def test_a_zombie_lasts_once_it_was_seen_for_long_enough(self, node: Node) -> None:
        node.proc.add(500, "server")
        node.zombies(40, 500)
        counts = [(seen.lasting, seen.young) for seen in (node.look(), node.look(LASTING - 0.01), node.look(0.01))]
        assert counts == [(0, 40), (0, 40), (40, 0)]

    def test_age_counts_from_first_sight_and_not_from_the_start_of_the_process(self, node: Node) -> None:
        node.proc.add(500, "server")
        node.zombies(1, 500)
        node.look()
        node.zombies(1, 500)
        assert (node.look(7).lasting, node.look(4).lasting) == (1, 2)
        (only_parent,) = node.look().parents
        assert (only_parent.zombies, only_parent.oldest_seconds) == (2, 11.0)

    def test_a_pid_reused_by_another_zombie_starts_young(self, node: Node) -> None:
        for start_time in (100, 900):
            node.proc.write("700/stat", stat_line(700, b"sh", "Z", 1, start_time))
            seen = node.look(100)
        assert (seen.lasting, seen.young) == (0, 1)

    def test_the_parent_is_named_with_its_container_pod_limit_and_most_frequent_name(self, node: Node) -> None:
        node.proc.add(500, "server", cgroup=kubepods(ID) + "/init.scope", start_time=55)
        node.pods[ID] = WEB
        limit = node.root / f"sys/fs/cgroup{kubepods(ID)}"
        limit.mkdir(parents=True)
        (limit / "pids.max").write_text("100\n")
        (limit / "pids.current").write_text("60\n")
        node.zombies(3, 500, b"a) Z\xff")
        node.zombies(2, 500, b"sh")
        node.look()
        (found,) = node.look(LASTING).parents
        assert found.process == Process(500, "server", "S", 1, 55)
        assert (found.zombies, found.comm, found.comm_count) == (5, r"a) Z\xff", 3)
        assert (found.pod, found.owner, found.pids) == (WEB, OWNER, PidsLimit(60, 100, kubepods(ID)))

    @pytest.mark.parametrize("ends", [True, False])
    def test_the_cgroup_of_a_parent_that_has_ended_meanwhile_is_not_missed(
        self, node: Node, monkeypatch: pytest.MonkeyPatch, ends: bool
    ) -> None:
        node.proc.add(500, "server")
        node.zombies(1, 500)
        node.look()
        hidden = denied_fault("the node's cgroups are not mounted")

        def fault(*_: object) -> DeploymentFault:
            if ends:
                node.proc.remove(500)
            return hidden

        monkeypatch.setattr(Cgroups, "fault", fault)
        assert node.look(LASTING).parents[0].cgroups_hidden == (None if ends else hidden)

    def test_a_pod_no_bundle_tells_of_is_known_by_its_uid(self, node: Node) -> None:
        node.proc.add(500, "server", cgroup=kubepods(ID))
        node.zombies(1, 500)
        node.look()
        assert node.look(LASTING).parents[0].pod == PodRef("", "", POD_UID)

    def test_a_parent_that_is_gone_has_no_process(self, node: Node) -> None:
        node.zombies(40, 500)
        node.look()
        (found,) = node.look(LASTING).parents
        assert (found.pid, found.process, found.owner) == (500, None, None)
        assert node.detector.check(node.look()).findings == ()

    def test_only_the_worst_parents_are_looked_at(self, node: Node) -> None:
        for number in range(TOP_K + 5):
            node.zombies(number + 1, 500 + number)
        node.look()
        seen = node.look(LASTING)
        assert [p.zombies for p in seen.parents] == list(range(TOP_K + 5, 5, -1))
        assert seen.lasting == sum(range(1, TOP_K + 6))

    def test_a_slow_leak_is_a_trend_of_the_node_and_of_its_parent(self, node: Node) -> None:
        node.proc.add(500, "leaker")
        for _ in range(TREND_LOOKS + 1):
            node.zombies(4, 500)
            seen = node.look(8)
        assert seen.growth_per_second == 0.5
        assert seen.parents[0].growth_per_second == 0.5

    def test_a_burst_is_no_trend(self, node: Node) -> None:
        node.proc.add(500, "server")
        for number in range(TREND_LOOKS + 1):
            node.zombies(200 if number == 3 else 0, 500)
            seen = node.look(8)
        assert (seen.lasting, seen.growth_per_second, seen.parents[0].growth_per_second) == (200, 0.0, 0.0)

    def test_reaped_zombies_are_forgotten(self, node: Node) -> None:
        node.proc.add(700, "sh", state="Z")
        node.look()
        node.proc.remove(700)
        seen = node.look(LASTING)
        assert (seen.lasting, seen.young, seen.parents) == (0, 0, ())
        assert (node.detector._first_seen, node.detector._known) == ({}, {})

    def test_from_inside_a_container_nothing_is_decided(self, node: Node) -> None:
        node.detector._pid_problem = lambda: denied_fault("set hostPID")
        with pytest.raises(CannotSeeError, match="set hostPID"):
            node.look()

    def test_a_missing_proc_is_an_error(self, detector: DefunctProcessesDetector) -> None:
        with pytest.raises(FileNotFoundError):
            detector.probe()

    def test_real_zombies_name_their_real_parent(self, tmp_path: Path) -> None:
        (tmp_path / "proc").symlink_to("/proc")
        clock = ManualClock()
        detector = make_detector(tmp_path, clock)
        children = [subprocess.Popen(["/bin/true"]) for _ in range(MAX_PER_PARENT + 10)]
        try:
            for child in children:
                os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            assert not [f for f in detector.check(detector.probe()).findings if f.target.pid == os.getpid()]
            clock.advance(LASTING)
            result = detector.check(detector.probe())
        finally:
            for child in children:
                child.wait()
        (finding,) = (f for f in result.findings if f.target.pid == os.getpid())
        assert finding.reason == "ParentNotReaping"
        assert finding.values["zombieComm"] == "true"
        count = finding.values["zombies"]
        assert isinstance(count, int)
        assert count >= MAX_PER_PARENT + 10
