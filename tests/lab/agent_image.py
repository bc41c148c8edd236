"""The agent's image, built once for all lanes, and again when what it is made of has changed."""

from __future__ import annotations

import fcntl
import subprocess
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
ARCHIVE = _ROOT / "build" / "nodediag.tar"
_MADE_OF = ("agent", "Dockerfile", "pyproject.toml", "requirements.lock", "tools/image")


def build_image() -> None:
    """Build it unless it is there and newer than its sources; several lanes may call this at the same time."""
    ARCHIVE.parent.mkdir(exist_ok=True)
    with ARCHIVE.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_current():
            subprocess.run(["make", "--no-print-directory", "image"], cwd=_ROOT, check=True)


def _is_current() -> bool:
    return ARCHIVE.exists() and ARCHIVE.stat().st_mtime > max(map(_changed, _MADE_OF))


def _changed(name: str) -> float:
    """When a file, or the latest of a folder, was changed."""
    path = _ROOT / name
    files = [path] if path.is_file() else [each for each in path.rglob("*") if "__pycache__" not in each.parts]
    return max(each.stat().st_mtime for each in files)
