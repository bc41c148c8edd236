"""Writes the references that are made from the code: conditions, metrics, settings.

`python -m tools.generate_docs FOLDER`; `make lint` compares what is checked in.
"""

import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path

from agent.app import DETECTOR_CLASSES
from agent.cli.config import as_yaml
from agent.exporters.metrics import OWN, PREFIX
from agent.settings import Settings, describe

NOTICE = "<!-- Made from the code by `make docs`; do not edit. -->"


def main() -> None:
    """Write every document into the folder named on the command line."""
    folder = Path(sys.argv[1])
    documents = {"conditions.md": conditions, "metrics.md": metrics, "settings.md": settings}
    for name, lines in documents.items():
        (folder / name).write_text("\n".join([NOTICE, *lines(), ""]))


def conditions() -> Iterator[str]:
    """One section per condition, one row per reason."""
    yield "# Conditions"
    yield ""
    yield "True means that something is wrong. False carries the reason `AsExpected`. Unknown carries `Starting`,"
    yield "`NotObserved`, `CannotSee`, `ProbeFailed`, `ProbeOverdue`, `Unconfirmed` or `Stalled`; its message says why."
    for detector in DETECTOR_CLASSES:
        for condition, reasons in detector.conditions.items():
            yield from ("", f"## {condition}", "", f"Detector `{detector.name}`.", "")
            yield from ("| reason | meaning |", "|---|---|")
            yield from (f"| `{reason}` | {meaning} |" for reason, meaning in reasons.items())


def metrics() -> Iterator[str]:
    """One row per metric, the agent's own first."""
    yield from ("# Metrics", "", "| metric | type | labels | meaning |", "|---|---|---|---|")
    for metric in (*OWN, *(metric for detector in DETECTOR_CLASSES for metric in detector.metrics)):
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
