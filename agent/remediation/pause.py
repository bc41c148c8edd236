"""The node-wide pause switch: a file named `paused` in the state folder. Anybody who may write there may pause."""

import os
import stat
from datetime import UTC, datetime
from pathlib import Path

FILE = "paused"
MAX_TEXT = 200
"""Characters of the file's first line that are told."""
_MAX_READ = 4096


def paused(folder: Path) -> str:
    """Return why nothing may be done on this node, and since when; empty if there is no such file.

    Whatever is there but cannot be read is a pause too: somebody may have meant it. A missing state folder is none.
    Never raises OSError.
    """
    path = folder / FILE
    try:
        seen = path.lstat()
        if not stat.S_ISREG(seen.st_mode):
            return f"{path} is there, though not as a regular file; that counts as a pause"
        line = _first_line(path)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"{path} cannot be looked at ({error.strerror}); that counts as a pause"
    return f"{line or 'no reason given'} ({path}, since {_moment(seen.st_mtime)})"


def _first_line(path: Path) -> str:
    # Neither a symbolic link nor a pipe put there since then may lead astray or block.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        text = os.read(descriptor, _MAX_READ).decode(errors="backslashreplace")
    finally:
        os.close(descriptor)
    line = text.strip().split("\n", 1)[0].strip()[: MAX_TEXT + 1]
    shown = "".join(char if char.isprintable() else "?" for char in line)
    return shown if len(shown) <= MAX_TEXT else shown[: MAX_TEXT - 3] + "..."


def _moment(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return "a moment that is no date"
