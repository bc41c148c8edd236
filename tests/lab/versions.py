"""Which containerd the lab uses: `CONTAINERD=1.6|1.7|2.1` in the environment, 1.6 if it is not set.

`tools/get-containerd` has the binaries of that version, and `choose` puts their folder first on PATH. From then on
"containerd", "ctr" and "runc" mean that version, for the lab and for every process that it starts.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

VERSIONS = ("1.6", "1.7", "2.1")
DEFAULT = VERSIONS[0]

_CHOSEN = "NODEDIAG_LAB_CONTAINERD"
"""Set in the environment by `choose`: the version and the folder, for the processes that inherit PATH."""
_UNAVAILABLE = "NODEDIAG_LAB_CONTAINERD_UNAVAILABLE"
"""Set in the environment by `choose` if the version cannot be had: the version and the reason."""
_TOOL = Path(__file__).resolve().parents[2] / "tools" / "get-containerd"
_CANNOT_BE_HAD = 3


class VersionUnavailableError(Exception):
    """The chosen version cannot be had on this machine; the message says why."""


@dataclass(frozen=True)
class Chosen:
    """A version of containerd, and the folder of its binaries."""

    version: str
    folder: Path

    def __str__(self) -> str:
        return f"containerd {self.version} from {self.folder}"


def containerd_version() -> str:
    """Return the version that this run uses: "1.6", "1.7" or "2.1"."""
    version = os.environ.get("CONTAINERD") or DEFAULT
    if version not in VERSIONS:
        raise ValueError(f"CONTAINERD is {version!r}; it must be one of {', '.join(VERSIONS)}")
    return version


def is_at_least(major: int) -> bool:
    """Return whether the version that this run uses has this major version or a later one."""
    return int(containerd_version().split(".")[0]) >= major


def choose() -> Chosen:
    """Put the binaries of the chosen version first on PATH, and fetch them if they are not there.

    It may be called again, also by a process that was started from here: the first call decides.
    """
    version = containerd_version()
    chosen, _, folder = os.environ.get(_CHOSEN, "").partition(" ")
    if chosen == version:
        return Chosen(version, Path(folder))
    failed, _, reason = os.environ.get(_UNAVAILABLE, "").partition(" ")
    if failed == version:
        raise VersionUnavailableError(reason)
    try:
        found = Chosen(version, _get(version))
    except VersionUnavailableError as error:
        os.environ[_UNAVAILABLE] = f"{version} {error}"
        raise
    os.environ["PATH"] = f"{found.folder}:{os.environ['PATH']}"
    os.environ[_CHOSEN] = f"{version} {found.folder}"
    return found


def _get(version: str) -> Path:
    done = subprocess.run([_TOOL, version], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return Path(done.stdout.strip())
    if done.returncode == _CANNOT_BE_HAD:
        raise VersionUnavailableError(done.stderr.strip().splitlines()[-1])
    raise RuntimeError(f"{_TOOL} {version}: exit {done.returncode}: {done.stderr.strip()}")
