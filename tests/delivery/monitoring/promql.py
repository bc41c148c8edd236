"""As much of PromQL as is needed to say which metrics an expression reads, and by which labels it selects them."""

import re
from pathlib import Path

from tests.delivery.monitoring.promtool import promtool

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)\s*\{([^}]*)\}")
_LABELS = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
_WORD = re.compile(r"(?<![\w:.\d])([a-zA-Z_:][\w:]*)(?![\w:]|\s*\()")
_KEYWORDS = {"and", "or", "unless", "bool", "offset", "by", "without", "on", "ignoring", "group_left", "group_right"}


def metrics(expr: str) -> set[str]:
    """Return the metrics an expression reads."""
    bare = _LABELS.sub(" ", re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", _STRING.sub("", expr)))
    return set(_WORD.findall(re.sub(r"\b\d+[smhd]\b", " ", bare))) - _KEYWORDS


def selections(expr: str) -> set[tuple[str, str]]:
    """Return every (metric, label) by which an expression selects."""
    return {
        (metric, label)
        for metric, matchers in _SELECTOR.findall(_STRING.sub('""', expr))
        for label in re.findall(r"(\w+)\s*[=!]", matchers)
    }


def complaint(exprs: list[str], folder: Path) -> str:
    """Let promtool read these expressions, all at once; return what it says, empty if it takes them all."""
    lines = ["groups:", "  - name: read", "    rules:"]
    for number, expr in enumerate(exprs):
        lines += [
            f"      - record: expr_{number}",
            "        expr: |-",
            *(f"          {line}" for line in expr.splitlines()),
        ]
    file = folder / "exprs.yaml"
    file.write_text("\n".join(lines))
    done = promtool("check", "rules", str(file))
    return "" if done.returncode == 0 else done.stdout + done.stderr
