"""Arguments several subcommands share, and how settings are loaded for them."""

import argparse
import sys
from pathlib import Path

from agent.settings import Loaded, Settings, SettingsError, load, socket_endpoint_problem


def add_config(parser: argparse._ActionsContainer) -> None:
    """Add `--config FILE`."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings file; without it every default holds")


def add_endpoint(parser: argparse.ArgumentParser) -> None:
    """Add `--endpoint unix:PATH`."""
    default = Settings().grpc.listen
    parser.add_argument(
        "--endpoint",
        type=_endpoint,
        default=default,
        metavar="unix:PATH",
        help=f"where the agent serves its API: its setting grpc.listen (default: {default})",
    )


def _endpoint(text: str) -> str:
    problem = socket_endpoint_problem(text)
    if problem:
        raise argparse.ArgumentTypeError(problem)
    return text


def load_or_explain(path: Path | None) -> Loaded | None:
    """Load the settings; if they cannot be used, say every mistake on standard error and return None."""
    try:
        return load(path)
    except SettingsError as error:
        print(f"nodediag: settings refused: {error}", file=sys.stderr)
        return None
