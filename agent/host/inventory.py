"""Puts together what belongs together: bundles, the shim that serves them, and its process.

Three lists come of it: shims with their bundles (several containers of a pod share one shim),
shim processes that serve no bundle, and container processes that no shim looks after. Shim
processes are known by what they answered to `Connect`, by being the parent of a container's
init, or by their working directory, which containerd sets to the bundle: that link never blocks,
unlike the command line.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from agent.host import cgroups
from agent.host.bundles import Bundle, Bundles
from agent.host.cgroups import CgroupOwner
from agent.host.pods import Pods
from agent.host.procfs import INIT_PID, Process, Procfs
from agent.host.shims import ShimQuery
from agent.model import PodRef, ProcessId

SHIM_COMM = "containerd-shim"
"""The first 15 bytes of containerd-shim-runc-v2 and of every other v2 shim."""
RUNTIME_COMMS = frozenset({"runc", "crun"})
"""The OCI runtimes a shim runs for each operation on a container."""
DELETED = " (deleted)"


@dataclass(frozen=True, slots=True)
class Shim:
    """One shim by its socket, the bundles it serves, and its process if that is known and alive.

    `runtimes` are the OCI runtimes (runc) that it runs now, the oldest first: each works at one operation.
    """

    address: str
    bundles: tuple[Bundle, ...]
    process: Process | None
    runtimes: tuple[Process, ...] = ()

    @property
    def lead(self) -> Bundle:
        """The bundle the shim was started for: the pod's sandbox, else the oldest."""
        sandboxes = [b for b in self.bundles if b.identity.is_sandbox]
        return (sandboxes or sorted(self.bundles, key=lambda b: b.modified_at))[0]

    @property
    def query(self) -> ShimQuery:
        """How to ask it."""
        lead = self.lead
        others = [b.id for b in self.bundles if b.id != lead.id]
        return ShimQuery(self.address, lead.task_version, (lead.id, *others))

    @property
    def creating(self) -> bool:
        """Whether a container of it is still being created: runc has written no init.pid yet."""
        return any(b.init_pid is None for b in self.bundles)


@dataclass(frozen=True, slots=True)
class StrayShim:
    """A shim process whose bundle is gone."""

    process: Process
    container_id: str
    containerd_namespace: str
    pod: PodRef | None


@dataclass(frozen=True, slots=True)
class StrayContainer:
    """The processes in a container's cgroup, some left to pid 1, while no bundle of that container exists.

    Those left to pid 1 come first; then their descendants, which are in the same cgroup or in one below it.
    """

    owner: CgroupOwner
    processes: tuple[Process, ...]
    pod: PodRef | None


@dataclass(frozen=True, slots=True)
class Inventory:
    """One look at everything containerd left on this node. `unseen_shims` had a working directory we may not read."""

    shims: tuple[Shim, ...]
    unaddressed: tuple[Bundle, ...]
    stray_shims: tuple[StrayShim, ...]
    stray_containers: tuple[StrayContainer, ...]
    unseen_shims: tuple[Process, ...]


@dataclass(frozen=True, slots=True)
class _Served:
    """What a shim process was last seen to serve."""

    container_id: str
    containerd_namespace: str
    pod: PodRef | None


@dataclass(slots=True)
class InventorySense:
    """Takes inventory; remembers which process served which bundle, so that it can be named once the bundle is gone."""

    bundles: Bundles
    procfs: Procfs
    pods: Pods
    namespaces: tuple[str, ...]
    _answered: dict[str, ProcessId] = field(default_factory=dict)
    _served: dict[ProcessId, _Served] = field(default_factory=dict)
    _owners: dict[ProcessId, CgroupOwner | None] = field(default_factory=dict)

    def take(self) -> Inventory:
        """Look once. Processes are read before bundles, so that a shim just being started has its bundle.

        Raises NotApplicableError without containerd's state directory, OSError if it or /proc cannot be read.
        """
        processes = {process.pid: process for process in self.procfs.living()}
        bundles = self.bundles.list()
        self.pods.remember(bundles)
        self._owners = {i: o for i, o in self._owners.items() if _alive(i, processes)}
        shim_processes = tuple(self._shim_processes(bundles, processes))
        shims = tuple(self._shims(bundles, processes, shim_processes))
        strays, unseen = self._stray_shims(shims, bundles, shim_processes)
        return Inventory(
            shims=shims,
            unaddressed=tuple(b for b in bundles if not b.address),
            stray_shims=tuple(strays),
            stray_containers=tuple(self._stray_containers(bundles, processes)),
            unseen_shims=tuple(unseen),
        )

    def answered(self, address: str, shim_pid: int) -> None:
        """Remember which process a shim said it is: once it hangs it cannot say so any more."""
        known = self._answered.get(address)
        if known is not None and known.pid == shim_pid:
            return
        process = self.procfs.process(shim_pid)
        if process is not None and process.comm == SHIM_COMM:
            self._answered[address] = process.id

    def _shim_processes(self, bundles: tuple[Bundle, ...], processes: Mapping[int, Process]) -> Iterable[Process]:
        """Living shims. A container's process may call itself one; its cgroup tells that it is none."""
        ids = {bundle.id for bundle in bundles}
        for process in processes.values():
            if process.comm == SHIM_COMM:
                owner = self._owner(process)
                if owner is None or owner.container_id not in ids:
                    yield process

    def _shims(
        self, bundles: Iterable[Bundle], processes: Mapping[int, Process], shim_processes: tuple[Process, ...]
    ) -> Iterable[Shim]:
        by_address: dict[str, list[Bundle]] = {}
        for bundle in bundles:
            if bundle.address:
                by_address.setdefault(bundle.address, []).append(bundle)
        self._answered = {a: i for a, i in self._answered.items() if a in by_address and _alive(i, processes)}
        by_directory: dict[str, Process] | None = None
        runtimes = [process for process in processes.values() if process.comm in RUNTIME_COMMS]
        for address, members in by_address.items():
            known = self._answered.get(address)
            process = processes[known.pid] if known is not None else None
            process = process or self._parent_of_init(members, processes)
            if process is None:
                if by_directory is None:
                    by_directory = {self.procfs.cwd(p.pid) or "": p for p in shim_processes}
                process = next((by_directory[b.path] for b in members if b.path in by_directory), None)
            yield Shim(address, tuple(members), process, runtimes_of(process.pid, runtimes) if process else ())

    def _parent_of_init(self, members: list[Bundle], processes: Mapping[int, Process]) -> Process | None:
        """The shim process above a container's init. Pids are reused: an init of another container is not believed."""
        ids = {bundle.id for bundle in members}
        for bundle in members:
            init = processes.get(bundle.init_pid or 0) or self._defunct(bundle.init_pid)
            parent = processes.get(init.ppid) if init else None
            if init is None or parent is None or parent.comm != SHIM_COMM:
                continue
            owner = self._owner(init)
            directory = self.procfs.cwd(parent.pid)
            if (owner is None or owner.container_id == bundle.id) and (not directory or _id_of(directory) in ids):
                return parent
        return None

    def _defunct(self, init_pid: int | None) -> Process | None:
        """A container's init that has ended, and that a shim which hangs has not reaped."""
        return self.procfs.process(init_pid) if init_pid else None

    def _stray_shims(
        self, shims: tuple[Shim, ...], bundles: tuple[Bundle, ...], shim_processes: tuple[Process, ...]
    ) -> tuple[list[StrayShim], list[Process]]:
        alive = {process.id for process in shim_processes}
        self._served = {i: s for i, s in self._served.items() if i in alive}
        serving = set()
        for shim in shims:
            if shim.process is not None:
                serving.add(shim.process.id)
                lead = shim.lead
                self._served[shim.process.id] = _Served(lead.id, lead.namespace, lead.identity.pod)
        paths = {bundle.path for bundle in bundles}
        strays: list[StrayShim] = []
        unseen: list[Process] = []
        for process in shim_processes:
            if process.id in serving or self.procfs.nested(process.pid):  # nested: a shim of a node inside this one
                continue
            served = self._served.get(process.id)
            directory = self.procfs.cwd(process.pid)
            if directory is None and served is None:
                unseen.append(process)
            elif directory is None or (directory and directory.removesuffix(DELETED) not in paths):
                served = served or self._served_by_directory(directory or "")
                if served is not None and not self.bundles.has(served.container_id):
                    strays.append(StrayShim(process, served.container_id, served.containerd_namespace, served.pod))
        return strays, unseen

    def _served_by_directory(self, directory: str) -> _Served | None:
        """What a shim served, from its bundle's path; None if it is a shim of somebody else's containerd."""
        root, _, namespace = directory.rpartition("/")[0].rpartition("/")
        if root != self.bundles.task_root or namespace not in self.namespaces:
            return None
        container_id = _id_of(directory)
        return _Served(container_id, namespace, self.pods.pod_of(container_id))

    def _stray_containers(
        self, bundles: tuple[Bundle, ...], processes: Mapping[int, Process]
    ) -> Iterable[StrayContainer]:
        ids = {bundle.id for bundle in bundles}
        found: dict[str, CgroupOwner] = {}
        for process in processes.values():
            if process.ppid != INIT_PID or process.comm == SHIM_COMM:
                continue
            owner = self._owner(process)
            if owner is not None and owner.container_id not in ids:
                found.setdefault(owner.container_id, owner)
        for container_id, owner in found.items():
            if self.bundles.has(container_id):  # made since the list was read, or another namespace's
                continue
            pod = self.pods.pod_of(container_id)
            yield StrayContainer(owner, self._members(container_id, processes), pod)

    def _members(self, container_id: str, processes: Mapping[int, Process]) -> tuple[Process, ...]:
        """All processes of a container, by their cgroups: those left to init and what they have started since."""
        owned = ((process, self._owner(process)) for process in processes.values())
        members = (process for process, owner in owned if owner is not None and owner.container_id == container_id)
        return tuple(sorted(members, key=lambda p: (p.ppid != INIT_PID, p.start_time)))

    def _owner(self, process: Process) -> CgroupOwner | None:
        if process.id not in self._owners:
            self._owners[process.id] = cgroups.owner(self.procfs.cgroups(process.pid), self.namespaces)
        return self._owners[process.id]


def runtimes_of(shim_pid: int, processes: Iterable[Process]) -> tuple[Process, ...]:
    """Return the OCI runtimes among a shim's children, the oldest first. By comm and parent alone: both never block."""
    children = (process for process in processes if process.ppid == shim_pid and process.comm in RUNTIME_COMMS)
    return tuple(sorted(children, key=lambda process: process.start_time))


def _id_of(directory: str) -> str:
    """The container a bundle's path stands for; containerd puts a dot in front of one it removes."""
    return directory.removesuffix(DELETED).rpartition("/")[2].lstrip(".")


def _alive(process: ProcessId, processes: Mapping[int, Process]) -> bool:
    now = processes.get(process.pid)
    return now is not None and now.start_time == process.start_time
