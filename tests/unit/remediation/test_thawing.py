"""Who thaws a cgroup: systemd where it froze the unit, else the cgroup's own file, and what that leaves."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.acts import RefusalReason
from agent.host.cgroups import Cgroups, Freeze
from agent.remediation.remedy import ActError
from agent.remediation.systemd import Systemd
from agent.remediation.thawing import Thawer
from tests.lab.systemd_standin import PrivateBus, SystemdStandin, UnitStandin
from tests.unit.builders import RealClock
from tests.unit.remediation.fake_node import refusal

SERVICE = "/system.slice/containerd.service"
POD = "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice"
CONTAINER = f"{POD}/cri-containerd-ab.scope"


@pytest.fixture(scope="module")
def bus() -> Iterator[PrivateBus]:
    with PrivateBus() as running:
        yield running


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    (tmp_path / "fs/cgroup").mkdir(parents=True)
    (tmp_path / "fs/cgroup/cgroup.procs").touch()
    return tmp_path


def freezes(sysfs: Path, path: str, *told: str) -> tuple[Freeze, ...]:
    """What is told to freeze of the cgroups that hold a process at `path`."""
    for each in told:
        switch = sysfs / f"fs/cgroup{each}/cgroup.freeze"
        switch.parent.mkdir(parents=True, exist_ok=True)
        switch.write_text("1")
    return Cgroups(str(sysfs)).freezes((f"0::{path}",))


def thawer(sysfs: Path, bus_socket: Path, deadline: float = 5.0) -> Thawer:
    return Thawer(Systemd(str(bus_socket), RealClock(), deadline), str(sysfs))


def unit(path: str, freezer_state: str = "frozen") -> UnitStandin:
    return UnitStandin(path.rpartition("/")[2], 0, freezer_state=freezer_state, control_group=path)


def switch_of(sysfs: Path, path: str) -> str:
    return (sysfs / f"fs/cgroup{path}/cgroup.freeze").read_text()


@pytest.mark.parametrize("path", [SERVICE, CONTAINER], ids=["service", "scope"])
def test_what_systemd_froze_is_thawed_by_systemd(sysfs: Path, bus: PrivateBus, path: str) -> None:
    told = freezes(sysfs, path, path)
    name = path.rpartition("/")[2]
    manager = SystemdStandin(bus, lambda _: None, units=(unit(path),), thaw=lambda _: None)
    with manager, thawer(sysfs, bus.socket).prepared(told) as thaw:
        assert thaw.by == f" (systemd froze its unit {name})"
        assert thaw.perform() == f"systemd thawed {name}, and with it cgroup {path}"
    assert manager.calls[-1] == ("ThawUnit", (name,))
    assert switch_of(sysfs, path) == "1", "systemd does that, and not we"


def test_of_several_frozen_units_the_outermost_is_thawed(sysfs: Path, bus: PrivateBus) -> None:
    """systemd froze the pod's slice, and with it the container's scope: one thaw undoes both."""
    told = freezes(sysfs, CONTAINER, CONTAINER, POD)
    assert [each.path for each in told] == [CONTAINER, POD]
    manager = SystemdStandin(bus, lambda _: None, units=(unit(CONTAINER), unit(POD)), thaw=lambda _: None)
    with manager, thawer(sysfs, bus.socket).prepared(told) as thaw:
        assert thaw.perform().startswith("systemd thawed kubepods-besteffort-pod1_2.slice")


@pytest.mark.parametrize("units", [(unit(SERVICE, "running"),), ()], ids=["runs, says systemd", "no such unit"])
def test_what_somebody_froze_by_hand_is_thawed_by_hand(
    sysfs: Path, bus: PrivateBus, units: tuple[UnitStandin, ...]
) -> None:
    told = freezes(sysfs, SERVICE, SERVICE)
    with SystemdStandin(bus, lambda _: None, units=units), thawer(sysfs, bus.socket).prepared(told) as thaw:
        assert thaw.perform() == f"cgroup {SERVICE} was thawed"
    assert switch_of(sysfs, SERVICE) == "0"


def test_a_unit_of_that_name_with_another_cgroup_is_left_alone(sysfs: Path, bus: PrivateBus) -> None:
    inner = f"{CONTAINER}/system.slice/containerd.service"
    told = freezes(sysfs, inner, inner)
    manager = SystemdStandin(bus, lambda _: None, units=(unit(SERVICE),))
    with manager, thawer(sysfs, bus.socket).prepared(told) as thaw:
        assert thaw.perform() == f"cgroup {inner} was thawed"
    assert "ThawUnit" not in {method for method, _ in manager.calls}


def test_without_a_bus_it_is_thawed_by_hand_and_said_what_stays(sysfs: Path) -> None:
    told = freezes(sysfs, CONTAINER, CONTAINER, POD)
    with thawer(sysfs, sysfs / "no-bus").prepared(told) as thaw:
        done = thaw.perform()
    assert done.startswith(f"cgroup {CONTAINER} was thawed. If systemd froze it, FreezerState=frozen stays until ")
    assert "`systemctl thaw kubepods-besteffort-pod1_2.slice`" in done
    assert "there is no system bus" in done


def test_without_a_bus_nothing_stays_of_a_cgroup_that_is_no_units(sysfs: Path) -> None:
    path = "/kubepods/besteffort/pod1/ab"
    with thawer(sysfs, sysfs / "no-bus").prepared(freezes(sysfs, path, path)) as thaw:
        assert thaw.perform() == f"cgroup {path} was thawed"


def test_a_unit_frozen_by_a_slice_above_is_left_to_people(sysfs: Path, bus: PrivateBus) -> None:
    """systemd 256 and later say so; the slice holds other units too."""
    told = freezes(sysfs, SERVICE, SERVICE)

    def prepare() -> None:
        with thawer(sysfs, bus.socket).prepared(told):
            pass

    with SystemdStandin(bus, lambda _: None, units=(unit(SERVICE, "frozen-by-parent"),)):
        seen = refusal(prepare)
    assert seen.reason is RefusalReason.UNSAFE_NOW
    assert "FreezerState=frozen-by-parent" in seen.message


@pytest.mark.parametrize("told", [("/system.slice",), (SERVICE, "/system.slice")], ids=["slice", "service and slice"])
def test_a_slice_that_is_no_pods_is_left_to_people(sysfs: Path, bus: PrivateBus, told: tuple[str, ...]) -> None:
    """systemd before 256 calls each unit in a frozen slice frozen; the slice holds other services too."""
    held = freezes(sysfs, SERVICE, *told)

    def prepare() -> None:
        with thawer(sysfs, bus.socket).prepared(held):
            pass

    with SystemdStandin(bus, lambda _: None, units=(unit(SERVICE), unit("/system.slice"))) as manager:
        seen = refusal(prepare)
    assert seen.reason is RefusalReason.UNSAFE_NOW
    assert "systemd froze system.slice, which holds others too" in seen.message
    assert "`systemctl thaw system.slice`" in seen.message
    assert "ThawUnit" not in {method for method, _ in manager.calls}


def test_a_thaw_that_systemd_does_not_answer_is_left_to_the_verification(sysfs: Path, bus: PrivateBus) -> None:
    told = freezes(sysfs, SERVICE, SERVICE)
    silent = frozenset({"ThawUnit"})
    manager = SystemdStandin(bus, lambda _: None, units=(unit(SERVICE),), thaw=lambda _: None, silent=silent)
    with manager, thawer(sysfs, bus.socket, 0.3).prepared(told) as thaw:
        assert "has not answered within" in thaw.perform()


def test_a_bus_that_is_gone_by_then_did_nothing(sysfs: Path, bus: PrivateBus) -> None:
    told = freezes(sysfs, SERVICE, SERVICE)
    with SystemdStandin(bus, lambda _: None, units=(unit(SERVICE),)):
        holding = thawer(sysfs, bus.socket).prepared(told)
        thaw = holding.__enter__()
    with pytest.raises(ActError, match=r"nothing was done: .*By hand: systemctl thaw containerd\.service"):
        thaw.perform()
    holding.__exit__(None, None, None)


def test_a_read_only_sysfs_matters_only_to_a_thaw_by_hand(
    sysfs: Path, bus: PrivateBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = freezes(sysfs, SERVICE, SERVICE)

    def denied(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("agent.remediation.cgroup_switch.opened", denied)
    with SystemdStandin(bus, lambda _: None, units=(unit(SERVICE),)), thawer(sysfs, bus.socket).prepared(told):
        pass

    def prepare() -> None:
        with thawer(sysfs, sysfs / "no-bus").prepared(told):
            pass

    assert refusal(prepare).reason is RefusalReason.CANNOT_SEE
