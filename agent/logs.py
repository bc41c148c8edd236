"""Structured logs: one JSON object a line, on standard error."""

import logging
import sys
import threading

from pythonjsonlogger.json import JsonFormatter


def configure(level: int = logging.INFO) -> None:
    """Send everything this process has to say to standard error as JSON, times in UTC."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter(
            "{levelname}{name}{message}",
            style="{",
            rename_fields={"levelname": "level", "name": "logger"},
            timestamp="time",
        )
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    threading.excepthook = _log_thread_failure


def _log_thread_failure(failure: threading.ExceptHookArgs) -> None:
    which = failure.thread.name if failure.thread else ""
    logging.getLogger("nodediag").error("a thread failed", extra={"thread_name": which}, exc_info=failure.exc_value)
