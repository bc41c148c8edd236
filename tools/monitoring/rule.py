"""What a rule file is made of, and how it is written.

Written by hand rather than by a YAML library, because each rule carries its reason as a comment.
"""

import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

NOTICE = "# Made from the code by `make monitoring`; do not edit."
DOCS = "https://github.com/nodediag/nodediag/blob/main/docs/"
"""Where the documents are read; the one place this stands in."""
JOB = 'job="nodediag"'
"""How the targets of the agents are called, by the PodMonitor and by the plain scrape configuration alike."""
WIDTH = 110


class Severity(StrEnum):
    """CRITICAL: something fails now or within minutes, wake somebody. WARNING: look at it by daylight."""

    CRITICAL = "critical"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Alert:
    """An alerting rule. `held` is its `for`; `why` says why it is held so long, and why it asks what it asks.

    `kept` is its `keep_firing_for`: so long it goes on firing while nothing is told.

    `runbook` is the document to open, and the section of it, below docs/.

    Those of one name must differ in severity or `labels`, even if their series do anyway: promtool asks for it.
    """

    name: str
    expr: str
    held: str
    why: str
    severity: Severity
    summary: str
    description: str
    runbook: str
    labels: Mapping[str, str] = field(default_factory=dict)
    kept: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """A recording rule. `labels` are added to what it records."""

    name: str
    expr: str
    why: str
    labels: Mapping[str, str] = field(default_factory=dict)


Rule: TypeAlias = Alert | Record


@dataclass(frozen=True, slots=True)
class Group:
    """Rules evaluated one after the other, every `interval`."""

    name: str
    interval: str
    why: str
    rules: tuple[Rule, ...]


def write(groups: tuple[Group, ...]) -> Iterator[str]:
    """Yield the lines of a rule file."""
    yield "groups:"
    for group in groups:
        yield from _comment(group.why, "  ")
        yield f"  - name: {group.name}"
        yield f"    interval: {group.interval}"
        yield "    rules:"
        for rule in group.rules:
            yield from _comment(rule.why, "      ")
            yield from _alert(rule) if isinstance(rule, Alert) else _record(rule)


def _alert(rule: Alert) -> Iterator[str]:
    yield f"      - alert: {rule.name}"
    yield from _folded("expr", rule.expr, "        ")
    yield f"        for: {rule.held}"
    if rule.kept:
        yield f"        keep_firing_for: {rule.kept}"
    yield "        labels:"
    yield f"          severity: {rule.severity}"
    yield from (f"          {name}: {value}" for name, value in rule.labels.items())
    yield "        annotations:"
    yield from _folded("summary", rule.summary, "          ")
    yield from _folded("description", rule.description, "          ")
    yield from _folded("runbook_url", DOCS + rule.runbook, "          ")


def _record(rule: Record) -> Iterator[str]:
    yield f"      - record: {rule.name}"
    yield from _folded("expr", rule.expr, "        ")
    if rule.labels:
        yield "        labels:"
        yield from (f"          {name}: {json.dumps(value)}" for name, value in rule.labels.items())


def _folded(key: str, text: str, indent: str) -> Iterator[str]:
    """Yield a text as a folded block: YAML reads it as the one line it was, and it needs no quoting."""
    if text != " ".join(text.split()):
        raise ValueError(
            f"{key} would not survive folding, since it has other white space than single spaces: {text!r}"
        )
    yield f"{indent}{key}: >-"
    yield from _wrapped(text, f"{indent}  ")


def _comment(text: str, indent: str) -> Iterator[str]:
    yield from _wrapped(text, f"{indent}# ")


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
