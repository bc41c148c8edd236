"""Writes the references that are made from the code: actions, conditions, metrics, settings.

`python -m tools.generate_docs FOLDER`; `make lint` compares what is checked in.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import is_dataclass
from pathlib import Path

from agent.act_flow import REMEDY_CLASSES
from agent.acts import REFUSAL_CODES, REFUSALS, RefusalReason
from agent.app import DETECTOR_CLASSES, METER_CLASSES
from agent.cli.config import as_yaml
from agent.exporters.metrics import OWN, PREFIX
from agent.exporters.node_conditions.exporter import NodeConditions
from agent.model import Action
from agent.remediation.remedy import Remedy
from agent.settings import Settings, describe

NOTICE = "<!-- Made from the code by `make docs`; do not edit. -->"


def main() -> None:
    """Write every document into the folder named on the command line."""
    folder = Path(sys.argv[1])
    documents = {"actions.md": actions, "conditions.md": conditions, "metrics.md": metrics, "settings.md": settings}
    for name, lines in documents.items():
        (folder / name).write_text("\n".join([NOTICE, *lines(), ""]))


def actions(remedies: Iterable[type[Remedy]] = REMEDY_CLASSES) -> Iterator[str]:
    """One row per action, in the order of the model, and one per reason of a refusal."""
    yield from ("# Actions", "")
    yield "What can be done to the target of a finding. Each takes the same way: the gate, a fresh look at that very"
    yield "target, evidence, the act, and a look whether it helped. `nodediag actions` tells how they stand on a node."
    yield from ("", "| action | does | targets | findings that permit it | requires | verified by | risk |")
    yield "|---|---|---|---|---|---|---|"
    order = list(Action)
    for remedy in sorted(remedies, key=lambda each: order.index(each.action)):
        targets = ", ".join(f"`{kind}`" for kind in remedy.targets)
        found = "<br>".join(
            f"{kind}: {', '.join(f'`{reason}`' for reason in reasons)}" for kind, reasons in remedy.mends.items()
        )
        texts = (remedy.does, targets, found, remedy.requires, remedy.verifies, remedy.risk)
        yield f"| `{remedy.action}` | {' | '.join(map(_cell, texts))} |"
    yield from ("", "## Refusals", "")
    yield "Nothing was done. The error's `google.rpc.ErrorInfo` has the reason; where waiting helps, a `RetryInfo` says"
    yield "how long, and the very same request may then be sent again."
    yield from ("", "| reason | gRPC code | meaning |", "|---|---|---|")
    for reason in RefusalReason:
        yield f"| `{reason}` | {REFUSAL_CODES[reason]} | {_cell(REFUSALS[reason])} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def conditions() -> Iterator[str]:
    """One section per condition, one row per reason."""
    yield "# Conditions"
    yield ""
    yield "True means that something is wrong. False carries the reason `AsExpected`. Unknown carries `Starting`,"
    yield "`NotObserved`, `CannotSee`, `ProbeFailed`, `ProbeOverdue`, `Unconfirmed` or `Stalled`, or, because of the"
    yield "agent's own deployment, `AgentLacksPermission`, `AgentLacksNamespace` or `AgentLacksMount`; its message"
    yield "says why."
    for detector in DETECTOR_CLASSES:
        for condition, reasons in detector.conditions.items():
            yield from ("", f"## {condition}", "", f"Detector `{detector.name}`.", "")
            yield from ("| reason | meaning |", "|---|---|")
            yield from (f"| `{reason}` | {meaning} |" for reason, meaning in reasons.items())


def metrics() -> Iterator[str]:
    """One row per metric, the agent's own first."""
    yield from ("# Metrics", "", "| metric | type | labels | meaning |", "|---|---|---|---|")
    watched = [metric for detector in DETECTOR_CLASSES for metric in detector.metrics]
    counted = [metric for meter in METER_CLASSES for metric in meter.metrics]
    for metric in (*OWN, *watched, *counted, *NodeConditions.metrics):
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        yield f"| `{PREFIX}{metric.name}` | {metric.kind} | {labels} | {metric.help} |"
    yield from ("", "The standard `process_*` metrics tell the agent's own footprint.")


def settings() -> Iterator[str]:
    """Every setting with its default; the text is a settings file itself."""
    count = sum(1 for _, value, _ in describe(Settings()) if not is_dataclass(value))
    yield from ("# Settings", "", f"One YAML file, every key optional; these are the {count} defaults.", "")
    yield from ("```yaml", as_yaml(Settings()), "```")


if __name__ == "__main__":
    main()
