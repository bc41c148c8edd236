"""The composition of the act flow, as `agent.app` is of the sense flow: constructor calls and nothing else.

The remedies have senses of their own: those of the detectors are in use by other threads, and remember conversations.
"""

import os
from collections import Counter
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

from agent.acts import Limits
from agent.app import Senses
from agent.clock import Clock
from agent.host.conntrack import Conntrack
from agent.host.inventory import InventorySense
from agent.model import Action
from agent.pipeline.board import Board
from agent.remediation.actions.delete_conntrack_flows import DeleteConntrackFlows
from agent.remediation.actions.kill_parent import KillParent
from agent.remediation.actions.kill_shim import KillShim
from agent.remediation.actions.restart_containerd import RestartContainerd
from agent.remediation.actions.restart_kubelet import RestartKubelet
from agent.remediation.actions.signal_parent import SignalParent
from agent.remediation.actions.thaw_cgroup import ThawCgroup
from agent.remediation.course import Course
from agent.remediation.engine import Engine
from agent.remediation.evidence import EvidenceStore
from agent.remediation.flows import NetlinkFlowTable
from agent.remediation.ledger import Ledger
from agent.remediation.remedy import Remedy
from agent.remediation.services import Patience
from agent.remediation.standing import Rules, Standings, boot_moment
from agent.remediation.systemd import Systemd
from agent.remediation.zombies import Parents
from agent.settings import Loaded, Settings
from agent.settings.tree import ActionsSettings

REMEDY_CLASSES: tuple[type[Remedy], ...] = (
    KillShim,
    ThawCgroup,
    SignalParent,
    KillParent,
    RestartKubelet,
    RestartContainerd,
    DeleteConntrackFlows,
)
HUNG = "ContainerdShimHung"


@dataclass(frozen=True, slots=True)
class ActFlow:
    """The connected parts: the engine that acts, and the evidence it keeps."""

    engine: Engine
    evidence: EvidenceStore


def build(loaded: Loaded, clock: Clock, board: Board) -> ActFlow:
    """Connect the act flow; nothing is started and no file is touched."""
    settings, senses = loaded.settings, Senses(loaded, clock, exact=True)
    state_dir = Path(settings.host.state_dir)
    evidence = EvidenceStore(state_dir / "evidence", clock.wall)
    procfs = senses.procfs
    boot = partial(boot_moment, procfs)
    ledger = Ledger(state_dir, boot, clock.wall)
    namespaces = settings.containerd.namespaces
    standings = Standings(_rules(settings), ledger, state_dir, procfs, namespaces, os.getpid(), boot)
    remedies = {each.action: each for each in _remedies(settings, senses, clock, board)}
    course = Course(remedies, board, evidence, ledger, clock, partial(_hidden, senses))
    return ActFlow(Engine(standings, remedies, course, ledger, clock), evidence)


def _hidden(senses: Senses) -> str | None:
    """Why the processes seen are not the node's, or are out of reach of a signal; None if they are neither."""
    problem = senses.pid_problem()
    return str(problem) if problem else senses.namespaces.signal_problem()


def _elsewhere(senses: Senses) -> str | None:
    """Why our network is not the node's; None if it is."""
    problem = senses.network_problem()
    return str(problem) if problem else None


def _rules(settings: Settings) -> Rules:
    remediation = settings.remediation
    limits = {Action(item.name): _limits(remediation.actions, item.name) for item in fields(ActionsSettings)}
    return Rules(remediation.enabled, remediation.dry_run, remediation.max_per_hour, limits)


def _limits(actions: ActionsSettings, name: str) -> Limits:
    settings = getattr(actions, name)
    return Limits(settings.enabled, settings.cooldown_seconds, settings.max_per_hour)


def _remedies(settings: Settings, senses: Senses, clock: Clock, board: Board) -> tuple[Remedy, ...]:
    procfs, cgroups, sysfs = senses.procfs, senses.cgroups, settings.host.sys
    namespaces = settings.containerd.namespaces
    inventory = InventorySense(senses.bundles, procfs, senses.pods, namespaces)
    parents = Parents(procfs, cgroups, namespaces, clock, settings.detectors.defunct_processes.max_per_parent + 1)
    listeners = senses.listeners
    systemd = Systemd(settings.host.dbus_socket, clock)
    kubelet, runtime = settings.detectors.kubelet_healthz, settings.detectors.container_runtime
    return (
        KillShim(inventory, procfs, cgroups, clock, sysfs=sysfs),
        ThawCgroup(procfs, cgroups, senses.bundles, clock, sysfs=sysfs, systemd=systemd, namespaces=namespaces),
        SignalParent(parents, clock),
        KillParent(parents, clock),
        RestartKubelet(
            settings.kubelet.healthz_url,
            procfs=procfs,
            cgroups=cgroups,
            listeners=listeners,
            namespaces=namespaces,
            systemd=systemd,
            clock=clock,
            patience=Patience(kubelet.deadline_seconds, kubelet.hedge_seconds, kubelet.restart_grace_seconds),
            network_problem=partial(_elsewhere, senses),
        ),
        RestartContainerd(
            settings.containerd.address,
            procfs=procfs,
            cgroups=cgroups,
            listeners=listeners,
            namespaces=namespaces,
            systemd=systemd,
            inventory=inventory,
            shims=senses.shims,
            hung_shims=lambda: _recommended(board, HUNG),
            clock=clock,
            patience=Patience(runtime.deadline_seconds, runtime.hedge_seconds, runtime.restart_grace_seconds),
        ),
        DeleteConntrackFlows(
            Conntrack(Path(settings.host.proc), rights=senses.rights),
            NetlinkFlowTable(clock, rights=senses.rights),
            clock,
            partial(_elsewhere, senses),
        ),
    )


def _recommended(board: Board, kind: str) -> Counter[Action]:
    """Count the findings of a condition by the action they recommend."""
    conditions = [condition for condition in board.report().conditions if condition.type == kind]
    return Counter(active.finding.recommended_action for each in conditions for active in each.findings)
