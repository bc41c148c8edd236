"""The version that CONTAINERD names is the one that runs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from .containerd import Containerd
from .versions import choose, containerd_version

pytestmark = pytest.mark.lab


@pytest.mark.parametrize("program", ["containerd", "ctr", "containerd-shim-runc-v2", "runc"])
def test_a_program_found_by_its_name_is_that_of_the_version(program: str) -> None:
    assert shutil.which(program) == str(choose().folder / program)


def test_the_running_daemon_is_of_the_version() -> None:
    with Containerd() as containerd:
        assert f" {containerd_version()}." in containerd.ctr("version").stdout.split("Server:")[1]
        assert Path(f"/proc/{containerd.pid}/exe").resolve() == (choose().folder / "containerd").resolve()


def test_runc_runs_with_the_libraries_of_its_version() -> None:
    done = subprocess.run(["runc", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("runc version ")


def test_choosing_again_changes_nothing() -> None:
    before = os.environ["PATH"]
    assert choose() == choose()
    assert os.environ["PATH"] == before
