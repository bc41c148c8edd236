"""Lines of /proc/N/stat for an agent that AppArmor or SELinux confines, made of what they do not record.

Whenever `stat` is read the kernel checks ptrace rights, to hide addresses in it, and a security module that denies them
writes an audit record each time, although the file is read all the same: thousands a minute. `status` takes no such
check (fs/proc/array.c) but has no start time, so that alone is taken from `stat`, once for each process.
"""

from collections.abc import Callable, Collection

MAX_STATUS_BYTES = 4096
_FIELDS_BETWEEN = b" 0" * 17
"""Those of `stat` between the parent's pid and the start time (proc(5)), of which nothing is used."""


class QuietStat:
    """Remembers the start time of each process by its pid and name. `read` reads a file below the procfs root."""

    def __init__(self, read: Callable[[str, int], bytes], start_time: Callable[[bytes], int]) -> None:
        self._read = read
        self._start_time = start_time
        self._started: dict[int, tuple[bytes, int]] = {}

    def line(self, pid: int) -> bytes:
        """Return a process's line. Raises OSError if it is gone, ValueError if its files are not as in proc(5)."""
        status = dict(
            each.partition(b":\t")[::2] for each in self._read(f"{pid}/status", MAX_STATUS_BYTES).split(b"\n")
        )
        name, state, parent = status.get(b"Name", b""), status.get(b"State", b"")[:1], status.get(b"PPid", b"")
        if not state or not parent.isdigit():
            raise ValueError(f"not what /proc/N/status has: {status!r:.80}")
        known, started = self._started.get(pid, (b"", 0))
        if known != name or not started:  # another process, or another program of the same one
            started = self._start_time(self._read(f"{pid}/stat", MAX_STATUS_BYTES))
            self._started[pid] = (name, started)
        return b"%d (%s) %s %s%s %d" % (pid, name, state, parent, _FIELDS_BETWEEN, started)

    def keep(self, pids: Collection[int]) -> None:
        """Forget all processes but these."""
        known = self._started.copy()  # in one step: other threads add to it meanwhile
        self._started = {pid: known[pid] for pid in known if pid in pids}
