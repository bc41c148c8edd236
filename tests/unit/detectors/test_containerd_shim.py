"""What containerd_shim decides from plain values, and what it sees on a node of files and real sockets."""

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.detectors.containerd_shim import (
    STATES,
    TOP_K,
    Aged,
    ContainerdShimDetector,
    ContainerdShimSettings,
    Observation,
    Since,
)
from agent.detectors.shim_findings import HUNG, LEAKED, SeenProcess, SeenRuntime, SeenShim
from agent.host.bundles import NO_ADDRESS_YET, TASKS, Bundle, Bundles
from agent.host.cgroups import CgroupOwner, Cgroups
from agent.host.inventory import SHIM_COMM, InventorySense, Shim, StrayContainer, StrayShim
from agent.host.pods import Pods
from agent.host.procfs import Process, Procfs
from agent.host.rights import Capability
from agent.host.shims import Outcome, ShimAnswer, ShimSense, TaskState
from agent.model import Action, CannotSeeError, CheckResult, DeploymentFault, NotApplicableError, TargetKind
from tests.unit.builders import (
    POD_UID,
    RUNNING,
    STOPPED,
    WEB,
    FakeProc,
    ManualClock,
    ShiftedClock,
    ShimServer,
    StateDir,
    answered,
    bundle,
    container_id,
    kubepods,
    only,
    sample_values,
    shim,
    waiting,
)
from tests.unit.doubles import denied_fault, rights_without

HUNG_AFTER, CREATING, STUCK, LEAK = 5.0, 60.0, 7.0, 5.0
JUST = 0.01
ID = container_id(1)


@pytest.fixture
def detector() -> ContainerdShimDetector:
    """A detector that only decides: it has no senses."""
    made = ContainerdShimDetector.__new__(ContainerdShimDetector)
    made._settings = ContainerdShimSettings()
    return made


def seen(
    *shims: SeenShim,
    strays: tuple[Aged, ...] = (),
    unaddressed: tuple[tuple[Bundle, float], ...] = (),
    unseen: int = 0,
) -> Observation:
    return Observation(shims, strays, unaddressed, unseen, "boot")


def item(what: Shim | None = None, answer: ShimAnswer | None = None, faulty: float = 0.0) -> SeenShim:
    return SeenShim(what or shim(), answer or answered(), faulty)


def stuck_for(seconds: float, outcome: Outcome = Outcome.ANSWERED) -> ShimAnswer:
    return ShimAnswer("/s", outcome, connect_seconds=0.001, states_waiting={ID: seconds})


def unreachable(outcome: Outcome = Outcome.REFUSED) -> ShimAnswer:
    return ShimAnswer("/s", outcome, "nothing listens on its socket")


def stray_shim() -> StrayShim:
    return StrayShim(Process(4001, SHIM_COMM, "S", 1, 77), ID, "k8s.io", WEB)


def stray_container() -> StrayContainer:
    first, second = Process(600, "app", "S", 1, 10), Process(601, "app", "S", 1, 20)
    return StrayContainer(CgroupOwner(kubepods(ID), ID, POD_UID), (first, second), WEB)


def states_of(result: CheckResult) -> dict[str, float]:
    return {labels[0]: value for labels, value in sample_values(result, "shims").items()}


def test_shims_that_answer_are_well(detector: ContainerdShimDetector) -> None:
    result = detector.check(seen(item(), item(shim(2), answered(seconds=0.003))))
    assert result.findings == ()
    assert result.unknown == {}
    assert result.recheck_seconds is None
    assert result.healthy[HUNG] == "2 shims answered, median 2 ms, slowest 3 ms"
    assert states_of(result) == {"serving": 2, "stuck": 0, "hung": 0, "dead": 0, "orphaned": 0}


def test_a_node_without_shims_is_well(detector: ContainerdShimDetector) -> None:
    result = detector.check(seen())
    assert (result.findings, result.unknown) == ((), {})
    assert "no shims" in result.healthy[HUNG]


def test_the_same_observation_gives_the_same_result(detector: ContainerdShimDetector) -> None:
    observation = seen(item(answer=waiting(9)), strays=(Aged(stray_shim(), 9),), unseen=1)
    assert detector.check(observation) == detector.check(observation)


class TestHung:
    def test_connect_unanswered_for_long_enough(self, detector: ContainerdShimDetector) -> None:
        finding = only(detector.check(seen(item(answer=waiting(HUNG_AFTER)))))
        assert (finding.condition, finding.reason) == (HUNG, "ShimUnresponsive")
        assert finding.recommended_action is Action.KILL_SHIM
        assert (finding.sightings, finding.timed) == (2, True)
        assert finding.message.startswith("shim 4001 of pod shop/web-0 has not answered for 5.0 s")

    def test_not_before(self, detector: ContainerdShimDetector) -> None:
        result = detector.check(seen(item(answer=waiting(HUNG_AFTER - JUST))))
        assert result.findings == ()
        assert result.recheck_seconds == pytest.approx(JUST + 0.05)
        assert states_of(result)["serving"] == 1

    def test_a_finding_carries_who_and_since_when(self, detector: ContainerdShimDetector) -> None:
        one = replace(item(answer=waiting(12.34)), answered_seconds_ago=20.06, shows=SeenProcess(wchan="futex_do_wait"))
        finding = only(detector.check(seen(one)))
        target = finding.target
        assert (target.kind, target.pid, target.start_time) == (TargetKind.SHIM, 4001, 77)
        assert (target.boot_id, target.container_id, target.containerd_namespace) == ("boot", ID, "k8s.io")
        assert target.address == one.shim.address
        assert finding.pod == WEB
        assert finding.values == {
            "unansweredSeconds": 12.3,
            "containerIds": (ID,),
            "containers": 1,
            "processState": "S",
            "wchan": "futex_do_wait",
            "frozenCgroup": None,
            "thawFile": None,
            "lastAnsweredSecondsAgo": 20.1,
        }

    def test_while_a_container_is_created_patience_is_longer(self, detector: ContainerdShimDetector) -> None:
        creating = shim(creating=True)
        early = detector.check(seen(item(creating, waiting(CREATING - JUST))))
        assert early.findings == ()
        assert early.recheck_seconds == pytest.approx(JUST + 0.05)
        assert only(detector.check(seen(item(creating, waiting(CREATING))))).reason == "ShimUnresponsive"

    @pytest.mark.parametrize(
        ("state", "text"),
        [
            ("T", "is stopped (state T)"),
            ("t", "is stopped (state t)"),
            ("S", "is alive (state S)"),
            ("R", "is alive (state R, in user space)"),
        ],
    )
    def test_what_the_process_shows_is_told(self, detector: ContainerdShimDetector, state: str, text: str) -> None:
        finding = only(detector.check(seen(item(shim(state=state), waiting(9)))))
        assert text in finding.message
        assert finding.recommended_action is Action.KILL_SHIM

    def test_a_process_in_the_kernel_cannot_be_killed_at_once(self, detector: ContainerdShimDetector) -> None:
        asleep = replace(item(shim(state="D"), waiting(9)), shows=SeenProcess(wchan="nfs_wait"))
        finding = only(detector.check(seen(asleep)))
        assert "uninterruptible sleep in nfs_wait: a kill takes effect only after that" in finding.message
        assert "sleep in the kernel" in only(detector.check(seen(replace(asleep, shows=SeenProcess())))).message

    def test_a_frozen_one_is_to_be_thawed_and_not_killed(self, detector: ContainerdShimDetector) -> None:
        file = "/sys/fs/cgroup/freezer/kubepods/pod1/freezer.state"
        shows = SeenProcess(frozen_cgroup="/kubepods/pod1", thaw_file=file)
        frozen = replace(item(shim(state="D"), waiting(9)), shows=shows)
        finding = only(detector.check(seen(frozen)))
        assert finding.recommended_action is Action.THAW_CGROUP
        assert "its cgroup /kubepods/pod1 is frozen" in finding.message
        assert (finding.values["frozenCgroup"], finding.values["thawFile"]) == ("/kubepods/pod1", file)

    def test_without_a_process_to_name_nobody_is_to_be_killed(self, detector: ContainerdShimDetector) -> None:
        finding = only(detector.check(seen(item(shim(state=None), waiting(9)))))
        assert finding.recommended_action is Action.NONE
        assert (finding.target.pid, finding.target.start_time) == (None, None)

    @pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.NO_SOCKET])
    def test_a_living_shim_that_cannot_be_reached_is_hung_and_not_dead(
        self, detector: ContainerdShimDetector, outcome: Outcome
    ) -> None:
        result = detector.check(seen(item(answer=unreachable(outcome), faulty=LEAK)))
        finding = only(result)
        assert (finding.reason, finding.recommended_action) == ("ShimUnresponsive", Action.NONE)
        assert "cannot be reached: nothing listens" in finding.message
        assert finding.values["unansweredSeconds"] == LEAK
        assert sample_values(result, "shim_hung_seconds") == {("shop", "web-0", ID): LEAK}

    def test_a_container_without_a_pod_is_named_by_its_id_and_why(self, detector: ContainerdShimDetector) -> None:
        anonymous = shim(pod=None)
        unread = replace(
            anonymous.lead, identity=replace(anonymous.lead.identity, problem="its config.json cannot be read")
        )
        finding = only(detector.check(seen(item(replace(anonymous, bundles=(unread,)), waiting(9)))))
        assert f"container {ID[:12]} (its config.json cannot be read)" in finding.message
        assert finding.pod is None


class TestStuck:
    def test_state_unanswered_for_long_enough(self, detector: ContainerdShimDetector) -> None:
        result = detector.check(seen(item(answer=stuck_for(STUCK))))
        finding = only(result)
        assert (finding.condition, finding.reason) == (HUNG, "ShimOperationStuck")
        assert finding.recommended_action is Action.KILL_SHIM
        assert finding.values["stuckContainerIds"] == (ID,)
        assert (finding.sightings, finding.timed, finding.pod) == (2, True, WEB)
        assert states_of(result)["stuck"] == 1

    def test_one_whose_process_is_not_known_is_not_to_be_killed(self, detector: ContainerdShimDetector) -> None:
        """A request without a pid would be refused as inexact."""
        unknown = replace(shim(), process=None)
        for answer, faulty in ((stuck_for(STUCK), 0.0), (answered(a=STOPPED, b=STOPPED), LEAK)):
            finding = only(detector.check(seen(item(unknown, answer, faulty))))
            assert (finding.recommended_action, finding.target.pid) == (Action.NONE, None)

    def test_not_before(self, detector: ContainerdShimDetector) -> None:
        result = detector.check(seen(item(answer=stuck_for(STUCK - JUST))))
        assert result.findings == ()
        assert result.recheck_seconds == pytest.approx(JUST + 0.05)

    @pytest.mark.parametrize("outcome", [Outcome.ANSWERED, Outcome.WAITING])
    def test_a_container_being_created_holds_the_lock_of_its_neighbours(
        self, detector: ContainerdShimDetector, outcome: Outcome
    ) -> None:
        creating = shim(creating=True)
        assert detector.check(seen(item(creating, stuck_for(CREATING - JUST, outcome)))).findings == ()
        assert only(detector.check(seen(item(creating, stuck_for(CREATING, outcome))))).reason == "ShimOperationStuck"

    def test_of_several_containers_the_one_stuck_longest_is_named(self, detector: ContainerdShimDetector) -> None:
        other = bundle(2, pod=replace(WEB, container="sidecar"))
        group = replace(shim(), bundles=(bundle(1), other))
        answer = replace(stuck_for(STUCK), states_waiting={ID: 9.0, other.id: 30.0, container_id(3): 1.0})
        finding = only(detector.check(seen(item(group, answer))))
        assert finding.pod == other.identity.pod
        assert finding.values["stuckContainerIds"] == (ID, other.id)

    def test_the_containers_name_and_id_are_those_of_one_container(self, detector: ContainerdShimDetector) -> None:
        sandbox = bundle(1, pod=replace(WEB, container=""), sandbox=True)
        side = bundle(2, pod=replace(WEB, container="side"))
        answer = replace(stuck_for(STUCK), states_waiting={side.id: 9.0})
        finding = only(detector.check(seen(item(replace(shim(), bundles=(sandbox, side)), answer))))
        assert finding.pod is not None
        assert (finding.pod.container, finding.target.container_id) == ("side", side.id)
        assert f"pod shop/web-0, container side ({side.id[:12]}) has been stuck" in finding.message

    def test_the_runc_that_holds_the_lock_is_named_with_what_it_shows(self, detector: ContainerdShimDetector) -> None:
        holder = SeenRuntime(Process(43, "runc", "S", 4001, 70), "do_wait", 34.2)
        probe = SeenRuntime(Process(44, "runc", "R", 4001, 99), "", 0.3)
        finding = only(detector.check(seen(replace(item(answer=stuck_for(30)), runtimes=(holder, probe)))))
        assert finding.message.endswith(
            "its child runc 43, running for 34 s (state S, in do_wait), probably holds the lock"
        )
        told = {key: value for key, value in finding.values.items() if key.startswith("runc")}
        assert told == {
            "runcPid": 43,
            "runcState": "S",
            "runcWchan": "do_wait",
            "runcAgeSeconds": 34.2,
            "runcProcesses": 1,
        }

    def test_several_runc_that_may_hold_the_lock_are_counted(self, detector: ContainerdShimDetector) -> None:
        first, second = (SeenRuntime(Process(pid, "runc", "D", 4001, pid), "", None) for pid in (43, 44))
        finding = only(detector.check(seen(replace(item(answer=stuck_for(30)), runtimes=(first, second)))))
        assert "its child runc 43, running (state D, in the kernel), probably holds the lock" in finding.message
        assert finding.message.endswith("; 1 more runc among its children")
        assert finding.values["runcProcesses"] == 2

    def test_without_a_runc_no_holder_is_claimed(self, detector: ContainerdShimDetector) -> None:
        finding = only(detector.check(seen(item(answer=stuck_for(30)))))
        assert finding.message.endswith("; no runc is among the shim's children")
        assert "runcPid" not in finding.values

    def test_hung_comes_before_stuck(self, detector: ContainerdShimDetector) -> None:
        both = replace(waiting(9), states_waiting={ID: 9.0})
        assert only(detector.check(seen(item(answer=both)))).reason == "ShimUnresponsive"


class TestLeaked:
    @pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.NO_SOCKET])
    def test_a_bundle_without_a_shim_is_dead_after_the_grace(
        self, detector: ContainerdShimDetector, outcome: Outcome
    ) -> None:
        gone = shim(state=None)
        early = detector.check(seen(item(gone, unreachable(outcome), LEAK - JUST)))
        assert (early.findings, early.unknown) == ((), {})
        assert early.recheck_seconds == pytest.approx(JUST + 0.05)
        result = detector.check(seen(item(gone, unreachable(outcome), LEAK)))
        finding = only(result)
        assert (finding.condition, finding.reason) == (LEAKED, "ShimDead")
        assert finding.recommended_action is Action.RESTART_CONTAINERD
        assert finding.values["bundle"] == gone.lead.path
        assert not finding.timed
        assert states_of(result)["dead"] == 1

    def test_a_shim_whose_containers_all_exited_is_orphaned_after_the_grace(
        self, detector: ContainerdShimDetector
    ) -> None:
        empty = answered(a=STOPPED, b=STOPPED)
        early = detector.check(seen(item(answer=empty, faulty=LEAK - JUST)))
        assert early.findings == ()
        assert early.recheck_seconds == pytest.approx(JUST + 0.05)
        result = detector.check(seen(item(answer=empty, faulty=LEAK)))
        finding = only(result)
        assert (finding.condition, finding.reason) == (LEAKED, "ShimWithoutContainers")
        assert finding.recommended_action is Action.KILL_SHIM
        assert states_of(result)["orphaned"] == 1

    @pytest.mark.parametrize(
        "answer",
        [
            answered(a=STOPPED, b=RUNNING),
            replace(answered(a=STOPPED), states_waiting={"b": 1.0}),
            replace(answered(a=STOPPED), states={"a": TaskState(True, STOPPED), "b": TaskState(False)}),
            replace(answered(), states={}),
        ],
        ids=["one runs", "one unanswered", "one unknown", "none asked"],
    )
    def test_a_shim_with_any_container_that_may_live_is_not_orphaned(
        self, detector: ContainerdShimDetector, answer: ShimAnswer
    ) -> None:
        assert detector.check(seen(item(answer=answer, faulty=100))).findings == ()

    def test_a_shim_process_without_a_bundle_is_orphaned_after_the_grace(
        self, detector: ContainerdShimDetector
    ) -> None:
        early = detector.check(seen(strays=(Aged(stray_shim(), LEAK - JUST),)))
        assert early.findings == ()
        assert early.recheck_seconds == pytest.approx(JUST + 0.05)
        result = detector.check(seen(strays=(Aged(stray_shim(), LEAK, SeenProcess("do_epoll_wait")),)))
        finding = only(result)
        assert (finding.condition, finding.reason) == (LEAKED, "ShimWithoutContainers")
        assert finding.recommended_action is Action.KILL_SHIM
        assert (finding.target.pid, finding.target.start_time, finding.target.container_id) == (4001, 77, ID)
        assert finding.pod == WEB
        assert finding.values == {
            "orphanedSeconds": LEAK,
            "containerIds": (ID,),
            "processState": "S",
            "wchan": "do_epoll_wait",
            "frozenCgroup": None,
            "thawFile": None,
        }
        assert states_of(result) == {"serving": 0, "stuck": 0, "hung": 0, "dead": 0, "orphaned": 1}

    def test_a_frozen_stray_is_to_be_thawed(self, detector: ContainerdShimDetector) -> None:
        shows = SeenProcess("", "/frozen", "/sys/fs/cgroup/frozen/cgroup.freeze")
        finding = only(detector.check(seen(strays=(Aged(stray_shim(), LEAK, shows),))))
        assert finding.recommended_action is Action.THAW_CGROUP
        assert "/frozen is frozen" in finding.message
        assert finding.values["thawFile"] == shows.thaw_file

    def test_processes_without_a_shim_are_told_after_the_grace(self, detector: ContainerdShimDetector) -> None:
        assert detector.check(seen(strays=(Aged(stray_container(), LEAK - JUST),))).findings == ()
        result = detector.check(seen(strays=(Aged(stray_container(), LEAK),)))
        finding = only(result)
        assert (finding.condition, finding.reason) == (LEAKED, "ProcessesWithoutShim")
        target = finding.target
        assert (target.kind, target.pid, target.start_time) == (TargetKind.CONTAINER, 600, 10)
        assert (target.container_id, target.cgroup) == (ID, kubepods(ID))
        assert finding.values == {"strandedSeconds": LEAK, "processes": 2, "podUid": POD_UID}
        assert f"container app ({ID[:12]}) of pod shop/web-0 runs on" in finding.message
        assert "without shim and bundle: 2 processes, the first is process 600 (app)." in finding.message
        assert finding.pod == WEB
        assert states_of(result)["orphaned"] == 0

    def test_a_stray_whose_pod_is_unknown_is_named_by_what_is_known(self, detector: ContainerdShimDetector) -> None:
        anonymous = (Aged(replace(stray_shim(), pod=None), LEAK), Aged(replace(stray_container(), pod=None), LEAK))
        first, second = detector.check(seen(strays=anonymous)).findings
        assert f"of container {ID[:12]}" in first.message
        assert f"of pod uid {POD_UID}" in second.message


class TestUnknown:
    @pytest.mark.parametrize(
        ("outcome", "faulty"), [(Outcome.NOT_PERMITTED, 0.0), (Outcome.NOT_PERMITTED, 99.0), (Outcome.BROKEN, LEAK)]
    )
    def test_a_shim_that_cannot_be_asked_is_neither_accused_nor_cleared(
        self, detector: ContainerdShimDetector, outcome: Outcome, faulty: float
    ) -> None:
        blind = item(answer=ShimAnswer("/s", outcome, "it cannot"), faulty=faulty)
        result = detector.check(seen(blind, item(shim(2))))
        assert result.findings == ()
        assert result.unknown.keys() == {HUNG, LEAKED}
        assert "1 of 2 shims could not be asked: it cannot" in result.unknown[HUNG]

    def test_a_connection_that_breaks_once_is_a_shim_on_its_way_out(self, detector: ContainerdShimDetector) -> None:
        result = detector.check(seen(item(answer=ShimAnswer("/s", Outcome.BROKEN, "x"), faulty=LEAK - JUST)))
        assert (result.findings, result.unknown) == ((), {})
        assert result.recheck_seconds == pytest.approx(JUST + 0.05)

    def test_what_is_wrong_is_told_though_something_else_cannot_be_seen(self, detector: ContainerdShimDetector) -> None:
        blind = item(shim(2), ShimAnswer("/s", Outcome.NOT_PERMITTED, "no"))
        result = detector.check(seen(item(answer=waiting(9)), blind))
        assert only(result).condition == HUNG
        assert result.unknown.keys() == {LEAKED}

    @pytest.mark.parametrize(
        ("problem", "age", "unknown"),
        [(NO_ADDRESS_YET, CREATING - JUST, set()), ("speaks 'grpc'", 0.0, {HUNG})],
    )
    def test_a_bundle_that_cannot_be_asked(
        self, detector: ContainerdShimDetector, problem: str, age: float, unknown: set[str]
    ) -> None:
        result = detector.check(seen(unaddressed=((bundle(problem=problem), age),)))
        assert result.findings == ()
        assert set(result.unknown) == unknown

    def test_a_bundle_no_shim_ever_served_is_dead_once_no_creation_takes_that_long(
        self, detector: ContainerdShimDetector
    ) -> None:
        result = detector.check(seen(unaddressed=((bundle(problem=NO_ADDRESS_YET), CREATING),)))
        finding = only(result)
        assert (finding.condition, finding.reason) == (LEAKED, "ShimDead")
        assert finding.recommended_action is Action.NONE
        assert result.unknown == {}

    def test_shims_with_hidden_directories_leave_leaks_unknown(self, detector: ContainerdShimDetector) -> None:
        denied = rights_without(Capability.SYS_PTRACE).process("/proc/400/cwd")
        result = detector.check(replace(seen(item(), unseen=3), ptrace_denied=denied))
        assert result.unknown.keys() == {LEAKED}
        assert "needs CAP_SYS_PTRACE" in result.unknown[LEAKED]
        assert result.deployment == (replace(denied, hides=(LEAKED,), impairs=(HUNG,)),)
        accused = detector.check(seen(item(shim(state=None), unreachable(), LEAK), unseen=3))
        assert accused.unknown == {}

    def test_a_right_that_is_missing_is_reported_also_where_its_condition_is_true(
        self, detector: ContainerdShimDetector
    ) -> None:
        fault = rights_without(Capability.DAC_READ_SEARCH).process("x")
        denied = ShimAnswer("a", Outcome.NOT_PERMITTED, str(fault), fault)
        blind = detector.check(seen(item(answer=denied)))
        assert blind.unknown.keys() == {HUNG, LEAKED}
        assert blind.deployment == (replace(fault, hides=(HUNG, LEAKED)),)
        silent = detector.check(seen(item(answer=waiting(60)), item(answer=denied)))
        assert only(silent).condition == HUNG
        assert silent.deployment == (replace(fault, hides=(LEAKED,), impairs=(HUNG,)),)

    def test_a_bundle_that_may_not_be_read_hides_its_shim(self, detector: ContainerdShimDetector) -> None:
        fault = rights_without(Capability.DAC_READ_SEARCH).process("x")
        unread = replace(bundle(problem=f"its bundle may not be read: {fault}"), fault=fault)
        result = detector.check(seen(unaddressed=((unread, 0.0),)))
        assert result.deployment == (replace(fault, hides=(HUNG,), impairs=(LEAKED,)),)


class TestSamples:
    def test_every_state_is_counted_once(self, detector: ContainerdShimDetector) -> None:
        result = detector.check(
            seen(
                item(shim(1)),
                item(shim(2), waiting(9)),
                item(shim(3), stuck_for(9)),
                item(shim(4, state=None), unreachable(), 9),
                item(shim(5), answered(a=STOPPED), 9),
                strays=(Aged(stray_shim(), 9), Aged(stray_shim(), 1), Aged(stray_container(), 9)),
            )
        )
        assert states_of(result) == {"serving": 1, "stuck": 1, "hung": 1, "dead": 1, "orphaned": 2}
        assert tuple(states_of(result)) == STATES
        assert len(result.findings) == 6

    def test_one_of_thirty_hung_is_counted_as_one(self, detector: ContainerdShimDetector) -> None:
        result = detector.check(seen(*(item(shim(n)) for n in range(29)), item(shim(30), waiting(9))))
        assert states_of(result) == {"serving": 29, "stuck": 0, "hung": 1, "dead": 0, "orphaned": 0}
        assert sum(s.name == "shim_ping_seconds" for s in result.samples) == 29

    def test_hung_shims_are_listed_up_to_a_limit_and_the_longest_first(self, detector: ContainerdShimDetector) -> None:
        result = detector.check(seen(*(item(shim(n, pod=None), waiting(10 + n)) for n in range(TOP_K + 15))))
        series = sample_values(result, "shim_hung_seconds")
        assert len(series) == TOP_K
        assert min(series.values()) == 10 + 15
        assert states_of(result)["hung"] == TOP_K + 15


class TestSince:
    def test_age_counts_from_the_first_sight_and_starts_anew_after_a_gap(self) -> None:
        clock = ManualClock()
        since = Since(clock)
        assert since.seconds(["a"], str) == [("a", 0.0)]
        clock.advance(5)
        assert since.seconds(["a", "b"], str) == [("a", 5.0), ("b", 0.0)]
        assert since.seconds(["b"], str) == [("b", 0.0)]
        assert since.seconds(["a"], str) == [("a", 0.0)]


class Node:
    """A node of files, with a detector that looks at it by a clock we turn."""

    def __init__(self, root: Path, *, expected: bool = False) -> None:
        self.root = root
        self.proc, self.state = FakeProc(root / "proc"), StateDir(root / "run")
        self.clock = ShiftedClock()
        self.servers: list[ShimServer] = []
        self.problem: DeploymentFault | None = None
        self.proc.add(1, "systemd", ppid=0)
        procfs, bundles = Procfs(str(root / "proc")), Bundles(str(root / "run"), ("k8s.io",))
        self.detector = ContainerdShimDetector(
            ContainerdShimSettings(ping_seconds=0.4),
            InventorySense(bundles, procfs, Pods(bundles, procfs), ("k8s.io",)),
            ShimSense(self.clock),
            procfs,
            Cgroups(str(root / "sys")),
            lambda: self.problem,
            self.clock,
            expected=expected,
        )

    def container(self, name: str = ID, pid: int = 400, state: str = "S") -> str:
        """Add a container with its shim's process; returns the address its shim should serve."""
        address = str(self.root / f"{pid}.sock")
        self.state.add(name, address=address, init_pid=pid + 1)
        self.proc.add(pid, SHIM_COMM, state=state, cwd=str(self.state.path(name)), cgroup="/shims")
        self.proc.add(pid + 1, "app", ppid=pid, cgroup=kubepods(name))
        return address

    def serve(self, answers: frozenset[str], state: str = "S") -> ShimServer:
        """Add a container whose shim answers so much."""
        self.servers.append(ShimServer(Path(self.container(state=state)), answers, pid=400))
        return self.servers[-1]

    def look(self, later: float = 0.0) -> CheckResult:
        self.clock.ahead += later
        return self.detector.check(self.detector.probe())


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    (tmp_path / "run" / TASKS).mkdir(parents=True)
    made = Node(tmp_path)
    yield made
    for server in made.servers:
        server.close()


class TestProbe:
    def test_without_containerd_it_does_not_apply(self, tmp_path: Path) -> None:
        with pytest.raises(NotApplicableError):
            Node(tmp_path).look()

    def test_a_containerd_named_by_the_settings_is_expected(self, tmp_path: Path) -> None:
        with pytest.raises(CannotSeeError, match=r"containerd\.state_dir"):
            Node(tmp_path, expected=True).look()

    def test_from_inside_a_container_nothing_is_decided(self, node: Node) -> None:
        node.container()
        node.problem = denied_fault("not the node's processes")
        with pytest.raises(CannotSeeError, match="not the node's processes; set hostPID") as seen:
            node.look()
        assert seen.value.fault is node.problem

    def test_a_stopped_shim_is_named_at_the_second_look_and_cleared_when_it_goes_on(self, node: Node) -> None:
        server = node.serve(answers=frozenset(), state="T")
        node.proc.write("400/wchan", b"do_signal_stop")
        first = node.look()
        assert first.findings == ()
        assert first.recheck_seconds is not None
        finding = only(node.look(first.recheck_seconds))
        assert finding.reason == "ShimUnresponsive"
        assert (finding.target.pid, finding.target.start_time) == (400, 100)
        assert (finding.values["processState"], finding.values["wchan"]) == ("T", "do_signal_stop")
        server.wait_for_held(2)
        server.release()
        result = node.look(1)
        assert (result.findings, result.recheck_seconds) == ((), None)
        assert states_of(result)["serving"] == 1

    def test_a_frozen_shim_is_to_be_thawed(self, node: Node) -> None:
        node.serve(answers=frozenset(), state="D")
        freeze = node.root / "sys/fs/cgroup/shims/cgroup.freeze"
        freeze.parent.mkdir(parents=True)
        freeze.write_text("1\n")
        node.look()
        finding = only(node.look(5))
        assert finding.recommended_action is Action.THAW_CGROUP
        assert finding.values["frozenCgroup"] == "/shims"
        assert finding.values["thawFile"] == "/sys/fs/cgroup/shims/cgroup.freeze"

    @pytest.mark.parametrize("ends", [True, False])
    def test_the_cgroup_of_a_shim_that_has_ended_meanwhile_is_not_missed(
        self, node: Node, monkeypatch: pytest.MonkeyPatch, ends: bool
    ) -> None:
        node.serve(answers=frozenset({"Connect", "State"}))
        hidden = denied_fault("the node's cgroups are not mounted")

        def fault(*_: object) -> DeploymentFault:
            if ends:
                node.proc.remove(400)
            return hidden

        monkeypatch.setattr(Cgroups, "fault", fault)
        assert bool(node.look().deployment) is not ends

    def test_a_stuck_shim_shows_its_process_too(self, node: Node) -> None:
        node.serve(answers=frozenset({"Connect"}))
        node.proc.write("400/wchan", b"futex_do_wait")
        node.look()
        finding = only(node.look(8))
        assert finding.reason == "ShimOperationStuck"
        assert finding.values["wchan"] == "futex_do_wait"

    def test_a_stuck_shim_shows_the_runc_that_is_its_child(self, node: Node) -> None:
        node.serve(answers=frozenset({"Connect"}))
        node.proc.add(402, "runc", ppid=400)
        node.proc.write("402/wchan", b"do_wait")
        node.proc.add(403, "runc", ppid=1)
        node.look()
        finding = only(node.look(8))
        assert (finding.values["runcPid"], finding.values["runcWchan"]) == (402, "do_wait")
        assert "its child runc 402" in finding.message

    def test_a_stopped_shim_that_is_killed_is_dead_after_the_grace(self, node: Node) -> None:
        server = node.serve(answers=frozenset())
        node.look()
        assert only(node.look(5)).reason == "ShimUnresponsive"
        server.wait_for_held(2)
        server.close()
        for pid in (400, 401):
            node.proc.remove(pid)
        assert node.look(5).findings == ()
        assert only(node.look(LEAK)).reason == "ShimDead"

    def test_a_bundle_left_by_a_dead_shim_is_told_however_its_socket_ends(self, node: Node) -> None:
        address = Path(node.container())
        for pid in (400, 401):
            node.proc.remove(pid)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(address))
        assert node.look().findings == ()
        address.unlink()  # refused before, missing now: still the same fault
        assert only(node.look(LEAK)).reason == "ShimDead"

    def test_a_shim_removed_within_the_grace_is_no_finding(self, node: Node) -> None:
        node.container()
        node.proc.remove(400)
        node.look()
        node.state.remove(ID)
        node.proc.remove(401)
        result = node.look(100)
        assert (result.findings, result.unknown) == ((), {})

    def test_a_stray_shim_is_told_after_the_grace(self, node: Node) -> None:
        node.proc.add(400, SHIM_COMM, cwd=f"{node.state.path(ID)} (deleted)")
        node.proc.write("400/wchan", b"ep_poll")
        assert node.look().findings == ()
        finding = only(node.look(LEAK))
        assert finding.reason == "ShimWithoutContainers"
        assert finding.values["wchan"] == "ep_poll"

    def test_processes_left_without_a_shim_are_told_after_the_grace(self, node: Node) -> None:
        node.proc.add(600, "app", cgroup=kubepods(ID))
        assert node.look().findings == ()
        assert only(node.look(LEAK)).reason == "ProcessesWithoutShim"
