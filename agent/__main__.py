"""Entry point: parse, run, exit."""

import contextlib
import os
import signal
import sys
import traceback

INTERNAL_ERROR = 2
"""Python's own 1 would read as "something is wrong on this node"."""


def main() -> None:
    """Run the command line. A probe stuck in the kernel must not keep us from leaving, so nothing is joined."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends us at once, without a traceback
    try:
        code = _run()
    except SystemExit as wish:  # argparse: help, version, wrong usage
        code = int(wish.code or 0)
    except Exception:  # noqa: BLE001 - the last place that can say so
        traceback.print_exc()
        code = INTERNAL_ERROR
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, AttributeError):  # nobody reads, or it was closed from the start
            stream.flush()
    os._exit(code)


def _run() -> int:
    from agent.cli.parser import parse  # noqa: PLC0415 - it takes a moment, and Ctrl-C may come by then

    function, arguments = parse(None)
    return function(arguments)


if __name__ == "__main__":
    main()
