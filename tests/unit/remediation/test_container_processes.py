"""What is ended is exactly these containers, on cgroup v1 and v2, frozen or forking; what is not seen is not none."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.host.cgroups import Cgroups
from agent.host.procfs import Procfs
from agent.model import ProcessId
from agent.remediation.container_processes import ContainerProcesses, configured_cgroup
from agent.remediation.remedy import ActError
from tests.lab import cgroups
from tests.lab.cgroups import Hierarchy
from tests.lab.waiting import wait_until
from tests.unit.builders import POD_UID, UNREAL_PID, FakeProc, container_id, kubepods
from tests.unit.remediation.sleepers import PROCFS, TREES, V1_ALONE, Grove, freeze, grove, v2

ID, OTHER = container_id(1), container_id(2)
FIRST, SECOND = UNREAL_PID, UNREAL_PID + 1


@pytest.fixture
def ours() -> Iterator[Grove]:
    with grove() as made:
        yield made


def processes_of(made: Grove) -> ContainerProcesses:
    return ContainerProcesses(PROCFS, Cgroups("/sys"), "/sys", (made.namespace,))


def version(tree: Hierarchy) -> str:
    return f"v{tree.version}"


def alive(process: ProcessId) -> bool:
    now = PROCFS.process(process.pid)
    return now is not None and now.id == process and now.state != "Z"


@pytest.mark.parametrize("tree", TREES, ids=version)
def test_all_of_a_container_is_ended_and_nothing_beside_it(ours: Grove, tree: Hierarchy) -> None:
    path, below, beside = ours.make("web"), ours.make("web", "inner"), ours.make("webb")
    inside = [ours.sleeper(path, tree), ours.sleeper(below, tree)]
    outside = [ours.sleeper(beside, tree), ours.sleeper(f"/{ours.namespace}", tree)]
    ended = processes_of(ours).end({"web"}, {path}, 5)
    assert {process.id for process in ended} == set(inside)
    assert not any(alive(process) for process in inside)
    assert all(alive(process) for process in outside)


def test_on_v2_the_cgroup_is_killed_as_a_whole(ours: Grove, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ours.make("web")
    inside = ours.sleeper(path, v2())
    monkeypatch.setattr(ContainerProcesses, "_kill", lambda *_: None)
    processes_of(ours).end({"web"}, {path}, 5)
    assert not alive(inside)


@pytest.mark.parametrize("tree", TREES, ids=version)
@pytest.mark.parametrize("frozen_at", [("web",), ("web", "inner")], ids=["itself", "below"])
def test_a_frozen_container_is_ended_too(ours: Grove, tree: Hierarchy, frozen_at: tuple[str, ...]) -> None:
    path, place = ours.make("web"), ours.make(*frozen_at)
    inside = ours.sleeper(place, tree)
    freeze(tree, place)
    processes_of(ours).end({"web"}, {path}, 5)
    assert not alive(inside)


def test_a_container_that_keeps_forking_is_ended(ours: Grove) -> None:
    path = ours.make("web")
    inside = f"until grep -q {path} /proc/$$/cgroup; do :; done"  # what it forks before is none of the container's
    forking = f"{inside}; trap '' TERM; while :; do sleep 100 & sleep 0.01; done"
    first = ours.sleeper(path, TREES[0], argv=("sh", "-c", forking))
    wait_until(lambda: len(cgroups.members(path)) > 3, 30, "some children")
    processes_of(ours).end({"web"}, {path}, 10)
    assert not alive(first)
    assert cgroups.members(path) == set()


@pytest.mark.parametrize("tree", V1_ALONE, ids=version)
def test_a_cgroup_above_the_container_is_not_thawed_and_who_it_keeps_is_named(ours: Grove, tree: Hierarchy) -> None:
    path, top = ours.make("web"), f"/{ours.namespace}"
    inside = ours.sleeper(path, tree)
    switch = freeze(tree, top)
    wait_until(lambda: switch.read_text() == "FROZEN\n", 30, "frozen")
    with pytest.raises(ActError, match=f"process {inside.pid} .sleep.: its cgroup {top} is frozen"):
        processes_of(ours).end({"web"}, {path}, 0.2)
    assert switch.read_text() == "FROZEN\n"


def test_the_list_of_a_cgroup_alone_tells_whether_it_is_occupied(ours: Grove) -> None:
    path, empty = ours.make("web"), ours.make("empty")
    ours.sleeper(path, TREES[0])
    assert processes_of(ours).occupied({path})
    assert not processes_of(ours).occupied({empty, f"/{ours.namespace}/gone"})


@pytest.mark.parametrize(
    ("path", "own"),
    [
        (kubepods(ID), True),
        (f"/kubepods.slice/kubepods-pod{POD_UID}.slice/cri-containerd-{ID}.scope", True),
        (f"/k8s.io/{ID}", True),
        (f"/kubepods/burstable/pod{POD_UID}", False),
        ("/kubepods/burstable", False),
        ("/kubepods", False),
        ("/", False),
        ("", False),
        ("/k8s.io", False),
        ("/k8s.io/", False),
        (kubepods(OTHER), False),
        (f"{kubepods(ID)}/below", False),
        (f"/system.slice/{ID}", False),
        (f"/k8s.io/../k8s.io/{ID}", False),
        (f"/../..{kubepods(ID)}", False),
        (f"/kubepods/./pod{POD_UID}/{ID}", False),
        (kubepods(ID)[1:], False),
    ],
)
def test_only_a_containers_own_cgroup_may_be_written_to(path: str, *, own: bool) -> None:
    checked = ContainerProcesses(PROCFS, Cgroups("/sys"), "/sys", ("k8s.io",))
    assert checked.is_own(path, {ID}) is own


@pytest.mark.parametrize(
    ("configured", "path"),
    [
        (kubepods(ID), kubepods(ID)),
        ("kubepods-besteffort-podX.slice:cri-containerd:abc",
         "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podX.slice/cri-containerd-abc.scope"),
        ("system.slice:a:b", "/system.slice/a-b.scope"),
        ("", ""),
        ("nothing known", ""),
        ("a:b:c:d", ""),
    ],
)  # fmt: skip
def test_a_spec_tells_the_cgroup_in_both_drivers_ways(configured: str, path: str) -> None:
    assert configured_cgroup(configured) == path


class TestWhatIsNotSeen:
    @pytest.fixture
    def proc(self, tmp_path: Path) -> FakeProc:
        proc = FakeProc(tmp_path / "proc")
        proc.add(os.getpid(), "nodediag")
        return proc

    @pytest.fixture
    def seen(self, proc: FakeProc, tmp_path: Path) -> ContainerProcesses:
        (tmp_path / "sys/fs/cgroup/pids").mkdir(parents=True)
        sysfs = str(tmp_path / "sys")
        return ContainerProcesses(Procfs(str(proc.root)), Cgroups(sysfs), sysfs, ())

    def test_a_proc_without_ourselves_is_not_empty_but_unseen(self, proc: FakeProc, seen: ContainerProcesses) -> None:
        proc.remove(os.getpid())
        proc.add(FIRST)
        with pytest.raises(PermissionError, match="does not even show this agent"):
            seen.find({ID})

    def test_a_process_whose_cgroups_are_hidden_may_be_one(self, proc: FakeProc, seen: ContainerProcesses) -> None:
        proc.add(FIRST)
        (proc.root / f"{FIRST}/cgroup").unlink()
        with pytest.raises(PermissionError, match=rf"the cgroups of process {FIRST} \(sleep\) cannot be read"):
            seen.find({ID})

    @pytest.mark.parametrize("pid", [0, FIRST])
    def test_a_pid_only_the_cgroup_knows_is_one(
        self, proc: FakeProc, seen: ContainerProcesses, tmp_path: Path, pid: int
    ) -> None:
        folder = tmp_path / f"sys/fs/cgroup/pids{kubepods(ID)}"
        folder.mkdir(parents=True)
        (folder / "cgroup.procs").write_text(f"{pid}\n")
        with pytest.raises(PermissionError, match="not to be seen from this pid namespace"):
            seen.find({ID}, {kubepods(ID)})

    def test_a_path_outside_of_our_cgroup_namespace_is_not_taken_for_empty(self, seen: ContainerProcesses) -> None:
        with pytest.raises(OSError, match="outside of the cgroup namespace"):
            seen.occupied({f"/../..{kubepods(ID)}"})

    def test_without_any_hierarchy_nothing_is_seen(self, seen: ContainerProcesses, tmp_path: Path) -> None:
        (tmp_path / "sys/fs/cgroup/pids").rmdir()
        with pytest.raises(OSError, match="no cgroup hierarchy"):
            seen.occupied({kubepods(ID)})

    def test_a_zombie_is_over_but_not_its_threads(self, proc: FakeProc, seen: ContainerProcesses) -> None:
        proc.add(FIRST, state="Z", cgroup=kubepods(ID))
        proc.add(SECOND, state="Z", cgroup=kubepods(ID))
        for thread in (SECOND, SECOND + 1):
            (proc.root / f"{SECOND}/task/{thread}").mkdir(parents=True)
        assert [member.process.pid for member in seen.find({ID})] == [SECOND]

    def test_who_is_in_two_containers_at_once_is_nobodys_to_kill(
        self, proc: FakeProc, seen: ContainerProcesses
    ) -> None:
        proc.add(FIRST, cgroup=kubepods(ID))
        proc.add(SECOND)
        proc.write(f"{SECOND}/cgroup", f"8:pids:{kubepods(ID)}\n0::{kubepods(OTHER)}\n".encode())
        assert [member.process.pid for member in seen.find({ID})] == [FIRST]

    def test_the_container_of_this_agent_is_never_ended(self, proc: FakeProc, seen: ContainerProcesses) -> None:
        proc.add(os.getpid(), "nodediag", cgroup=kubepods(ID))
        with pytest.raises(ActError, match="this agent itself runs in one of these containers"):
            seen.end({ID}, (), 1)

    def test_a_process_that_is_another_by_now_is_not_living(self, proc: FakeProc, seen: ContainerProcesses) -> None:
        proc.add(FIRST, start_time=200)
        assert seen.living([ProcessId(FIRST, 100)]) == ()
        assert [process.pid for process in seen.living([ProcessId(FIRST, 200)])] == [FIRST]
