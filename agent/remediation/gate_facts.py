"""What the gate goes by, as it stands when a request comes."""

from collections.abc import Mapping
from dataclasses import dataclass

from agent.acts import Caller, Limits, Request
from agent.model import Action, TargetKind
from agent.remediation.past import Act


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """The target's process as it is now.

    `comm` and `state` as in /proc/N/stat; `in_container`: its cgroup is that of a container; `nested`: it lives in a
    pid namespace below the node's.
    """

    pid: int
    start_time: int
    comm: str
    state: str
    in_container: bool
    nested: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """All the gate looks at besides the request.

    `targets` are the kinds the action takes, `known` is the request already recorded under this request_id,
    `paused` and `trouble` are why, or empty; `process` is None if the target names none or it is gone.
    """

    enabled: bool
    limits: Mapping[Action, Limits]
    max_per_hour: int
    caller: Caller
    targets: tuple[TargetKind, ...]
    highest_token: int
    known: Request | None
    history: tuple[Act, ...]
    paused: str
    trouble: str
    boot_id: str
    boot_seconds: float
    own_pid: int
    process: ProcessFacts | None
