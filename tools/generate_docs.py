"""Writes the references that are made from the code: conditions, metrics, settings.

`python -m tools.generate_docs FOLDER`; `make lint` compares what is checked in.
"""

import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path

from agent.app import DETECTOR_CLASSES
from agent.cli.config import as_yaml
from agent.clock import StallMeter
from agent.exporters.metrics import Metrics
from agent.model import Metric
from agent.pipeline.board import Board
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
    yield "True means that something is wrong. False carries the reason `AsExpected`; Unknown carries `Starting`,"
    yield "`NotObserved`, `CannotSee`, `ProbeFailed` or `ProbeOverdue` and says why nothing can be said."
    for detector in DETECTOR_CLASSES:
        for condition, reasons in detector.conditions.items():
            yield from ("", f"## {condition}", "", f"Detector `{detector.name}`.", "")
            yield from ("| reason | meaning |", "|---|---|")
            yield from (f"| `{reason}` | {meaning} |" for reason, meaning in reasons.items())


def metrics() -> Iterator[str]:
    """One row per metric family, as a Prometheus sees it."""
    yield from ("# Metrics", "", "| metric | type | labels | meaning |", "|---|---|---|---|")
    declared = {f"nodediag_{metric.name}": metric for kind in DETECTOR_CLASSES for metric in kind.metrics}
    clock = StallMeter()
    exporter = Metrics(Board("", clock), clock, DETECTOR_CLASSES, version="")
    for family in exporter.collect():
        labels = _labels(declared, family.name)
        suffix = "_total" if family.type == "counter" else ""
        yield f"| `{family.name}{suffix}` | {family.type} | {labels} | {family.documentation} |"
    yield from ("", "The standard `process_*` metrics tell the agent's own footprint.")


def settings() -> Iterator[str]:
    """Every setting with its default; the text is a settings file itself."""
    count = sum(1 for _, value, _ in describe(Settings()) if not is_dataclass(value))
    yield from ("# Settings", "", f"One YAML file, every key optional; these are the {count} defaults.", "")
    yield from ("```yaml", as_yaml(Settings()), "```")


def _labels(declared: dict[str, Metric], family: str) -> str:
    metric = declared.get(family) or declared.get(f"{family}_total")
    return ", ".join(f"`{label}`" for label in metric.labels) if metric else ""


if __name__ == "__main__":
    main()
