"""Bundles, shims and processes put together over a /proc and a state directory of files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.host.bundles import TASKS, Bundles
from agent.host.inventory import SHIM_COMM, Inventory, InventorySense, StrayContainer, StrayShim
from agent.host.pods import Pods
from agent.host.procfs import Process, Procfs
from agent.model import NotApplicableError, PodRef
from tests.unit.builders import POD_UID, WEB, FakeProc, StateDir, container_id, kubepods

A, B, SANDBOX = container_id(1), container_id(2), container_id(9)
WEB_SANDBOX = PodRef(WEB.namespace, WEB.name, WEB.uid)
SERVICE = "/system.slice/containerd.service"


class WatchedProcfs(Procfs):
    """Hides the working directory of some, and lets something happen once the processes have been read."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.hidden: set[int] = set()
        self.then: Callable[[], object] = lambda: None

    def living(self) -> tuple[Process, ...]:
        found = super().living()
        self.then()
        return found

    def cwd(self, pid: int) -> str | None:
        return None if pid in self.hidden else super().cwd(pid)


@dataclass
class Node:
    """A node on disk, with one container running: init 500 under shim 400."""

    proc: FakeProc
    state: StateDir
    procfs: WatchedProcfs
    sense: InventorySense

    def shim(self, pid: int, name: str, *, start_time: int = 50, gone: bool = False, comm: str = SHIM_COMM) -> Process:
        suffix = " (deleted)" if gone else ""
        return self.proc.add(pid, comm, start_time=start_time, cgroup=SERVICE, cwd=f"{self.state.path(name)}{suffix}")

    def container(self, name: str = A, *, shim: int = 400, init: int = 500, address: str = "/s/a") -> Process:
        self.state.add(name, address=address, init_pid=init)
        process = self.shim(shim, name)
        self.proc.add(init, "app", ppid=shim, cgroup=kubepods(name))
        return process

    def take(self) -> Inventory:
        return self.sense.take()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    proc, state = FakeProc(tmp_path / "proc"), StateDir(tmp_path / "run")
    (tmp_path / "run" / TASKS).mkdir(parents=True)
    proc.add(1, "systemd", ppid=0, cgroup="/init.scope")
    procfs = WatchedProcfs(str(proc.root))
    bundles = Bundles(str(state.root), ("k8s.io",))
    return Node(proc, state, procfs, InventorySense(bundles, procfs, Pods(bundles, procfs), ("k8s.io",)))


def nothing_stray(inventory: Inventory) -> bool:
    return not (inventory.stray_shims or inventory.stray_containers or inventory.unseen_shims)


class TestShims:
    def test_a_healthy_container_has_its_shim_and_nothing_is_stray(self, node: Node) -> None:
        process = node.container()
        inventory = node.take()
        (shim,) = inventory.shims
        assert (shim.address, shim.process, shim.lead.id) == ("/s/a", process, A)
        assert not shim.creating
        assert nothing_stray(inventory)

    def test_containers_of_one_pod_share_a_shim_led_by_the_sandbox(self, node: Node) -> None:
        for name in (B, A):
            node.state.add(name, address="/s/a", sandbox_id=SANDBOX)
        node.state.add(SANDBOX, address="/s/a", pod=WEB_SANDBOX)
        node.state.add(container_id(4), address="/s/other")
        grouped, other = sorted(node.take().shims, key=lambda shim: shim.address)
        assert grouped.lead.id == SANDBOX
        assert grouped.query.container_ids == (SANDBOX, A, B)
        assert other.query.container_ids == (container_id(4),)

    def test_a_shim_is_creating_while_one_of_its_containers_has_no_init(self, node: Node) -> None:
        node.state.add(A, address="/s/a")
        node.state.add(B, address="/s/a", init_pid=None)
        assert node.take().shims[0].creating

    def test_a_bundle_without_address_is_listed_apart(self, node: Node) -> None:
        (node.state.add(A) / "address").unlink()
        inventory = node.take()
        assert inventory.shims == ()
        assert [bundle.id for bundle in inventory.unaddressed] == [A]

    def test_without_containerd_there_is_nothing_to_take(self, node: Node) -> None:
        (node.state.root / TASKS).rmdir()
        node.state.root.rmdir()
        with pytest.raises(NotApplicableError):
            node.take()


class TestShimProcess:
    def test_what_the_shim_said_it_is_counts_first(self, node: Node) -> None:
        node.container()
        told = node.shim(410, A)
        node.take()
        node.sense.answered("/s/a", 410)
        assert node.take().shims[0].process == told

    def test_a_pid_that_is_no_shim_is_not_believed(self, node: Node) -> None:
        process = node.container()
        for pid in (1, 500, 99999):
            node.sense.answered("/s/a", pid)
        assert node.take().shims[0].process == process

    def test_a_pid_given_away_since_is_not_believed(self, node: Node) -> None:
        process = node.container()
        node.shim(410, A)
        node.sense.answered("/s/a", 410)
        node.proc.add(410, SHIM_COMM, start_time=999, cwd="/")
        assert node.take().shims[0].process == process

    def test_the_parent_of_the_init_is_the_shim_also_where_its_directory_is_hidden(self, node: Node) -> None:
        process = node.container()
        node.procfs.hidden = {400}
        assert node.take().shims[0].process == process

    def test_so_is_that_of_an_init_that_has_ended_and_is_not_reaped(self, node: Node) -> None:
        process = node.container()
        node.proc.add(500, "app", state="Z", ppid=400, cgroup=kubepods(A))
        node.procfs.hidden = {400}
        assert node.take().shims[0].process == process

    def test_without_an_init_the_working_directory_tells(self, node: Node) -> None:
        process = node.container()
        node.proc.remove(500)
        assert node.take().shims[0].process == process

    @pytest.mark.parametrize("hidden", [False, True], ids=["by its shim's directory", "by its cgroup"])
    def test_an_init_pid_given_to_another_container_does_not_accuse_its_shim(self, node: Node, hidden: bool) -> None:
        node.state.add(A, address="/s/dead", init_pid=600)
        other = node.container(B, shim=401, init=501, address="/s/b")
        node.proc.add(600, "exec", ppid=401, cgroup=kubepods(B) if hidden else "/custom")
        node.procfs.hidden = {401} if hidden else set()
        processes = {shim.address: shim.process for shim in node.take().shims}
        assert processes == {"/s/dead": None, "/s/b": other}

    def test_a_zombie_is_no_shim_though_all_else_points_to_it(self, node: Node) -> None:
        node.container()
        node.sense.answered("/s/a", 400)
        node.proc.add(400, SHIM_COMM, state="Z", start_time=50, cwd=str(node.state.path(A)))
        assert node.take().shims[0].process is None


class TestStrayShims:
    def test_a_shim_whose_bundle_was_removed_is_stray_and_still_named(self, node: Node) -> None:
        process = node.container()
        node.take()
        node.state.remove(A)
        node.shim(400, A, gone=True)
        assert node.take().stray_shims == (StrayShim(process, A, "k8s.io", WEB),)

    def test_a_shim_never_seen_with_its_bundle_is_known_by_its_directory(self, node: Node) -> None:
        process = node.shim(400, f".{A}", gone=True)
        assert node.take().stray_shims == (StrayShim(process, A, "k8s.io", None),)

    def test_a_shim_whose_bundle_is_there_is_not_stray_though_it_is_not_the_one_that_serves(self, node: Node) -> None:
        node.container()
        node.shim(410, A)  # such as the helper that starts the shim
        assert nothing_stray(node.take())

    def test_a_shim_of_an_unaddressed_bundle_is_not_stray(self, node: Node) -> None:
        (node.state.add(A, init_pid=None) / "address").unlink()
        node.shim(400, A)
        assert nothing_stray(node.take())

    @pytest.mark.parametrize(
        "directory", ["/", "/var/run/docker/containerd/x", "/run/containerd/other/k8s.io/a (deleted)"]
    )
    def test_a_shim_of_somebody_elses_containerd_is_none_of_our_business(self, node: Node, directory: str) -> None:
        node.proc.add(400, SHIM_COMM, cwd=directory)
        assert nothing_stray(node.take())

    def test_a_shim_of_a_node_inside_this_node_is_none_of_our_business(self, node: Node) -> None:
        node.proc.add(400, SHIM_COMM, cwd=str(node.state.path(A)))  # the same path, in kind's own mounts
        node.proc.write("400/status", b"Name:\tcontainerd-shim\nNSpid:\t400\t7\n")
        assert nothing_stray(node.take())

    def test_a_shim_of_a_namespace_not_watched_is_none_of_our_business(self, node: Node) -> None:
        node.proc.add(400, SHIM_COMM, cwd=str(node.state.path(A, "moby")) + " (deleted)")
        assert nothing_stray(node.take())

    def test_a_shim_with_a_hidden_directory_is_unseen_and_not_accused(self, node: Node) -> None:
        process = node.shim(400, A)
        node.procfs.hidden = {400}
        inventory = node.take()
        assert inventory.unseen_shims == (process,)
        assert inventory.stray_shims == ()

    def test_a_known_shim_with_a_hidden_directory_is_accused_once_its_bundle_is_gone(self, node: Node) -> None:
        process = node.container()
        node.procfs.hidden = {400}
        node.take()
        node.state.remove(A)
        assert node.take().stray_shims == (StrayShim(process, A, "k8s.io", WEB),)

    @pytest.mark.parametrize("known", [False, True])
    def test_a_shim_that_ends_between_the_readings_is_neither_stray_nor_unseen(self, node: Node, known: bool) -> None:
        node.container()
        if known:
            node.take()

        def end() -> None:
            node.proc.remove(400)
            node.state.remove(A)

        node.procfs.then = end
        assert nothing_stray(node.take())

    def test_a_shim_that_starts_between_the_readings_is_not_stray(self, node: Node) -> None:
        node.procfs.then = node.container
        inventory = node.take()
        assert nothing_stray(inventory)
        assert inventory.shims[0].process is None

    def test_a_pid_given_to_another_shim_does_not_inherit_what_the_first_served(self, node: Node) -> None:
        node.container()
        node.take()
        node.state.remove(A)
        node.proc.remove(500)
        node.proc.add(400, SHIM_COMM, start_time=999, cwd="/elsewhere")
        assert nothing_stray(node.take())

    def test_a_container_process_that_calls_itself_a_shim_is_none(self, node: Node) -> None:
        node.container()
        node.proc.add(700, SHIM_COMM, ppid=500, cgroup=kubepods(A) + "/below", cwd=f"{node.state.path(B)} (deleted)")
        node.proc.add(701, SHIM_COMM, ppid=500, cgroup=kubepods(A))
        node.procfs.hidden = {701}
        assert nothing_stray(node.take())


class TestStrayContainers:
    def orphan(self, node: Node, pid: int = 600, start_time: int = 100) -> Process:
        return node.proc.add(pid, "app", cgroup=kubepods(A), start_time=start_time)

    def test_processes_left_to_init_without_a_bundle_are_stray_and_told_oldest_first(self, node: Node) -> None:
        second = self.orphan(node, 600, start_time=200)
        first = self.orphan(node, 601, start_time=100)
        (stray,) = node.take().stray_containers
        assert isinstance(stray, StrayContainer)
        assert stray.processes == (first, second)
        assert (stray.owner.container_id, stray.owner.pod_uid, stray.owner.path) == (A, POD_UID, kubepods(A))
        assert stray.pod is None

    def test_all_processes_of_the_container_are_counted_those_left_to_init_first(self, node: Node) -> None:
        child = node.proc.add(602, "worker", ppid=601, cgroup=kubepods(A), start_time=50)
        below = node.proc.add(603, "worker", ppid=601, cgroup=f"{kubepods(A)}/nested", start_time=60)
        left = self.orphan(node, 601, start_time=100)
        node.proc.add(604, "other", ppid=601, cgroup=kubepods(B))
        (stray,) = node.take().stray_containers
        assert stray.processes == (left, child, below)

    def test_their_pod_is_remembered_from_the_bundle(self, node: Node) -> None:
        node.container()
        node.take()
        node.state.remove(A)
        node.proc.remove(400)
        self.orphan(node, 500)
        (stray,) = node.take().stray_containers
        assert stray.pod == WEB

    def test_with_a_bundle_they_are_a_dead_shims_and_not_stray(self, node: Node) -> None:
        node.state.add(A)
        self.orphan(node)
        assert nothing_stray(node.take())

    def test_with_a_bundle_in_a_namespace_not_watched_they_are_not_stray(self, node: Node) -> None:
        node.state.add(A, namespace="moby")
        self.orphan(node)
        assert nothing_stray(node.take())

    def test_a_bundle_made_since_the_list_was_read_counts(self, node: Node) -> None:
        class LateBundles(Bundles):
            def has(self, container_id: str) -> bool:
                node.state.add(container_id)
                return super().has(container_id)

        node.sense.bundles = LateBundles(str(node.state.root), ("k8s.io",))
        self.orphan(node)
        assert nothing_stray(node.take())

    def test_children_of_anybody_but_init_zombies_and_services_are_not_stray(self, node: Node) -> None:
        node.proc.add(600, "app", ppid=1234, cgroup=kubepods(A))
        node.proc.add(601, "app", state="Z", cgroup=kubepods(A))
        node.proc.add(602, "sshd", cgroup="/system.slice/ssh.service")
        assert nothing_stray(node.take())

    def test_a_pid_given_to_another_process_is_looked_up_anew(self, node: Node) -> None:
        self.orphan(node)
        assert node.take().stray_containers
        node.proc.add(600, "sshd", start_time=999, cgroup="/system.slice/ssh.service")
        assert nothing_stray(node.take())


def test_nothing_is_remembered_of_what_is_gone(node: Node) -> None:
    node.container()
    node.sense.answered("/s/a", 400)
    node.take()
    node.state.remove(A)
    for pid in (400, 500):
        node.proc.remove(pid)
    node.take()
    assert (node.sense._answered, node.sense._served, node.sense._owners) == ({}, {}, {})
