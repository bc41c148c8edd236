"""KillParent on real parents with real zombies, under reapers of every kind. When a parent may be touched at all is
tested with SignalParent."""

import pytest

from agent.acts import RefusedError
from agent.host.procfs import Process, Scan
from agent.model import TargetKind
from agent.remediation.actions.kill_parent import KillParent
from agent.remediation.remedy import Remedy, Verification
from tests.unit.builders import RealClock
from tests.unit.remediation.actions.families import FINDING, Family, family


def remedy(parent: Family, min_zombies: int = 31, grace_seconds: float = 2.0) -> KillParent:
    return KillParent(parent.parents(min_zombies), RealClock(), grace_seconds, verify_seconds=1.0)


def killed(parent: Family, grace_seconds: float = 2.0) -> tuple[str, Verification]:
    with remedy(parent, grace_seconds=grace_seconds).confirm(parent.target, FINDING) as case:
        return case.perform(), case.verify()


def test_a_parent_that_heeds_sigterm_is_asked_only() -> None:
    with family() as parent:
        done, outcome = killed(parent)
    pid = parent.parent.pid
    assert done == f"ended process {pid} (redis) of pod shop/web-0 (container app) with SIGTERM"
    assert outcome.helped is True
    assert outcome.message.startswith(f"process {pid} (redis)")
    assert outcome.message.endswith("is gone and its 40 zombies are reaped")


def test_a_parent_that_ignores_sigterm_is_killed_after_the_grace() -> None:
    with family(on_sigterm="ignore") as parent:
        done, outcome = killed(parent, grace_seconds=0.1)
    assert done.startswith(f"sent SIGKILL to process {parent.parent.pid}")
    assert "0.1 s after SIGTERM" in done
    assert outcome.helped is True


def test_zombies_that_fall_to_a_reaper_that_does_not_reap() -> None:
    with family(reaper_waits="for its child", reaper_comm="bad\ninit") as parent:
        _, outcome = killed(parent)
        assert outcome.helped is False
        assert "40 of 40 zombies are left after 1 s" in outcome.message
        assert rf"now belong to process {parent.reaper_pid} (bad\ninit), which does not reap them" in outcome.message


def test_a_parent_that_is_not_reaped_itself() -> None:
    with family(reaper_waits="for nobody", reaper_comm="containerd-shim") as parent:
        _, outcome = killed(parent)
        assert outcome.helped is False
        assert f"has ended, but its own parent {parent.reaper_pid} (containerd-shim) has not" in outcome.message


def test_a_parent_the_kernel_does_not_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    with family() as parent:
        real = parent.procfs.process

        def in_the_kernel(pid: int) -> Process | None:
            return Process(pid, "redis", "D", parent.reaper_pid, parent.parent.start_time)

        with remedy(parent).confirm(parent.target, FINDING) as case:
            monkeypatch.setattr(parent.procfs, "process", in_the_kernel)
            outcome = case.verify()
        monkeypatch.setattr(parent.procfs, "process", real)
    assert outcome.helped is False
    assert "is still there after 1 s, in state D" in outcome.message


def test_what_is_risked_is_said_before() -> None:
    with family(reaper_comm="containerd-shim") as parent, remedy(parent).confirm(parent.target, FINDING) as case:
        assert "the container ends with it, and the kubelet starts it anew" in case.message
    with family() as parent, remedy(parent).confirm(parent.target, FINDING) as case:
        assert "its zombies fall to the container's pid 1" in case.message


def test_confirming_and_gathering_evidence_harms_nobody() -> None:
    with family() as parent:
        with remedy(parent).confirm(parent.target, FINDING) as case:
            assert case.evidence()["zombies"] == 40
        with pytest.raises(RefusedError), remedy(parent, min_zombies=41).confirm(parent.target, FINDING):
            pass
        assert parent.lives()
        assert len(parent.parents().left(())) == 0


def test_verifying_blind_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def scan(_known: object) -> Scan:
        raise PermissionError(13, "Permission denied")

    with family() as parent, remedy(parent).confirm(parent.target, FINDING) as case:
        monkeypatch.setattr(parent.procfs, "scan", scan)
        assert case.verify().helped is None


def test_is_a_remedy_that_names_the_milder_one() -> None:
    with family(1) as parent:
        made: Remedy = remedy(parent)
    assert made.targets == (TargetKind.PROCESS,)
    assert "Try SignalParent first" in made.requires
