"""ThawCgroup: thaws the cgroup that keeps a process frozen.

A frozen process is healthy and does nothing: a frozen shim looks hung, a frozen parent reaps no child. Thawed, it goes
on where it stood, so this is the gentlest of all actions, where the freeze is nobody's intention. It is somebody's when
containerd itself has paused the container, and then nothing is done. Other freezers (a debugger, a checkpoint, an
operator) leave no word about why; the finding names the cgroup, and whoever asks for the thaw has to know.

A unit that systemd froze is thawed by systemd, which would otherwise go on taking it for frozen.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from agent.acts import RefusalReason, RefusedError, refused
from agent.clock import Clock
from agent.durations import measured_duration
from agent.host import cgroups as cgroup_names
from agent.host.bundles import Bundle, Bundles
from agent.host.cgroups import Cgroups, Freeze
from agent.host.inventory import SHIM_COMM
from agent.host.procfs import Procfs
from agent.host.shims import Outcome, ShimAnswer, ShimQuery
from agent.model import Action, Finding, ProcessId, Target, TargetKind
from agent.remediation.hands import Grip, held, same_process
from agent.remediation.process_evidence import process_evidence
from agent.remediation.remedy import Case, Verification
from agent.remediation.shim_probe import PAUSED, PAUSING, STATUS_NAMES, ShimProbe
from agent.remediation.systemd import Systemd
from agent.remediation.thawing import Thaw, Thawer

_SERVICES = frozenset({TargetKind.KUBELET, TargetKind.CONTAINERD})
"""Targets that are in no container, so that none can have been paused with it."""

ASK_SECONDS = 2.0
"""How long a shim may take to say whether its container is paused."""
THAW_SECONDS = 5.0
POLL_SECONDS = 0.05


class ThawCgroup:
    """Thaws what was told to freeze: a process's own cgroup or one above it."""

    action: ClassVar[Action] = Action.THAW_CGROUP
    targets: ClassVar[tuple[TargetKind, ...]] = (
        TargetKind.SHIM,
        TargetKind.PROCESS,
        TargetKind.CONTAINER,
        TargetKind.KUBELET,
        TargetKind.CONTAINERD,
    )
    mends: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "ContainerdShimHung": ("ShimUnresponsive",),
        "ContainerdShimLeaked": ("ShimWithoutContainers",),
        "ExcessiveDefunctProcesses": ("ParentNotReaping", "PidExhaustionAhead"),
        "KubeletHealthzFailing": ("HealthzTimeout",),
        "ContainerRuntimeUnresponsive": ("CRITimeout",),
    }
    does: ClassVar[str] = (
        "Thaws the cgroup that was told to freeze and holds the process: by systemd over D-Bus (ThawUnit) where "
        "systemd froze the unit that owns it, else by the cgroup's own file: freezer.state=THAWED on cgroup v1, "
        "cgroup.freeze=0 on v2. Where the host's system bus is not mounted, a unit that systemd froze keeps "
        "FreezerState=frozen."
    )
    requires: ClassVar[str] = (
        "The process is in a frozen cgroup now, the one the finding names if it names one; it is no hierarchy's root, "
        "and containerd has not paused the container, which the agent must be permitted to query."
    )
    verifies: ClassVar[str] = "The process is in no frozen cgroup any more, and a shim answers Connect."
    risk: ClassVar[str] = (
        "Everything in that cgroup goes on running; whoever froze it on purpose, other than by containerd's pause, is "
        "not asked."
    )

    def __init__(
        self,
        procfs: Procfs,
        cgroups: Cgroups,
        bundles: Bundles,
        clock: Clock,
        *,
        sysfs: str,
        systemd: Systemd,
        namespaces: tuple[str, ...],
    ) -> None:
        self._procfs = procfs
        self._cgroups = cgroups
        self._bundles = bundles
        self._clock = clock
        self._thawer = Thawer(systemd, sysfs)
        self._namespaces = namespaces

    @contextmanager
    def confirm(self, target: Target, finding: Finding) -> Iterator[Case]:
        """Look at this very process now; see `Remedy.confirm`."""
        if target.pid is None or target.start_time is None:
            raise refused(RefusalReason.INEXACT_TARGET, "the pid and start time of the process are both needed")
        with held(ProcessId(target.pid, target.start_time), self._procfs) as grip:
            process = same_process(grip.process, self._procfs)
            if target.kind is TargetKind.SHIM and process.comm != SHIM_COMM:
                why = f"process {process.pid} is no shim: its name is {process.comm!r}"
                raise refused(RefusalReason.TARGET_CHANGED, why)
            lines = self._procfs.cgroups(process.pid)
            told = self._frozen_by(lines, finding)
            bundle = None if target.kind in _SERVICES else self._bundle(target, lines)
            if bundle is not None and target.kind is not TargetKind.SHIM:
                self._require_not_paused(bundle)
            shim = bundle if bundle is not None and bundle.address and target.kind is TargetKind.SHIM else None
            with self._thawer.prepared(self._cgroups.freezes(lines) or (told,)) as thaw:
                yield _Thawed(
                    message=f"process {process.pid} ({process.comm}) is in the frozen cgroup {told.path}{thaw.by}",
                    grip=grip,
                    told=told,
                    thaw=thaw,
                    shim=shim,
                    procfs=self._procfs,
                    cgroups=self._cgroups,
                    clock=self._clock,
                )

    def _frozen_by(self, lines: tuple[str, ...], finding: Finding) -> Freeze:
        """The cgroup that was told to freeze; it must be the one the finding names."""
        told, frozen = self._cgroups.freeze(lines), self._cgroups.frozen(lines)
        pid = finding.target.pid
        if not frozen:
            if hidden := self._cgroups.hidden(lines):
                raise refused(RefusalReason.CANNOT_SEE, f"whether process {pid} is frozen cannot be seen: {hidden}")
            raise refused(RefusalReason.NOT_CONFIRMED, f"process {pid} is in no frozen cgroup any more")
        if told is None:
            why = f"cgroup {frozen} is frozen by one above its pod's, which holds other pods too: thaw that by hand"
            raise refused(RefusalReason.UNSAFE_NOW, why)
        named = finding.values.get("frozenCgroup") or finding.values.get("frozen_cgroup")
        if named and named != told.path:
            why = f"process {pid} is frozen by cgroup {told.path} by now, not {named}. Ask for a new report"
            raise refused(RefusalReason.TARGET_CHANGED, why)
        return told

    def _bundle(self, target: Target, lines: tuple[str, ...]) -> Bundle | None:
        """The bundle of the container the process is in, or of the finding's: one with an address, or a denied one."""
        owner = cgroup_names.owner(lines, self._namespaces)
        container = owner.container_id if owner is not None else target.container_id
        usable = [bundle for bundle in self._bundles.find(container) if bundle.address or bundle.fault is not None]
        return min(usable, key=lambda bundle: not bundle.address, default=None)

    def _require_not_paused(self, bundle: Bundle) -> None:
        """Make sure that the container is not paused through containerd, which is done on purpose.

        A shim that does not answer does not report it. Raises RefusedError.
        """
        if not bundle.address:
            raise _cannot_see_pause(bundle, bundle.problem)
        with closing(ShimProbe(_query(bundle), self._clock)) as probe:
            answer = probe.ask(ASK_SECONDS)
        if answer.outcome is Outcome.NOT_PERMITTED:
            raise _cannot_see_pause(bundle, answer.message)
        short = bundle.id[:12]
        state = answer.states.get(bundle.id)
        if state is not None and state.status in {PAUSED, PAUSING}:
            why = f"container {short} was paused on purpose: its shim says it is {STATUS_NAMES[state.status]}"
            raise refused(RefusalReason.UNSAFE_NOW, f"{why}. Resume it with whatever paused it")
        if bundle.id in answer.states_waiting and answer.outcome is Outcome.ANSWERED:
            why = f"an operation on container {short} is under way, perhaps a pause: its shim does not tell its state"
            raise refused(RefusalReason.UNSAFE_NOW, why, 10.0)


@dataclass(slots=True)
class _Thawed:
    """A process found frozen just now, and how its cgroup is thawed; `shim`: the bundle to ask it by."""

    message: str
    grip: Grip
    told: Freeze
    thaw: Thaw
    shim: Bundle | None
    procfs: Procfs
    cgroups: Cgroups
    clock: Clock

    def evidence(self) -> Mapping[str, Any]:
        """Return the frozen process and how many others the cgroup holds."""
        return {
            "process": process_evidence(self.procfs, self.cgroups, self.grip.process.pid),
            "frozenCgroup": self.told.path,
            "frozenProcesses": self._held(),
        }

    def perform(self) -> str:
        """Thaw the cgroup."""
        return self.thaw.perform()

    def verify(self) -> Verification:
        """Look whether the process is in no frozen cgroup any more, and whether the shim answers."""
        pid = self.grip.process.pid
        frozen = self._still_frozen_by()
        if self.grip.ended(0):
            return Verification(
                helped=None, message=f"process {pid} has ended since cgroup {self.told.path} was thawed"
            )
        if frozen:
            return Verification(helped=False, message=f"process {pid} is still frozen, by cgroup {frozen}")
        if self.shim is None:
            return Verification(helped=True, message=f"process {pid} is in no frozen cgroup any more")
        with closing(ShimProbe(_query(self.shim), self.clock)) as probe:
            answer = probe.ask(THAW_SECONDS)
        return _verified_shim(pid, answer)

    def _still_frozen_by(self) -> str:
        deadline = time.monotonic() + THAW_SECONDS
        frozen = self._frozen()
        while frozen and time.monotonic() < deadline and not self.grip.ended(POLL_SECONDS):
            frozen = self._frozen()
        return frozen

    def _frozen(self) -> str:
        return self.cgroups.frozen(self.procfs.cgroups(self.grip.process.pid))

    def _held(self) -> object:
        try:
            return len(self.cgroups.members(self.told.path))
        except OSError as error:
            return f"not readable: {error.strerror}"


def _verified_shim(pid: int, answer: ShimAnswer) -> Verification:
    if answer.outcome is Outcome.ANSWERED:
        return Verification(helped=True, message=f"shim {pid} is thawed and answers Connect")
    if answer.outcome is Outcome.WAITING:
        waited = measured_duration(answer.waiting_seconds)
        why = f"shim {pid} is thawed but still does not answer Connect after {waited}"
        return Verification(helped=False, message=why)
    return Verification(helped=None, message=f"shim {pid} is thawed; it cannot be asked: {answer.message}")


def _cannot_see_pause(bundle: Bundle, denied: str) -> RefusedError:
    why = f"whether container {bundle.id[:12]} was paused on purpose cannot be seen: {denied}"
    return refused(RefusalReason.CANNOT_SEE, why)


def _query(bundle: Bundle) -> ShimQuery:
    return ShimQuery(bundle.address, bundle.task_version, (bundle.id,))
