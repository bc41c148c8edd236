"""The ledger, with real files, real crashes, real full disks."""

import dataclasses
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.acts import MAX_REASON, MAX_TOKEN, Outcome, Refusal, RefusalReason, Remediation, Request
from agent.model import Action, Target, TargetKind
from agent.remediation.ledger import MAX_BINDING, MAX_REFUSALS, REMEMBERED_SECONDS, Ledger, LedgerError
from agent.remediation.ledger_rows import MAX_CALLER, MAX_MESSAGE
from agent.remediation.past import Act
from tests.unit.remediation.mounts import FILL, run_with_tmpfs

BOOT, NEXT_BOOT, THIRD_BOOT = "boot-1", "boot-2", "boot-3"
NOW = 1_700_000_000.5


class Time:
    """The boot and both clocks, moved by hand."""

    def __init__(self) -> None:
        self.boot_id = BOOT
        self.boot_seconds = 5000.0
        self.wall_seconds = NOW

    def boot(self) -> tuple[str, float]:
        return self.boot_id, self.boot_seconds

    def wall(self) -> float:
        return self.wall_seconds

    def reboot(self, boot_id: str, uptime: float) -> None:
        self.boot_id, self.boot_seconds = boot_id, uptime


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def ledger(folder: Path, time: Time) -> Iterator[Ledger]:
    opened = Ledger(folder, time.boot, time.wall)
    yield opened
    opened.close()


def running(request_id: str = "r1", action: Action = Action.KILL_SHIM, **fields: Any) -> Remediation:
    target = Target(TargetKind.SHIM, pid=7, start_time=8, boot_id=BOOT, container_id="c", cgroup="/a\n", address="x")
    request = Request(request_id, action, target, "controller", fencing_token=3, reason="hung", **fields)
    return Remediation(request, Outcome.RUNNING, "under way", NOW)


def ended(remediation: Remediation, outcome: Outcome = Outcome.VERIFIED, **fields: Any) -> Remediation:
    fields = {"message": "done", "finished_at": NOW + 1, **fields}
    return dataclasses.replace(remediation, outcome=outcome, **fields)


def refused(request_id: str = "r1", retry: float | None = 12.5) -> Remediation:
    refusal = Refusal(RefusalReason.COOLING_DOWN, "it rests", retry)
    return ended(running(request_id), Outcome.REFUSED, refusal=refusal)


def act(ledger: Ledger, request_id: str, action: Action = Action.KILL_SHIM) -> None:
    """A remediation from beginning to end."""
    ledger.begin(running(request_id, action))
    ledger.about_to_act(request_id, "")
    ledger.conclude(ended(running(request_id, action), acted=True))


def reopened(ledger: Ledger, folder: Path, time: Time) -> Ledger:
    ledger.close()
    return Ledger(folder, time.boot, time.wall)


def ids(ledger: Ledger, limit: int = 2000) -> list[str]:
    return [remediation.request.request_id for remediation in ledger.list(limit, "")[0]]


def edit(folder: Path, *statements: str) -> None:
    """Change the file by hand, as a stranger might. The ledger must be closed."""
    with sqlite3.connect(folder / "ledger.sqlite") as db:
        db.execute("PRAGMA ignore_check_constraints = 1")
        for statement in statements:
            db.execute(statement)
    db.close()


# --- what is recorded ---------------------------------------------------------------------------


def test_a_new_ledger_is_for_its_owner_alone(ledger: Ledger, folder: Path) -> None:
    assert ledger.trouble() == ""
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {
        "ledger.sqlite": 0o600,
        "ledger.sqlite-journal": 0o600,
    }


def test_a_new_ledger_knows_nothing(ledger: Ledger) -> None:
    assert ledger.highest_token() == 0
    assert ledger.history() == ()
    assert ledger.find("r1") is None
    assert ledger.binding("r1") is None
    assert ledger.list(10, "") == ((), "")
    assert ledger.interrupt() == ()


def test_what_was_recorded_is_read_back_as_it_was(ledger: Ledger, folder: Path, time: Time) -> None:
    first = running(dry_run=True)
    ledger.begin(first)
    assert ledger.find("r1") == ledger.binding("r1") == first
    last = ended(first, Outcome.DRY_RUN, evidence_id="r1")
    ledger.conclude(last)
    assert ledger.find("r1") == last
    again = reopened(ledger, folder, time)
    assert again.binding("r1") == last
    again.close()


def test_a_restart_keeps_everything(ledger: Ledger, folder: Path, time: Time) -> None:
    act(ledger, "r1")
    ledger.note_refusal(refused("r2"))
    ledger.raise_token(9)
    before = (ledger.list(10, ""), ledger.history(), ledger.highest_token())
    again = reopened(ledger, folder, time)
    assert (again.list(10, ""), again.history(), again.highest_token()) == before
    assert len(before[0][0]) == 2
    again.close()


def test_what_is_committed_outlives_a_power_failure_as_sqlite_promises(ledger: Ledger) -> None:
    with ledger._using() as db:
        assert db.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL
        assert db.execute("PRAGMA journal_mode").fetchone()[0] == "truncate"


def test_a_request_id_begins_only_once(ledger: Ledger) -> None:
    ledger.begin(running())
    with pytest.raises(LedgerError, match="request_id r1 is already recorded, and its answer stands"):
        ledger.begin(running())
    ledger.conclude(ended(running()))
    with pytest.raises(LedgerError, match="already recorded"):
        ledger.begin(running())
    assert ids(ledger) == ["r1"]


@pytest.mark.parametrize("wrong", [ended(running()), dataclasses.replace(running(), acted=True)])
def test_only_what_runs_and_has_not_acted_begins(ledger: Ledger, wrong: Remediation) -> None:
    with pytest.raises(LedgerError, match="cannot begin"):
        ledger.begin(wrong)
    assert ids(ledger) == []


def test_running_is_no_conclusion(ledger: Ledger) -> None:
    ledger.begin(running())
    with pytest.raises(LedgerError, match="cannot be concluded as running"):
        ledger.conclude(running())


def test_a_refusal_of_the_gate_is_listed_and_binds_nothing(ledger: Ledger) -> None:
    ledger.note_refusal(refused())
    assert ledger.find("r1") == refused()
    assert ledger.binding("r1") is None
    ledger.begin(running())
    assert ledger.binding("r1") == running()
    assert ids(ledger) == ["r1"]


def test_a_refusal_of_the_gate_never_takes_the_place_of_what_binds(ledger: Ledger) -> None:
    ledger.begin(running())
    ledger.note_refusal(refused())
    assert ledger.find("r1") == running()
    ledger.conclude(ended(running()))
    ledger.note_refusal(refused())
    assert ledger.binding("r1") == ended(running())


def test_only_a_refusal_is_noted_as_one(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="no refusal of the gate"):
        ledger.note_refusal(ended(running()))


def test_a_later_refusal_of_the_same_request_replaces_the_earlier(ledger: Ledger) -> None:
    ledger.note_refusal(refused(retry=20.0))
    ledger.note_refusal(refused("r2"))
    ledger.note_refusal(refused(retry=None))
    assert ids(ledger) == ["r1", "r2"]
    assert ledger.find("r1") == refused(retry=None)


def test_what_a_look_at_the_target_refused_binds(ledger: Ledger) -> None:
    ledger.begin(running())
    refuted = ended(running(), Outcome.REFUSED, refusal=Refusal(RefusalReason.NOT_CONFIRMED, "it is well"))
    ledger.conclude(refuted)
    assert ledger.binding("r1") == refuted


def test_what_was_refused_for_a_reason_that_passes_is_listed_and_may_be_asked_again(ledger: Ledger) -> None:
    ledger.begin(running())
    ledger.conclude(refused())
    assert ledger.binding("r1") is None
    assert ledger.find("r1") == refused()
    ledger.begin(running())
    assert ledger.binding("r1") == running()


def test_a_token_is_never_lowered(ledger: Ledger) -> None:
    for token in (5, 3, 5, 0):
        ledger.raise_token(token)
        assert ledger.highest_token() == 5
    ledger.raise_token(MAX_TOKEN)
    assert ledger.highest_token() == MAX_TOKEN


@pytest.mark.parametrize("token", [-1, MAX_TOKEN + 1])
def test_a_token_out_of_range_is_refused(ledger: Ledger, token: int) -> None:
    with pytest.raises(LedgerError, match="out of range"):
        ledger.raise_token(token)
    assert ledger.highest_token() == 0


# --- acts ---------------------------------------------------------------------------------------


def test_an_act_counts_from_the_moment_before_it(ledger: Ledger, time: Time) -> None:
    ledger.begin(running())
    assert ledger.history() == ()
    ledger.about_to_act("r1", "e1")
    time.boot_seconds += 100
    assert ledger.history() == (Act(Action.KILL_SHIM, BOOT, 5000.0),)
    assert ledger.find("r1") == dataclasses.replace(running(), acted=True, evidence_id="e1")
    ledger.conclude(ended(running(), Outcome.FAILED))
    assert ledger.history() == (Act(Action.KILL_SHIM, BOOT, 5000.0),)


def test_that_the_last_step_was_begun_is_never_taken_back(ledger: Ledger) -> None:
    ledger.begin(running())
    ledger.about_to_act("r1", "e1")
    ledger.conclude(ended(running(), Outcome.FAILED, acted=False, evidence_id=""))
    found = ledger.find("r1")
    assert found is not None
    assert (found.acted, found.evidence_id) == (True, "e1")


@pytest.mark.parametrize("begun", ["never", "concluded", "acted", "refused"])
def test_nothing_acts_that_is_not_recorded_as_running_before_its_last_step(ledger: Ledger, begun: str) -> None:
    if begun == "refused":
        ledger.note_refusal(refused())
    elif begun != "never":
        ledger.begin(running())
    if begun == "concluded":
        ledger.conclude(ended(running()))
    if begun == "acted":
        ledger.about_to_act("r1", "")
    with pytest.raises(LedgerError, match="r1 is not recorded as running before its last step"):
        ledger.about_to_act("r1", "")


def test_without_a_boot_id_nothing_acts(ledger: Ledger, time: Time) -> None:
    ledger.begin(running())
    time.boot_id = ""
    with pytest.raises(LedgerError, match="boot id cannot be read"):
        ledger.about_to_act("r1", "")
    time.boot_id = BOOT
    assert ledger.history() == ()


def test_a_clock_that_cannot_be_read_is_trouble(folder: Path) -> None:
    def broken() -> tuple[str, float]:
        raise OSError("no clock")

    ledger = Ledger(folder, broken, lambda: NOW)
    assert ledger.trouble() == "this boot and its time cannot be read: no clock"
    ledger.close()


def test_an_act_that_was_concluded_without_its_beginning_still_counts(ledger: Ledger, time: Time) -> None:
    ledger.begin(running())
    time.boot_seconds += 5
    ledger.conclude(ended(running(), acted=True))
    assert ledger.history() == (Act(Action.KILL_SHIM, BOOT, 5005.0),)


def test_acts_are_forgotten_after_a_day_and_the_latest_stands_first(ledger: Ledger, time: Time) -> None:
    act(ledger, "r1")
    time.boot_seconds += REMEMBERED_SECONDS - 1
    act(ledger, "r2", Action.THAW_CGROUP)
    assert [a.action for a in ledger.history()] == [Action.THAW_CGROUP, Action.KILL_SHIM]
    time.boot_seconds += 1
    assert [a.action for a in ledger.history()] == [Action.THAW_CGROUP]


def test_an_act_of_the_boot_before_is_as_old_as_this_boot(ledger: Ledger, time: Time) -> None:
    act(ledger, "r1")
    time.reboot(NEXT_BOOT, 30.0)
    assert ledger.history() == (Act(Action.KILL_SHIM, NEXT_BOOT, 0.0),)
    time.boot_seconds = REMEMBERED_SECONDS
    assert ledger.history() == ()


def test_the_time_that_lay_between_acts_of_earlier_boots_has_passed_too(ledger: Ledger, time: Time) -> None:
    act(ledger, "r1")
    time.boot_seconds += 4000
    act(ledger, "r2")
    time.reboot(NEXT_BOOT, 600.0)
    act(ledger, "r3")
    time.reboot(THIRD_BOOT, 30.0)
    assert [a.boot_seconds for a in ledger.history()] == [0.0, -600.0, -4600.0]
    time.boot_seconds = 45.0
    assert [a.boot_seconds for a in ledger.history()] == [0.0, -600.0, -4600.0]


def test_wall_time_says_nothing_about_an_act(ledger: Ledger, time: Time) -> None:
    act(ledger, "r1")
    before = ledger.history()
    time.wall_seconds += 10 * REMEMBERED_SECONDS
    assert ledger.history() == before


def test_an_act_in_the_future_does_not_age_the_ones_before_it(ledger: Ledger, time: Time) -> None:
    act(ledger, "r1")
    time.boot_seconds += 10_000_000
    act(ledger, "r2")
    time.boot_seconds = 5060.0
    assert [a.boot_seconds for a in ledger.history()] == [10_005_000.0, 5000.0]


# --- crashes ------------------------------------------------------------------------------------

CRASH = """
import os, signal, sys
from pathlib import Path
from agent.acts import Outcome, Remediation, Request
from agent.model import Action, Target, TargetKind
from agent.remediation.ledger import Ledger

folder, step = Path(sys.argv[1]), sys.argv[2]
ledger = Ledger(folder, lambda: ("boot-1", 5000.0), lambda: 1_700_000_000.5)
request = Request("r1", Action.KILL_SHIM, Target(TargetKind.SHIM), "controller")
def die(): os.kill(os.getpid(), signal.SIGKILL)
if step == "opened": ledger.trouble(); die()
ledger.begin(Remediation(request, Outcome.RUNNING, "", 1.0))
if step == "begun": die()
if step == "about to commit":
    file = ledger._file
    db = file._db
    file._connected = lambda: Dying()
    class Dying:
        def execute(self, text, *rest):
            if text == "COMMIT": die()
            return db.execute(text, *rest)
ledger.about_to_act("r1", "e1")
if step == "acting": die()
ledger.conclude(Remediation(request, Outcome.VERIFIED, "helped", 1.0, 2.0, acted=True))
die()
"""


@pytest.mark.parametrize(
    ("step", "outcome", "acted", "says"),
    [
        ("begun", Outcome.INTERRUPTED, False, "before the last step was begun: nothing was done. Nothing is repeated"),
        ("about to commit", Outcome.INTERRUPTED, False, "nothing was done"),
        (
            "acting",
            Outcome.INTERRUPTED,
            True,
            "it may have been done, wholly or in part. Nothing is repeated by itself",
        ),
        ("concluded", Outcome.VERIFIED, True, "helped"),
    ],
)
def test_what_a_killed_agent_left_running_is_interrupted(
    folder: Path, ledger: Ledger, time: Time, step: str, outcome: Outcome, acted: bool, says: str
) -> None:
    child = subprocess.run([sys.executable, "-c", CRASH, folder, step], check=False, capture_output=True)
    assert child.returncode == -signal.SIGKILL, child.stderr
    told = ledger.interrupt()
    found = ledger.binding("r1")
    assert found is not None
    assert told == ((found,) if outcome is Outcome.INTERRUPTED else ())
    assert (found.outcome, found.acted) == (outcome, acted)
    assert says in found.message
    assert len(ledger.history()) == acted
    assert ledger.interrupt() == ()
    with pytest.raises(LedgerError):
        ledger.about_to_act("r1", "")
    if outcome is Outcome.INTERRUPTED:
        assert found.finished_at == NOW


def test_an_agent_killed_before_anything_leaves_a_usable_ledger(folder: Path, ledger: Ledger) -> None:
    child = subprocess.run([sys.executable, "-c", CRASH, folder, "opened"], check=False, capture_output=True)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert ledger.trouble() == ""
    assert ledger.interrupt() == ()


def test_what_this_agent_is_doing_is_not_interrupted(ledger: Ledger) -> None:
    ledger.begin(running())
    assert ledger.interrupt() == ()
    assert ledger.find("r1") == running()
    ledger.about_to_act("r1", "")


# --- trouble ------------------------------------------------------------------------------------

PARTS = """
from agent.acts import Outcome, Remediation, Request
from agent.model import Action, Target, TargetKind
from agent.remediation.ledger import Ledger, LedgerError
state = folder / "state"
ledger = Ledger(state, lambda: ("boot-1", 5000.0), lambda: 1_700_000_000.5)
def request(name): return Request(name, Action.KILL_SHIM, Target(TargetKind.SHIM), "me")
def running(name): return Remediation(request(name), Outcome.RUNNING, "", 1.0)
def attempt(what, *given):
    try: what(*given); print("ok")
    except LedgerError as error: print(error)
"""


def test_a_full_disk_is_told_and_all_is_well_once_there_is_room(tmp_path: Path) -> None:
    script = (
        PARTS
        + FILL
        + (
            "attempt(ledger.begin, running('r1'))\n"
            "fill(folder / 'ballast')\n"
            "print(ledger.trouble())\n"
            "attempt(ledger.begin, running('r2')); attempt(ledger.about_to_act, 'r1', '')\n"
            "print([r.request.request_id for r in ledger.list(9, '')[0]], ledger.history())\n"
            "(folder / 'ballast').unlink()\n"
            "print(repr(ledger.trouble())); attempt(ledger.about_to_act, 'r1', ''); print(len(ledger.history()))"
        )
    )
    begun, *full, unchanged, well, acted, counted = run_with_tmpfs(tmp_path / "disk", script).splitlines()
    assert begun == acted == "ok"
    assert len(full) == 3
    for sentence in full:
        assert "ledger.sqlite cannot be written, the disk is full" in sentence
        assert sentence.endswith(f"free some space in {tmp_path}/disk/state")
    assert (unchanged, well, counted) == ("['r1'] ()", "''", "1")


def test_a_disk_full_from_the_start_is_told(tmp_path: Path) -> None:
    script = (
        PARTS
        + FILL
        + "fill(folder / 'ballast'); print(ledger.trouble())\n"
        + "(folder / 'ballast').unlink(); print(repr(ledger.trouble()))"
    )
    full, well = run_with_tmpfs(tmp_path / "disk", script).splitlines()
    assert "the disk is full" in full
    assert well == "''"


@pytest.mark.parametrize(("left", "shows"), [(8192, True), (16384, None), (32768, None), (49152, None), (65536, False)])
def test_where_the_trouble_does_not_show_a_request_can_be_recorded_to_its_end(
    tmp_path: Path, left: int, shows: bool | None
) -> None:
    script = (
        PARTS
        + FILL
        + (
            f"ledger.trouble(); fill(folder / 'ballast', leave={left})\n"
            "if ledger.trouble(): print('trouble')\n"
            "else:\n"
            "    attempt(ledger.begin, running('r1')); attempt(ledger.about_to_act, 'r1', 'r1')\n"
            "    attempt(ledger.conclude, Remediation(request('r1'), Outcome.VERIFIED, 'x' * 2000, 1.0, 2.0, True))"
        )
    )
    told = run_with_tmpfs(tmp_path / "disk", script).splitlines()
    assert told in (["trouble"], ["ok"] * 3)
    assert shows is None or (told == ["trouble"]) is shows


def test_a_read_only_state_folder_is_told_and_all_is_well_once_it_is_writable(tmp_path: Path) -> None:
    script = PARTS + (
        "attempt(ledger.begin, running('r1'))\n"
        "ledger.close(); ledger = Ledger(state, lambda: ('boot-1', 5000.0), lambda: 1_700_000_000.5)\n"
        "def remount(how): subprocess.run(['mount', '-o', f'remount,{how}', folder], check=True)\n"
        "remount('ro'); print(ledger.trouble()); attempt(ledger.begin, running('r2'))\n"
        "remount('rw'); print(repr(ledger.trouble())); attempt(ledger.begin, running('r2'))"
    )
    begun, *read_only, well, second = run_with_tmpfs(tmp_path / "disk", script).splitlines()
    assert (begun, well, second) == ("ok", "''", "ok")
    assert len(read_only) == 2
    for sentence in read_only:
        assert "ledger.sqlite cannot be written" in sentence
        assert sentence.endswith(f"make {tmp_path}/disk/state writable for the agent")


def test_a_disk_that_turns_read_only_while_the_ledger_is_open_is_told(tmp_path: Path) -> None:
    """The kernel does so after an error of the disk; it takes an emergency remount where files are open."""
    script = PARTS + (
        "lower = folder / 'state'; lower.mkdir(); subprocess.run(['mount', '--bind', lower, lower], check=True)\n"
        "print(repr(ledger.trouble()))\n"
        "ledger.close(); ledger = Ledger(state, lambda: ('boot-1', 5000.0), lambda: 1.0)\n"
        "subprocess.run(['mount', '-o', 'remount,bind,ro', lower], check=True); print(ledger.trouble())"
    )
    well, read_only = run_with_tmpfs(tmp_path / "disk", script).splitlines()
    assert well == "''"
    assert "cannot be written" in read_only


def test_a_new_ledger_in_a_read_only_folder_is_told(tmp_path: Path) -> None:
    script = PARTS + "subprocess.run(['mount', '-o', 'remount,ro', folder], check=True); print(ledger.trouble())"
    (told,) = run_with_tmpfs(tmp_path / "disk", script).splitlines()
    assert told == f"{tmp_path}/disk/state: Read-only file system. The agent must be able to write there"


def test_a_file_in_the_folders_place_is_told(ledger: Ledger, folder: Path) -> None:
    folder.write_text("")
    assert ledger.trouble() == f"{folder}: File exists. The agent must be able to write there"
    folder.unlink()
    assert ledger.trouble() == ""


def corrupt(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as stream:
        stream.seek(4096)
        stream.write(b"\xa5" * (size - 4096))


def corrupt_index(path: Path) -> None:
    """A page that nobody reads before a request_id is looked up."""
    with sqlite3.connect(path) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name LIKE 'sqlite_autoindex_rem%'").fetchone()
    db.close()
    with path.open("r+b") as stream:
        stream.seek(4096 * (page - 1))
        stream.write(b"\xa5" * 4096)


def another_database(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE t (x)")
    db.close()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no database": lambda path: path.write_bytes(b"this is no database" * 500),
    "broken pages": corrupt,
    "broken index": corrupt_index,
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "header alone": lambda path: os.truncate(path, 100),
    "empty": lambda path: os.truncate(path, 0),
    "another database": another_database,
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_a_damaged_file_is_told_kept_as_it_is_and_may_be_moved_away(
    ledger: Ledger, folder: Path, time: Time, damage: str
) -> None:
    for number in range(5):
        act(ledger, f"r{number}")
    again = reopened(ledger, folder, time)
    path = folder / "ledger.sqlite"
    DAMAGES[damage](path)
    before = path.read_bytes()
    for _ in range(2):
        told = again.trouble()
        assert told.startswith(f"{path} is damaged (")
        assert told.endswith("Move it away; what it knew of cool-downs and tokens is lost with it")
        with pytest.raises(LedgerError):
            again.begin(running("new"))
        with pytest.raises(LedgerError):
            again.interrupt()
    assert path.read_bytes() == before
    path.rename(folder / "away")
    assert again.trouble() == ""
    again.begin(running("new"))
    again.close()


def test_a_file_that_is_damaged_while_it_is_open_is_told(ledger: Ledger, folder: Path) -> None:
    for number in range(5):
        act(ledger, f"r{number}")
    corrupt(folder / "ledger.sqlite")
    assert "is damaged (" in ledger.trouble()
    assert "is damaged (" in ledger.trouble()


def test_a_file_restored_from_a_copy_while_it_is_open_is_read_anew(ledger: Ledger, folder: Path) -> None:
    path = folder / "ledger.sqlite"
    act(ledger, "r1")
    copy = path.read_bytes()
    act(ledger, "r2")
    path.write_bytes(copy)
    assert ids(ledger) == ["r1"]
    act(ledger, "r3")
    assert ids(ledger) == ["r3", "r1"]


def test_a_file_moved_away_while_it_is_open_is_noticed(ledger: Ledger, folder: Path) -> None:
    ledger.begin(running())
    (folder / "ledger.sqlite").rename(folder / "away")
    with pytest.raises(LedgerError, match="not recorded as running"):
        ledger.about_to_act("r1", "")
    ledger.conclude(ended(running()))
    assert ledger.find("r1") == ended(running())


def test_a_state_folder_replaced_while_it_is_open_is_noticed(ledger: Ledger, folder: Path, time: Time) -> None:
    ledger.begin(running())
    folder.rename(folder.with_name("away"))
    assert ledger.trouble() == ""
    assert ids(ledger) == []
    assert "used by another agent" in Ledger(folder, time.boot, time.wall).trouble()


def test_the_journal_of_a_file_that_was_moved_away_is_not_played_into_the_new_one(ledger: Ledger, folder: Path) -> None:
    ledger.begin(running())
    ledger.close()
    (folder / "ledger.sqlite").rename(folder / "away")
    (folder / "ledger.sqlite-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + b"\xff" * 4096)
    fresh = Ledger(folder, lambda: (BOOT, 1.0), lambda: NOW)
    assert fresh.trouble() == ""
    assert (folder / "ledger.sqlite-journal.old").stat().st_size == 4104
    fresh.close()


def test_what_a_broken_off_beginning_left_behind_is_no_hindrance(ledger: Ledger, folder: Path) -> None:
    folder.mkdir()
    (folder / "ledger.sqlite.new").write_bytes(b"half a ledger")
    (folder / "ledger.sqlite.new-journal").write_bytes(b"half a journal")
    assert ledger.trouble() == ""
    assert {path.name for path in folder.iterdir()} == {"ledger.sqlite", "ledger.sqlite-journal"}


def test_a_ledger_of_a_newer_agent_is_left_alone(ledger: Ledger, folder: Path, time: Time) -> None:
    ledger.begin(running())
    again = reopened(ledger, folder, time)
    edit(folder, "PRAGMA user_version = 2")
    told = again.trouble()
    assert "was written by a newer agent (version 2, this one knows 1)" in told
    edit(folder, "PRAGMA user_version = 1")
    assert again.trouble() == ""
    again.close()


def test_what_is_far_too_large_is_not_even_read(folder: Path, ledger: Ledger) -> None:
    folder.mkdir()
    (folder / "ledger.sqlite").touch()
    os.truncate(folder / "ledger.sqlite", 1 << 40)
    assert "is too large for a ledger: 1099511627776 bytes" in ledger.trouble()


def test_an_empty_file_is_not_taken_for_a_new_ledger(folder: Path, ledger: Ledger) -> None:
    folder.mkdir()
    (folder / "ledger.sqlite").touch()
    assert f"{folder}/ledger.sqlite is damaged (it is empty). Move it away" in ledger.trouble()


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_regular_file_is_told_and_never_blocks(folder: Path, ledger: Ledger, make: Any) -> None:
    folder.mkdir()
    make(folder / "ledger.sqlite")
    assert ledger.trouble() == f"{folder}/ledger.sqlite is no regular file. Move it away"


def test_a_second_agent_with_the_same_folder_is_in_trouble_at_once(ledger: Ledger, folder: Path) -> None:
    ledger.begin(running())
    second = (
        "import sys; from pathlib import Path; from agent.remediation.ledger import Ledger\n"
        "print(Ledger(Path(sys.argv[1]), lambda: ('b', 1.0), lambda: 1.0).trouble())"
    )
    run = subprocess.run([sys.executable, "-c", second, folder], capture_output=True, text=True, check=True)
    assert run.stdout == (f"{folder} is used by another agent: end it, or give this one a host.state_dir of its own\n")
    ledger.about_to_act("r1", "")
    ledger.close()
    run = subprocess.run([sys.executable, "-c", second, folder], capture_output=True, text=True, check=True)
    assert run.stdout == "\n"


def test_somebody_who_holds_the_file_by_hand_is_trouble_and_not_waited_for_long(
    ledger: Ledger, folder: Path, time: Time
) -> None:
    ledger.begin(running())
    again = reopened(ledger, folder, time)
    holder = sqlite3.connect(folder / "ledger.sqlite", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    assert "is in use by another process (database is locked): let it end" in again.trouble()
    holder.close()
    assert again.trouble() == ""
    again.close()


def test_while_it_is_open_nobody_can_hold_it_up_by_reading_it_by_hand(ledger: Ledger, folder: Path) -> None:
    ledger.begin(running())
    reader = sqlite3.connect(folder / "ledger.sqlite", timeout=0)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        reader.execute("SELECT * FROM remediations")
    ledger.about_to_act("r1", "")
    reader.close()


def test_a_closed_ledger_stays_closed(ledger: Ledger) -> None:
    ledger.close()
    assert "is closed: the agent is stopping" in ledger.trouble()


def test_an_error_in_the_middle_undoes_the_whole_step(ledger: Ledger) -> None:
    ledger.note_refusal(refused())
    broken = dataclasses.replace(running(), received_at=float("nan"))
    with pytest.raises(LedgerError):
        ledger.begin(broken)
    assert ledger.find("r1") == refused()
    assert ledger.trouble() == ""


# --- bounds -------------------------------------------------------------------------------------


def fill_up(ledger: Ledger, number: int) -> None:
    """Many finished dry runs, put in at once: one by one takes a sync to disk each."""
    ledger.begin(running("seed", dry_run=True))
    ledger.conclude(ended(running("seed", dry_run=True), Outcome.DRY_RUN))
    columns = (
        "binds, action, target, caller, dry_run, fencing_token, reason, outcome, message, refusal, received_at, "
        "finished_at, evidence_id, acted, act_boot_id, act_boot_seconds"
    )
    with ledger._writing() as db:
        for index in range(number):
            db.execute(
                f"INSERT INTO remediations (request_id, {columns}) SELECT 'f{index}', {columns} FROM remediations "
                "WHERE request_id = 'seed'"
            )


def test_the_oldest_finished_ones_make_room_but_none_that_runs_or_counts(ledger: Ledger, time: Time) -> None:
    act(ledger, "old act")
    time.boot_seconds += REMEMBERED_SECONDS
    ledger.begin(running("runs"))
    act(ledger, "counts")
    fill_up(ledger, MAX_BINDING + 10)
    ledger.begin(running("last"))
    kept = ids(ledger)
    assert len(kept) == MAX_BINDING
    assert {"runs", "counts", "last", f"f{MAX_BINDING + 9}"} <= set(kept)
    assert not {"old act", "seed", "f0"} & set(kept)


def test_refusals_make_room_for_each_other_alone(ledger: Ledger) -> None:
    act(ledger, "act")
    fill_up(ledger, MAX_REFUSALS + 10)
    with ledger._writing() as db:
        db.execute("UPDATE remediations SET binds = 0 WHERE request_id LIKE 'f%'")
    ledger.note_refusal(refused("last"))
    kept = ids(ledger)
    assert len(kept) == MAX_REFUSALS + 2
    assert kept[0] == "last"
    assert {"act", "seed"} <= set(kept)
    assert ledger.find("f0") is None


def test_the_file_does_not_grow_for_ever(ledger: Ledger, folder: Path) -> None:
    sizes = []
    for _ in range(3):
        fill_up(ledger, 2 * MAX_BINDING)
        ledger.begin(running("one more"))
        sizes.append((folder / "ledger.sqlite").stat().st_size)
        with ledger._writing() as db:
            db.execute("DELETE FROM remediations")
    assert sizes[0] == sizes[1] == sizes[2] < 4_000_000


def test_long_texts_are_clipped(ledger: Ledger) -> None:
    request = dataclasses.replace(running().request, reason="r" * 5000)
    ledger.begin(dataclasses.replace(running(), request=request))
    refusal = Refusal(RefusalReason.NOT_CONFIRMED, "ü" * 5000)
    ledger.conclude(Remediation(request, Outcome.REFUSED, "m" * 5000, NOW, NOW, refusal=refusal))
    found = ledger.find("r1")
    assert found is not None
    assert found.refusal is not None
    assert [len(found.request.reason), len(found.message), len(found.refusal.message)] == [
        MAX_REASON,
        MAX_MESSAGE,
        MAX_MESSAGE,
    ]


@pytest.mark.parametrize(
    "request_",
    [
        dataclasses.replace(running().request, request_id="r" * 65),
        dataclasses.replace(running().request, caller="c" * (MAX_CALLER + 1)),
        dataclasses.replace(running().request, target=Target(TargetKind.SHIM, cgroup="x" * 20_000)),
        dataclasses.replace(running().request, fencing_token=2**64),
    ],
    ids=["request_id", "caller", "target", "token"],
)
def test_what_tells_requests_apart_is_never_clipped(ledger: Ledger, request_: Request) -> None:
    with pytest.raises(LedgerError, match="too l"):
        ledger.begin(Remediation(request_, Outcome.RUNNING, "", NOW))
    assert ledger.trouble() == ""
    assert ids(ledger) == []


def test_texts_that_are_no_utf_8_are_recorded(ledger: Ledger) -> None:
    ledger.begin(dataclasses.replace(running(), message="comm \udcff\0\n"))
    found = ledger.find("r1")
    assert found is not None
    assert found.message == "comm \\udcff\0\n"


# --- pages --------------------------------------------------------------------------------------


def test_pages_follow_each_other_and_end(ledger: Ledger) -> None:
    for number in range(7):
        ledger.note_refusal(refused(f"r{number}"))
    pages, token = [], ""
    while True:
        page, token = ledger.list(3, token)
        pages.append([remediation.request.request_id for remediation in page])
        if not token:
            break
    assert pages == [["r6", "r5", "r4"], ["r3", "r2", "r1"], ["r0"]]


def test_a_page_that_is_just_full_is_the_last(ledger: Ledger) -> None:
    for number in range(3):
        ledger.note_refusal(refused(f"r{number}"))
    assert ledger.list(3, "")[1] == ""


def test_what_comes_meanwhile_does_not_shift_the_pages(ledger: Ledger) -> None:
    for number in range(4):
        ledger.note_refusal(refused(f"r{number}"))
    _, token = ledger.list(2, "")
    ledger.note_refusal(refused("new"))
    assert [r.request.request_id for r in ledger.list(2, token)[0]] == ["r1", "r0"]


@pytest.mark.parametrize("token", ["x", "0", "-1", "1 ", "1;", "१", "9" * 30, "1.5", " "])
def test_a_token_that_was_not_given_out_is_refused(ledger: Ledger, token: str) -> None:
    with pytest.raises(ValueError, match="page token"):
        ledger.list(10, token)


def test_a_page_of_nothing_is_refused(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        ledger.list(0, "")


# --- a file edited by strangers -----------------------------------------------------------------

ODD_ROWS = {
    "action": "UPDATE remediations SET action = 'FormatDisk' WHERE request_id = 'odd'",
    "outcome": "UPDATE remediations SET outcome = 'splendid' WHERE request_id = 'odd'",
    "target": "UPDATE remediations SET target = '{' WHERE request_id = 'odd'",
    "target of another form": "UPDATE remediations SET target = '[1]' WHERE request_id = 'odd'",
    "target nested too deeply": "UPDATE remediations SET target = printf('%.*c', 16000, '[') WHERE request_id = 'odd'",
    "pid": """UPDATE remediations SET target = replace(target, '"pid": 7', '"pid": 1e999') WHERE request_id = 'odd'""",
    "refusal": """UPDATE remediations SET refusal = '{"reason": "WHIM", "message": "", "retry_seconds": 1}'
        WHERE request_id = 'odd'""",
    "moment": "UPDATE remediations SET received_at = 9e999 WHERE request_id = 'odd'",
    "moment as text": "UPDATE remediations SET finished_at = 'noon' WHERE request_id = 'odd'",
    "long message": "UPDATE remediations SET message = printf('%.*c', 900000, 'x') WHERE request_id = 'odd'",
    "message of a megabyte": "UPDATE remediations SET message = printf('%.*c', 2000000, 'x') WHERE request_id = 'odd'",
    "message as bytes": "UPDATE remediations SET message = x'ff' WHERE request_id = 'odd'",
    "flag": "UPDATE remediations SET dry_run = 'perhaps' WHERE request_id = 'odd'",
}


@pytest.mark.parametrize("odd", list(ODD_ROWS))
def test_a_row_that_cannot_be_read_costs_only_itself_and_still_binds(
    ledger: Ledger, folder: Path, time: Time, odd: str
) -> None:
    for request_id in ("r1", "odd", "r2"):
        act(ledger, request_id)
    again = reopened(ledger, folder, time)
    edit(folder, ODD_ROWS[odd])
    assert again.trouble() == ""
    assert ids(again) == ["r2", "r1"]
    assert len(again.history()) == 3
    for look in (again.binding, again.find):
        with pytest.raises(LedgerError):
            look("odd")
    with pytest.raises(LedgerError, match="already recorded"):
        again.begin(running("odd"))
    assert again.trouble() == ""
    again.close()


def test_text_that_is_no_utf_8_is_read_all_the_same(ledger: Ledger, folder: Path, time: Time) -> None:
    ledger.begin(running())
    again = reopened(ledger, folder, time)
    edit(folder, "UPDATE remediations SET message = CAST(x'6dff' AS TEXT)")
    assert again.list(1, "")[0][0].message == "m\\xff"
    again.close()


def test_an_act_of_an_unknown_action_still_counts_for_the_node(ledger: Ledger, folder: Path, time: Time) -> None:
    act(ledger, "r1")
    again = reopened(ledger, folder, time)
    edit(folder, "UPDATE remediations SET action = 'FormatDisk'")
    assert again.history() == (Act(Action.NONE, BOOT, 5000.0),)
    again.close()


def test_a_running_row_that_cannot_be_read_is_interrupted_all_the_same(
    ledger: Ledger, folder: Path, time: Time
) -> None:
    ledger.begin(running("odd"))
    ledger.begin(running("r1"))
    again = reopened(ledger, folder, time)
    edit(folder, ODD_ROWS["action"])
    assert [told.request.request_id for told in again.interrupt()] == ["r1"]
    assert again.interrupt() == ()
    again.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE remediations SET act_boot_seconds = NULL",
        "UPDATE remediations SET act_boot_seconds = 'noon'",
        "UPDATE remediations SET act_boot_seconds = 9e999",
        "UPDATE remediations SET act_boot_id = ''",
        "UPDATE remediations SET act_boot_id = x'00'",
        "UPDATE facts SET value = -1 WHERE name = 'highest_token'",
        "UPDATE facts SET value = 'high' WHERE name = 'highest_token'",
        "UPDATE facts SET value = 1e300 WHERE name = 'highest_token'",
        "DELETE FROM facts WHERE name = 'highest_token'",
        "DELETE FROM facts WHERE name = 'probe'",
        "DROP TABLE facts",
        "DROP TABLE remediations",
        "ALTER TABLE remediations RENAME acted TO done",
    ],
)
def test_a_ledger_that_no_longer_says_what_was_done_is_trouble(
    ledger: Ledger, folder: Path, time: Time, statement: str
) -> None:
    act(ledger, "r1")
    again = reopened(ledger, folder, time)
    edit(folder, statement)
    assert "is damaged (" in again.trouble()
    assert "is damaged (" in again.trouble()
    again.close()


# --- threads ------------------------------------------------------------------------------------


def test_many_threads_with_one_request_id_begin_it_once(ledger: Ledger) -> None:
    won: list[int] = []
    lost: list[str] = []
    together = threading.Barrier(20)

    def begin(number: int) -> None:
        together.wait(10)
        try:
            ledger.begin(running())
            won.append(number)
        except LedgerError as error:
            lost.append(str(error))

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 19)
    assert all("already recorded" in text for text in lost)


def test_threads_do_not_get_in_each_others_way(ledger: Ledger) -> None:
    failures: list[BaseException] = []

    def work(first: int) -> None:
        try:
            for number in range(first, first + 5):
                act(ledger, f"r{number}")
                ledger.raise_token(number)
                ledger.note_refusal(refused(f"n{number}"))
                assert ledger.trouble() == ""
                assert ledger.binding(f"r{number}") is not None
                ledger.list(10, "")
                ledger.history()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 10, 20, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert ledger.highest_token() == 34
    assert len(ledger.history()) == 20
    assert len(ids(ledger)) == 40
