"""Directories that bear the lab's mark, so that only the lab's own are removed.

The lab must make some directories at places which it shares with the machine
(cgroups, ``/run/containerd``).  The mark is an extended attribute on the
directory itself: it outlives the process that made it, and with several labs
at work the last one out removes what the first one made.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_MARK = "trusted.nodediag-lab"


def make_directory(directory: Path, mode: int = 0o755) -> None:
    """Make the directory and its missing parents; mark those which were missing.

    Another lab that ends may take an empty parent away meanwhile: then again.
    """
    while not directory.is_dir():
        with suppress(FileNotFoundError):
            for each in [*reversed(directory.parents), directory]:
                with suppress(FileExistsError):
                    each.mkdir(mode=mode)
                    os.setxattr(each, _MARK, b"1")


def mark_when_made(directory: Path) -> None:
    """Note on its parent that the directory is missing, so that it counts as the lab's whoever makes it from now on."""
    if not directory.exists():
        os.setxattr(directory.parent, _note(directory), b"1")


def is_marked(directory: Path) -> bool:
    """Tell whether a lab made this directory, or had it made."""
    return _has(directory, _MARK) or _has(directory.parent, _note(directory))


def remove_if_empty(directory: Path) -> None:
    """Remove the directory and then its parents, as long as they are marked and empty."""
    for each in [directory, *directory.parents]:
        if each.exists():
            if not is_marked(each):
                return
            try:
                each.rmdir()
            except OSError:
                return
        with suppress(OSError):
            os.removexattr(each.parent, _note(each))


def _note(directory: Path) -> str:
    return f"{_MARK}.{directory.name}"


def _has(directory: Path, attribute: str) -> bool:
    try:
        return os.getxattr(directory, attribute) == b"1"
    except OSError:
        return False
