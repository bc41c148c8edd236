"""Each lane can be run by itself in a fresh clone, and `make test` runs all of them, also after one has failed."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LANES = ("watching", "remediation", "cluster", "image", "parts", "lab", "lab-2.1", "delivery")
PYTHON = """#!/bin/sh
echo "$*" >>"{ran}"
case "$*" in *"{fails}"*) exit 1 ;; esac
"""


def program(file: Path, text: str) -> None:
    """Write an executable file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)


def make(*words: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run make as from a shell of one's own, with the programs of `path` before all others."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    environment["PATH"] = f"{path}:{environment['PATH']}" if path else environment["PATH"]
    command = ["make", "--no-print-directory", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def stubs(tmp_path: Path) -> Path:
    """A folder in which pip and every package are installed already, as far as the tools can see."""
    for name in ("pip", "dpkg-query"):
        program(tmp_path / "bin" / name, "#!/bin/sh\necho installed\n")
    return tmp_path


@pytest.mark.parametrize("lane", LANES)
def test_a_lane_installs_what_it_needs_before_it_runs(lane: str) -> None:
    done = make("--dry-run", f"lane-{lane}", "VENV=no-such-folder", "PYTHON=python3")
    before, _, _ = done.stdout.partition("pytest")
    assert "tools/setup python3 no-such-folder test" in before, done.stdout + done.stderr
    assert "tools/debian-packages" in before


@pytest.mark.parametrize("fails", ["tests/integration", "tests/machine", "tests/parts", "tests/vm", "nothing"])
def test_every_lane_runs_after_one_has_failed_and_the_failure_is_kept(stubs: Path, fails: str) -> None:
    ran = stubs / "ran"
    program(stubs / "bin" / "python", PYTHON.format(ran=ran, fails=fails))
    done = make(
        "on-real-parts", f"VENV={stubs}", "PYTHON=python3", "LANES=lane-parts-1.7 lane-delivery", path=stubs / "bin"
    )
    assert (done.returncode == 0) == (fails == "nothing"), done.stdout + done.stderr
    started = ran.read_text()
    for each in ("tests/integration", "tests/machine", "tests/parts", "tests/delivery", "tests/vm"):
        assert f"pytest {each}" in started


def test_a_second_call_installs_nothing(stubs: Path) -> None:
    program(stubs / "bin" / "pip", f'#!/bin/sh\necho "$*" >>{stubs}/ran\n')
    for extras in ("test,lint", "test,lint", "test", ""):
        subprocess.run([ROOT / "tools" / "setup", "python3", stubs, extras], cwd=ROOT, check=True)
    assert (stubs / "ran").read_text().count("install ") == 1
    subprocess.run([ROOT / "tools" / "setup", "python3", stubs, "lab"], cwd=ROOT, check=True)
    assert (stubs / "ran").read_text().count("install ") == 2
