"""The words of nodediag: what is seen, what is decided and what is told.

Frozen values and protocols only; nothing here reads a host or a clock. Imports the
standard library alone, so that every room of the house can share these words.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Protocol, TypeAlias

Value: TypeAlias = str | int | float | bool | tuple[str, ...] | None
"""A measured value of a finding, in a form JSON and protobuf can both hold."""


class NotApplicableError(Exception):
    """What the detector watches is not on this node. Not a failure."""


class DeploymentCause(StrEnum):
    """What the agent's own deployment lacks."""

    CAPABILITY = "capability"
    USER = "user"
    APPARMOR = "apparmor"
    SELINUX = "selinux"
    NAMESPACE = "namespace"
    MOUNT = "mount"
    PERMISSION = "permission"
    """Denied, and none of the others accounts for it."""

    @property
    def reason(self) -> str:
        """The reason of a condition that is Unknown because of it."""
        return _UNKNOWN_REASONS.get(self, "AgentLacksPermission")


_UNKNOWN_REASONS = {
    DeploymentCause.NAMESPACE: "AgentLacksNamespace",
    DeploymentCause.MOUNT: "AgentLacksMount",
}


@dataclass(frozen=True, slots=True)
class DeploymentFault:
    """Something the agent cannot see because of how it is deployed, not because of the node.

    `subject` is what is missing or in the way: a capability, a mount's path, a field of the pod's spec, a profile.
    `hides` are the conditions that are Unknown because of it, `impairs` those about which less is known.
    """

    cause: DeploymentCause
    subject: str
    message: str
    remedy: str
    hides: tuple[str, ...] = ()
    impairs: tuple[str, ...] = ()

    def __str__(self) -> str:
        """What is wrong, and what to do about it."""
        return f"{self.message}; {self.remedy}"


class CannotSeeError(Exception):
    """A sense does not reach what it should see (permission, wrong namespace, broken answer).

    Every condition of the detector becomes Unknown with this text; `fault` is set if the agent's deployment is why.
    """

    def __init__(self, message: str, fault: DeploymentFault | None = None) -> None:
        super().__init__(message)
        self.fault = fault


class Status(StrEnum):
    """Status of a condition, as Kubernetes writes it. True = something is wrong."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class DetectorState(StrEnum):
    """How a detector itself is doing; says nothing about the node."""

    STARTING = "starting"
    OK = "ok"
    NOT_APPLICABLE = "not_applicable"
    FAILED = "failed"
    OVERDUE = "overdue"


class TargetKind(StrEnum):
    """What kind of thing a finding accuses."""

    SHIM = "shim"
    PROCESS = "process"
    CONTAINER = "container"
    KUBELET = "kubelet"
    CONTAINERD = "containerd"
    CONNTRACK = "conntrack"
    DNS_SERVER = "dns_server"
    NODE = "node"


class Action(StrEnum):
    """What can be recommended. NONE: nothing on this node mends it safely; the message says where to look."""

    NONE = "None"
    KILL_SHIM = "KillShim"
    THAW_CGROUP = "ThawCgroup"
    SIGNAL_PARENT = "SignalParent"
    KILL_PARENT = "KillParent"
    RESTART_KUBELET = "RestartKubelet"
    RESTART_CONTAINERD = "RestartContainerd"
    DELETE_CONNTRACK_FLOWS = "DeleteConntrackFlows"


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process for as long as it lives: a pid alone is reused.

    `start_time` is field 22 of /proc/N/stat, in clock ticks since boot (proc(5)).
    """

    pid: int
    start_time: int


@dataclass(frozen=True, slots=True)
class PodRef:
    """Whose container it is, as far as it could be learnt.

    What comes after `container` is only known to the kubelet's API: `owner` is the controller as `Kind/name`,
    `qos_class` one of Kubernetes' three, `node_critical` is None if nobody told, and `labels` has the (name, value)
    of those the settings choose, sorted.
    """

    namespace: str
    name: str
    uid: str = ""
    container: str = ""
    owner: str = ""
    qos_class: str = ""
    node_critical: bool | None = None
    labels: tuple[tuple[str, str], ...] = ()

    @property
    def named(self) -> bool:
        """Whether namespace and name are known: of what has left no bundle its cgroup may give the uid alone."""
        return bool(self.namespace and self.name)

    def __str__(self) -> str:
        """`namespace/name` or `namespace/name (container)`; `uid UID` where that is all that is known."""
        text = f"{self.namespace}/{self.name}" if self.named else f"uid {self.uid or 'unknown'}"
        return f"{text} (container {self.container})" if self.container else text


@dataclass(frozen=True, slots=True)
class Target:
    """The exact identity of what a finding accuses. Fields that do not apply to the kind are empty."""

    kind: TargetKind
    pid: int | None = None
    start_time: int | None = None
    boot_id: str = ""
    container_id: str = ""
    containerd_namespace: str = ""
    cgroup: str = ""
    address: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    `sightings` counts the independent failed attempts this one observation holds, so that
    a probe which already repeated itself is not asked to repeat once more.
    `timed` says that the evidence is a duration measured by this process: worthless if the
    process itself stood still meanwhile.
    """

    condition: str
    reason: str
    message: str
    recommended_action: Action
    target: Target
    pod: PodRef | None = None
    values: Mapping[str, Value] = field(default_factory=dict)
    sightings: int = 1
    timed: bool = False

    @property
    def key(self) -> tuple[str, str, Target]:
        """What makes this the same finding at the next look."""
        return (self.condition, self.reason, self.target)


class MetricKind(StrEnum):
    """Prometheus metric types in use."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """Declaration of a metric a detector feeds. `name` is without prefix."""

    name: str
    kind: MetricKind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """One value for a declared metric: a gauge's value, a counter's increment, or a histogram's observation."""

    name: str
    value: float
    labels: tuple[str, ...] = ()


class Meter(Protocol):
    """A part that counts for itself, beside the detectors; its metrics exist only while the part does."""

    metrics: ClassVar[tuple[Metric, ...]]

    def samples(self) -> Iterable[Sample]:
        """Return how they stand: of a counter all there was since the start. Called at each scrape, by any thread."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a detector decided from one observation.

    `healthy` gives the sentence for a condition that is False, `unknown` names the conditions
    this observation says nothing about, and why. `recheck_seconds` asks for another look
    sooner than the period, because this one cannot decide: a rate needs its second sample, a
    grace is running out. `follow_seconds` asks for the same although all is decided, so that
    the end of a finding is noticed in time; `nodediag check` does not wait for it.
    `deployment` are the faults of the agent's own deployment that this look met.
    """

    findings: tuple[Finding, ...] = ()
    healthy: Mapping[str, str] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()
    recheck_seconds: float | None = None
    follow_seconds: float | None = None
    deployment: tuple[DeploymentFault, ...] = ()


@dataclass(frozen=True, slots=True)
class ActiveFinding:
    """A confirmed finding and since when it has been seen (seconds since the epoch)."""

    finding: Finding
    since: float


@dataclass(frozen=True, slots=True)
class Condition:
    """A Kubernetes-style condition; `last_transition_time` in seconds since the epoch."""

    type: str
    status: Status
    reason: str
    message: str
    last_transition_time: float
    findings: tuple[ActiveFinding, ...] = ()


@dataclass(frozen=True, slots=True)
class DetectorStatus:
    """How the last look of a detector went; `last_run_time` in seconds since the epoch.

    `discarded` counts the looks thrown away because this process stood still during them.
    """

    name: str
    state: DetectorState
    message: str = ""
    duration_seconds: float | None = None
    last_run_time: float | None = None
    discarded: int = 0


@dataclass(frozen=True, slots=True)
class NodeReport:
    """Everything there is to tell about this node at one moment; `deployment` has the faults of the agent's own."""

    node_name: str
    observed_at: float
    conditions: tuple[Condition, ...]
    detectors: tuple[DetectorStatus, ...]
    deployment: tuple[DeploymentFault, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """To whoever follows the conditions: all of them as they stand."""

    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Changed:
    """A condition whose status, reason or findings have changed."""

    condition: Condition


@dataclass(frozen=True, slots=True)
class Removed:
    """A condition that is gone, because what its detector watches is no longer on this node."""

    type: str


@dataclass(frozen=True, slots=True)
class Gap:
    """So many changes were left out, because the reader was too slow; a snapshot follows."""

    missed: int


Event: TypeAlias = Snapshot | Changed | Removed | Gap
"""What is told to whoever follows the conditions."""


class Detector(Protocol):
    """One watch. `probe` reads the host and may block or raise; `check` decides and is pure."""

    name: ClassVar[str]
    conditions: ClassVar[Mapping[str, Mapping[str, str]]]
    metrics: ClassVar[tuple[Metric, ...]]

    def probe(self) -> Any:  # noqa: ANN401 - each detector has its own observation type
        """Read the host once.

        Raises NotApplicableError, CannotSeeError, or whatever the senses raise.
        """

    def check(self, seen: Any) -> CheckResult:  # noqa: ANN401
        """Decide. Same observation, same result."""
