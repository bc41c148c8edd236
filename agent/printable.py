"""Text from strangers, made safe to show.

A process chooses its own name: up to 15 arbitrary bytes (proc(5), comm). Left as they are, those
bytes could move a terminal's cursor, forge a line of the report or fail to encode. Every text that
leaves for a terminal, a page or a label passes through here first, and stays readable: what cannot
be shown is shown as its escape.
"""

import re

_SURROGATES = re.compile("[\ud800-\udfff]")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(text: str | bytes, limit: int | None = None) -> str:
    r"""Return the text on one line, with everything that is not visible as its escape.

    Control and format characters (also the ones that reverse the writing direction), line
    separators and bytes that are not UTF-8 (surrogateescape, PEP 383) become \n, \xNN or \uNNNN.
    With `limit`, of 3 or more, at most that many characters, ending in "..." if something was cut off.
    """
    if isinstance(text, bytes):
        text = (text if limit is None else text[: 4 * limit + 4]).decode(errors="surrogateescape")
    if limit is not None and len(text) > limit:
        text = text[: limit + 1]
    if not text.isprintable():
        text = "".join(char if char.isprintable() else _escaped(char) for char in text)
    if limit is not None and len(text) > limit:
        return text[: limit - 3] + "..."
    return text


def encodable(text: str) -> str:
    """Return the text with only the bytes that were not UTF-8 escaped: for JSON, which escapes the rest itself."""
    return _SURROGATES.sub(lambda found: _escaped(found.group()), text)


def _escaped(char: str) -> str:
    code = ord(char)
    if char in _SHORT:
        return _SHORT[char]
    if code < 0x80:
        return f"\\x{code:02x}"
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
