"""Opens the ledger's file, for one agent alone, and says in a sentence what is wrong with it.

A new file is made under another name and renamed once its tables stand, so an empty or half-made one is never taken for
fresh. What is damaged is never deleted or overwritten. Whoever moves it away or repairs it need not restart the agent:
before each use it is looked at whether the file that lies there is the one that was left, and unchanged since.
"""

import errno
import fcntl
import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FILE = "ledger.sqlite"
SCHEMA_VERSION = 1
MAX_FILE_BYTES = 64 * 1024 * 1024
"""Many times what a full ledger takes; a larger file is not ours."""
_MAX_VALUE_BYTES = 1024 * 1024
_BUSY_SECONDS = 0.2
"""How long to wait for somebody who reads the file by hand."""

_SCHEMA = """
CREATE TABLE remediations (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    request_id TEXT NOT NULL UNIQUE,
    binds INTEGER NOT NULL CHECK (binds IN (0, 1)),
    action TEXT NOT NULL,
    target TEXT NOT NULL,
    caller TEXT NOT NULL,
    dry_run INTEGER NOT NULL,
    fencing_token INTEGER NOT NULL,
    reason TEXT NOT NULL,
    outcome TEXT NOT NULL,
    message TEXT NOT NULL,
    refusal TEXT NOT NULL,
    received_at REAL NOT NULL,
    finished_at REAL NOT NULL,
    evidence_id TEXT NOT NULL,
    acted INTEGER NOT NULL CHECK (acted IN (0, 1)),
    act_boot_id TEXT,
    act_boot_seconds REAL,
    CHECK (NOT acted OR (typeof(act_boot_id) = 'text' AND typeof(act_boot_seconds) = 'real'))
);
CREATE TABLE facts (name TEXT PRIMARY KEY, value NOT NULL);
INSERT INTO facts VALUES ('highest_token', 0), ('probe', x'');
"""

_AWAY = "Move it away; what it knew of cool-downs and tokens is lost with it"
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_TOOBIG})
"""SQLITE_ERROR: the tables are not those of the schema."""
_NOT_WRITABLE = frozenset({sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM})


class LedgerError(Exception):
    """Nothing can be recorded, or what is recorded cannot be read. The text says why and what to do."""


class LedgerFile:
    """One ledger file, opened when it is needed. Not for several threads at once: the ledger locks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / FILE
        self._db: sqlite3.Connection | None = None
        self._left: tuple[int, ...] | None = None
        self._hold: int | None = None
        self._closed = False

    @contextmanager
    def use(self) -> Iterator[sqlite3.Connection]:
        """Give the open database. Whatever sqlite and the system object to becomes a LedgerError; so does ValueError.

        After an error of the file it is opened anew next time; a transaction that was under way is undone.
        """
        try:
            yield self._connected()
            self._left = self._looks()
        except LedgerError:
            self._undo()
            raise
        except (ValueError, OverflowError) as error:
            self._undo()
            raise LedgerError(str(error)) from error
        except (sqlite3.Error, OSError) as error:
            self._drop()
            raise LedgerError(self._sentence(error)) from error
        except BaseException:
            self._drop()
            raise

    def damaged(self, what: str) -> LedgerError:
        """Return the error for a value that no ledger of ours holds."""
        return LedgerError(f"{self._path} is damaged ({what}). {_AWAY}")

    def close(self) -> None:
        """Close the file for good."""
        self._closed = True
        self._drop()

    def _connected(self) -> sqlite3.Connection:
        if self._closed:
            raise LedgerError(f"{self._path} is closed: the agent is stopping")
        if self._db is not None and self._left is not None and self._left == self._looks():
            return self._db
        self._drop()
        try:
            self._hold = self._held_folder()
            if self._looks() is None:
                self._create(self._hold)
            self._check_looks()
            self._db = self._open(self._path)
            self._check_content(self._db)
        except BaseException:
            self._drop()
            raise
        return self._db

    def _looks(self) -> tuple[int, ...] | None:
        """Which file lies there now, and how it looks. Not opened for that: closing it would drop sqlite's locks."""
        try:
            seen = self._path.lstat()
        except FileNotFoundError:
            return None
        return (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns)

    def _held_folder(self) -> int:
        """Make the folder if it is missing, and lock it against a second agent for as long as the file is open."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                text = f"{self._folder} is used by another agent: end it, or give this one a host.state_dir of its own"
                raise LedgerError(text) from None
            raise
        return descriptor

    def _create(self, folder: int) -> None:
        draft, draft_journal = self._path.with_name(f"{FILE}.new"), self._path.with_name(f"{FILE}.new-journal")
        for leftover in (draft, draft_journal):
            leftover.unlink(missing_ok=True)
        # The journal of a file that was moved away would be played back into the new one.
        journal = self._path.with_name(f"{FILE}-journal")
        with suppress(FileNotFoundError):
            journal.rename(journal.with_name(f"{journal.name}.old"))
        os.close(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        db = self._open(draft)
        try:
            db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        finally:
            db.close()
        draft_journal.unlink(missing_ok=True)
        draft.rename(self._path)
        os.fsync(folder)

    def _check_looks(self) -> None:
        seen = self._path.lstat()
        if not stat.S_ISREG(seen.st_mode):
            raise LedgerError(f"{self._path} is no regular file. Move it away")
        if not seen.st_size:
            raise self.damaged("it is empty")
        if seen.st_size > MAX_FILE_BYTES:
            raise LedgerError(f"{self._path} is too large for a ledger: {seen.st_size} bytes. {_AWAY}")

    def _open(self, path: Path) -> sqlite3.Connection:
        uri = f"{path.absolute().as_uri()}?mode=rw"
        db = sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            db.text_factory = lambda raw: raw.decode(errors="backslashreplace")
            db.row_factory = sqlite3.Row
            db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE_BYTES)
            # FULL with a truncated journal: what is committed outlives a power failure (sqlite.org/pragma.html).
            for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = TRUNCATE", "synchronous = FULL"):
                db.execute(f"PRAGMA {pragma}").fetchall()
        except BaseException:
            db.close()
            raise
        return db

    def _check_content(self, db: sqlite3.Connection) -> None:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            text = (
                f"{self._path} was written by a newer agent (version {version}, this one knows {SCHEMA_VERSION}): run "
                f"that one again, or give it up. {_AWAY}"
            )
            raise LedgerError(text)
        if version < SCHEMA_VERSION:
            raise self.damaged(f"it has version {version}, which no agent ever wrote")
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise self.damaged(str(verdict)[:200])

    def _undo(self) -> None:
        if self._db is not None and self._db.in_transaction:
            try:
                self._db.rollback()
            except sqlite3.Error:
                self._drop()

    def _drop(self) -> None:
        db, hold = self._db, self._hold
        self._db = self._hold = self._left = None
        if db is not None:
            with suppress(sqlite3.Error):
                db.close()
        if hold is not None:
            os.close(hold)

    def _sentence(self, error: sqlite3.Error | OSError) -> str:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL or getattr(error, "errno", 0) in {errno.ENOSPC, errno.EDQUOT}:
            return f"{self._path} cannot be written, the disk is full ({error}): free some space in {self._folder}"
        if isinstance(error, OSError):
            return f"{error.filename or self._path}: {error.strerror or error}. The agent must be able to write there"
        if code in _NOT_WRITABLE:
            return f"{self._path} cannot be written ({error}): make {self._folder} writable for the agent"
        if code in _DAMAGED:
            return f"{self._path} is damaged ({error}). {_AWAY}"
        if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            return f"{self._path} is in use by another process ({error}): let it end"
        return f"{self._path} cannot be read or written ({error}): look at the disk and its free space"
