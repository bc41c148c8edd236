"""Writes to one file of one cgroup: the thaw of a freezer, the kill of a container.

The directory is walked from fs/cgroup one step at a time, without following links, and the file is held open: what is
written to is what was opened, whatever becomes of the path. The root of a hierarchy is never opened.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from agent.host.rights import Rights
from agent.remediation.remedy import ActError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Switch:
    """One file of a cgroup, open for writing."""

    def __init__(self, file: int, name: str) -> None:
        self._file = file
        self._name = name

    def turn(self, value: str) -> None:
        """Write a value. Raises ActError with what would help."""
        try:
            os.write(self._file, value.encode())
        except OSError as error:
            raise ActError(f"{self._name} was not written: {why_not(error)}") from None


@contextmanager
def opened(sysfs: str, directory: str, name: str) -> Iterator[Switch]:
    """Hold a file of the cgroup in `directory` below fs/cgroup: `freezer/a/b` on v1, `/a/b` or `unified/a/b` on v2.

    Raises OSError (see `why_not`): ENOENT without such a cgroup or file, EINVAL for a hierarchy's root and for a path
    that is no plain one, ELOOP or ENOTDIR for a link.
    """
    mount, *steps = directory.split("/")
    if not steps or {"", ".", ".."} & set(steps) or mount in {".", ".."}:
        raise OSError(errno.EINVAL, "not a cgroup below a hierarchy's root", directory)
    root = f"{sysfs}/fs/cgroup"
    if not mount and not os.path.exists(f"{root}/cgroup.procs"):  # noqa: PTH110 - no v2 hierarchy, but v1's mounts
        raise OSError(errno.ENOENT, "cgroup v2 is not mounted there", root)
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for step in [mount, *steps] if mount else steps:
            below = os.open(step, _FOLDER, dir_fd=folder)
            os.close(folder)
            folder = below
        file = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    finally:
        os.close(folder)
    try:
        yield Switch(file, f"{name} of cgroup /{'/'.join(steps)}")
    finally:
        os.close(file)


def why_not(error: OSError) -> str:
    """Say why a cgroup could not be written to, and what would help."""
    if error.errno == errno.EROFS:
        return "/sys is mounted read-only here; mount /sys/fs/cgroup writable, as the overlay for remediation does"
    if error.errno in {errno.EACCES, errno.EPERM}:
        return str(Rights().write("the cgroup's file"))
    if error.errno in {errno.ENOENT, errno.ENODEV}:
        return "the cgroup is gone"
    return str(error.strerror)
