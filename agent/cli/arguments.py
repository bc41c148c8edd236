"""Arguments several subcommands share, and how settings are loaded for them."""

import argparse
import sys
from pathlib import Path

from agent.settings import Loaded, SettingsError, load


def add_config(parser: argparse._ActionsContainer) -> None:
    """Add `--config FILE`."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings file; without it every default holds")


def load_or_explain(path: Path | None) -> Loaded | None:
    """Load the settings; if they cannot be used, say every mistake on standard error and return None."""
    try:
        return load(path)
    except SettingsError as error:
        print(f"nodediag: settings refused: {error}", file=sys.stderr)
        return None
