"""The pause switch, with real files."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.remediation.pause import MAX_TEXT, paused

SINCE = 1_700_000_000


def pause(folder: Path, content: bytes) -> str:
    path = folder / "paused"
    path.write_bytes(content)
    os.utime(path, (SINCE, SINCE))
    return paused(folder)


def test_without_the_file_nothing_is_paused(tmp_path: Path) -> None:
    assert paused(tmp_path) == ""


def test_a_missing_state_folder_is_no_pause(tmp_path: Path) -> None:
    assert paused(tmp_path / "state") == ""


def test_the_first_line_says_why_and_the_file_since_when(tmp_path: Path) -> None:
    said = pause(tmp_path, b"\nchange freeze, ask storage  \nsecond line\n")
    assert said == f"change freeze, ask storage ({tmp_path}/paused, since 2023-11-14T22:13:20Z)"


def test_an_empty_file_pauses(tmp_path: Path) -> None:
    assert pause(tmp_path, b"") == f"no reason given ({tmp_path}/paused, since 2023-11-14T22:13:20Z)"


def test_removing_the_file_ends_the_pause(tmp_path: Path) -> None:
    assert pause(tmp_path, b"freeze")
    (tmp_path / "paused").unlink()
    assert paused(tmp_path) == ""


@pytest.mark.parametrize("content", [b"\xff\xfe\x00freeze", b"\x1b[2Jfreeze", "a\u202eb".encode(), b"\0"])
def test_what_is_shown_is_printable(tmp_path: Path, content: bytes) -> None:
    said = pause(tmp_path, content)
    assert said
    assert said.isprintable()


@pytest.mark.parametrize("length", [MAX_TEXT, MAX_TEXT + 1, 1_000_000])
def test_a_long_reason_is_cut(tmp_path: Path, length: int) -> None:
    line = pause(tmp_path, b"x" * length).split(" (")[0]
    assert len(line) == MAX_TEXT
    assert line.endswith("...") is (length > MAX_TEXT)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


def link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


@pytest.mark.parametrize(
    "make",
    [Path.mkdir, os.mkfifo, link_to("/nowhere"), link_to("/dev/zero"), make_socket],
    ids=["folder", "pipe", "dangling link", "link to a device", "socket"],
)
def test_whatever_else_is_named_so_pauses_and_never_blocks(
    tmp_path: Path, make: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path may be too long
    make(Path("paused"))
    assert "not as a regular file; that counts as a pause" in paused(tmp_path)


def test_a_state_folder_that_is_a_file_pauses(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.write_text("")
    assert paused(state) == f"{state}/paused cannot be looked at (Not a directory); that counts as a pause"


def test_a_name_that_is_too_long_pauses(tmp_path: Path) -> None:
    assert "(File name too long); that counts as a pause" in paused(tmp_path / ("x" * 300))


def test_a_folder_that_may_not_be_looked_into_pauses(tmp_path: Path) -> None:
    (tmp_path / "paused").write_text("freeze")
    script = (
        "import os, sys; from pathlib import Path; from agent.remediation.pause import paused\n"
        "folder = Path(sys.argv[1]); folder.chmod(0); os.setgid(65534); os.setuid(65534)\n"
        "print(paused(folder))"
    )
    try:
        run = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    finally:
        tmp_path.chmod(0o700)
    assert run.stdout == f"{tmp_path}/paused cannot be looked at (Permission denied); that counts as a pause\n"


def test_a_moment_that_is_no_date_does_not_hide_the_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "paused").write_text("freeze")
    seen = (tmp_path / "paused").lstat()
    broken = os.stat_result([*seen[:8], 1e300, *seen[9:]], {"st_mtime": 1e300})
    monkeypatch.setattr(Path, "lstat", lambda _: broken)
    assert paused(tmp_path).startswith("freeze (")
