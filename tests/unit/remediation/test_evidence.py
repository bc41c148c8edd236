"""The evidence store, with real files."""

import hashlib
import json
import math
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.acts import Request
from agent.model import Action, Target, TargetKind
from agent.remediation.evidence import (
    CHUNK_BYTES,
    MAX_FILE_BYTES,
    MAX_FILES,
    MAX_TOTAL_BYTES,
    EvidenceError,
    EvidenceStore,
)
from agent.remediation.plain_json import dumps_within
from tests.unit.builders import open_files
from tests.unit.remediation.mounts import FILL, run_with_tmpfs

NOW = 1_700_000_000.1234


def uuid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012x}"


def request(number: int = 1, **fields: Any) -> Request:
    target = Target(TargetKind.SHIM, pid=7, start_time=8, boot_id="b", container_id="c" * 64)
    return Request(uuid(number), Action.KILL_SHIM, target, "controller", reason="hung", **fields)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "evidence"


@pytest.fixture
def store(folder: Path) -> EvidenceStore:
    return EvidenceStore(folder, lambda: NOW)


def content(store: EvidenceStore, number: int = 1) -> Any:
    return json.loads(b"".join(store.read(uuid(number))))


def kept(store: EvidenceStore, value: Any) -> Any:
    """A value as it is read back."""
    store.store(request(), {"value": value})
    return content(store)["content"]["value"]


def test_what_was_captured_is_read_back_under_its_head(store: EvidenceStore) -> None:
    store.store(request(), {"stack": ["a", "b"], "seconds": 1.5})
    assert content(store) == {
        "id": uuid(1),
        "requestId": uuid(1),
        "action": "KillShim",
        "dryRun": False,
        "target": {"kind": "shim", "pid": 7, "startTime": 8, "bootId": "b", "containerId": "c" * 64},
        "caller": "controller",
        "reason": "hung",
        "createdAt": "2023-11-14T22:13:20.123Z",
        "content": {"stack": ["a", "b"], "seconds": 1.5},
    }


def test_it_is_indented_for_people(store: EvidenceStore) -> None:
    store.store(request(), {})
    assert b"".join(store.read(uuid(1))).startswith(b'{\n  "id": "')


def test_what_is_told_of_it_is_what_lies_there(store: EvidenceStore, folder: Path) -> None:
    told = store.store(request(), {"a": 1})
    data = (folder / f"{uuid(1)}.json").read_bytes()
    assert (told.id, told.request_id, told.action, told.created_at) == (uuid(1), uuid(1), "KillShim", 1_700_000_000.123)
    assert (told.size, told.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert store.list() == (told,)
    assert EvidenceStore(folder, lambda: 0.0).list() == (told,)


def test_folder_and_file_are_for_the_owner_alone(store: EvidenceStore, folder: Path) -> None:
    store.store(request(), {})
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()] == [0o600]


def test_the_same_request_id_replaces_what_was_there(store: EvidenceStore) -> None:
    store.store(request(), {"look": 1})
    store.store(request(), {"look": 2})
    assert content(store)["content"] == {"look": 2}
    assert len(store.list()) == 1


def test_the_latest_is_listed_first(folder: Path) -> None:
    moments = iter((30.0, 10.0, 20.0))
    store = EvidenceStore(folder, lambda: next(moments))
    for number in (1, 2, 3):
        store.store(request(number), {})
    assert [told.request_id for told in store.list()] == [uuid(1), uuid(3), uuid(2)]


def test_without_a_folder_there_is_nothing(store: EvidenceStore) -> None:
    assert store.list() == ()
    with pytest.raises(KeyError):
        store.read(uuid(1))


# --- what is kept of odd values -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.nan, "nan"),
        (math.inf, "inf"),
        (b"comm\xff\n", "comm\\xff\n"),
        ("comm\udcff", "comm\\xff"),
        ("lone\ud800", "lone\\ud800"),
        ("schön\0", "schön\0"),
        (10**30, hex(10**30)),
        (10**5000, hex(10**5000)),
        ({3, 1, 2}, [1, 2, 3]),
        ((1, (2,)), [1, [2]]),
        ({1: "a", "1": "b", None: "c"}, {"1": "b", "0x1": "a", "None": "c"}),
        (Path("/x"), "/x"),
        (TargetKind.SHIM, "shim"),
        (True, True),
        (None, None),
    ],
    ids=lambda value: str(value)[:20] if not isinstance(value, int) or abs(value) < 10**40 else "long number",
)
def test_what_json_does_not_know_becomes_text(store: EvidenceStore, value: Any, expected: Any) -> None:
    assert kept(store, value) == expected


class Untellable:
    def __str__(self) -> str:
        raise RuntimeError("no")


class Unwalkable(dict[str, str]):
    def items(self) -> Any:
        raise RuntimeError("changed while it was walked through")


@pytest.mark.parametrize("value", [Untellable(), Unwalkable(a="b"), {Untellable(): 1}])
def test_a_value_that_cannot_be_told_does_not_cost_the_rest(store: EvidenceStore, value: Any) -> None:
    store.store(request(), {"value": value, "rest": "kept"})
    assert "cannot be told: RuntimeError" in json.dumps(content(store)["content"]["value"])
    assert content(store)["content"]["rest"] == "kept"


def test_a_cycle_and_a_deep_nest_end(store: EvidenceStore) -> None:
    cycle: dict[str, Any] = {}
    cycle["again"] = [cycle, cycle]
    nest: list[Any] = []
    for _ in range(100_000):
        nest = [nest]
    store.store(request(), {"cycle": cycle, "nest": nest})
    assert "nested too deeply" in json.dumps(content(store)["content"]["nest"])


# --- bounds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("odd", ["x", "ü", "\udc80", "\0", '"', "😀"], ids=ascii)
def test_a_long_text_is_cut_with_a_note_and_short_ones_are_kept(store: EvidenceStore, odd: str) -> None:
    told = store.store(request(), {"long": odd * 300_000, "short": "kept whole" * 10})
    assert told.size <= MAX_FILE_BYTES
    captured = content(store)["content"]
    assert captured["short"] == "kept whole" * 10
    cut, _, note = captured["long"].partition("[")
    assert note.endswith(" more characters left out]")
    assert len(cut) >= 1024


def test_a_text_that_fits_is_not_cut(store: EvidenceStore) -> None:
    assert kept(store, "x" * (MAX_FILE_BYTES - 1000)) == "x" * (MAX_FILE_BYTES - 1000)


@pytest.mark.parametrize(
    "flood",
    [
        ["x" * 100] * 100_000,
        {str(number): "x" * 100 for number in range(20_000)},
        [[["x" * 200] * 100] * 100] * 100,
        {"k" * 10_000 + str(number): "x" for number in range(3000)},
    ],
    ids=["list", "mapping", "nested", "keys"],
)
def test_too_many_entries_are_left_out_with_a_note(store: EvidenceStore, flood: Any) -> None:
    told = store.store(request(), {"value": flood})
    assert 1000 < told.size <= MAX_FILE_BYTES
    assert "left out]" in json.dumps(content(store))
    assert content(store)["requestId"] == uuid(1)


JSONLIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.characters(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=60)
@given(st.dictionaries(st.text(), JSONLIKE, max_size=4), st.integers(200, 2000))
def test_whatever_was_captured_is_valid_json_within_the_bound(captured: dict[str, Any], bound: int) -> None:
    data = dumps_within(bound, {"id": "x"}, "content", captured)
    assert len(data) <= bound
    read = json.loads(data)
    json.dumps(read, allow_nan=False).encode()
    assert read["id"] == "x"


def test_the_oldest_files_make_room_for_new_ones(store: EvidenceStore, folder: Path) -> None:
    for number in range(MAX_FILES + 3):
        store.store(request(number), {})
        os.utime(folder / f"{uuid(number)}.json", (number, number))
    assert {told.id for told in store.list()} == {uuid(number) for number in range(3, MAX_FILES + 3)}
    store.store(request(MAX_FILES + 2), {})
    assert len(store.list()) == MAX_FILES


def test_the_folder_holds_no_more_than_its_bytes(store: EvidenceStore, folder: Path) -> None:
    folder.mkdir(parents=True)
    for number in range(10):
        path = folder / f"{uuid(number)}.json"
        path.write_bytes(b"x")
        os.truncate(path, 2 * 1024 * 1024)
        os.utime(path, (number, number))
    told = store.store(request(99), {})
    left = {path.stem for path in folder.iterdir()}
    assert left == {*(uuid(number) for number in range(3, 10)), uuid(99)}
    assert 7 * 2 * 1024 * 1024 + told.size <= MAX_TOTAL_BYTES


def test_what_is_just_stored_is_never_the_one_to_go(store: EvidenceStore, folder: Path) -> None:
    for number in range(MAX_FILES):
        store.store(request(number), {})
        os.utime(folder / f"{uuid(number)}.json", (2e9, 2e9))  # the clock was set back since
    store.store(request(500), {})
    assert uuid(500) in {told.id for told in store.list()}


# --- strangers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("evidence_id", ["", ".", "..", "../x", "a/b", "x\0", "/etc/passwd", "A", "-x", "ü", "a" * 65])
def test_an_id_that_is_none_is_unknown(store: EvidenceStore, folder: Path, evidence_id: str) -> None:
    folder.mkdir(parents=True)
    (folder.parent / "x.json").write_text("secret")
    with pytest.raises(KeyError):
        store.read(evidence_id)


@pytest.mark.parametrize("request_id", ["", "../x", "a/b", "X", "x\n"])
def test_a_request_id_that_is_no_name_is_refused(store: EvidenceStore, folder: Path, request_id: str) -> None:
    odd = Request(request_id, Action.KILL_SHIM, Target(TargetKind.SHIM), "me")
    with pytest.raises(EvidenceError, match="send a UUID"):
        store.store(odd, {})
    assert not folder.exists()


def test_what_is_not_ours_or_broken_is_passed_over(store: EvidenceStore, folder: Path) -> None:
    told = store.store(request(), {})
    good = (folder / f"{uuid(1)}.json").read_bytes()
    broken = {
        uuid(2): good,  # says it is another
        uuid(3): good[:-20],
        uuid(4): b"",
        uuid(5): b"\xff\xfe",
        uuid(6): b"[" * 200_000,
        uuid(7): b'{"id": "%s", "requestId": 1, "action": 2, "createdAt": 3}' % uuid(7).encode(),
        uuid(8): good.replace(uuid(1).encode(), uuid(8).encode()).replace(b"2023-11-14T22:13:20.123Z", b"yesterday"),
        uuid(9): b"null",
        uuid(10): good.replace(uuid(1).encode(), uuid(10).encode()) + b" " * MAX_FILE_BYTES,
        "README": b"text",
        "NO-ID": good,
    }
    for name, data in broken.items():
        (folder / f"{name}.json").write_bytes(data)
    os.mkfifo(folder / f"{uuid(11)}.json")
    (folder / f"{uuid(12)}.json").mkdir()
    (folder / f"{uuid(13)}.json").symlink_to("/dev/zero")
    assert store.list() == (told,)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (os.mkfifo, "no regular file"),
        (Path.mkdir, "no regular file"),
        (lambda path: path.symlink_to("/etc/passwd"), "symbolic links"),
        (lambda path: path.write_bytes(bytes(MAX_FILE_BYTES + 1)), "larger than"),
    ],
    ids=["pipe", "folder", "link", "large"],
)
def test_what_cannot_be_ours_is_not_read(store: EvidenceStore, folder: Path, make: Any, why: str) -> None:
    folder.mkdir(parents=True)
    make(folder / f"{uuid(1)}.json")
    with pytest.raises(EvidenceError, match=why):
        store.read(uuid(1))


def test_a_file_that_was_changed_is_told_anew(store: EvidenceStore, folder: Path) -> None:
    before = store.store(request(), {})
    assert store.list() == (before,)
    path = folder / f"{uuid(1)}.json"
    path.write_bytes(path.read_bytes() + b"\n")
    assert store.list()[0].size == before.size + 1


def test_it_is_read_in_chunks(store: EvidenceStore) -> None:
    told = store.store(request(), {"text": "x" * 100_000})
    chunks = list(store.read(uuid(1)))
    assert [len(chunk) for chunk in chunks[:-1]] == [CHUNK_BYTES] * (told.size // CHUNK_BYTES)
    assert sum(map(len, chunks)) == told.size


# --- what was broken off, and what cannot be written --------------------------------------------


def test_a_file_that_was_broken_off_is_not_listed_and_goes_at_the_next(store: EvidenceStore, folder: Path) -> None:
    store.store(request(), {})
    leftover = folder / f"{uuid(2)}.json.tmp"
    leftover.write_text('{"id"')
    assert len(store.list()) == 1
    store.store(request(3), {})
    assert not leftover.exists()


def test_a_failed_store_removes_nothing_and_leaves_nothing(
    store: EvidenceStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(MAX_FILES):
        store.store(request(number), {})

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(EvidenceError, match=r"Input/output error. Nothing is done without it"):
        store.store(request(99), {})
    assert len(list(folder.iterdir())) == MAX_FILES


def test_a_full_disk_is_told_and_leaves_what_was_there(tmp_path: Path) -> None:
    script = FILL + (
        "from agent.acts import Request; from agent.model import Action, Target, TargetKind\n"
        "from agent.remediation.evidence import EvidenceError, EvidenceStore\n"
        "def request(name): return Request(name, Action.KILL_SHIM, Target(TargetKind.SHIM), 'me')\n"
        "store = EvidenceStore(folder / 'evidence', lambda: 1e9)\n"
        "store.store(request('a'), {})\n"
        "fill(folder / 'ballast')\n"
        "try:\n    store.store(request('b'), {'text': 'x' * 200_000})\n"
        "except EvidenceError as error:\n    print(error)\n"
        "print([path.name for path in (folder / 'evidence').iterdir()])\n"
        "(folder / 'ballast').unlink(); store.store(request('b'), {}); print(len(store.list()))"
    )
    full, kept_alone, after = run_with_tmpfs(tmp_path / "disk", script).splitlines()
    assert full.endswith("evidence: No space left on device. Nothing is done without it")
    assert (kept_alone, after) == ("['a.json']", "2")


def test_a_file_in_the_folders_place_is_told(store: EvidenceStore, folder: Path) -> None:
    folder.parent.mkdir()
    folder.write_text("")
    with pytest.raises(EvidenceError, match="cannot be stored in"):
        store.store(request(), {})
    with pytest.raises(EvidenceError, match="cannot be read: Not a directory"):
        store.list()


def test_several_threads_may_store_list_and_read(store: EvidenceStore) -> None:
    failures: list[BaseException] = []

    def work(first: int) -> None:
        try:
            for number in range(first, first + 10):
                told = store.store(request(number), {"text": "x" * 1000})
                assert told in store.list()
                assert sum(map(len, store.read(told.id))) == told.size
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 10, 20, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(store.list()) == 40


def test_nothing_stays_open(store: EvidenceStore) -> None:
    before = open_files()
    for number in range(5):
        store.store(request(number), {"value": number})
        content(store, number)
    store.list()
    assert open_files() == before
