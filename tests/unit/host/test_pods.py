"""Whose container, whose address: from the bundles, and from memory once they are gone."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agent.host import pods as module
from agent.host.bundles import TASKS, Bundles
from agent.host.pod_book import PodBook
from agent.host.pod_list import ListedPod
from agent.host.pods import Pods
from agent.host.procfs import Procfs
from agent.model import PodRef
from tests.lab.waiting import wait_until
from tests.unit.builders import WEB, FakeProc, ManualClock, StateDir, container_id

SANDBOX = PodRef(WEB.namespace, WEB.name, WEB.uid)
OTHER = PodRef("shop", "db-0", "other-uid")


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path / "proc")


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    (tmp_path / "run" / TASKS).mkdir(parents=True)
    return StateDir(tmp_path / "run")


@pytest.fixture
def pods(state: StateDir, proc: FakeProc) -> Pods:
    return Pods(Bundles(str(state.root), ("k8s.io",)), Procfs(str(proc.root)))


def give_address(proc: FakeProc, pid: int, *addresses: str) -> None:
    lines = "".join(f"     |-- {address}\n        /32 host LOCAL\n" for address in addresses)
    proc.write(f"{pid}/net/fib_trie", f"Local:\n{lines}".encode())


class TestPodOf:
    def test_a_container_is_looked_up_in_its_bundle(self, state: StateDir, pods: Pods) -> None:
        state.add("a")
        assert pods.pod_of("a") == WEB

    def test_it_is_remembered_after_the_bundle_is_gone(self, state: StateDir, pods: Pods) -> None:
        state.add("a")
        pods.pod_of("a")
        state.remove("a")
        assert pods.pod_of("a") == WEB

    @pytest.mark.parametrize("name", ["unknown", "", "../a", ".a"])
    def test_nobody_is_named_for_what_no_bundle_told(self, state: StateDir, pods: Pods, name: str) -> None:
        state.add("a")
        assert pods.pod_of(name) is None

    def test_a_container_without_a_pod_is_nobodys(self, state: StateDir, pods: Pods) -> None:
        state.add("a", pod=None)
        assert pods.pod_of("a") is None

    def test_a_bundle_that_was_not_there_yet_is_looked_for_again(self, state: StateDir, pods: Pods) -> None:
        assert pods.pod_of("a") is None
        state.add("a")
        assert pods.pod_of("a") == WEB

    def test_memory_has_a_limit_and_forgets_the_oldest(
        self, state: StateDir, pods: Pods, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "MAX_REMEMBERED", 2)
        for name in ("a", "b", "a", "c"):
            if not state.path(name).exists():
                state.add(name)
            pods.remember(Bundles(str(state.root), ("k8s.io",)).find(name))
        for name in "abc":
            state.remove(name)
        assert [pods.pod_of(name) for name in "abc"] == [WEB, None, WEB]


class TestBook:
    @pytest.fixture
    def book(self) -> PodBook:
        """A book in which the kubelet has written of two containers, one of which has a bundle."""

        def read(take: Callable[[ListedPod], None]) -> None:
            take(ListedPod(replace(OTHER, owner="StatefulSet/db"), (("a", "db"), ("gone", "db"))))

        book = PodBook(read, ManualClock())
        book.pod_of("gone")
        wait_until(lambda: book.pod_of("gone"), 30, "the book is written")
        return book

    @pytest.fixture
    def pods(self, state: StateDir, proc: FakeProc, book: PodBook) -> Pods:
        return Pods(Bundles(str(state.root), ("k8s.io",)), Procfs(str(proc.root)), book)

    def test_what_no_bundle_ever_told_the_kubelet_tells(self, pods: Pods) -> None:
        assert pods.pod_of("gone") == replace(OTHER, container="db", owner="StatefulSet/db")
        assert pods.pod_of("unknown") is None

    def test_a_bundle_has_the_first_word(self, state: StateDir, pods: Pods) -> None:
        state.add("a")
        assert pods.pod_of("a") == WEB


class TestOwners:
    def test_an_address_belongs_to_the_pod_whose_sandbox_has_it(
        self, state: StateDir, proc: FakeProc, pods: Pods
    ) -> None:
        give_address(proc, 1, "10.0.0.1")
        state.add("s", pod=SANDBOX, init_pid=500)
        state.add("t", pod=OTHER, init_pid=501)
        give_address(proc, 500, "10.88.0.5")
        give_address(proc, 501, "10.88.0.6")
        assert pods.owners(frozenset({"10.88.0.5", "10.88.0.6", "10.88.0.7"})) == {
            "10.88.0.5": SANDBOX,
            "10.88.0.6": OTHER,
        }

    def test_the_nodes_own_address_is_nobodys_though_a_host_network_pod_has_it_too(
        self, state: StateDir, proc: FakeProc, pods: Pods
    ) -> None:
        state.add("s", pod=SANDBOX, init_pid=500)
        for pid in (1, 500):
            give_address(proc, pid, "10.0.0.1")
        assert pods.owners(frozenset({"10.0.0.1"})) == {}

    def test_only_sandboxes_are_looked_into(self, state: StateDir, proc: FakeProc, pods: Pods) -> None:
        state.add("c", sandbox_id=container_id(1), init_pid=500)
        state.add("unborn", pod=OTHER, init_pid=None)
        give_address(proc, 500, "10.88.0.5")
        assert pods.owners(frozenset({"10.88.0.5"})) == {}

    def test_without_containerd_nobody_is_named(self, tmp_path: Path) -> None:
        pods = Pods(Bundles(str(tmp_path / "none"), ("k8s.io",)), Procfs(str(tmp_path)))
        assert pods.owners(frozenset({"10.88.0.5"})) == {}
