"""`nodediag config`: the effective settings with every default and its meaning; `--check FILE` validates."""

import argparse
import textwrap
from dataclasses import is_dataclass
from pathlib import Path

from agent.cli.arguments import add_config, load_or_explain
from agent.cli.exits import EXIT_OK, EXIT_UNKNOWN
from agent.cli.output import emit
from agent.schema import Rule
from agent.settings import Settings, describe, inline

NAME = "config"
HELP = "print the effective settings with every default and its meaning, or check a settings file"
WIDTH = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this subcommand's options."""
    one = parser.add_mutually_exclusive_group()
    add_config(one)
    one.add_argument("--check", type=Path, metavar="FILE", help="only say whether FILE can be used")


def main(arguments: argparse.Namespace) -> int:
    """Print or validate; 2 if the file cannot be used."""
    loaded = load_or_explain(arguments.check or arguments.config)
    if loaded is None:
        return EXIT_UNKNOWN
    text = f"{arguments.check}: good" if arguments.check else as_yaml(loaded.settings, loaded.explicit)
    return EXIT_OK if emit(lambda stream: stream.write(f"{text}\n")) else EXIT_UNKNOWN


def as_yaml(settings: Settings, explicit: frozenset[str] = frozenset()) -> str:
    """Return the settings as YAML, each with its meaning as a comment; loaded again, it says the same.

    So a setting whose presence has a meaning, and that was not set explicitly, is left as a comment.
    """
    lines: list[str] = []
    for path, value, rule in describe(settings):
        indent = "  " * path.count(".")
        lines += [f"{indent}# {text}" for text in textwrap.wrap(_comment(rule), WIDTH - len(indent) - 2)]
        mark = "# " if rule.presence and path not in explicit else ""
        shown = "" if is_dataclass(value) else f" {inline(value)}"
        lines.append(f"{indent}{mark}{path.rpartition('.')[2]}:{shown}")
    return "\n".join(lines)


def _comment(rule: Rule) -> str:
    bounds = [
        f"at least {rule.minimum:g}" if rule.minimum is not None else "",
        f"at most {rule.maximum:g}" if rule.maximum is not None else "",
    ]
    limits = ", ".join(text for text in bounds if text)
    return f"{rule.meaning} ({limits})" if limits else rule.meaning
