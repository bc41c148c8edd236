"""KillShim: which freezer is thawed for a kill that takes no effect."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.host.cgroups import Cgroups
from agent.model import ProcessId
from agent.remediation.actions.kill_shim import _KilledShim

V1, V2 = ("4:freezer:/pod/shims", "0::/"), ("0::/pod/shims",)


class LateGrip:
    """A process that has not ended soon after SIGKILL, and ends then."""

    process = ProcessId(7, 70)

    def __init__(self) -> None:
        self.ends = iter([False, True])

    def signal(self, _: int) -> None:
        """Take note of nothing."""

    def ended(self, _: float) -> bool:
        return next(self.ends)


@pytest.mark.parametrize(("lines", "thawed"), [(V1, True), (V2, False)], ids=["v1", "v2"])
def test_only_a_freezer_that_holds_the_kill_is_thawed(tmp_path: Path, lines: tuple[str, ...], thawed: bool) -> None:
    """cgroup v2 lets a frozen process end, so another reason holds this one, and others are in that cgroup."""
    root = tmp_path / "fs/cgroup"
    mount = root / "freezer" if lines is V1 else root
    folder = mount / "pod/shims"
    folder.mkdir(parents=True)
    if lines is V1:
        (folder / "freezer.self_freezing").write_text("1\n")
        switch = folder / "freezer.state"
    else:
        (root / "cgroup.procs").touch()
        switch = folder / "cgroup.freeze"
    switch.write_text("1")
    nothing: Any = None
    grip: Any = LateGrip()
    procfs: Any = SimpleNamespace(cgroups=lambda _: lines)
    shim = _KilledShim(
        message="",
        grip=grip,
        accused=nothing,
        look_again=nothing,
        procfs=procfs,
        cgroups=Cgroups(str(tmp_path)),
        containers=nothing,
        sysfs=str(tmp_path),
    )
    shim._kill()
    assert switch.read_text() == ("THAWED" if thawed else "1")
