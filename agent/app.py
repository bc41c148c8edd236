"""The composition root: what is connected with what. Explicit constructor calls and nothing else."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

from agent.clock import Clock
from agent.detectors.conntrack_dns import ConntrackDnsDetector
from agent.detectors.container_runtime import ContainerRuntimeDetector
from agent.detectors.containerd_shim import ContainerdShimDetector
from agent.detectors.defunct_processes import DefunctProcessesDetector
from agent.detectors.kubelet_healthz import KubeletHealthzDetector
from agent.detectors.kubelet_pleg import SPACING, KubeletPlegDetector
from agent.host.bundles import Bundles
from agent.host.cgroup_namespace import CgroupNamespace
from agent.host.cgroups import Cgroups
from agent.host.conntrack import Conntrack
from agent.host.dns import Dns
from agent.host.inventory import InventorySense
from agent.host.kubelet import place
from agent.host.kubelet_calls import KubeletCalls
from agent.host.listeners import Listeners
from agent.host.namespaces import Namespaces
from agent.host.pleg import PlegSense
from agent.host.pod_book import PodBook
from agent.host.pod_list import read_pods
from agent.host.pods import Pods
from agent.host.procfs import Process, Procfs, PtraceGuard
from agent.host.rights import Rights
from agent.host.service import ServiceSense
from agent.host.shims import ShimSense
from agent.model import CannotSeeError, DeploymentFault, Detector, Meter, ProcessId
from agent.pipeline.board import Board
from agent.pipeline.runner import Runner
from agent.settings import DetectorsSettings, Loaded, Settings, node_name

DETECTOR_NAMES = tuple(item.name for item in fields(DetectorsSettings))
DETECTOR_CLASSES: tuple[type[Detector], ...] = (
    ContainerdShimDetector,
    DefunctProcessesDetector,
    ConntrackDnsDetector,
    KubeletHealthzDetector,
    ContainerRuntimeDetector,
    KubeletPlegDetector,
)
METER_CLASSES: tuple[type[Meter], ...] = (KubeletCalls,)
KUBELET_DIR = Path("/var/lib/kubelet")
KNOWN_SECONDS = 60.0
"""How long a service's process that was found is taken for the only one of its name."""

Makers: TypeAlias = Mapping[str, Callable[[], Detector]]
"""By name of the detector, what makes it."""


@dataclass(frozen=True, slots=True)
class Agent:
    """The connected parts: the detectors, a runner for each, the board they write on, and who counts for itself."""

    board: Board
    detectors: tuple[Detector, ...]
    runners: tuple[Runner, ...]
    meters: tuple[Meter, ...] = ()


class Senses:
    """The senses that are shared, each set by those of one flow: the detectors, or the remedies, which are `exact`."""

    def __init__(self, loaded: Loaded, clock: Clock, book: PodBook | None = None, *, exact: bool = False) -> None:
        settings = loaded.settings
        self.rights = Rights()
        names = CgroupNamespace(settings.host.proc, settings.host.sys)
        self.procfs = Procfs(settings.host.proc, names.outside, PtraceGuard(self.rights, clock.monotonic), exact=exact)
        self.cgroups = Cgroups(settings.host.sys, self.rights)
        self.namespaces = Namespaces(settings.host.proc)
        self.bundles = Bundles(settings.containerd.state_dir, settings.containerd.namespaces, self.rights)
        self.pods = Pods(self.bundles, self.procfs, book)
        self.shims = ShimSense(clock, self.rights)
        self.listeners = Listeners(settings.host.proc, self.rights)
        self.services = ServiceSense(self.procfs, self.cgroups)
        self._sees_the_node = False
        self._clock = clock
        self.containerd_process = self.service("containerd", lambda: self.listeners.unix(settings.containerd.address))
        self.kubelet_process = self.service("kubelet", lambda: self.listeners.tcp(*place(settings.kubelet.healthz_url)))

    def pid_problem(self) -> DeploymentFault | None:
        """Why the processes seen are not the node's; None if they are, and then they are for as long as we live."""
        if self._sees_the_node:
            return None
        problem = self.namespaces.pid_problem(lambda: frozenset(p.comm for p in self.procfs.processes()))
        self._sees_the_node = problem is None
        return problem

    def network_problem(self) -> DeploymentFault | None:
        """Why our network is not the node's; None if it is. Only the node's own pid 1 can tell."""
        hidden = self.pid_problem()
        if hidden:
            why = f"cannot tell whether this is the node's network, since pid 1 is not the node's: {hidden.message}"
            return replace(hidden, message=why)
        return self.namespaces.network_problem()

    def service(self, comm: str, listening: Callable[[], frozenset[int]]) -> Callable[[], ProcessId | None]:
        """Find the one process of a name; of several, the one that holds a socket of these inodes. None if unclear.

        One that was found is not looked for again for a while, as long as it lives: to look is to read all of /proc.
        """
        known: ProcessId | None = None
        found_at = 0.0

        def find() -> ProcessId | None:
            nonlocal known, found_at
            stale = self._clock.monotonic() - found_at > KNOWN_SECONDS
            if known is None or stale or self.procfs.age_seconds(known) is None:
                known, found_at = search(), self._clock.monotonic()
            return known

        def search() -> ProcessId | None:
            found = [process for process in self.procfs.named(comm) if not self.procfs.nested(process.pid)]
            if len(found) > 1:
                found = self._holders(found, listening)
            return found[0].id if len(found) == 1 else None

        return find

    def _holders(self, processes: list[Process], listening: Callable[[], frozenset[int]]) -> list[Process]:
        try:
            wanted = listening()
            return [process for process in processes if wanted & self.listeners.held_by(process.pid)]
        except CannotSeeError:
            return []


def enabled(settings: Settings) -> tuple[str, ...]:
    """Return the names of the detectors the settings switch on."""
    return tuple(name for name in DETECTOR_NAMES if getattr(settings.detectors, name).enabled)


def condition_types(detectors: Iterable[Detector]) -> tuple[str, ...]:
    """Return every type of condition these detectors may report."""
    return tuple(kind for each in detectors for kind in each.conditions)


def build(loaded: Loaded, clock: Clock, names: tuple[str, ...] = DETECTOR_NAMES) -> Agent:
    """Connect the detectors of these names that the settings enable; nothing is started."""
    settings = loaded.settings
    board = Board(node_name(settings), clock)
    kubelet = _kubelet(settings, clock)
    book = kubelet.book if kubelet else None
    makers = _makers(loaded, clock, kubelet)
    detectors = tuple(makers[name]() for name in names if name in enabled(settings))
    identify = book.identify if book else None
    runners = tuple(
        Runner(each, getattr(settings.detectors, each.name), board, clock, identify, _denied) for each in detectors
    )
    return Agent(board, detectors, runners, (kubelet.calls,) if kubelet else ())


def _denied(error: PermissionError) -> DeploymentFault:
    """Explain a denial that no sense has explained."""
    return Rights().path(os.fsdecode(error.filename or ""), error)


@dataclass(frozen=True, slots=True)
class _Kubelet:
    """What is made of the kubelet's API."""

    calls: KubeletCalls
    book: PodBook
    pleg: PlegSense


def _kubelet(settings: Settings, clock: Clock) -> _Kubelet | None:
    """Return what asks the kubelet's API, if it is to be asked."""
    kubelet = settings.kubelet
    if not kubelet.api_url:
        return None
    from agent.host.kubelet_api import Access, KubeletApi  # noqa: PLC0415 - without it, the memory of ssl is not spent

    trust = kubelet.ca_file or str(KUBELET_DIR / "pki" / "kubelet.crt")
    calls = KubeletCalls(clock)
    api = KubeletApi(Access(kubelet.api_url, kubelet.token_file, trust, kubelet.insecure_skip_verify), calls, clock)
    book = PodBook(partial(read_pods, api, kubelet.pod_labels), clock)
    return _Kubelet(calls, book, PlegSense(api, clock, SPACING * settings.detectors.kubelet_pleg.period_seconds))


def _makers(loaded: Loaded, clock: Clock, kubelet: _Kubelet | None) -> Makers:
    senses = Senses(loaded, clock, kubelet.book if kubelet else None)
    return {**_of_the_kernel_and_shims(loaded, clock, senses), **_of_services(loaded, clock, senses, kubelet)}


def _of_the_kernel_and_shims(loaded: Loaded, clock: Clock, senses: Senses) -> Makers:
    settings, detectors, containerd = loaded.settings, loaded.settings.detectors, loaded.settings.containerd
    return {
        "containerd_shim": lambda: ContainerdShimDetector(
            detectors.containerd_shim,
            InventorySense(senses.bundles, senses.procfs, senses.pods, containerd.namespaces),
            senses.shims,
            senses.procfs,
            senses.cgroups,
            senses.pid_problem,
            clock,
            expected=loaded.is_set("containerd.state_dir"),
            containerd_process=senses.containerd_process,
        ),
        "defunct_processes": lambda: DefunctProcessesDetector(
            detectors.defunct_processes,
            senses.procfs,
            senses.cgroups,
            containerd.namespaces,
            senses.pods.pod_of,
            senses.pid_problem,
            clock,
        ),
        "conntrack_dns": lambda: ConntrackDnsDetector(
            detectors.conntrack_dns,
            Conntrack(Path(settings.host.proc), rights=senses.rights),
            Dns(
                clock,
                settings.dns.name,
                settings.dns.servers,
                resolv_conf=Path(settings.dns.resolv_conf),
                proc=Path(settings.host.proc),
            ),
            senses.pods.owners,
            clock,
            senses.network_problem,
        ),
    }


def _of_services(loaded: Loaded, clock: Clock, senses: Senses, kubelet: _Kubelet | None) -> Makers:
    settings, detectors, containerd = loaded.settings, loaded.settings.detectors, loaded.settings.containerd
    return {
        "kubelet_healthz": lambda: KubeletHealthzDetector(
            detectors.kubelet_healthz,
            settings.kubelet.healthz_url,
            explicit=loaded.is_set("kubelet.healthz_url"),
            clock=clock,
            kubelet_dir=KUBELET_DIR,
            kubelet_process=senses.kubelet_process,
            process_age=senses.procfs.age_seconds,
            process_cgroup=senses.services.cgroup,
            halted=senses.services.halt,
            boot_id=senses.procfs.boot_id,
            network_problem=senses.network_problem,
        ),
        "container_runtime": lambda: ContainerRuntimeDetector(
            detectors.container_runtime,
            containerd.address,
            explicit=loaded.is_set("containerd.address"),
            clock=clock,
            state_dir=Path(containerd.state_dir),
            containerd_process=senses.containerd_process,
            process_age=senses.procfs.age_seconds,
            process_cgroup=senses.services.cgroup,
            halted=senses.services.halt,
            boot_id=senses.procfs.boot_id,
            denied=senses.rights.path,
        ),
        "kubelet_pleg": lambda: KubeletPlegDetector(
            detectors.kubelet_pleg,
            kubelet.pleg if kubelet else None,
            settings.kubelet.api_url.rstrip("/"),
            senses.procfs.boot_id,
        ),
    }
