"""Runs Debian's promtool, and what a test of an alert is made of."""

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[3] / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yaml"
STEP = 30
"""Seconds between two scrapes, and between two evaluations."""
BEGIN = 20
"""How many scrapes all is well before a fault: ten minutes, as long as the longest window of most rules."""


def promtool(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run promtool; the caller looks at what came of it."""
    command = shutil.which("promtool")
    assert command, "Debian's prometheus is not installed"
    return subprocess.run([command, *arguments], input=stdin, text=True, capture_output=True, timeout=60, check=False)


@dataclass(frozen=True)
class Case:
    """Series as they were scraped, at which second the alert fires on exactly one node, and when it does not.

    `reads_alerts`: its rule asks what other alerts say, so it is tried out with all of them.
    """

    name: str
    alert: str
    series: Mapping[str, str]
    fires_at: int
    quiet_at: Sequence[int]
    labels: Mapping[str, str]
    summary: str
    description: str
    runbook: str
    reason: str = ""
    reads_alerts: bool = False

    def test_group(self) -> dict[str, object]:
        """Return it in promtool's form."""
        base = "https://github.com/nodediag/nodediag/blob/main/docs/"
        annotations = {"summary": self.summary, "description": self.description, "runbook_url": base + self.runbook}
        fires = {"eval_time": f"{self.fires_at}s", "alertname": self.alert}
        return {
            "interval": f"{STEP}s",
            "input_series": [{"series": series, "values": values} for series, values in self.series.items()],
            "alert_rule_test": [
                *({"eval_time": f"{at}s", "alertname": self.alert, "exp_alerts": []} for at in self.quiet_at),
                {**fires, "exp_alerts": [{"exp_labels": dict(self.labels), "exp_annotations": annotations}]},
            ],
        }


@dataclass(frozen=True)
class Course:
    """How a value goes on a node that is well, on one with a fault, and on one with a fault shorter than `held`."""

    well: str
    fault: str
    held: int
    extra: Mapping[str, str] = field(default_factory=dict)

    @property
    def fires_at(self) -> int:
        """The second at which the fault has been there for `held`."""
        return BEGIN * STEP + self.held

    @property
    def over_at(self) -> int:
        """The second of the first scrape after the fault."""
        return self.fires_at + 2 * STEP

    def series(self, selector: str) -> dict[str, str]:
        """Return the series of the three nodes; `selector` as `name{label="value"}`."""
        length = self.over_at // STEP + 40
        sick, blip = self.over_at // STEP - BEGIN, max(self.held // STEP, 1)
        return {
            on(selector, "well"): " ".join([self.well] * length),
            on(selector, "sick"): self._faulty(sick, length),
            on(selector, "blip"): self._faulty(blip, length),
            **{on(name, "sick"): " ".join([value] * length) for name, value in self.extra.items()},
        }

    def _faulty(self, faults: int, length: int) -> str:
        return " ".join([self.well] * BEGIN + [self.fault] * faults + [self.well] * (length - BEGIN - faults))


def on(selector: str, node: str) -> str:
    """Return a series as it is stored once it was scraped from a node."""
    name, _, labels = selector.rstrip("}").partition("{")
    return f'{name}{{{labels}{"," if labels else ""}job="nodediag",instance="{node}:9797",node="{node}"}}'


def scraped_from(node: str) -> dict[str, str]:
    """Return the labels every series scraped from a node has."""
    return {"job": "nodediag", "instance": f"{node}:9797", "node": node}


def values(*runs: tuple[str, int]) -> str:
    """Return each value so many times."""
    return " ".join(" ".join([value] * times) for value, times in runs)


def rising(start: int, by: int, times: int) -> str:
    """Return the values of a counter that rises evenly."""
    return " ".join(str(start + n * by) for n in range(times))


def labelled(name: str, node: str, **labels: str) -> str:
    """Return a series as it is stored once it was scraped from a node, by its labels."""
    pairs = ",".join(f'{key}="{value}"' for key, value in {**scraped_from(node), **labels}.items())
    return f"{name}{{{pairs}}}"


@cache
def load(rules: Path) -> dict[str, Any]:
    """Return what a rule file holds; read once, since that takes a tenth of a second."""
    loaded: dict[str, Any] = yaml.safe_load(rules.read_text())
    return loaded


def try_case(case: Case, folder: Path, rules: Path) -> subprocess.CompletedProcess[str]:
    """Let promtool try a case on a rule file, or on what of it concerns the case: all of it takes seconds."""
    cut = folder / "rules.json"  # which is YAML, too
    cut.write_text(json.dumps(_concerning(case, load(rules))))
    file = folder / "case.json"
    whole = {
        "rule_files": [str(cut)],
        "evaluation_interval": f"{STEP}s",
        "group_eval_order": [group["name"] for group in load(rules)["groups"]],
        "tests": [case.test_group()],
    }
    file.write_text(json.dumps(whole))
    return promtool("test", "rules", str(file))


def _concerning(case: Case, loaded: dict[str, Any]) -> dict[str, Any]:
    if case.reads_alerts:
        return loaded
    groups = [
        {**group, "rules": [rule for rule in group["rules"] if _concerns(case, rule)]} for group in loaded["groups"]
    ]
    return {"groups": groups}


def _concerns(case: Case, rule: dict[str, Any]) -> bool:
    return rule.get("alert") == case.alert or rule.get("record", "").startswith("type")
