"""The report for a person at a terminal: plain lines for files and pipes, colour where a person looks.

Plain text is stable and greppable: sections in a fixed order, one label per line, at most 100
columns. Only commands may be longer, because a command that was broken in two cannot be typed.
"""

from collections.abc import Iterable, Iterator
from typing import TextIO

from agent.exporters.digest import Accusation, Digest, Misdeployed, Wrong, digest
from agent.exporters.layout import labelled, wrapped
from agent.model import NodeReport

LABEL_WIDTH = 12
NAME_WIDTH = 30
COMMAND_INDENT = " " * 25
"""A command stands below the text of its step, further to the right; it is never broken."""


def write(report: NodeReport, stream: TextIO, *, colour: bool) -> None:
    """Write the report to a stream; with `colour`, for a terminal. Characters the stream cannot hold are escaped."""
    if colour:
        from agent.exporters import report_rich  # noqa: PLC0415 - rich costs memory the daemon need not carry

        text = report_rich.render(report)
    else:
        text = plain(report)
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))


def plain(report: NodeReport) -> str:
    """Return the report as plain text without any escape sequence. Pure; ends with a newline."""
    return "\n".join(_lines(digest(report))) + "\n"


def _lines(seen: Digest) -> Iterator[str]:
    yield f"Node {seen.node} at {seen.at}"
    yield from wrapped(seen.headline, "")
    if seen.deployment:
        yield from _title("What is wrong with the agent's own deployment")
        for fault in seen.deployment:
            yield from _misdeployed(fault)
    if seen.wrong:
        yield from _title("What is wrong")
        for number, wrong in enumerate(seen.wrong):
            if number:
                yield ""
            yield from _wrong(wrong)
    yield from _section("What is well", seen.well)
    if seen.unseen:
        yield from _title("What could not be seen, and why")
        for group in seen.unseen:
            yield from wrapped(", ".join(group.types), "  ")
            yield from wrapped(group.why, "    ")
    yield from _section("About the agent itself", seen.notes)
    yield from _section("Not on this node", seen.absent)


def _title(title: str) -> Iterator[str]:
    yield ""
    yield title.upper()


def _section(title: str, entries: Iterable[tuple[str, str]]) -> Iterator[str]:
    entries = tuple(entries)
    if entries:
        yield from _title(title)
    for name, text in entries:
        yield from labelled(name, text, "  ", NAME_WIDTH)


def _misdeployed(fault: Misdeployed) -> Iterator[str]:
    yield from wrapped(fault.title, "  ")
    yield from wrapped(fault.message, "    ")
    for label, text in fault.rows:
        yield from labelled(label, text, "      ", LABEL_WIDTH)


def _wrong(wrong: Wrong) -> Iterator[str]:
    yield from wrapped(f"{wrong.type}: {wrong.reason}", "  ")
    if not wrong.accusations:
        yield from wrapped(wrong.message, "    ")
        yield from labelled("since", wrong.since, "      ", LABEL_WIDTH)
    for number, accusation in enumerate(wrong.accusations):
        if number:
            yield ""
        yield from _accusation(accusation)
    if wrong.further:
        yield ""
        yield f"    {len(wrong.further)} more:"
    for message in wrong.further:
        yield from wrapped(message, "    - ")


def _accusation(accusation: Accusation) -> Iterator[str]:
    yield from wrapped(accusation.message, "    ")
    for label, text in accusation.rows:
        yield from labelled(label, text, "      ", LABEL_WIDTH)
    for number, (name, text) in enumerate(accusation.evidence):
        yield from labelled("" if number else "evidence", f"{name}: {text}", "      ", LABEL_WIDTH)
    for at, (mark, step) in enumerate(accusation.advice.numbered):
        label = "" if at else "what to do"
        yield from wrapped(step.text, f"      {label:{LABEL_WIDTH}}{mark}")
        yield from (f"{COMMAND_INDENT}{command}" for command in step.commands)
