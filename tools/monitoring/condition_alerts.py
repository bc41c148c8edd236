"""One alert for every reason of every condition the detectors declare; those of a condition share its name."""

from collections.abc import Iterable, Mapping

from agent.exporters.metrics import PREFIX
from agent.model import Detector
from tools.monitoring.condition_texts import TEXTS, ConditionText
from tools.monitoring.rule import Alert, Group

TEXTS_FILE = "tools/monitoring/condition_texts.py"
EPISODE = "5m"
"""How far apart two sightings of an episodic reason may be; ten scrapes."""
KEPT = "3m"
"""An agent that is started again tells nothing for a minute or two: no fault is over by that, nobody is woken twice."""


def condition_group(detectors: Iterable[type[Detector]], texts: Mapping[str, ConditionText] = TEXTS) -> Group:
    """Return the alerts of these detectors' conditions.

    Raises LookupError naming what lacks a text, or has one without being declared.
    """
    declared = {kind: reasons for detector in detectors for kind, reasons in detector.conditions.items()}
    _compare({(kind, reason) for kind, reasons in declared.items() for reason in reasons}, texts)
    return Group(
        "nodediag.conditions",
        "30s",
        "As often as the agents are scraped: before that there is nothing new. Each rule looks at one series per node.",
        tuple(
            _alert(kind, reason, meaning, texts[kind])
            for kind, reasons in declared.items()
            for reason, meaning in reasons.items()
        ),
    )


def alert_name(condition: str) -> str:
    """Return how the alerts of a condition are called."""
    return f"Nodediag{condition}"


def runbook(condition: str, reason: str = "") -> str:
    """Return where a condition's runbook is, below docs/: at a reason's own heading, if one is given."""
    return f"runbooks/{condition}.md#{reason.lower()}" if reason else f"runbooks/{condition}.md"


def _alert(kind: str, reason: str, meaning: str, text: ConditionText) -> Alert:
    urgency = text.reasons[reason]
    selector = f'{PREFIX}findings{{type="{kind}",reason="{reason}"}}'
    return Alert(
        name=alert_name(kind),
        expr=f"max_over_time({selector}[{EPISODE}]) > 0" if urgency.episodic else f"{selector} > 0",
        held=urgency.held,
        why=urgency.why,
        severity=urgency.severity,
        summary=f"{{{{ $labels.node }}}}: {text.says} ({reason})",
        description=" ".join(filter(None, (meaning, urgency.harm, "Findings: {{ $value }}."))) + urgency.whose,
        runbook=runbook(kind, reason),
        labels={"reason": reason},
        kept=KEPT,
    )


def _compare(declared: set[tuple[str, str]], texts: Mapping[str, ConditionText]) -> None:
    known = {(kind, reason) for kind, text in texts.items() for reason in text.reasons}
    missing = ", ".join("/".join(pair) for pair in sorted(declared - known))
    if missing:
        raise LookupError(f"no alert is worded for {missing}: add each to {TEXTS_FILE}")
    idle = ", ".join("/".join(pair) for pair in sorted(known - declared))
    if idle:
        raise LookupError(f"no detector declares {idle}: remove each from {TEXTS_FILE}")
