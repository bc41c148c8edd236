"""What was asked for and what came of it, kept over restarts.

It is written before an act and after it; so an agent that ended in between finds the request still running, and says
so instead of doing it again. What came of a request that the gate admitted binds its request_id: it is the answer to
every repeat. What was refused for a reason that passes is listed, but binds nothing.

Acts are dated by boot and CLOCK_BOOTTIME. Of an earlier boot it is known how much time lay between its acts, and that
this boot began after them; that much has passed at least, whatever the wall clock says.
"""

import re
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from agent.acts import MAX_TOKEN, Outcome, Remediation
from agent.model import Action
from agent.remediation.ledger_file import LedgerError, LedgerFile
from agent.remediation.ledger_rows import MAX_EVIDENCE_ID, from_row, to_row
from agent.remediation.past import Act

__all__ = ["Ledger", "LedgerError"]

MAX_BINDING = 1000
MAX_REFUSALS = 200
REMEMBERED_SECONDS = 24 * 3600.0
"""No cool-down is longer, so an older act is of no account to the gate."""
_PAGE_TOKEN = re.compile(r"[1-9][0-9]{0,17}")

_INSERT = """
INSERT INTO remediations (request_id, binds, action, target, caller, dry_run, fencing_token, reason, outcome, message,
    refusal, received_at, finished_at, evidence_id, acted, act_boot_id, act_boot_seconds)
VALUES (:request_id, :binds, :action, :target, :caller, :dry_run, :fencing_token, :reason, :outcome, :message,
    :refusal, :received_at, :finished_at, :evidence_id, :acted, :act_boot_id, :act_boot_seconds)
"""
_CONCLUDE = """
UPDATE remediations SET binds = :binds, outcome = :outcome, message = :message, refusal = :refusal,
    finished_at = :finished_at, acted = max(acted, :acted),
    evidence_id = coalesce(nullif(:evidence_id, ''), evidence_id),
    act_boot_id = coalesce(act_boot_id, :act_boot_id), act_boot_seconds = coalesce(act_boot_seconds, :act_boot_seconds)
WHERE request_id = :request_id AND binds
"""
_ABOUT_TO_ACT = """
UPDATE remediations SET acted = 1, evidence_id = :evidence_id, act_boot_id = :boot_id, act_boot_seconds = :boot_seconds
WHERE request_id = :request_id AND binds AND outcome = 'running' AND NOT acted
"""
_BEGUN = "the agent ended after the last step had been begun: it may have been done, wholly or in part. "
_NOT_BEGUN = "the agent ended before the last step was begun: nothing was done. "
_NOT_REPEATED = "Nothing is repeated by itself: read a new report, and send a new request if it is still needed"


@dataclass(frozen=True, slots=True)
class _Dated:
    """An act of the ledger: which row, and how long ago at least."""

    number: int
    act: Act
    age: float


class Ledger:
    """The ledger of one node, in `ledger.sqlite` of the state folder. May be used from several threads.

    `boot` returns the boot's id and CLOCK_BOOTTIME in seconds, `wall` seconds since the epoch. Every method raises
    LedgerError if the file cannot be used; the next call tries again.
    """

    def __init__(self, folder: Path, boot: Callable[[], tuple[str, float]], wall: Callable[[], float]) -> None:
        self._file = LedgerFile(folder)
        self._boot = boot
        self._wall = wall
        self._lock = threading.RLock()
        self._begun_here: set[str] = set()

    def trouble(self) -> str:
        """Return why nothing can be recorded now, empty if all is well. Really writes."""
        try:
            with self._writing() as db:
                # More than any other write takes, so that a disk that is nearly full shows here first.
                if db.execute("UPDATE facts SET value = randomblob(32768) WHERE name = 'probe'").rowcount != 1:
                    raise self._file.damaged("its probe is missing")
                self._highest_token(db)
                tuple(self._acts(db))
        except LedgerError as error:
            return str(error)
        return ""

    def interrupt(self) -> tuple[Remediation, ...]:
        """Conclude what an agent that ended has left running, and return it. What this one has begun is left alone."""
        with self._writing() as db:
            running = db.execute(
                "SELECT number, request_id, acted FROM remediations WHERE outcome = 'running'"
            ).fetchall()
            numbers = []
            for number, request_id, acted in running:
                if request_id in self._begun_here:
                    continue
                message = (_BEGUN if acted else _NOT_BEGUN) + _NOT_REPEATED
                db.execute(
                    "UPDATE remediations SET outcome = ?, message = ?, finished_at = ? WHERE number = ?",
                    (Outcome.INTERRUPTED.value, message, self._wall(), number),
                )
                numbers.append(number)
            return tuple(self._readable(db, numbers))

    def highest_token(self) -> int:
        """Return the highest fencing token ever raised to; 0 at first."""
        with self._using() as db:
            return self._highest_token(db)

    def raise_token(self, token: int) -> None:
        """Remember a fencing token if it is higher than all before; durable when this returns."""
        if not 0 <= token <= MAX_TOKEN:
            raise LedgerError(f"fencing token {token} is out of range: 0 to {MAX_TOKEN}")
        with self._writing() as db:
            if token > self._highest_token(db):
                db.execute("UPDATE facts SET value = ? WHERE name = 'highest_token'", (token,))

    def find(self, request_id: str) -> Remediation | None:
        """Return what is recorded under a request_id, gate refusals included."""
        with self._using() as db:
            return self._recorded(db.execute("SELECT * FROM remediations WHERE request_id = ?", (request_id,)))

    def binding(self, request_id: str) -> Remediation | None:
        """Return what binds a request_id: the answer to every repeat. LedgerError if it is there but unreadable."""
        with self._using() as db:
            return self._recorded(
                db.execute("SELECT * FROM remediations WHERE request_id = ? AND binds", (request_id,))
            )

    def begin(self, remediation: Remediation) -> None:
        """Record a request that is running from now on. Raises LedgerError if its request_id is bound already."""
        if remediation.outcome is not Outcome.RUNNING or remediation.acted:
            raise LedgerError(f"request {remediation.request.request_id} cannot begin as {remediation.outcome}")
        with self._writing() as db:
            self._insert(db, remediation, binds=True)
        self._begun_here.add(remediation.request.request_id)

    def about_to_act(self, request_id: str, evidence_id: str) -> None:
        """Record that the last step is about to be begun; durable when this returns. Do not act if it raises."""
        boot_id, boot_seconds = self._now()
        if not boot_id:
            raise LedgerError("the boot id cannot be read, so an act cannot be dated")
        row = {
            "request_id": request_id,
            "evidence_id": evidence_id[:MAX_EVIDENCE_ID],
            "boot_id": boot_id,
            "boot_seconds": boot_seconds,
        }
        with self._writing() as db:
            if db.execute(_ABOUT_TO_ACT, row).rowcount != 1:
                raise LedgerError(f"request {request_id} is not recorded as running before its last step")

    def conclude(self, remediation: Remediation) -> None:
        """Record a final outcome; durable when this returns. That the last step was begun is never taken back.

        What was refused for a reason that passes (see Refusal.binds) no longer binds its request_id. May be called
        again after a LedgerError. A request whose row is gone, because the file was moved away meanwhile, is recorded
        anew.
        """
        request_id = remediation.request.request_id
        if remediation.outcome is Outcome.RUNNING:
            raise LedgerError(f"request {request_id} cannot be concluded as running")
        binds = remediation.refusal is None or remediation.refusal.binds
        with self._writing() as db:
            if db.execute(_CONCLUDE, self._row(remediation, binds=binds)).rowcount == 0:
                self._insert(db, remediation, binds=binds)
        self._begun_here.discard(request_id)

    def note_refusal(self, remediation: Remediation) -> None:
        """Record what the gate refused: it is listed, binds nothing, and never takes the place of what binds."""
        request_id = remediation.request.request_id
        if remediation.outcome is not Outcome.REFUSED or remediation.acted:
            raise LedgerError(f"request {request_id} is no refusal of the gate: {remediation.outcome}")
        with self._writing() as db:
            if not _bound(db, request_id):
                self._insert(db, remediation, binds=False)

    def history(self) -> tuple[Act, ...]:
        """Return the acts of the last day at least, the latest first; interrupted ones count.

        Those of earlier boots are dated in this boot's time: before its beginning, so negative.
        """
        with self._using() as db:
            return tuple(dated.act for dated in self._acts(db))

    def list(self, limit: int, before: str) -> tuple[tuple[Remediation, ...], str]:
        """Return up to `limit` remediations, the latest first, and the token of the next page (empty: the last one).

        `before` is such a token, empty for the first page. A row that cannot be read is passed over. Raises ValueError
        for a token that is none, or a limit below 1.
        """
        if limit < 1:
            raise ValueError("the page size must be at least 1")
        size = min(limit, MAX_BINDING + MAX_REFUSALS)
        if before and not _PAGE_TOKEN.fullmatch(before):
            raise ValueError("this page token was not given out here")
        with self._using() as db:
            rows = db.execute(
                "SELECT number FROM remediations WHERE number < ? ORDER BY number DESC LIMIT ?",
                (int(before) if before else MAX_TOKEN, size + 1),
            ).fetchall()
            numbers = [number for (number,) in rows]
            page = numbers[:size]
            return tuple(self._readable(db, page)), str(page[-1]) if len(numbers) > len(page) else ""

    def close(self) -> None:
        """Close the file; from here on every call raises LedgerError."""
        with self._lock:
            self._file.close()

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._file.use() as db:
            yield db

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it is durable afterwards, or none of it happened."""
        with self._using() as db:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")

    def _now(self) -> tuple[str, float]:
        try:
            return self._boot()
        except OSError as error:
            raise LedgerError(f"this boot and its time cannot be read: {error}") from error

    def _insert(self, db: sqlite3.Connection, remediation: Remediation, *, binds: bool) -> None:
        """Put in a new row, in the place of a gate refusal under the same request_id, and prune."""
        request_id = remediation.request.request_id
        if _bound(db, request_id):
            raise LedgerError(f"request_id {request_id} is already recorded, and its answer stands")
        db.execute("DELETE FROM remediations WHERE request_id = ? AND NOT binds", (request_id,))
        db.execute(_INSERT, self._row(remediation, binds=binds))
        self._prune(db, binds=1, most=MAX_BINDING)
        self._prune(db, binds=0, most=MAX_REFUSALS)

    def _row(self, remediation: Remediation, *, binds: bool) -> dict[str, str | int | float | None]:
        boot_id, boot_seconds = self._now() if remediation.acted else (None, None)
        return {
            **to_row(remediation),
            "binds": int(binds),
            "acted": int(remediation.acted),
            "act_boot_id": boot_id,
            "act_boot_seconds": boot_seconds,
        }

    def _prune(self, db: sqlite3.Connection, *, binds: int, most: int) -> None:
        """Remove the oldest beyond the bound, but none that runs and none the gate still has to know of."""
        (count,) = db.execute("SELECT count(*) FROM remediations WHERE binds = ?", (binds,)).fetchone()
        if count <= most:
            return
        kept = {dated.number for dated in self._acts(db)}
        finished = db.execute(
            "SELECT number FROM remediations WHERE binds = ? AND outcome <> 'running' ORDER BY number", (binds,)
        ).fetchall()
        doomed = [(number,) for (number,) in finished if number not in kept][: count - most]
        db.executemany("DELETE FROM remediations WHERE number = ?", doomed)

    def _acts(self, db: sqlite3.Connection) -> Iterator[_Dated]:
        """The acts that may still matter, the latest first. One without a date is damage: it may have been just now."""
        boot_id, now = self._now()
        age, later_boot, later_at = 0.0, boot_id, now
        query = (
            "SELECT number, action, act_boot_id, act_boot_seconds FROM remediations WHERE acted ORDER BY number DESC"
        )
        for number, action, its_boot, at in db.execute(query).fetchall():
            if not isinstance(its_boot, str) or not its_boot or not isinstance(at, float) or not isfinite(at):
                raise self._file.damaged(f"row {number} does not say when it was done")
            age += max(0.0, later_at - at if its_boot == later_boot else later_at)
            if age >= REMEMBERED_SECONDS:
                return
            later_at = min(later_at, at) if its_boot == later_boot else at
            later_boot = its_boot
            moment = at if its_boot == boot_id else now - age
            yield _Dated(number, Act(_action(action), boot_id, moment), age)

    def _highest_token(self, db: sqlite3.Connection) -> int:
        row = db.execute("SELECT value FROM facts WHERE name = 'highest_token'").fetchone()
        token = row[0] if row is not None else None
        if type(token) is not int or not 0 <= token <= MAX_TOKEN:
            raise self._file.damaged("its highest fencing token is unreadable")
        return token

    def _recorded(self, found: sqlite3.Cursor) -> Remediation | None:
        row = found.fetchone()
        if row is None:
            return None
        try:
            return from_row(row)
        except ValueError as error:
            raise LedgerError(
                f"what is recorded under this request_id cannot be read ({error}): take a new one"
            ) from error

    def _readable(self, db: sqlite3.Connection, numbers: Iterable[int]) -> Iterator[Remediation]:
        """These rows one by one, so that one that cannot be read costs only itself."""
        for number in numbers:
            try:
                row = db.execute("SELECT * FROM remediations WHERE number = ?", (number,)).fetchone()
                if row is not None:
                    yield from_row(row)
            except (ValueError, sqlite3.DataError):
                continue


def _bound(db: sqlite3.Connection, request_id: str) -> bool:
    return db.execute("SELECT 1 FROM remediations WHERE request_id = ? AND binds", (request_id,)).fetchone() is not None


def _action(word: str) -> Action:
    """Its action; NONE for a word of another version: it still counts for the node's budget."""
    try:
        return Action(word)
    except ValueError:
        return Action.NONE
