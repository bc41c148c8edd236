"""Lines for a terminal: at most 100 columns, one label per line, further lines of a text below its first."""

import textwrap
from collections.abc import Iterator

WIDTH = 100


def labelled(label: str, text: str, indent: str, width: int) -> Iterator[str]:
    """Put the label before the text; a label wider than `width` pushes the text to the right."""
    first = f"{indent}{label:{width}}"
    if not first.endswith(" "):
        first += " "
    yield from wrapped(text, first)


def wrapped(text: str, first: str) -> Iterator[str]:
    """Break a text into lines; `first` leads its first line, as many spaces every other."""
    rest = " " * len(first)
    lines = textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)
    yield from lines or [first.rstrip()]
