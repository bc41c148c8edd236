"""RestartContainerd: ends a containerd that hangs or refuses, so that its supervisor starts it again.

One that has ended is started by systemd, where the unit that ran it is known. One whose cgroup is frozen is left alone:
a thaw is all it needs, and its shims, which systemd has in the same cgroup.

Shims and containers go on without containerd, and a new one finds them by their sockets. But it asks each shim when it
starts, and cleans the pod of one that does not answer up: so no shim may be hung at that moment, and all shims that run
are remembered and looked for afterwards. The same cleaning up is what mends a bundle whose shim is dead.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from agent.acts import RefusalReason, refused
from agent.clock import Clock
from agent.host.cgroups import Cgroups
from agent.host.containerd import RuntimeAnswer, ask_version
from agent.host.exchange import Attempt, Ending
from agent.host.inventory import SHIM_COMM, Inventory, InventorySense, Shim
from agent.host.listeners import Listeners
from agent.host.procfs import Procfs
from agent.host.shims import Outcome, ShimAnswer, ShimSense
from agent.model import Action, CannotSeeError, Finding, NotApplicableError, ProcessId, Target, TargetKind
from agent.remediation.hands import Grip, held
from agent.remediation.restart_case import (
    ASK_SECONDS,
    RestartableService,
    RestartCase,
    StartCase,
    consistent,
    described,
    fails_twice,
    grown_up,
    has_ended,
    not_frozen,
    refuses,
    times_out,
)
from agent.remediation.restarts import Restarter, Way
from agent.remediation.services import Identified, NodeService, Patience, exact, is_ended, this_boot
from agent.remediation.systemd import Systemd
from agent.remediation.waiting import wait_until

COMM = "containerd"
SHIM_SECONDS = 2.0
"""A healthy shim answers in a millisecond."""
SPARES_CHILDREN = frozenset({"process", "none"})
"""Values of KillMode= (systemd.kill(5)) with which systemd ends containerd alone, and not the shims of its cgroup."""
SHOWN = 8


@dataclass(frozen=True, slots=True)
class Neighbours:
    """What must outlive the restart: the shims' processes, each with a name for people, and their bundles."""

    shims: Mapping[ProcessId, str]
    inventory: Inventory


class RestartContainerd:
    """The action. `patience` holds the settings of the container_runtime detector; `address` is the socket it asks.

    `hung_shims` counts the shims the board has as hung by the action that is recommended for them. `inventory` and
    `shims` are senses of this action's own: those of the detector are in use by its thread.
    """

    action: ClassVar[Action] = Action.RESTART_CONTAINERD
    targets: ClassVar[tuple[TargetKind, ...]] = (TargetKind.CONTAINERD, TargetKind.SHIM)
    mends: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "ContainerRuntimeUnresponsive": ("CRITimeout", "RuntimeRefused"),
        "ContainerdShimLeaked": ("ShimDead",),
    }
    does: ClassVar[str] = (
        "Restarts containerd: by systemd over D-Bus where the host's system bus is mounted (SIGKILL if its process has "
        "not ended after 10 s; what systemd counts of its starts is reset before, so that no start limit keeps it "
        "down), else by signals, leaving the start to its supervisor: SIGTERM, and SIGKILL after 5 s; SIGKILL at once "
        "where that is systemd, which need not start again what SIGTERM ended (Restart=on-failure). A containerd that "
        "has ended is started by systemd. Where systemd does not answer, nothing is done."
    )
    requires: ClassVar[str] = (
        "The process must be named containerd, live outside of every container and hold containerd's socket (or, if "
        "nobody listens, be the only one of that name); it must fail afresh in the same way, or the shim still be "
        "dead; every shim must answer; its unit must spare the shims (KillMode=process); and somebody must be seen who "
        "starts it again: its systemd service, or a parent other than pid 1; and its cgroup must not be frozen. Where "
        "it has ended, the unit that ran it must be known, loaded and inactive, and neither masked nor disabled. A "
        "unit with RefuseManualStop= or RefuseManualStart= is not restarted, and one with RefuseManualStart= not "
        "started."
    )
    verifies: ClassVar[str] = (
        "A containerd with a new start time runs within 30 s and answers CRI Version within 30 s more, every shim that "
        "ran before still runs, and the bundle of a dead shim is gone."
    )
    risk: ClassVar[str] = (
        "Containers go on running; until containerd is back, nothing starts, stops or is exec'd. A shim that hangs at "
        "that very moment may have its pod cleaned up. By signals the unit's KillMode is not known: one that does not "
        "spare the shims ends every container of the node."
    )

    def __init__(  # noqa: PLR0913 - each is injected by name
        self,
        address: str,
        *,
        procfs: Procfs,
        cgroups: Cgroups,
        listeners: Listeners,
        namespaces: tuple[str, ...],
        systemd: Systemd,
        inventory: InventorySense,
        shims: ShimSense,
        hung_shims: Callable[[], Counter[Action]],
        clock: Clock,
        patience: Patience,
    ) -> None:
        self._address = address
        self._procfs = procfs
        self._inventory = inventory
        self._shims = shims
        self._hung_shims = hung_shims
        self._clock = clock
        self._patience = patience
        service = NodeService(COMM, address, lambda: listeners.unix(address), listeners, procfs, namespaces)
        restarter = Restarter(procfs, systemd, patience)
        self._known = RestartableService(service, restarter, self._problem, procfs, cgroups, clock, patience)

    @contextmanager
    def confirm(self, target: Target, finding: Finding) -> Iterator[RestartCase | StartCase]:
        """See Remedy."""
        dead = target.kind is TargetKind.SHIM
        this_boot(target, self._procfs)
        if not dead and is_ended(target):
            yield self._to_be_started(target)
            return
        process = self._known.service.find().process.id if dead else exact(target, COMM, self._address, self._procfs)
        with held(process, self._procfs) as grip:
            found = self._known.service.identify(grip.process)
            not_frozen(found.process, self._known, COMM)
            way = self._known.restarter.way(found.process)
            self._no_known_hung_shim()
            attempts = () if dead else self._failing(finding.reason, found, grip)
            neighbours = self._neighbours()
            _spares(way, neighbours)
            bundle = self._dead_bundle(target, neighbours.inventory) if dead else ""
            self._all_shims_answer(neighbours.inventory)
            why = (
                f"the shim of {bundle} is still dead" if dead else f"containerd still fails: {described(attempts[-1])}"
            )
            yield RestartCase(
                message=f"{why}. containerd (pid {found.process.pid}, {self._address}) is to be restarted by {way.text}"
                f"; {len(neighbours.shims)} shims run",
                found=found,
                grip=grip,
                way=way,
                attempts=attempts,
                known=self._known,
                aftermath=lambda: self._aftermath(neighbours.shims, target if dead else None),
                extra=_evidence(neighbours),
            )

    # -- before ---------------------------------------------------------------

    def _to_be_started(self, target: Target) -> StartCase:
        """Open the case of a containerd that has ended. A start loads the shims as a restart does."""
        way, attempts = has_ended(target, self._known, self._ask)
        self._no_known_hung_shim()
        neighbours = self._neighbours()
        self._all_shims_answer(neighbours.inventory)
        return StartCase(
            message=f"no containerd runs, and nothing listens at {self._address}; {len(neighbours.shims)} shims run. "
            f"To be started by {way.text}",
            way=way,
            attempts=attempts,
            known=self._known,
            aftermath=lambda: self._aftermath(neighbours.shims, None),
            extra=_evidence(neighbours),
        )

    def _failing(self, reason: str, found: Identified, grip: Grip) -> tuple[Attempt[Any], ...]:
        match reason:
            case "CRITimeout":
                attempts = times_out(self._ask, self._patience)
            case "RuntimeRefused":
                grown_up(found.process, self._procfs, self._patience)
                attempts = fails_twice(self._ask, refuses, grip, self._patience)
            case _:
                raise refused(RefusalReason.NOT_CONFIRMED, f"{reason} is no ground to restart containerd")
        consistent(found, self._address, attempts)
        return attempts

    def _no_known_hung_shim(self) -> None:
        hung = self._hung_shims()
        if count := hung.total():
            what = f"{count} shims are hung (ContainerdShimHung)" if count > 1 else "a shim is hung"
            raise _hung(what, sorted(action for action in hung if action is not Action.NONE))

    def _neighbours(self) -> Neighbours:
        try:
            inventory = self._inventory.take()
            processes = self._procfs.named(SHIM_COMM)
        except (NotApplicableError, CannotSeeError) as error:
            raise refused(RefusalReason.CANNOT_SEE, str(error)) from None
        except OSError as error:
            why = f"the shims cannot be listed, and they must outlive the restart: {error.filename}: {error.strerror}"
            raise refused(RefusalReason.CANNOT_SEE, why) from None
        pods = {shim.process.id: _whose(shim) for shim in inventory.shims if shim.process}
        alive = [p for p in processes if p.state != "Z" and not self._procfs.nested(p.pid)]
        return Neighbours({p.id: pods.get(p.id, "") for p in alive}, inventory)

    def _dead_bundle(self, target: Target, inventory: Inventory) -> str:
        """Make sure that a bundle is there without a shim, and say whose it is. Raises RefusedError."""
        short = target.container_id[:12]
        namespace = target.containerd_namespace
        shim = next(
            (s for s in inventory.shims for b in s.bundles if (b.id, b.namespace) == (target.container_id, namespace)),
            None,
        )
        if shim is None:
            raise refused(RefusalReason.TARGET_GONE, f"container {short} has no bundle any more")
        if shim.process is not None:
            why = f"the shim of container {short} lives: process {shim.process.pid}"
            raise refused(RefusalReason.NOT_CONFIRMED, why)
        if inventory.unseen_shims:
            denied = self._procfs.ptrace_denied() or "access was denied"
            why = f"the working directory of shim {inventory.unseen_shims[0].pid} may not be read ({denied})"
            raise refused(RefusalReason.CANNOT_SEE, f"{why}, so it may be the one of container {short}")
        answer = self._shims.ask([shim.query], SHIM_SECONDS)[shim.address]
        self._shims.ask([], 0)
        if answer.outcome in {Outcome.REFUSED, Outcome.NO_SOCKET}:
            return _whose(shim)
        if answer.outcome in {Outcome.ANSWERED, Outcome.WAITING}:
            why = f"somebody listens at the socket of container {short}'s shim ({answer.outcome})"
            raise refused(RefusalReason.NOT_CONFIRMED, why)
        raise refused(RefusalReason.CANNOT_SEE, f"whether container {short} has a shim is not known: {answer.message}")

    def _all_shims_answer(self, inventory: Inventory) -> None:
        """Ask every shim now: the board knows of a hung one only after some seconds."""
        by_address = {shim.address: shim for shim in inventory.shims}
        answers = self._shims.ask([shim.query for shim in by_address.values()], SHIM_SECONDS)
        self._shims.ask([], 0)  # hang up: an open question is kept for the next look, and there is none
        hidden = [a for a, answer in answers.items() if answer.outcome is Outcome.NOT_PERMITTED]
        if hidden:
            why = f"{len(hidden)} shims cannot be asked, and one of them may hang: {answers[hidden[0]].message}"
            raise refused(RefusalReason.CANNOT_SEE, why)
        silent = [by_address[a] for a, answer in answers.items() if _hangs(answer)]
        if silent:
            listed = ", ".join(_whose(shim) for shim in silent[:SHOWN])
            what = f"{len(silent)} of {len(answers)} shims do not answer within {SHIM_SECONDS:g} s: {listed}"
            raise _hung(what, sorted({self._what_helps(shim) for shim in silent}))

    def _what_helps(self, shim: Shim) -> Action:
        """Return the gentlest action that lets a silent shim answer."""
        lines = self._procfs.cgroups(shim.process.pid) if shim.process else ()
        return Action.THAW_CGROUP if self._known.cgroups.frozen(lines) else Action.KILL_SHIM

    # -- after ------------------------------------------------------------------

    def _ask(self, deadline: float, hedge: float) -> tuple[Attempt[RuntimeAnswer], ...]:
        return ask_version(self._address, deadline=deadline, hedge=hedge, clock=self._clock)

    def _problem(self) -> str:
        attempt = self._ask(ASK_SECONDS, 2 * ASK_SECONDS)[0]
        return "" if attempt.ending is Ending.ANSWERED else f"CRI Version {described(attempt)}"

    def _aftermath(self, shims: Mapping[ProcessId, str], dead: Target | None) -> str:
        """Return what the restart has cost, or has not mended."""
        lost = [f"{p.pid} ({whose or 'of no bundle'})" for p, whose in shims.items() if not self._lives(p)]
        if lost:
            more = f" and {len(lost) - SHOWN} more" if len(lost) > SHOWN else ""
            return (
                f"{len(lost)} of {len(shims)} shims that ran before are gone: {', '.join(lost[:SHOWN])}{more}. Their "
                "pods have ended by themselves or were cleaned up: see journalctl -u containerd"
            )
        if dead is not None and not wait_until(lambda: self._bundle_gone(dead), self._clock, self._patience.answer):
            return f"the bundle of container {dead.container_id[:12]} is still there"
        return ""

    def _lives(self, process: ProcessId) -> bool:
        now = self._procfs.process(process.pid)
        return now is not None and now.id == process and now.state != "Z"

    def _bundle_gone(self, target: Target) -> bool:
        found = self._inventory.bundles.find(target.container_id)
        return all(bundle.namespace != target.containerd_namespace for bundle in found)


def _hangs(answer: ShimAnswer) -> bool:
    """Whether a shim, or an operation in it, has not answered so far."""
    return answer.outcome is Outcome.WAITING or bool(answer.states_waiting)


def _hung(what: str, helps: Iterable[Action]) -> Exception:
    first = f"Deal with them first ({' or '.join(helps) or 'see nodediag report'})"
    why = f"a containerd that starts while a shim is hung can clean that pod up. {first}"
    return refused(RefusalReason.UNSAFE_NOW, f"{what}; {why}")


def _evidence(neighbours: Neighbours) -> dict[str, Any]:
    return {"shims": [{"pid": p.pid, "startTime": p.start_time} for p in neighbours.shims]}


def _spares(way: Way, neighbours: Neighbours) -> None:
    """Make sure that systemd ends containerd alone. Raises RefusedError."""
    unit = way.unit
    if unit is None or unit.kill_mode in SPARES_CHILDREN or not neighbours.shims:
        return
    why = f"{unit.name} has KillMode={unit.kill_mode}: its restart would end every shim in its cgroup, and their pods"
    raise refused(RefusalReason.UNSAFE_NOW, f"{why}. Set KillMode=process, as containerd's own unit does")


def _whose(shim: Shim) -> str:
    pod = shim.lead.identity.pod
    return f"pod {pod.namespace}/{pod.name}" if pod else f"container {shim.lead.id[:12]}"
