"""docs/alerts.md: every alert with what it is held for and why, in the order of the rule file."""

from collections.abc import Iterable, Iterator

from tools.monitoring.rule import Alert, Group

NOTICE = "<!-- Made from the code by `make monitoring`; do not edit. -->"


def alert_table(groups: Iterable[Group]) -> str:
    """Return the document."""
    return "\n".join([NOTICE, *_lines([rule for each in groups for rule in each.rules if isinstance(rule, Alert)]), ""])


def _lines(alerts: list[Alert]) -> Iterator[str]:
    yield from ("# Alerts", "")
    yield "What stands in `deploy/prometheus/rules.yaml`. How they are meant to be used: [prometheus](prometheus.md)."
    yield from ("", "| alert | reason | severity | held for | why so long | asks |", "|---|---|---|---|---|---|")
    for alert in alerts:
        name = alert.name if "{" in alert.runbook else f"[{alert.name}]({alert.runbook})"
        reason = f"`{alert.labels['reason']}`" if "reason" in alert.labels else ""
        expr = alert.expr.replace("|", "\\|")
        yield f"| {name} | {reason} | {alert.severity} | {alert.held} | {alert.why} | `{expr}` |"
