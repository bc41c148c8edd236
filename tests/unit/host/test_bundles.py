"""Bundles as containerd writes them, and as a hostile or dying node leaves them."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.host import bundles as module
from agent.host.bundles import MAX_CONFIG_BYTES, NO_ADDRESS_YET, TASKS, Bundle, Bundles
from agent.model import NotApplicableError, PodRef
from tests.unit.builders import WEB, StateDir, open_files

RECORDED = Path(__file__).parents[2] / "fixtures/bundles"
SANDBOX = "c71ac615cf068cbf5a75ec9bbc365106371bb42e115a59e86fa4eb7a0367ad8b"
CONTAINER = "12ec47e0518460ad2a96a005c2e7e1c6523b025b48e419ffd4b9c132fd4308e4"
SOCKET = "/run/k8s-node-01/containerd/s/665dff0668c57c32000c15aedcbeb6d3b98b5f16f3b1818767eecc12a810a35c"


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    (tmp_path / TASKS).mkdir()
    return StateDir(tmp_path)


@pytest.fixture
def bundles(state: StateDir) -> Bundles:
    return Bundles(str(state.root), ("k8s.io",))


def the_one(bundles: Bundles) -> Bundle:
    (bundle,) = bundles.list()
    return bundle


class TestListing:
    def test_without_a_state_directory_there_is_no_containerd(self, tmp_path: Path) -> None:
        with pytest.raises(NotApplicableError, match="no containerd here"):
            Bundles(str(tmp_path / "none"), ("k8s.io",)).list()

    def test_a_state_directory_that_cannot_be_reached_is_not_an_absent_one(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(NotADirectoryError):
            Bundles(str(tmp_path / "file/containerd"), ("k8s.io",)).list()

    def test_a_namespace_without_bundles_is_no_error(self, tmp_path: Path) -> None:
        (tmp_path / TASKS).mkdir()
        assert Bundles(str(tmp_path), ("k8s.io",)).list() == ()

    def test_a_folder_that_holds_only_sockets_is_no_trace_of_containerd(self, tmp_path: Path) -> None:
        (tmp_path / "s").mkdir()
        with pytest.raises(NotApplicableError):
            Bundles(str(tmp_path), ("k8s.io",)).list()

    def test_only_configured_namespaces_are_listed(self, state: StateDir) -> None:
        state.add("a", namespace="k8s.io")
        state.add("b", namespace="moby")
        state.add("c", namespace="default")
        listed = Bundles(str(state.root), ("k8s.io", "default")).list()
        assert [(b.namespace, b.id) for b in listed] == [("k8s.io", "a"), ("default", "c")]

    def test_bundles_being_removed_files_and_links_are_none(self, state: StateDir, bundles: Bundles) -> None:
        real = state.add("a")
        state.add(".b")
        (real.parent / "file").write_text("")
        (real.parent / "link").symlink_to(real)
        assert [b.id for b in bundles.list()] == ["a"]

    def test_a_bundle_that_vanishes_while_listed_is_passed_over(
        self, state: StateDir, bundles: Bundles, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def remove_first(folder: int, name: str, limit: int) -> bytes | None:
            shutil.rmtree(state.root / TASKS / "k8s.io", ignore_errors=True)
            return read(folder, name, limit)

        read = module._regular_file
        state.add("a")
        state.add("b")
        monkeypatch.setattr(module, "_regular_file", remove_first)
        (bundle,) = bundles.list()  # "a" was open already, "b" was gone
        assert (bundle.id, bundle.problem, bundle.init_pid) == ("a", NO_ADDRESS_YET, None)
        assert bundles.list() == ()

    def test_there_is_a_limit_to_how_many_are_read(
        self, state: StateDir, bundles: Bundles, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in "abc":
            state.add(name)
        monkeypatch.setattr(module, "MAX_BUNDLES", 2)
        assert [b.id for b in bundles.list()] == ["a", "b"]

    def test_listing_leaves_no_file_open(self, state: StateDir, bundles: Bundles) -> None:
        folder = state.add("a")
        (folder / "init.pid").unlink()
        (folder / "init.pid").symlink_to("/etc/passwd")
        (folder / "config.json").unlink()
        os.mkfifo(folder / "config.json")
        before = open_files()
        for _ in range(20):
            bundles.list()
        assert open_files() == before

    def test_a_state_directory_behind_a_link_is_told_as_the_kernel_tells_it(self, state: StateDir) -> None:
        state.add("a")
        link = state.root / "var-run"
        link.symlink_to(state.root)
        assert the_one(Bundles(str(link), ("k8s.io",))).path == str(state.path("a"))


class TestAddress:
    def test_containerd_1_6(self, state: StateDir, bundles: Bundles) -> None:
        state.add("a", address="/run/containerd/s/abc", init_pid=77)
        bundle = the_one(bundles)
        assert (bundle.address, bundle.task_version, bundle.init_pid) == ("/run/containerd/s/abc", 2, 77)
        assert bundle.problem == ""
        assert abs(time.time() - bundle.modified_at) < 60
        assert bundle.is_complete

    def test_containerd_2_4_as_recorded(self, state: StateDir, bundles: Bundles) -> None:
        for name in (SANDBOX, CONTAINER):
            shutil.copytree(RECORDED / name, state.path(name))
        container, sandbox = bundles.list()
        assert {container.address, sandbox.address} == {SOCKET}
        assert (container.task_version, sandbox.task_version) == (3, 3)
        assert (container.init_pid, sandbox.init_pid) == (21097, 21004)
        assert sandbox.identity.is_sandbox
        assert container.identity.sandbox_id == SANDBOX
        assert container.identity.pod == PodRef(
            "kube-system", "multi-peers-node", "9fd684b9ee4c8a8ba5cf12ff2f3b6613", "a"
        )
        assert container.identity.cgroup == f"/kubepods/burstable/pod9fd684b9ee4c8a8ba5cf12ff2f3b6613/{CONTAINER}"

    @pytest.mark.parametrize(
        ("bootstrap", "problem"),
        [
            ('{"version":3,"address":"unix:///s","protocol":"grpc"}', "speaks 'grpc'"),
            ('{"version":3,"address":"unix:///s"', "not what containerd writes"),
            ("[]", "not what containerd writes"),
            ('"text"', "not what containerd writes"),
            ('{"version":3}', "not what containerd writes"),
            ('{"version":null,"address":"unix:///s"}', "not what containerd writes"),
            ('{"version":1e999,"address":"unix:///s"}', "not what containerd writes"),
            ('{"version":NaN,"address":"unix:///s"}', "not what containerd writes"),
            ('{"version":3,"address":"tcp://127.0.0.1:1"}', "no unix socket"),
            ('{"version":3,"address":"unix://@abstract"}', "no unix socket"),
            ('{"version":3,"address":"unix:///s\\u0000x"}', "no unix socket"),
            ('{"version":3,"address":"unix:///s\\ud800"}', "no unix socket"),
            ('{"version":3,"address":"unix:///' + "s" * 107 + '"}', "longer than the 107 bytes"),
            ('{"version":3,"address":""}', NO_ADDRESS_YET),
            ("[" * 2000, "not what containerd writes"),
            ("x" * 10000, "not what containerd writes"),
        ],
    )
    def test_an_address_that_cannot_be_asked_is_named_as_the_problem(
        self, state: StateDir, bundles: Bundles, bootstrap: str, problem: str
    ) -> None:
        (state.add("a") / "bootstrap.json").write_text(bootstrap)
        bundle = the_one(bundles)
        assert bundle.address == ""
        assert problem in bundle.problem

    def test_an_address_as_long_as_a_socket_can_have_is_used(self, state: StateDir, bundles: Bundles) -> None:
        address = "/" + "s" * 106
        state.add("a", address=address)
        assert the_one(bundles).address == address

    @pytest.mark.parametrize("name", ["address", "init.pid", "config.json"])
    @pytest.mark.parametrize(
        "make",
        [
            lambda path: path.symlink_to("real"),
            os.mkfifo,
            lambda path: path.mkdir(),
            lambda path: os.mknod(path, 0o20600, os.makedev(1, 5)),
            lambda path: None,
        ],
        ids=["link", "fifo", "directory", "zero device", "missing"],
    )
    def test_only_regular_files_are_read(
        self, state: StateDir, bundles: Bundles, name: str, make: Callable[[Path], None]
    ) -> None:
        path = state.add("a") / name
        path.rename(path.parent / "real")
        make(path)
        bundle = the_one(bundles)
        assert {
            "address": bundle.problem == NO_ADDRESS_YET,
            "init.pid": bundle.init_pid is None,
            "config.json": bundle.identity.problem == "its config.json cannot be read",
        }[name]

    @pytest.mark.parametrize("content", ["", "-1", "12a", "²", "99999999999999", "1 2", "\ufffd"])
    def test_a_pid_that_is_none_counts_as_not_written_yet(
        self, state: StateDir, bundles: Bundles, content: str
    ) -> None:
        (state.add("a") / "init.pid").write_text(content)
        assert the_one(bundles).init_pid is None


class TestIdentity:
    def test_a_container_is_named_by_its_pod(self, state: StateDir, bundles: Bundles) -> None:
        state.add("a", pod=WEB, sandbox_id="s")
        state.add("s", pod=PodRef(WEB.namespace, WEB.name, WEB.uid))
        container, sandbox = (bundle.identity for bundle in bundles.list())
        assert (container.pod, container.sandbox_id, container.is_sandbox) == (WEB, "s", False)
        assert (sandbox.sandbox_id, sandbox.is_sandbox) == ("s", True)

    def test_a_container_without_a_pod_is_no_problem(self, state: StateDir, bundles: Bundles) -> None:
        state.add("a", pod=None)
        assert (the_one(bundles).identity.pod, the_one(bundles).identity.problem) == (None, "")

    def test_a_config_of_100_mb_is_not_read(
        self, state: StateDir, bundles: Bundles, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def counted(file: int, limit: int) -> bytes:
            sizes.append(len(part := read(file, limit)))
            return part

        sizes: list[int] = []
        read = os.read
        with (state.add("a") / "config.json").open("ab") as config:
            config.truncate(100_000_000)
        monkeypatch.setattr(os, "read", counted)
        bundle = the_one(bundles)
        assert "larger than 1 MiB" in bundle.identity.problem
        assert bundle.address != ""
        assert sum(sizes) < MAX_CONFIG_BYTES + 1000

    def test_a_config_just_within_the_limit_is_read(self, state: StateDir, bundles: Bundles) -> None:
        config = state.add("a") / "config.json"
        config.write_bytes(config.read_bytes().ljust(MAX_CONFIG_BYTES))
        assert the_one(bundles).identity.pod == WEB
        config.write_bytes(config.read_bytes() + b" ")
        assert Bundles(str(state.root), ("k8s.io",)).list()[0].identity.pod is None

    @pytest.mark.parametrize(
        "config",
        [
            b"",
            b"{",
            b"[]",
            b"3",
            b'"text"',
            b"\xff\xfe\xfd",
            b'{"annotations": [1]}',
            b'{"annotations": "x"}',
            b'{"linux": [1]}',
            b"[" * 100_000,
            b'{"linux": "x"}',
        ],
    )
    def test_a_config_that_is_none_is_a_problem_of_the_name_alone(
        self, state: StateDir, bundles: Bundles, config: bytes
    ) -> None:
        (state.add("a") / "config.json").write_bytes(config)
        bundle = the_one(bundles)
        assert bundle.identity.pod is None
        assert bundle.address == "/run/containerd/s/abc"
        assert bundle.identity.problem

    def test_a_config_is_read_once_as_it_never_changes(self, state: StateDir, bundles: Bundles) -> None:
        folder = state.add("a")
        bundles.list()
        (folder / "config.json").unlink()
        assert the_one(bundles).identity.pod == WEB

    def test_a_new_bundle_of_the_same_name_is_read_anew(self, state: StateDir, bundles: Bundles) -> None:
        folder = state.add("a")
        bundles.list()
        folder.rename(folder.parent / ".a")  # keeps its inode from being given away again
        other = PodRef("shop", "web-1", "u", "app")
        state.add("a", pod=other)
        assert the_one(bundles).identity.pod == other

    def test_a_config_that_is_still_being_written_is_read_again(self, state: StateDir, bundles: Bundles) -> None:
        config = state.add("a") / "config.json"
        whole = config.read_text()
        config.write_text(whole[:20])
        assert the_one(bundles).identity.problem
        config.write_text(whole)
        assert the_one(bundles).identity.pod == WEB

    def test_annotations_of_any_type_become_text(self, state: StateDir, bundles: Bundles) -> None:
        words = {"io.kubernetes.cri.sandbox-name": 5, "io.kubernetes.cri.sandbox-namespace": None}
        (state.add("a") / "config.json").write_text(json.dumps({"annotations": words}))
        assert the_one(bundles).identity.pod == PodRef("None", "5")


class TestFinding:
    def test_a_bundle_is_found_by_its_id(self, state: StateDir, bundles: Bundles) -> None:
        state.add("a")
        state.add("b", namespace="moby")
        assert [b.id for b in bundles.find("a")] == ["a"]
        assert bundles.find("b") == ()

    @pytest.mark.parametrize("name", ["", ".", "..", ".a", "../k8s.io/a", "a/..", "/etc"])
    def test_an_id_that_is_a_path_finds_nothing(self, state: StateDir, bundles: Bundles, name: str) -> None:
        state.add("a")
        state.add(".a")
        assert bundles.find(name) == ()
        assert not bundles.has(name)

    def test_a_bundle_in_any_namespace_is_there(self, state: StateDir, bundles: Bundles) -> None:
        state.add("b", namespace="moby")
        assert bundles.has("b")
        assert not bundles.has("a")
        assert not Bundles(str(state.root / "none"), ()).has("b")
