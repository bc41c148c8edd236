"""Writing to standard output, where anything may be connected."""

import contextlib
import sys
from collections.abc import Callable
from typing import TextIO


def emit(write: Callable[[TextIO], object]) -> bool:
    """Let `write` write to standard output; False, with the reason on standard error, if it cannot be written.

    A reader that went away early, such as `head`, has what it wanted.
    """
    if sys.stdout is None:
        print("nodediag: standard output is closed", file=sys.stderr)
        return False
    try:
        with contextlib.suppress(BrokenPipeError):
            write(sys.stdout)
            sys.stdout.flush()
    except OSError as error:
        print(f"nodediag: cannot write to standard output: {error.strerror}", file=sys.stderr)
        return False
    return True
