"""ThawCgroup on real cgroups of both versions: what is thawed, what is left frozen, and what is said of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from agent.acts import Refusal, RefusalReason, RefusedError
from agent.host import bundles
from agent.host.bundles import Bundles
from agent.host.cgroups import Cgroups
from agent.host.shims import Outcome, ShimAnswer
from agent.model import Action, Finding, ProcessId, Target, TargetKind
from agent.remediation.actions import thaw_cgroup
from agent.remediation.actions.thaw_cgroup import ThawCgroup
from agent.remediation.remedy import ActError, Verification
from agent.remediation.shim_probe import ShimProbe
from agent.remediation.systemd import Systemd
from tests.lab.cgroups import Hierarchy
from tests.lab.processes import Process, kill
from tests.lab.waiting import wait_until
from tests.unit.builders import RUNNING, RealClock, ShimServer, StateDir
from tests.unit.remediation.sleepers import PROCFS, TREES, Grove, freeze, grove, v2

PAUSED, PAUSING = 4, 5
BOTH = pytest.mark.parametrize("tree", TREES, ids=lambda tree: f"v{tree.version}")


@dataclass
class Stage:
    ours: Grove
    folder: Path

    def __post_init__(self) -> None:
        self.state = StateDir(self.folder / "state")

    def remedy(self, sysfs: str = "/sys") -> ThawCgroup:
        namespaces = (self.ours.namespace,)
        systemd = Systemd(str(self.folder / "no-bus"), RealClock())
        found = Bundles(str(self.state.root), namespaces)
        return ThawCgroup(
            PROCFS, Cgroups("/sys"), found, RealClock(), sysfs=sysfs, systemd=systemd, namespaces=namespaces
        )

    def shim_of(self, name: str, answers: frozenset[str], **statuses: int) -> ShimServer:
        """A bundle of that container and what listens at its address."""
        address = self.folder / "s"
        self.state.add(name, namespace=self.ours.namespace, address=str(address))
        return ShimServer(address, answers, statuses)

    def refusal(self, finding: Finding) -> Refusal:
        with pytest.raises(RefusedError) as raised, self.remedy().confirm(finding.target, finding):
            pass
        return raised.value.refusal

    def mend(self, finding: Finding) -> tuple[str, Verification]:
        with self.remedy().confirm(finding.target, finding) as case:
            return case.perform(), case.verify()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with grove() as ours:
        yield Stage(ours, tmp_path)


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thaw_cgroup, "THAW_SECONDS", 0.3)


def finding_of(process: ProcessId, kind: TargetKind = TargetKind.PROCESS, **values: Any) -> Finding:
    target = Target(kind, pid=process.pid, start_time=process.start_time)
    return Finding("ExcessiveDefunctProcesses", "ParentNotReaping", "", Action.THAW_CGROUP, target, values=values)


def frozen(process: ProcessId) -> str:
    return Cgroups("/sys").frozen(PROCFS.cgroups(process.pid))


@BOTH
@pytest.mark.parametrize("kind", [TargetKind.PROCESS, TargetKind.CONTAINER])
def test_a_frozen_process_goes_on(stage: Stage, tree: Hierarchy, kind: TargetKind) -> None:
    path = stage.ours.make("web")
    process = stage.ours.sleeper(path, tree)
    freeze(tree, path)
    done, verification = stage.mend(finding_of(process, kind, frozenCgroup=path))
    assert done == f"cgroup {path} was thawed"
    assert verification == Verification(True, f"process {process.pid} is in no frozen cgroup any more")
    assert not frozen(process)


@BOTH
def test_the_one_above_that_was_told_to_freeze_is_the_one_thawed(stage: Stage, tree: Hierarchy) -> None:
    above, path = stage.ours.make("web"), stage.ours.make("web", "inner")
    process = stage.ours.sleeper(path, tree)
    freeze(tree, above)
    assert stage.mend(finding_of(process))[0] == f"cgroup {above} was thawed"
    assert not frozen(process)


@BOTH
def test_one_that_another_cgroup_keeps_frozen_is_not_called_thawed(stage: Stage, tree: Hierarchy) -> None:
    above, path = stage.ours.make("web"), stage.ours.make("web", "inner")
    process = stage.ours.sleeper(path, tree)
    freeze(tree, above)
    freeze(tree, path)
    done, verification = stage.mend(finding_of(process))
    assert done == f"cgroup {path} was thawed"
    assert verification == Verification(False, f"process {process.pid} is still frozen, by cgroup {above}")


def test_a_thaw_without_effect_is_not_called_one(stage: Stage) -> None:
    path = stage.ours.make("web")
    process = stage.ours.sleeper(path, v2())
    freeze(v2(), path)
    finding = finding_of(process)
    with stage.remedy().confirm(finding.target, finding) as case:
        case.perform()
        freeze(v2(), path)
        assert case.verify().helped is False


def test_a_process_that_ended_meanwhile_tells_nothing(stage: Stage) -> None:
    path = stage.ours.make("web")
    process = stage.ours.sleeper(path, v2())
    freeze(v2(), path)
    finding = finding_of(process)
    with stage.remedy().confirm(finding.target, finding) as case:
        case.perform()
        kill([Process(process.pid, process.start_time)])
        assert case.verify().helped is None


def test_the_evidence_tells_how_many_the_cgroup_holds(stage: Stage) -> None:
    path = stage.ours.make("web")
    process, _ = stage.ours.sleeper(path, v2()), stage.ours.sleeper(path, v2())
    freeze(v2(), path)
    finding = finding_of(process)
    with stage.remedy().confirm(finding.target, finding) as case:
        evidence = case.evidence()
    assert (evidence["frozenCgroup"], evidence["frozenProcesses"]) == (path, 2)
    assert evidence["process"]["frozenCgroup"] == path
    assert frozen(process)  # a dry run ends here


class TestWhatIsRefused:
    def test_a_process_that_is_not_frozen(self, stage: Stage) -> None:
        process = stage.ours.sleeper(stage.ours.make("web"))
        assert stage.refusal(finding_of(process)).reason is RefusalReason.NOT_CONFIRMED

    def test_another_cgroup_than_was_found(self, stage: Stage) -> None:
        path = stage.ours.make("web")
        process = stage.ours.sleeper(path)
        freeze(v2(), path)
        refusal = stage.refusal(finding_of(process, frozenCgroup="/elsewhere"))
        assert refusal.reason is RefusalReason.TARGET_CHANGED
        assert path in refusal.message
        assert frozen(process)

    def test_a_reused_pid(self, stage: Stage) -> None:
        process = stage.ours.sleeper(stage.ours.make("web"))
        other = ProcessId(process.pid, process.start_time + 1)
        assert stage.refusal(finding_of(other)).reason is RefusalReason.TARGET_CHANGED

    def test_a_shim_that_is_none(self, stage: Stage) -> None:
        path = stage.ours.make("web")
        process = stage.ours.sleeper(path)
        freeze(v2(), path)
        assert stage.refusal(finding_of(process, TargetKind.SHIM)).reason is RefusalReason.TARGET_CHANGED

    def test_a_target_without_a_process(self, stage: Stage) -> None:
        finding = finding_of(ProcessId(7, 1))
        empty = Target(TargetKind.CONTAINER, container_id="web")
        with pytest.raises(RefusedError) as raised, stage.remedy().confirm(empty, finding):
            pass
        assert raised.value.refusal.reason is RefusalReason.INEXACT_TARGET

    @pytest.mark.parametrize("status", [PAUSED, PAUSING])
    def test_a_container_that_was_paused_on_purpose(self, stage: Stage, status: int) -> None:
        path = stage.ours.make("web")
        process = stage.ours.sleeper(path)
        freeze(v2(), path)
        stage.shim_of("web", frozenset({"Connect", "State"}), web=status)
        refusal = stage.refusal(finding_of(process))
        assert (refusal.reason, "on purpose" in refusal.message) == (RefusalReason.UNSAFE_NOW, True)
        assert frozen(process)

    def test_a_container_with_an_operation_under_way(self, stage: Stage) -> None:
        path = stage.ours.make("web")
        process = stage.ours.sleeper(path)
        freeze(v2(), path)
        stage.shim_of("web", frozenset({"Connect"}))
        refusal = stage.refusal(finding_of(process))
        assert (refusal.reason, refusal.retry_seconds) == (RefusalReason.UNSAFE_NOW, 10)

    @pytest.mark.parametrize("hidden", ["bundle", "socket"])
    def test_a_container_whose_pause_may_not_be_seen(
        self, stage: Stage, hidden: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As without CAP_DAC_READ_SEARCH: it may be paused on purpose."""
        path = stage.ours.make("web")
        process = stage.ours.sleeper(path)
        freeze(v2(), path)
        stage.shim_of("web", frozenset({"Connect", "State"}), web=PAUSED)

        def deny(*_: object) -> NoReturn:
            raise PermissionError(13, "Permission denied", "address")

        if hidden == "bundle":
            monkeypatch.setattr(bundles, "_read_bundle", deny)
        else:
            answer = ShimAnswer("s", Outcome.NOT_PERMITTED, "Permission denied: the agent needs CAP_DAC_READ_SEARCH")
            monkeypatch.setattr(ShimProbe, "ask", lambda *_: answer)
        refusal = stage.refusal(finding_of(process))
        assert refusal.reason is RefusalReason.CANNOT_SEE
        assert "whether container web was paused on purpose cannot be seen" in refusal.message
        assert "Permission denied" in refusal.message
        assert frozen(process)


@pytest.mark.parametrize("answers", [frozenset({"Connect", "State"}), frozenset()], ids=["running", "silent"])
def test_a_container_that_is_not_paused_is_thawed(
    stage: Stage, answers: frozenset[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # One that answers may take its time on a busy machine; one that never does need not be waited for.
    monkeypatch.setattr(thaw_cgroup, "ASK_SECONDS", thaw_cgroup.ASK_SECONDS if answers else 0.3)
    path = stage.ours.make("web")
    process = stage.ours.sleeper(path)
    freeze(v2(), path)
    stage.shim_of("web", answers, web=RUNNING)
    assert stage.mend(finding_of(process))[1].helped is True


def test_a_freeze_from_above_the_pod_is_left_to_people(stage: Stage) -> None:
    pod = stage.ours.make("podabc", "web")
    process = stage.ours.sleeper(pod, v2())
    freeze(v2(), f"/{stage.ours.namespace}")
    wait_until(lambda: frozen(process), 30, "the effect of the freeze")
    refusal = stage.refusal(finding_of(process))
    assert refusal.reason is RefusalReason.UNSAFE_NOW
    assert "above its pod's" in refusal.message


def test_a_cgroup_that_went_away_between_look_and_act_is_told(stage: Stage) -> None:
    path, other = stage.ours.make("web"), stage.ours.make("other")
    process = stage.ours.sleeper(path, v2())
    freeze(v2(), path)
    finding = finding_of(process)
    with stage.remedy().confirm(finding.target, finding) as case:
        (v2().at(other) / "cgroup.procs").write_text(str(process.pid))
        v2().at(path).rmdir()
        with pytest.raises(ActError, match="the cgroup is gone"):
            case.perform()
