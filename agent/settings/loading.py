"""Reads the settings file, or the files of a folder, which add up.

The file is checked as YAML nodes, before any value is made of them: a node still knows its line and
how it was written, so that a mistake can be told as the user sees it, and nothing passes for
something else (`yes` for a text, `1:30` for ninety, `010` for eight).
"""

import difflib
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from agent.printable import printable
from agent.schema import Rule, rule_of
from agent.settings.node_ip import expanded
from agent.settings.sanity import contradictions
from agent.settings.tree import Settings, describe

MAX_FILE_BYTES = 1 << 20
MAX_FILES = 64
MAX_DEPTH = 16
MAX_SHOWN = 40
"""Characters of a value, or of a key, that are repeated to the user."""

_TAG = "tag:yaml.org,2002:"
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9_]{0,18})")
_NUMBER = re.compile(r"[-+]?((0|[1-9][0-9_]*)(\.[0-9_]*)?|\.[0-9][0-9_]*)([eE][-+]?[0-9]{1,4})?")
_READ_AS = {"bool": "true or false", "int": "a number", "float": "a number", "timestamp": "a date"}


class SettingsError(Exception):
    """The settings cannot be used. `problems` has one line each: place, what is wrong, what would be right."""

    def __init__(self, source: str, problems: list[str]) -> None:
        self.source = source
        self.problems = problems
        count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        super().__init__(f"{source}: {count}\n" + "\n".join(f"  {line}" for line in problems))


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings with what the file itself said.

    `explicit` holds the dotted paths that were set: what a person asked for is expected to
    be there, what is only a default may be absent from this node.
    """

    settings: Settings
    explicit: frozenset[str]

    def is_set(self, path: str) -> bool:
        """Whether the file sets this dotted path."""
        return path in self.explicit


def load(path: Path | None, environ: Mapping[str, str] = os.environ) -> Loaded:
    """Read and check a settings file, or every `*.yaml` of a folder; None gives the defaults.

    The files of a folder add up, and none may set what another has set: so parts that are switched on one by one can
    each bring their own. Raises SettingsError with every mistake found.
    """
    if path is None:
        return Loaded(Settings(), frozenset())
    reader = _Reader(environ)
    settings = Settings()
    for file in _files(path):
        reader.file = "" if file == path else f"{printable(file.name, MAX_SHOWN)} "
        root = _compose(str(file), _read(file))
        settings = settings if root is None else reader.table(settings, root, "")
    if not reader.problems:
        reader.compare(settings)
    if reader.problems:
        raise SettingsError(str(path), reader.problems)
    return Loaded(settings, frozenset(reader.places))


def _files(path: Path) -> list[Path]:
    """The files to read, by name. Those that begin with a dot are somebody's own, such as a mounted ConfigMap's."""
    if not path.is_dir():
        return [path]
    try:
        found = sorted(each for each in path.iterdir() if each.suffix == ".yaml" and not each.name.startswith("."))
    except OSError as error:
        raise SettingsError(str(path), [f"cannot be read: {error.strerror}"]) from None
    if not 0 < len(found) <= MAX_FILES:
        have = "has no file named *.yaml" if not found else f"has more than {MAX_FILES} files named *.yaml"
        raise SettingsError(str(path), [f"{have}; name a settings file, or a folder of them"])
    return found


def _read(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise SettingsError(str(path), [f"cannot be read: {error.strerror}"]) from None
    if len(raw) > MAX_FILE_BYTES:
        raise SettingsError(str(path), ["is larger than 1 MiB; that is not a settings file"])
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise SettingsError(str(path), [f"is not UTF-8 text (byte {error.start})"]) from None


class _Loader(yaml.SafeLoader):
    """YAML without aliases, which let a small file grow without bound, and tags, which let a value pass for another."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose one node, or refuse it."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        mark = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not used here", problem_mark=mark)
        if getattr(event, "tag", None):
            raise yaml.MarkedYAMLError(problem="tags (!name) are not used here", problem_mark=mark)
        if self._depth == MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem="nested deeper than any settings are", problem_mark=mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _compose(source: str, text: str) -> yaml.Node | None:
    """Return the file's root node, None if it says nothing. YAML's own mistakes can only be told one at a time."""
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise SettingsError(source, [f"{where}{what}"]) from None
    except yaml.YAMLError as error:
        raise SettingsError(source, [f"is not YAML: {' '.join(str(error).split())}"]) from None


class _RefusedError(ValueError):
    """A value that breaks its rule; the text is for the user."""


class _Reader:
    """Lays what the nodes say over the defaults; gathers the mistakes, and where every setting was set."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.problems: list[str] = []
        self.places: dict[str, str] = {}
        self.file = ""
        """What is said before `line N`, where there are several files."""
        self._environ = environ

    def table(self, defaults: Any, node: yaml.Node, path: str) -> Any:  # noqa: ANN401 - any table
        """Return the table with what the node sets; an empty node sets nothing."""
        if _is(node, "null"):
            return defaults
        if not isinstance(node, yaml.MappingNode):
            self._refuse(node, path, f"must be a table of settings (key: value), not {_shown(node)}")
            return defaults
        known = {item.name: item for item in fields(defaults)}
        types = get_type_hints(type(defaults))
        changes = {}
        for key, value in self._entries(node, path):
            dotted = f"{path}.{key}" if path else key
            if key not in known:
                self._refuse(value, dotted, _unknown_key(key, list(known)))
            elif is_dataclass(types[key]):
                changes[key] = self.table(getattr(defaults, key), value, dotted)
            else:
                changes |= self._setting(key, value, dotted, types[key], rule_of(known[key].metadata))
        return replace(defaults, **changes)

    def compare(self, settings: Settings) -> None:
        """Gather what does not go together."""
        for path, problem in contradictions(settings):
            where = f"{self.places[path]}: " if path in self.places else ""
            self.problems.append(f"{where}{path}: {problem}")

    def _entries(self, node: yaml.MappingNode, path: str) -> Iterator[tuple[str, yaml.Node]]:
        """Yield the entries of a table, each key once: of two, the last would win in silence."""
        first: dict[str, int] = {}
        for key, value in node.value:
            name = printable(key.value, MAX_SHOWN) if isinstance(key, yaml.ScalarNode) else _shown(key)
            if name in first:
                self._refuse(key, f"{path}.{name}" if path else name, f"is set twice, first in line {first[name]}")
                continue
            first[name] = _line(key)
            yield name, value

    def _setting(self, key: str, node: yaml.Node, path: str, kind: Any, rule: Rule) -> dict[str, Any]:  # noqa: ANN401
        """Return the setting by its key, or nothing if it was refused."""
        if path in self.places:
            self._refuse(node, path, f"is set twice, first in {self.places[path]}")
            return {}
        try:
            value: Any = self._list(node, path, kind) if get_args(kind) else _scalar(node, kind)
            if rule.node_ip:
                value = self._expanded(value)
        except _RefusedError as refused:
            self._refuse(node, path, str(refused))
            return {}
        wrong = _broken(value, rule)
        if wrong:
            found = f"; it is {_shown(node)}" if isinstance(node, yaml.ScalarNode) else ""
            self._refuse(node, path, f"{wrong}{found}")
            return {}
        self.places[path] = self._place(node)
        return {key: value}

    def _expanded(self, text: str) -> str:
        try:
            return expanded(text, self._environ)
        except ValueError as error:
            raise _RefusedError(str(error)) from None

    def _list(self, node: yaml.Node, path: str, kind: Any) -> tuple[Any, ...]:  # noqa: ANN401 - tuple[member, ...]
        if not isinstance(node, yaml.SequenceNode):
            raise _RefusedError(f"must be a list, such as [one, two] or [], not {_shown(node)}")
        member = get_args(kind)[0]
        if member is not str:
            return tuple(self.table(member(), item, f"{path}[{index}]") for index, item in enumerate(node.value))
        return tuple(_scalar(item, member) for item in node.value)

    def _refuse(self, node: yaml.Node, path: str, problem: str) -> None:
        self.problems.append(f"{self._place(node)}: {path}{': ' if path else ''}{problem}")

    def _place(self, node: yaml.Node) -> str:
        return f"{self.file}line {_line(node)}"


def _scalar(node: yaml.Node, kind: Any) -> Any:  # noqa: ANN401 - any annotation
    """Take a value only if it is written as `kind` is written."""
    if _is(node, "null"):
        raise _RefusedError("has no value: leave the line out, and the default holds")
    plain = node.value if isinstance(node, yaml.ScalarNode) and not node.style else ""
    if kind is str and _is(node, "str"):
        return node.value
    if kind is bool and _is(node, "bool"):
        return plain.lower() in {"true", "yes", "on"}
    if kind is int and _WHOLE.fullmatch(plain):
        return int(plain)
    if kind is float and _NUMBER.fullmatch(plain) and math.isfinite(float(plain.replace("_", ""))):
        return float(plain.replace("_", ""))
    raise _RefusedError(_wrong_kind(node, kind))


def _wrong_kind(node: yaml.Node, kind: Any) -> str:  # noqa: ANN401 - any annotation
    names = {str: "text", bool: "true or false", int: "a whole number, such as 5", float: "a number, such as 2.5"}
    read_as = _READ_AS.get(node.tag.removeprefix(_TAG))
    if kind is str and read_as:
        return f"must be text, and YAML reads {_shown(node)} as {read_as}: put it in quotes"
    return f"must be {names[kind]}, not {_shown(node)}"


def _broken(value: Any, rule: Rule) -> str | None:  # noqa: ANN401 - any setting
    if rule.minimum is not None and value < rule.minimum:
        return f"must be at least {rule.minimum:g}"
    if rule.maximum is not None and value > rule.maximum:
        return f"must be at most {rule.maximum:g}"
    return rule.check(value) if rule.check else None


def _unknown_key(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    if close:
        return f"unknown key; did you mean {close[0]}?"
    elsewhere = [path for path, _, _ in describe(Settings()) if path.endswith(f".{key}")]
    if 0 < len(elsewhere) < 3:
        return f"unknown key here; did you mean {' or '.join(elsewhere)}?"
    return f"unknown key; known here: {', '.join(known)}"


def _is(node: yaml.Node, kind: str) -> bool:
    return bool(node.tag == _TAG + kind)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _shown(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a table"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    text = printable(node.value, MAX_SHOWN)
    return f'"{text}"' if isinstance(node, yaml.ScalarNode) and node.style else text
