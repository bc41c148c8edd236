"""Gathers what the gate looks at: the settings, the ledger, the pause switch, and the target's process as it is now."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.acts import Caller, Limits, Request
from agent.host import cgroups
from agent.host.procfs import Procfs
from agent.model import Action, Target
from agent.remediation.gate_facts import ProcessFacts, Standing
from agent.remediation.ledger import Ledger
from agent.remediation.ledger_file import FILE as LEDGER
from agent.remediation.past import Act
from agent.remediation.pause import paused
from agent.remediation.remedy import Remedy


@dataclass(frozen=True, slots=True)
class Rules:
    """What the settings say of remediation."""

    enabled: bool
    dry_run: bool
    max_per_hour: int
    limits: Mapping[Action, Limits]


def boot_moment(procfs: Procfs) -> tuple[str, float]:
    """Return this boot's id and the seconds since it began (CLOCK_BOOTTIME); the id is empty if it cannot be read."""
    return procfs.boot_id(), time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Standings:
    """Where the gate's facts come from; `boot` returns the boot's id and the seconds since it began."""

    rules: Rules
    ledger: Ledger
    state_dir: Path
    procfs: Procfs
    containerd_namespaces: tuple[str, ...]
    own_pid: int
    boot: Callable[[], tuple[str, float]]

    def of(self, request: Request, caller: Caller, remedy: Remedy | None, known: Request | None) -> Standing:
        """Return how things stand for one request. Raises LedgerError."""
        boot_id, boot_seconds = self.boot()
        return Standing(
            enabled=self.rules.enabled,
            limits=self.rules.limits,
            max_per_hour=self.rules.max_per_hour,
            caller=caller,
            targets=remedy.targets if remedy else (),
            highest_token=self.highest_token(),
            known=known,
            history=self.history(),
            paused=self.paused(),
            trouble=self.trouble(),
            boot_id=boot_id,
            boot_seconds=boot_seconds,
            own_pid=self.own_pid,
            process=self._process(request.target),
        )

    def has_ledger(self) -> bool:
        """Whether there is a ledger to read: where nothing may be mended, none is made."""
        return self.rules.enabled or (self.state_dir / LEDGER).exists()

    def paused(self) -> str:
        """Why the node is paused; empty if it is not."""
        return paused(self.state_dir) if self.rules.enabled else ""

    def trouble(self) -> str:
        """Why nothing could be written down, and so nothing may be done; empty if all is well."""
        return self.ledger.trouble() if self.rules.enabled else ""

    def highest_token(self) -> int:
        """Return the highest fencing token seen. Raises LedgerError."""
        return self.ledger.highest_token() if self.rules.enabled else 0

    def history(self) -> tuple[Act, ...]:
        """Return the acts that still count. Raises LedgerError."""
        return self.ledger.history() if self.rules.enabled else ()

    def _process(self, target: Target) -> ProcessFacts | None:
        now = self.procfs.process(target.pid) if target.pid is not None else None
        if now is None or now.state == "Z":
            return None
        owner = cgroups.owner(self.procfs.cgroups(now.pid), self.containerd_namespaces)
        nested = self.procfs.nested(now.pid)
        return ProcessFacts(now.pid, now.start_time, now.comm, now.state, owner is not None, nested)
