"""What ListActions tells: every action as it stands now for one caller."""

from collections.abc import Iterable
from dataclasses import dataclass

from agent.acts import ActionStatus, Caller, RemediationStatus
from agent.model import Action
from agent.remediation.ledger import LedgerError
from agent.remediation.past import Act, cooldown_left, left_this_hour
from agent.remediation.remedy import Remedy
from agent.remediation.standing import Rules, Standings


@dataclass(frozen=True, slots=True)
class _Past:
    """What was done, and what time it is."""

    history: tuple[Act, ...]
    boot_id: str
    boot_seconds: float

    def left(self, max_per_hour: int, action: Action | None = None) -> int:
        return left_this_hour(max_per_hour, self.history, self.boot_id, self.boot_seconds, action)

    def rests(self, action: Action, cooldown_seconds: float) -> float:
        return cooldown_left(action, cooldown_seconds, self.history, self.boot_id, self.boot_seconds)


def status(remedies: Iterable[Remedy], standings: Standings, caller: Caller) -> RemediationStatus:
    """Return how everything stands. A ledger that cannot be read is told as the trouble it is."""
    rules, trouble, token = standings.rules, standings.trouble(), 0
    history: tuple[Act, ...] = ()
    if not trouble:
        try:
            token, history = standings.highest_token(), standings.history()
        except LedgerError as error:
            trouble = str(error)
    past = _Past(history, *standings.boot())
    return RemediationStatus(
        enabled=rules.enabled,
        dry_run=rules.dry_run,
        paused=standings.paused(),
        trouble=trouble,
        highest_token=token,
        max_per_hour=rules.max_per_hour,
        left_this_hour=past.left(rules.max_per_hour),
        actions=tuple(_action(remedy, rules, past, caller) for remedy in remedies),
    )


def _action(remedy: Remedy, rules: Rules, past: _Past, caller: Caller) -> ActionStatus:
    limits = rules.limits[remedy.action]
    return ActionStatus(
        action=remedy.action,
        does=remedy.does,
        requires=remedy.requires,
        risk=remedy.risk,
        targets=remedy.targets,
        mends=remedy.mends,
        enabled=rules.enabled and limits.enabled,
        allowed=remedy.action in caller.actions,
        cooldown_seconds=limits.cooldown_seconds,
        cooldown_left_seconds=past.rests(remedy.action, limits.cooldown_seconds),
        max_per_hour=limits.max_per_hour,
        left_this_hour=min(past.left(limits.max_per_hour, remedy.action), past.left(rules.max_per_hour)),
    )
