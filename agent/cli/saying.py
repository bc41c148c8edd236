"""Lines for people and documents for programs, on standard output."""

from collections.abc import Iterable
from typing import TextIO

from agent.cli.output import emit
from agent.exporters.remediation_json import dumps


def say(lines: Iterable[str]) -> bool:
    """Print lines, with what the terminal cannot show as its escape; False, with the reason told, if it cannot be."""
    text = "".join(f"{line}\n" for line in lines)
    return emit(lambda stream: _write(stream, text))


def say_json(document: object) -> bool:
    """Print one JSON document; False, with the reason told, if it cannot be."""
    return emit(lambda stream: stream.write(dumps(document)))


def _write(stream: TextIO, text: str) -> None:
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
