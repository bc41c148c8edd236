"""systemd's units as far as cgroups and files show them: no bus is needed.

systemd names the cgroup of a unit after the unit, on cgroup v1 in its own hierarchy `name=systemd` (systemd.slice(5)).
"""

import os
from pathlib import Path

from agent.host import cgroups

UNIT_SUFFIXES = (".service", ".scope", ".slice")
"""The types of units that have a cgroup with processes in it or below it (systemd.unit(5))."""
UNIT_FOLDERS = (
    "etc/systemd/system.control",
    "run/systemd/system.control",
    "run/systemd/transient",
    "run/systemd/generator.early",
    "etc/systemd/system",
    "etc/systemd/system.attached",
    "run/systemd/system",
    "run/systemd/system.attached",
    "run/systemd/generator",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
    "run/systemd/generator.late",
)
"""Where the system manager loads unit files from (systemd.unit(5), table 1)."""
MANAGERS = ("usr/lib/systemd/systemd", "lib/systemd/systemd")
"""The system manager's program: where it is missing, the folders above are not those of the node."""


def service_cgroup(lines: tuple[str, ...]) -> str:
    """Return the cgroup of the service a process runs in, from its /proc/N/cgroup lines; empty if it is in none.

    `/system.slice/kubelet.service`, also for a process in a cgroup below that.
    """
    by_controller = cgroups.paths(lines)
    for controller in ("name=systemd", ""):
        steps = by_controller.get(controller, "").split("/")
        for length in range(len(steps), 0, -1):
            if steps[length - 1].endswith(".service"):
                return "/".join(steps[:length])
    return ""


def unit_of(cgroup: str) -> str:
    """Return the unit a cgroup is named after; empty if it is not a unit's own cgroup."""
    name = cgroup.rpartition("/")[2]
    return name if name.endswith(UNIT_SUFFIXES) else ""


def is_removed(unit: str, root: Path = Path("/")) -> bool:
    """Whether systemd runs this machine and no unit file of this name exists any more.

    False where systemd's folders are not visible, as in a container, also in one that has the node's /run alone. A
    mask, which is a link to /dev/null, is no unit file: a package that is removed may leave it.
    """
    booted = (root / "run/systemd/system").is_dir()  # sd_booted(3)
    if not booted or not any(_exists(root / each) for each in MANAGERS):
        return False
    template, at, _ = unit.partition("@")
    names = (unit, f"{template}@.{unit.rpartition('.')[2]}") if at else (unit,)
    return not any(_is_unit_file(root / folder / name) for folder in UNIT_FOLDERS for name in names)


def _is_unit_file(path: Path) -> bool:
    return _exists(path) and not (path.is_symlink() and os.readlink(path) == "/dev/null")


def _exists(path: Path) -> bool:
    """Whether there is such a file or link; a link's destination does not matter, and what may not be read exists."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True
