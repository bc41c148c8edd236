"""Reads the documents as a reader's browser does: sections with their anchors, links, blocks of code. Not all of
Markdown, only what the documents here use.
"""

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
RUNBOOKS = ROOT / "docs/runbooks"

_FENCE = re.compile(r"^ *```(?P<language>\w*)\s*$")
_HEADING = re.compile(r"^(?P<marks>#{1,6}) +(?P<title>.+?) *$")
_LINK = re.compile(r"(?<!\\)\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_INLINE = re.compile(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)")
_BEFORE_A_COMMAND = {"--", "|", ";", "&&", "||"}
_ENGINES = {"podman", "docker"}
_AFTER_A_COMMAND = {"|", ";", "&&", "||", ">", ">>", "<", "2>", "&", "#"}


@dataclass(frozen=True)
class Section:
    """A heading, how it can be linked to, and what stands below it up to the next heading that is no lower."""

    level: int
    title: str
    anchor: str
    body: str


def documents() -> list[Path]:
    """Return every document a user is led to."""
    return [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted((ROOT / "deploy").rglob("*.md")),
    ]


def without_code(text: str) -> str:
    """Return the text with blocks of code and inline code left out, line by line."""
    kept, fenced = [], False
    for line in text.splitlines():
        if _FENCE.match(line):
            fenced = not fenced
        elif not fenced:
            kept.append(line)
    return re.sub(r"`[^`\n]*`", "", "\n".join(kept))


def sections(text: str) -> list[Section]:
    """Return the sections of a document; anchors as GitHub makes them."""
    lines, heads, fenced = text.splitlines(), [], False
    for number, line in enumerate(lines):
        fenced ^= bool(_FENCE.match(line))
        found = None if fenced else _HEADING.match(line)
        if found:
            heads.append((number, len(found["marks"]), found["title"]))
    seen: Counter[str] = Counter()
    made = []
    for index, (number, level, title) in enumerate(heads):
        end = next((at for at, other, _ in heads[index + 1 :] if other <= level), len(lines))
        made.append(Section(level, title, _anchor(title, seen), "\n".join(lines[number + 1 : end]).strip()))
    return made


def links(text: str) -> list[str]:
    """Return the targets of all links, code left out."""
    return [found["target"] for found in _LINK.finditer(without_code(text))]


def blocks(text: str, *languages: str) -> Iterator[list[str]]:
    """Yield the lines of each block of code in one of these languages."""
    block: list[str] | None = None
    inside = False
    for line in text.splitlines():
        fence = _FENCE.match(line)
        if fence and not inside:
            inside, block = True, [] if fence["language"] in languages else None
        elif fence:
            inside = False
            if block is not None:
                yield block
        elif inside and block is not None:
            block.append(line.strip())


def command_lines(text: str) -> list[str]:
    """Return what a reader would type: the lines of `sh` blocks, and of `console` blocks those after a prompt."""
    whole = ["\n".join(block).replace("\\\n", " ").splitlines() for block in blocks(text, "sh")]
    typed = [line for block in whole for line in block if line and not line.startswith("#")]
    prompts = [line for block in blocks(text, "console") for line in block if line.startswith("$ ")]
    return typed + [line.removeprefix("$ ") for line in prompts]


def nodediag_commands(text: str) -> list[list[str]]:
    """Return the words after each `nodediag` that is typed as it stands, in blocks and in the text."""
    whole = [line for line in _mentioned(text) if len(line.split()) > 2 and "..." not in line]
    return [words for line in command_lines(text) + whole for words in _nodediag(line)]


def subcommands_named(text: str) -> set[str]:
    """Return the subcommands of nodediag that the text names."""
    return {line.split()[1] for line in _mentioned(text) if line.split()[1] != "..."}


def _mentioned(text: str) -> list[str]:
    inline = [" ".join(found.split()) for found in _INLINE.findall(text)]
    return [line for line in inline if line.startswith("nodediag ")]


def _nodediag(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = list(lexer)
    for index, word in enumerate(words):
        here = index == 0 or words[index - 1] in _BEFORE_A_COMMAND
        in_an_image = words[0] in _ENGINES and word.startswith("nodediag:")
        if in_an_image or (here and word.rpartition("/")[2] == "nodediag"):
            rest = words[index + 1 :]
            end = next((at for at, each in enumerate(rest) if each in _AFTER_A_COMMAND), len(rest))
            yield rest[:end]


def _anchor(title: str, seen: Counter[str]) -> str:
    plain = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
    seen[plain] += 1
    return plain if seen[plain] == 1 else f"{plain}-{seen[plain] - 1}"
