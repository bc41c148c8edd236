"""The folder of the shims' sockets, which only shims make: it keeps the mode they give it (0600, up to containerd 2.2).

All labs of the machine share it, since containerd 1.6 and 1.7 fix its place.  Its parent is containerd's default state
directory.  The labs' containerds have state directories of their own, so nobody else makes that one here; the lab makes
it with the mode containerd gives it, because a shim would give it the mode of its own folder.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from . import marked

SHIM_SOCKETS = Path("/run/containerd/s")

_STATE_DIR_MODE = 0o711
_HOLDER = ".nodediag-lab-"


def hold(name: str) -> None:
    """Have the folder taken away at the end, if it is not there yet, and not before this lab has left it."""
    with _locked():
        marked.mark_when_made(SHIM_SOCKETS)
        _holder(name).touch()


def leave(name: str) -> None:
    """Take the folder away if a lab had it made and this is the last one out."""
    if not _holder(name).exists():
        return
    with _locked():
        _holder(name).unlink()
        # A shim that is just starting has made the folder and not yet its socket: not while any lab is there.
        if not list(SHIM_SOCKETS.parent.glob(f"{_HOLDER}*")):
            marked.remove_if_empty(SHIM_SOCKETS)


def _holder(name: str) -> Path:
    return SHIM_SOCKETS.parent / f"{_HOLDER}{name}"


def _is_here(folder: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(folder), SHIM_SOCKETS.parent.stat())
    return False


@contextmanager
def _locked() -> Iterator[None]:
    """Make the parent if it is missing, and keep other labs from entering or leaving for the body."""
    while True:
        marked.make_directory(SHIM_SOCKETS.parent, mode=_STATE_DIR_MODE)
        try:
            folder = os.open(SHIM_SOCKETS.parent, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # the last lab has just taken it away
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            if _is_here(folder):
                yield
                return
        finally:
            os.close(folder)
