"""A socket nobody can reach but us: grpc listens on it, behind `agent.api.doorkeeper`."""

import os
import secrets
import socket
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from agent.api.endpoint import SCHEME

FOLDERS = (Path("/run"), Path("/dev/shm"), Path("/tmp"))  # noqa: S108 - for a folder of mode 0700 and a random name
"""Where something may usually be made, in a container with a read-only root too."""


class HiddenSocket:
    """Made in a folder only we can enter, and then taken away from there. Raises OSError if no folder can be made.

    A descriptor opened with O_PATH can be connected to through /proc/self/fd after the file is gone, and leaves nothing
    to clean up after a crash. It also spares the limit on the length of a path.
    """

    def __init__(self, folders: Sequence[Path] = FOLDERS) -> None:
        self._folder = _private_folder(folders)
        self._name = secrets.token_hex(8)
        self._descriptors = [os.open(self._folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)]
        self._path = f"/proc/self/fd/{self._descriptors[0]}/{self._name}"
        self.address = f"{SCHEME}{self._path}"

    def hide(self) -> None:
        """Take the file away, now that grpc listens there. Raises OSError."""
        self._descriptors.append(os.open(self._path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC))
        self._path = f"/proc/self/fd/{self._descriptors[-1]}"
        self._remove()

    def connect(self, name: str) -> socket.socket:
        """Return a connection to it, our end bound to this abstract name. Raises OSError."""
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.setblocking(False)
            connection.bind(f"\0{name}")
            connection.connect(self._path)
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        """Forget it."""
        self._remove()
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _remove(self) -> None:
        with suppress(OSError):
            (self._folder / self._name).unlink(missing_ok=True)
            self._folder.rmdir()


def _private_folder(folders: Sequence[Path]) -> Path:
    for folder in folders[:-1]:
        with suppress(OSError):
            return Path(tempfile.mkdtemp(prefix=".nodediag-", dir=folder))
    return Path(tempfile.mkdtemp(prefix=".nodediag-", dir=folders[-1]))
