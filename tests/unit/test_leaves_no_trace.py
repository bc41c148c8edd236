"""What compares the machine before and after a lane sees what is left, and nothing where nothing is."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest

from tools import leaves_no_trace
from tools.leaves_no_trace import MARK, OF_SYSTEMD, Machine, cgroups_below, is_below, machine, processes, run, settled

EMPTY = Machine(**dict.fromkeys((each.name for each in fields(Machine)), frozenset()))
SLEEPER = [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"]


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(SLEEPER, env={**os.environ, MARK: "left-by-a-lane"}, stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("kind", [each.name for each in fields(Machine)])
def test_what_comes_and_what_goes_is_reported(kind: str) -> None:
    with_one = replace(EMPTY, **{kind: frozenset({"one"})})
    assert [*with_one.differences(EMPTY)] == [f"{kind}: left one"]
    assert [*EMPTY.differences(with_one)] == ([f"{kind}: gone one"] if kind in leaves_no_trace.LASTING else [])
    assert [*with_one.differences(with_one)] == []


def test_a_folder_that_is_left_is_seen() -> None:
    with tempfile.TemporaryDirectory() as place:
        before = machine({place: ("kube*",)})
        Path(place, "kubelet", "pods").mkdir(parents=True)
        assert machine({place: ("kube*",)}).files - before.files == {f"{place}/kubelet", f"{place}/kubelet/pods"}


def test_the_name_of_a_socket_that_is_left_is_seen() -> None:
    name = f"nodediag-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        assert f"@{name}" in machine({}).sockets
    assert f"@{name}" not in machine({}).sockets


@pytest.mark.parametrize("path", ["/run/user/0/bus", "/run/udev", "/run/log/journal", "/run/credentials/a.service"])
def test_what_systemd_changes_by_itself_is_left_out(path: str) -> None:
    assert is_below(path, OF_SYSTEMD)
    assert not is_below(f"/var{path}", OF_SYSTEMD)


@pytest.mark.parametrize("path", ["/run", "/run/containerd/s/1", "/run/users", "/run/nodediag/nodediag.sock"])
def test_what_the_tests_may_leave_beside_it_is_compared(path: str) -> None:
    assert not is_below(path, OF_SYSTEMD)


def test_files_sockets_and_mounts_of_systemd_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as place, socket.socket(socket.AF_UNIX) as listener:
        Path(place, "user").mkdir()
        listener.bind(f"{place}/user/bus")
        assert f"{place}/user/bus" in machine({}).sockets
        mount = next(iter(sorted(machine({}).mounts))).split()[0]
        monkeypatch.setattr(leaves_no_trace, "OF_SYSTEMD", (f"{place}/user", mount))
        seen = machine({place: ("*",)})
        assert not [each for each in (*seen.files, *seen.sockets) if each.startswith(place)]
        assert not [each for each in seen.mounts if each.startswith(f"{mount} ")]


def test_the_sockets_of_bus_clients_are_left_out() -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.bind("\0" + f"{os.getpid():x}/bus/nodediag-test/system")
        assert not [name for name in machine({}).sockets if name.endswith("/bus/nodediag-test/system")]


def test_cgroups_of_services_and_logins_are_left_out(tmp_path: Path) -> None:
    below = {
        "nodediag-lab-1/pod",
        "kubepods/system.slice",
        "system.slice/a.service",
        "user.slice/user-0.slice",
        "init.scope",
    }
    for each in below:
        (tmp_path / each).mkdir(parents=True)
    found = {folder.removeprefix(str(tmp_path)) for folder in cgroups_below(str(tmp_path))}
    assert found == {"", "/nodediag-lab-1", "/nodediag-lab-1/pod", "/kubepods", "/kubepods/system.slice"}


def test_the_machine_is_read() -> None:
    seen = machine({"/proc": ("self",)})
    assert {each.name for each in fields(seen) if not getattr(seen, each.name)} <= {"rules", "sockets"}
    assert "lo" in seen.links
    assert any(line.startswith("kernel/pid_max = ") for line in seen.sysctls)


def test_a_process_that_is_left_is_known_by_its_mark(sleeper: "subprocess.Popen[bytes]") -> None:
    assert any(line.startswith(f"{sleeper.pid} ") for line in processes("left-by-a-lane"))
    assert [*processes("another-mark")] == []


def test_what_goes_in_time_is_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    left = replace(EMPTY, files=frozenset({"/run/x"}))
    states = iter([left, left, EMPTY])
    monkeypatch.setattr(leaves_no_trace, "machine", lambda: next(states))
    monkeypatch.setattr(leaves_no_trace, "PAUSE_SECONDS", 0.0)
    assert settled(EMPTY, "no-such-mark", seconds=60) == []


def test_a_run_within_a_run_compares_nothing_itself(tmp_path: Path) -> None:
    code = f"import pathlib; pathlib.Path({str(tmp_path / 'made')!r}).touch(); raise SystemExit(7)"
    command = [sys.executable, "-m", "tools.leaves_no_trace", sys.executable, "-c", code]
    done = subprocess.run(command, env={**os.environ, MARK: "outer"}, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 7
    assert (tmp_path / "made").exists()


def test_beside_another_run_only_processes_are_compared(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(leaves_no_trace, "LOCK", tmp_path / "lock")
    states = iter([EMPTY, *[replace(EMPTY, files=frozenset({"/run/x"}))] * 9])
    monkeypatch.setattr(leaves_no_trace, "machine", lambda: next(states))
    assert run(["true"], seconds=0.0) == (0, ["files: left /run/x"])
    with (tmp_path / "lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert run(["true"], seconds=0.0) == (0, [])
    assert "Another run of the tests" in capfd.readouterr().err


def test_a_command_that_leaves_a_process_is_told_of_it() -> None:
    """Other tests come and go meanwhile, so nothing but the process that this one leaves is looked for."""
    leaving = (
        f"import subprocess as s; s.Popen({SLEEPER!r}, stdout=s.DEVNULL, start_new_session=True); raise SystemExit(3)"
    )
    code, left = run([sys.executable, "-c", leaving], seconds=0.0)
    pids = [int(line.split()[2]) for line in left if line.startswith("processes: left ")]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert (code, len(pids)) == (3, 1), left
