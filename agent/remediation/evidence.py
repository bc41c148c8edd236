"""What was captured before an act: one readable JSON file for each request, in the state folder.

A file is there whole or not at all: it is written under another name, synced, and then renamed. The folder is bounded;
the oldest files make room.
"""

import hashlib
import json
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agent.acts import MAX_REASON, Evidence, Request
from agent.model import Target
from agent.remediation.plain_json import dumps_within, plain

MAX_FILE_BYTES = 256 * 1024
MAX_FILES = 64
MAX_TOTAL_BYTES = 16 * 1024 * 1024
CHUNK_BYTES = 32 * 1024

_ID = re.compile(r"[0-9a-z][0-9a-z-]{0,63}")
"""A UUID in lower case is one. Nothing that could lead out of the folder, or to a temporary file."""
_SUFFIX, _TEMPORARY = ".json", ".json.tmp"
_MAX_HEAD_TEXT = 1024


class EvidenceError(Exception):
    """Evidence cannot be stored or read. The text says which, where and what to do."""


@dataclass(frozen=True, slots=True)
class _File:
    """A file of the folder as lstat(2) shows it."""

    id: str
    path: Path
    seen: os.stat_result

    @property
    def state(self) -> tuple[int, int, int]:
        """What changes when the file does."""
        return (self.seen.st_ino, self.seen.st_mtime_ns, self.seen.st_size)


class EvidenceStore:
    """The evidence of one node. May be used from several threads, but by one agent at a time."""

    def __init__(self, folder: Path, wall: Callable[[], float]) -> None:
        self._folder = folder
        self._wall = wall
        self._lock = threading.Lock()
        self._told: dict[str, tuple[tuple[int, int, int], Evidence]] = {}

    def store(self, request: Request, content: Mapping[str, Any]) -> Evidence:
        """Store what was captured for a request; durable when this returns. Replaces what a same request_id left.

        The file has at most MAX_FILE_BYTES: longer texts in `content` are cut, with a note of how much. What JSON
        does not know becomes text. Raises EvidenceError.
        """
        if not _ID.fullmatch(request.request_id):
            raise EvidenceError(f"evidence cannot be named by the request_id {request.request_id!r:.80}: send a UUID")
        head, created_at = _head(request, self._wall())
        data = dumps_within(MAX_FILE_BYTES, head, "content", content)
        with self._lock:
            try:
                self._write(request.request_id, data)
            except OSError as error:
                text = f"evidence cannot be stored in {self._folder}: {error.strerror}. Nothing is done without it"
                raise EvidenceError(text) from error
        return Evidence(request.request_id, request.request_id, request.action, created_at, len(data), _sha256(data))

    def list(self) -> tuple[Evidence, ...]:
        """Return all evidence, the latest first. What is not ours, or is broken, is passed over.

        Raises EvidenceError if the folder cannot be read.
        """
        with self._lock:
            try:
                files = self._files()
            except OSError as error:
                raise EvidenceError(f"{self._folder} cannot be read: {error.strerror}") from error
            told = {file.id: (file.state, evidence) for file in files if (evidence := self._evidence(file))}
            self._told = told
        return tuple(sorted((e for _, e in told.values()), key=lambda e: (e.created_at, e.id), reverse=True))

    def read(self, evidence_id: str) -> Iterator[bytes]:
        """Return a file in chunks of CHUNK_BYTES, all of one moment. Raises KeyError if unknown, EvidenceError."""
        if not _ID.fullmatch(evidence_id):
            raise KeyError(evidence_id)
        try:
            data = _content(self._folder / f"{evidence_id}{_SUFFIX}")
        except FileNotFoundError:
            raise KeyError(evidence_id) from None
        except OSError as error:
            text = f"evidence {evidence_id} in {self._folder} cannot be read: {error.strerror or error}"
            raise EvidenceError(text) from error
        return (data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES))

    def _write(self, evidence_id: str, data: bytes) -> None:
        for folder in (self._folder.parent, self._folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._remove_leftovers()
        path, temporary = (self._folder / f"{evidence_id}{suffix}" for suffix in (_SUFFIX, _TEMPORARY))
        try:
            _write_synced(temporary, data)
            self._make_room(evidence_id, len(data))
            temporary.replace(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(self._folder)

    def _remove_leftovers(self) -> None:
        for path in self._folder.iterdir():
            if path.name.endswith(_TEMPORARY):
                path.unlink(missing_ok=True)

    def _make_room(self, evidence_id: str, size: int) -> None:
        """Remove the oldest until one more file of this size is within the bounds."""
        files = sorted((f for f in self._files() if f.id != evidence_id), key=lambda f: (f.seen.st_mtime_ns, f.id))
        total = sum(file.seen.st_size for file in files) + size
        while files and (len(files) >= MAX_FILES or total > MAX_TOTAL_BYTES):
            oldest = files.pop(0)
            oldest.path.unlink(missing_ok=True)
            total -= oldest.seen.st_size

    def _files(self) -> tuple[_File, ...]:
        """The regular files named as ours are. Raises OSError; a folder that is missing is empty."""
        try:
            paths = tuple(self._folder.iterdir())
        except FileNotFoundError:
            return ()
        return tuple(file for path in paths if (file := _file(path)))

    def _evidence(self, file: _File) -> Evidence | None:
        """What a file says of itself, read again only if it has changed; None if it is not ours or broken."""
        state, known = self._told.get(file.id, (None, None))
        if state == file.state:
            return known
        try:
            return _parse(file.id, _content(file.path))
        except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return None


def _file(path: Path) -> _File | None:
    """A file by its looks, or None if it is not ours or gone. Raises OSError."""
    if path.suffix != _SUFFIX or not _ID.fullmatch(path.stem):
        return None
    try:
        seen = path.lstat()
    except FileNotFoundError:
        return None
    return _File(path.stem, path, seen) if stat.S_ISREG(seen.st_mode) else None


def _head(request: Request, now: float) -> tuple[dict[str, Any], float]:
    """What every file begins with, and the moment in it, in whole milliseconds."""
    moment = datetime.fromtimestamp(round(now, 3), UTC)
    head = {
        "id": request.request_id,
        "requestId": request.request_id,
        "action": request.action.value,
        "dryRun": request.dry_run,
        "target": _target(request.target),
        "caller": plain(request.caller, _MAX_HEAD_TEXT),
        "reason": plain(request.reason, MAX_REASON),
        "createdAt": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }
    return head, _seconds(str(head["createdAt"]))


def _target(target: Target) -> dict[str, Any]:
    """Only the fields that apply, named as in the report."""
    fields = {
        "kind": target.kind.value,
        "pid": target.pid,
        "startTime": target.start_time,
        "bootId": target.boot_id,
        "containerId": target.container_id,
        "containerdNamespace": target.containerd_namespace,
        "cgroup": target.cgroup,
        "address": target.address,
    }
    return {name: plain(value, _MAX_HEAD_TEXT) for name, value in fields.items() if value not in (None, "")}


def _parse(evidence_id: str, data: bytes) -> Evidence:
    """Read the head of a file. Raises ValueError, TypeError, KeyError, OverflowError, RecursionError."""
    said = json.loads(data)
    request_id, action = said["requestId"], said["action"]
    if said["id"] != evidence_id or not isinstance(request_id, str) or not isinstance(action, str):
        raise ValueError(f"not the evidence {evidence_id}")
    return Evidence(evidence_id, request_id, action, _seconds(said["createdAt"]), len(data), _sha256(data))


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def _content(path: Path) -> bytes:
    """Read a whole file of ours. Raises OSError, also if it is no regular file or larger than any of ours."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("it is no regular file")
        data = os.read(descriptor, MAX_FILE_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(data) > MAX_FILE_BYTES:
        raise OSError(f"it is larger than {MAX_FILE_BYTES} bytes, so the agent did not write it")
    return data


def _write_synced(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
