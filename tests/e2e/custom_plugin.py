"""Runs a rule of node-problem-detector's custom plugin as it does: its pkg/custompluginmonitor/plugin/plugin.go.

Its timeout, its buffer, its cut of the output and its reading of the exit code; not its conditions and Events.
"""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PLUGIN = Path(__file__).parents[2] / "deploy/node-problem-detector/nodediag-plugin.json"
BUFFER_BYTES = 4096
STATUSES = {0: "OK", 1: "NonOK"}


@dataclass(frozen=True)
class Result:
    """What it makes of one run: the status, the message it keeps, and all that was printed."""

    status: str
    message: str
    printed: str


def rules() -> dict[str, dict[str, Any]]:
    """Return the rules by the detector they ask."""
    every = json.loads(PLUGIN.read_text())["rules"]
    return {rule["args"][rule["args"].index("--detector") + 1]: rule for rule in every}


def run(rule: dict[str, Any], config: Path, max_output_length: int = 80) -> Result:
    """Run the rule's command with these settings, and the interpreter of the tests in the place of its path.

    Raises subprocess.TimeoutExpired where it would have killed the plugin and called the condition Unknown.
    """
    limit = re.fullmatch(r"(\d+)s", rule["timeout"])
    assert limit
    command = [sys.executable, "-m", "agent", *rule["args"], "--config", str(config)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=float(limit[1]))
    kept = done.stdout[:BUFFER_BYTES].strip()[:max_output_length]
    return Result(STATUSES.get(done.returncode, "Unknown"), kept.decode(), done.stdout.decode())
