"""Whose cgroup is it, is it frozen, and how many pids are left: over v1, v2 and both at once."""

from pathlib import Path

import pytest

from agent.host.cgroups import CgroupOwner, Cgroups, PidsLimit, owner, paths, unit
from tests.unit.builders import POD_UID, container_id, kubepods

ID = container_id(0xABC)
INNER = container_id(0xDEF)
RECORDED_ID = "4d6d0ac76196382da386fbeaee0cebc57bdcd8d8366480fb404dd5bb573860bf"
RECORDED_UID = "2363cc135985085bb5caf8c2db60826d"
RECORDED = f"/kubepods/besteffort/pod{RECORDED_UID}/{RECORDED_ID}"
V1_CONTROLLERS = ("name=systemd", "pids", "blkio", "freezer", "devices", "memory", "cpuset", "cpuacct", "cpu")
POD_SLICE = f"pod{POD_UID.replace('-', '_')}.slice"
SYSTEMD_POD = f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-{POD_SLICE}"


def v1(path: str, unified: str | None = None) -> tuple[str, ...]:
    lines = [f"{9 - i}:{name}:{path}" for i, name in enumerate(V1_CONTROLLERS)]
    return (*lines, f"0::{path if unified is None else unified}")


def v2(path: str) -> tuple[str, ...]:
    return (f"0::{path}",)


@pytest.fixture
def sys(tmp_path: Path) -> Path:
    return tmp_path / "sys"


def write(sys: Path, name: str, content: str) -> None:
    path = sys / "fs/cgroup" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


class TestOwner:
    @pytest.mark.parametrize(
        "path",
        [
            kubepods(ID),
            f"/kubepods/pod{POD_UID}/{ID}",
            f"{SYSTEMD_POD}/cri-containerd-{ID}.scope",
            f"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-{POD_SLICE}/cri-containerd-{ID}.scope",
            f"/docker/{INNER}/kubelet/kubepods/besteffort/pod{POD_UID}/{ID}",
            f"/system.slice/containerd.service/kubepods-burstable-{POD_SLICE}:cri-containerd:{ID}",
        ],
        ids=["cgroupfs", "guaranteed", "systemd", "kind", "kind without namespace", "drivers disagree"],
    )
    def test_every_layout_of_kubernetes_names_pod_and_container(self, path: str) -> None:
        assert owner(v2(path)) == CgroupOwner(path, ID, POD_UID)

    @pytest.mark.parametrize(
        "below", ["/init.scope", f"/kubepods/pod{RECORDED_UID}/{INNER}", f"/docker/{INNER}", "/a/b"]
    )
    def test_what_a_container_makes_below_its_cgroup_is_still_its_own(self, below: str) -> None:
        assert owner(v2(kubepods(ID) + below)) == CgroupOwner(kubepods(ID), ID, POD_UID)

    def test_a_static_pods_uid_has_no_dashes(self) -> None:
        assert owner(v1(RECORDED)) == CgroupOwner(RECORDED, RECORDED_ID, RECORDED_UID)

    def test_a_zombie_on_v1_keeps_its_container_on_the_unified_line_alone(self) -> None:
        assert owner(v1("/", unified=RECORDED)) == CgroupOwner(RECORDED, RECORDED_ID, RECORDED_UID)

    def test_containerds_own_default_is_known_for_the_configured_namespaces_only(self) -> None:
        assert owner(v2("/k8s.io/web"), ("default", "k8s.io")) == CgroupOwner("/k8s.io/web", "web")
        assert owner(v2("/k8s.io/web/below"), ("k8s.io",)) == CgroupOwner("/k8s.io/web", "web")
        assert owner(v2("/k8s.io/web"), ("default",)) is None
        assert owner(v2("/k8s.io/"), ("k8s.io",)) is None
        assert owner(v2("/k8s.io"), ("k8s.io",)) is None

    @pytest.mark.parametrize(
        "path",
        [
            "/",
            "/kubepods/burstable",
            f"/kubepods/burstable/pod{POD_UID}",
            f"{SYSTEMD_POD}/crio-{ID}.scope",
            f"{SYSTEMD_POD}/crio-conmon-{ID}.scope",
            f"{SYSTEMD_POD}/docker-{ID}.scope",
            f"/kubepods/burstable/pod{POD_UID}/crio-{ID}",
            f"/docker/{ID}",
            f"/system.slice/docker-{ID}.scope",
            "/system.slice/containerd.service",
            f"/kubepods/burstable/pod{POD_UID}/{ID[:63]}",
            f"/kubepods/burstable/pod{POD_UID}/{ID}0",
        ],
    )
    def test_other_runtimes_and_services_are_not_ours(self, path: str) -> None:
        assert owner(v2(path), ("k8s.io",)) is None

    def test_lines_that_are_none_name_nobody(self) -> None:
        assert owner(()) is None
        assert owner(("", "garbage", "0:no path")) is None

    def test_a_path_may_hold_colons(self) -> None:
        assert paths(("1:cpu,cpuacct:/a:b:c", "0::/d")) == {"cpu": "/a:b:c", "cpuacct": "/a:b:c", "": "/d"}


class TestFrozen:
    def test_nothing_is_frozen_where_nothing_can_be_read(self, sys: Path) -> None:
        assert Cgroups(str(sys)).frozen(v1("/a")) == ""
        assert Cgroups(str(sys)).frozen(()) == ""
        assert Cgroups(str(sys)).thaw_file(v1("/a")) == ""

    @pytest.mark.parametrize(
        ("mount", "told", "switch"),
        [
            ("freezer/", "freezer.self_freezing", "freezer.state"),
            ("", "cgroup.freeze", "cgroup.freeze"),
            ("unified/", "cgroup.freeze", "cgroup.freeze"),
        ],
        ids=["v1", "v2", "hybrid"],
    )
    def test_what_thaws_is_the_file_of_the_hierarchy_that_froze_it(
        self, sys: Path, mount: str, told: str, switch: str
    ) -> None:
        write(sys, f"{mount}a/{told}", "1\n")
        assert Cgroups(str(sys)).thaw_file(v1("/a/b", unified="/a/b")) == f"/sys/fs/cgroup/{mount}a/{switch}"

    @pytest.mark.parametrize(("state", "frozen"), [("FROZEN\n", "/a"), ("FREEZING\n", "/a"), ("THAWED\n", "")])
    def test_v1(self, sys: Path, state: str, frozen: str) -> None:
        write(sys, "freezer/a/freezer.state", state)
        assert Cgroups(str(sys)).frozen(v1("/a")) == frozen

    def test_v1_names_the_parent_that_was_told_to_freeze(self, sys: Path) -> None:
        write(sys, "freezer/a/b/freezer.state", "FROZEN\n")
        write(sys, "freezer/a/b/freezer.self_freezing", "0\n")
        write(sys, "freezer/a/freezer.self_freezing", "1\n")
        assert Cgroups(str(sys)).frozen(v1("/a/b")) == "/a"

    @pytest.mark.parametrize("mount", ["", "unified/"], ids=["v2", "hybrid"])
    def test_v2_names_the_cgroup_that_was_told_to_freeze(self, sys: Path, mount: str) -> None:
        write(sys, f"{mount}a/b/cgroup.freeze", "0\n")
        write(sys, f"{mount}a/b/cgroup.events", "populated 1\nfrozen 1\n")
        assert Cgroups(str(sys)).frozen(v2("/a/b")) == "/a/b"
        write(sys, f"{mount}a/cgroup.freeze", "1\n")
        assert Cgroups(str(sys)).frozen(v2("/a/b")) == "/a"

    @pytest.mark.parametrize("mount", ["", "unified/"])
    def test_a_running_cgroup_is_not_frozen(self, sys: Path, mount: str) -> None:
        write(sys, f"{mount}a/cgroup.freeze", "0\n")
        write(sys, f"{mount}a/cgroup.events", "populated 1\nfrozen 0\n")
        assert Cgroups(str(sys)).frozen(v2("/a")) == ""

    def test_a_path_does_not_lead_out_of_the_cgroups(self, sys: Path) -> None:
        write(sys, "../../freezer.state", "FROZEN\n")
        write(sys, "../../cgroup.freeze", "1\n")
        write(sys, "../../pids.max", "10\n")
        write(sys, "../../pids.current", "9\n")
        write(sys, "freezer/keep", "")
        cgroups = Cgroups(str(sys))
        for path in ("/../../..", "/..", "/a/../../../..", "/../.."):
            assert cgroups.frozen(v1(path)) == ""
            assert cgroups.pids(v1(path)) is None


class TestPids:
    def limit(self, sys: Path, directory: str, current: int, limit: int | str) -> None:
        write(sys, f"{directory}/pids.current", f"{current}\n")
        write(sys, f"{directory}/pids.max", f"{limit}\n")

    def test_no_limit_is_none(self, sys: Path) -> None:
        self.limit(sys, "a", 5, "max")
        assert Cgroups(str(sys)).pids(v2("/a")) is None
        assert Cgroups(str(sys)).pids(()) is None

    @pytest.mark.parametrize(("mount", "v1_path"), [("pids/", True), ("", False), ("unified/", False)])
    def test_a_pods_limit_counts_for_its_containers(self, sys: Path, mount: str, v1_path: bool) -> None:
        self.limit(sys, f"{mount}pod/c", 3, "max")
        self.limit(sys, f"{mount}pod", 90, 100)
        assert Cgroups(str(sys)).pids(v1("/pod/c", unified="/") if v1_path else v2("/pod/c")) == PidsLimit(
            90, 100, "/pod"
        )

    def test_of_several_limits_the_most_used_up_counts(self, sys: Path) -> None:
        self.limit(sys, "system.slice", 9000, 10000)
        self.limit(sys, "system.slice/a", 60, 100)
        assert Cgroups(str(sys)).pids(v2("/system.slice/a")) == PidsLimit(9000, 10000, "/system.slice")

    @pytest.mark.parametrize("pod", ["pod1f", "kubepods-besteffort-pod1f_2.slice"])
    def test_what_all_pods_share_is_no_limit_of_one_pod(self, sys: Path, pod: str) -> None:
        self.limit(sys, "kubepods", 9000, 10000)
        self.limit(sys, f"kubepods/{pod}", 60, 100)
        self.limit(sys, f"kubepods/{pod}/c", 10, 20)
        assert Cgroups(str(sys)).pids(v2(f"/kubepods/{pod}/c")) == PidsLimit(60, 100, f"/kubepods/{pod}")

    def test_a_limit_of_nothing_is_a_limit(self, sys: Path) -> None:
        self.limit(sys, "a", 1, 0)
        assert Cgroups(str(sys)).pids(v2("/a")) == PidsLimit(1, 0, "/a")

    @pytest.mark.parametrize(
        ("cgroup", "of_pod", "unit"),
        [
            ("/kubepods/burstable/pod1f", True, ""),
            ("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1f_2.slice", True, ""),
            (f"/kubepods/burstable/pod1f/{ID}", False, ""),
            (f"/kubepods.slice/kubepods-pod1f.slice/cri-containerd-{ID}.scope", False, ""),
            ("/system.slice/containerd.service", False, "containerd.service"),
            ("/user.slice/user-0.slice/session-3.scope", False, "session-3.scope"),
            ("/system.slice", False, "system.slice"),
            ("/system.slice/podaemon.service", False, "podaemon.service"),
            ("/kubepods.slice", False, "kubepods.slice"),
            ("/system.slice/containerd.service/own", False, ""),
            (f"/k8s.io/{ID}", False, ""),
        ],
    )
    def test_whose_limit_it_is(self, cgroup: str, of_pod: bool, unit: str) -> None:
        limit = PidsLimit(1, 2, cgroup)
        assert (limit.of_pod, limit.unit) == (of_pod, unit)

    @pytest.mark.parametrize(
        ("lines", "name"),
        [
            (v2("/system.slice/cron.service"), "cron.service"),
            (v2("/user.slice/user-0.slice/user@0.service/app.slice/run-1.scope"), "run-1.scope"),
            (("4:pids:/", "1:name=systemd:/system.slice/cron.service", "0::/"), "cron.service"),
            (v2(f"/kubepods.slice/kubepods-pod1f.slice/cri-containerd-{ID}.scope"), ""),
            (v2("/init"), ""),
        ],
    )
    def test_the_unit_a_process_belongs_to(self, lines: tuple[str, ...], name: str) -> None:
        assert unit(lines) == name

    def test_garbage_is_no_limit(self, sys: Path) -> None:
        write(sys, "a/pids.max", "-5\n")
        write(sys, "a/pids.current", "many\n")
        assert Cgroups(str(sys)).pids(v2("/a")) is None


class TestHidden:
    def test_cgroups_that_are_there_are_not_hidden(self, sys: Path) -> None:
        write(sys, f"freezer{kubepods(ID)}/freezer.state", "THAWED")
        assert Cgroups(str(sys)).hidden(v1(kubepods(ID))) == ""
        write(sys, f"unified{kubepods(INNER)}/cgroup.procs", "")
        assert Cgroups(str(sys)).hidden(v2(kubepods(INNER))) == ""

    @pytest.mark.parametrize("lines", [v1(kubepods(ID)), v2(kubepods(ID)), v2("/../../system.slice/x.service")])
    def test_a_container_that_sees_its_own_cgroup_alone_is_told_what_to_mount(
        self, sys: Path, lines: tuple[str, ...]
    ) -> None:
        outside = "../system.slice/x.service/cgroup.procs"
        for name in ("freezer/freezer.state", "pids/pids.max", "cgroup.procs", outside):
            write(sys, name, "")
        assert f"{sys}/fs/cgroup does not show the node's cgroups" in Cgroups(str(sys)).hidden(lines)

    def test_what_is_in_no_cgroup_but_the_root_hides_nothing(self, sys: Path) -> None:
        assert Cgroups(str(sys)).hidden(v1("/")) == Cgroups(str(sys)).hidden(()) == ""
