"""Processes, by the files of /proc that never block.

Only `stat`, `status`, `wchan`, `cgroup` and the `cwd` link are read. `cmdline`, `environ`, `maps`
and `exe` take the target's mmap lock and can block for ever on a process in D state, so they
are never read here (proc(5); FIELD of `ps` hangs). Two that can wait, `stack` and `syscall`, are read for
evidence alone, by who has a thread to lose (see `Procfs.file`).
"""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Literal, NamedTuple, TypeAlias

from agent.host import local_addresses
from agent.host.backoff import CONFINEMENT, RETRY_SECONDS, Backoff
from agent.host.quiet_stat import QuietStat
from agent.host.rights import Rights
from agent.model import DeploymentFault, ProcessId

INIT_PID = 1
MAX_STAT_BYTES = 2048
TURN_SECONDS = 5.0
"""How long one that reads all of /proc waits for another to end."""
MAX_FILE_BYTES = 16384
_ALL = "all processes"
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
ProcessFile: TypeAlias = Literal["stat", "status", "wchan", "stack", "syscall"]
"""The files of a process or thread that may be had as they are."""
CgroupNames: TypeAlias = Callable[[tuple[str, ...]], tuple[str, ...]]


def state_and_place(state: str, wchan: str) -> str:
    """Return `state S, in futex_do_wait`; a process of which no wait channel is known may run, or it may be hidden."""
    place = wchan or {"R": "user space", "D": "the kernel"}.get(state, "")
    return f"state {state}, in {place}" if place else f"state {state}"


class Process(NamedTuple):
    """One line of /proc/N/stat, as far as it is used. `comm` is up to 15 bytes chosen by the process itself."""

    pid: int
    comm: str
    state: str
    ppid: int
    start_time: int

    @property
    def id(self) -> ProcessId:
        """Identity beyond the pid."""
        return ProcessId(self.pid, self.start_time)


class Zombie(NamedTuple):
    """A defunct process; a plain tuple, because there may be tens of thousands."""

    pid: int
    start_time: int
    ppid: int
    comm: bytes


@dataclass(frozen=True, slots=True)
class Scan:
    """All processes at one moment: how many in each state, and the defunct ones by their stat line."""

    states: Mapping[str, int]
    zombies: Mapping[bytes, Zombie]


def parse_stat(line: bytes) -> Process:
    """Parse one line of /proc/N/stat (proc(5)).

    `comm` may hold spaces, parentheses, newlines and bytes that are no text, so the line is
    split at its last `)`. Raises ValueError if it is no such line.
    """
    opening, closing = line.find(b"("), line.rfind(b")")
    rest = line[closing + 2 :].split(None, 20)
    if opening < 1 or closing < opening or len(rest) < 20:
        raise ValueError(f"not a line of /proc/N/stat: {line[:80]!r}")
    comm = line[opening + 1 : closing].decode(errors="backslashreplace")
    return Process(int(line[:opening]), comm, rest[0].decode(), int(rest[1]), int(rest[19]))


def _parse_zombie(line: bytes, state_at: int) -> Zombie | None:
    rest = line[state_at:].split(None, 20)
    opening = line.find(b"(")
    try:
        return Zombie(int(line[:opening]), int(rest[19]), int(rest[1]), line[opening + 1 : state_at - 2])
    except (ValueError, IndexError):
        return None


def _parse_all(lines: Iterable[bytes]) -> Iterator[Process]:
    """The processes behind these lines; one that is cut off is passed over, as if it had gone away."""
    for line in lines:
        try:
            yield parse_stat(line)
        except ValueError:
            continue


def _is_defunct(line: bytes) -> bool:
    at = line.rfind(b")") + 2
    return line[at : at + 1] in {b"Z", b"X"}


def _count(lines: Iterable[bytes], known: Mapping[bytes, Zombie]) -> Scan:
    """Count processes by the state in their lines, and return the defunct ones."""
    states: dict[str, int] = {}
    zombies: dict[bytes, Zombie] = {}
    for line in lines:
        at = line.rfind(b")") + 2
        state = line[at : at + 1].decode(errors="replace")
        states[state] = states.get(state, 0) + 1
        if state == "Z" and (zombie := known.get(line) or _parse_zombie(line, at)):
            zombies[line] = zombie
    return Scan(states, zombies)


class PtraceGuard:
    """What takes ptrace rights on other processes: explained by our rights, and not tried for a while if recorded."""

    def __init__(self, rights: Rights | None = None, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._rights = rights or Rights()
        self._monotonic = monotonic
        self._backoff = Backoff(monotonic)
        self._latest: tuple[float, DeploymentFault] | None = None
        self._probed: float | None = None

    def recorded(self, probe: Callable[[], object]) -> bool:
        """Whether a check of ptrace rights on another process is denied and recorded, by a probe once a minute.

        Only a security module records it, so without one that confines us nothing is probed.
        """
        now = self._monotonic()
        if not self._all_held_off() and (self._probed is None or now - self._probed >= RETRY_SECONDS):
            self._probed = now
            if self._rights.held().confined:
                probe()
        return self._all_held_off()

    def held_off(self, pid: int) -> bool:
        """Whether nothing of the kind is to be tried now of this process."""
        return self._all_held_off() or self._backoff.held_off(pid) is not None

    def denied(self, pid: int, path: str) -> DeploymentFault:
        """Take note that a file was denied, and return why. A security module denies it of every process."""
        fault = self._rights.process(path)
        self._backoff.note(_ALL if fault.cause in CONFINEMENT else pid, fault)
        self._latest = (self._monotonic(), fault)
        return fault

    def granted(self) -> None:
        """Take note that a file was read, which a security module that denied it no longer does."""
        if self._latest is not None and self._latest[1].cause in CONFINEMENT:
            self._latest = None

    def _all_held_off(self) -> bool:
        return self._backoff.held_off(_ALL) is not None

    def latest(self) -> DeploymentFault | None:
        """Return the last denial, unless it is older than the time after which it would have been tried again."""
        if self._latest is None:
            return None
        at, fault = self._latest
        return fault if self._monotonic() - at < 2 * RETRY_SECONDS else None


class Procfs:
    """Reads below one procfs root, such as /proc or /host/proc.

    `cgroup_names` puts the node's names of cgroups in place of those seen from here (see `cgroup_namespace`).
    `guard` explains, and backs off from, what takes ptrace rights. `exact`: the start time of a process is read anew
    each time, as it must be of one that is acted on; else it may be remembered (see `quiet_stat`).
    """

    def __init__(
        self,
        root: str,
        cgroup_names: CgroupNames = lambda lines: lines,
        guard: "PtraceGuard | None" = None,
        *,
        exact: bool = False,
    ) -> None:
        self._root = root
        self._cgroup_names = cgroup_names
        self._guard = guard or PtraceGuard()
        self._exact = exact
        self._quiet_stat = QuietStat(self._read, lambda line: parse_stat(line).start_time)
        self._turn = threading.Lock()

    def scan(self, known: Mapping[bytes, Zombie]) -> Scan:
        """Count all processes by state and return the defunct ones.

        A zombie's line no longer changes, so one that is in `known`, the result of the scan before, is
        not parsed again. Written as one flat loop: on a sick node it runs over tens of thousands.
        A process that goes away meanwhile, or whose line is cut off, is passed over. Raises OSError if the root
        cannot be read.
        """
        quiet = self._is_quiet()
        with self._in_turn():
            return _count(self._quiet_lines(), known) if quiet else self._scan(known)

    def _scan(self, known: Mapping[bytes, Zombie]) -> Scan:
        states: dict[bytes, int] = {}
        zombies: dict[bytes, Zombie] = {}
        open_, read, close, flags = os.open, os.read, os.close, os.O_RDONLY
        root = open_(self._root, flags | os.O_DIRECTORY)
        try:
            for name in os.listdir(root):
                if not name[0].isdigit():
                    continue
                try:
                    stat = open_(name + "/stat", flags, dir_fd=root)
                except OSError:
                    continue
                try:
                    line = read(stat, MAX_STAT_BYTES)
                except OSError:
                    continue
                finally:
                    close(stat)
                at = line.rfind(b")") + 2
                state = line[at : at + 1]
                if at < 2 or not state:
                    continue
                states[state] = states.get(state, 0) + 1
                if state == b"Z" and (zombie := known.get(line) or _parse_zombie(line, at)):
                    zombies[line] = zombie
        finally:
            close(root)
        return Scan({state.decode(errors="replace"): count for state, count in states.items()}, zombies)

    def processes(self) -> tuple[Process, ...]:
        """Return every process with a readable stat. Raises OSError if the root cannot be read."""
        with self._in_turn():
            return tuple(_parse_all(self._stat_lines()))

    def living(self) -> tuple[Process, ...]:
        """Return every process that is not defunct; of tens of thousands of zombies none is parsed. Raises OSError."""
        with self._in_turn():
            return tuple(_parse_all(line for line in self._stat_lines() if not _is_defunct(line)))

    def process(self, pid: int) -> Process | None:
        """Return one process, or None if it is gone."""
        try:
            line = self._quiet_stat.line(pid) if self._is_quiet() else self._read(f"{pid}/stat", MAX_STAT_BYTES)
            return parse_stat(line)
        except (OSError, ValueError):
            return None

    def named(self, comm: str) -> tuple[Process, ...]:
        """Return the processes with exactly this comm (15 bytes at most)."""
        wanted = f"({comm})".encode()
        with self._in_turn():
            return tuple(p for p in _parse_all(line for line in self._stat_lines() if wanted in line) if p.comm == comm)

    def wchan(self, pid: int) -> str:
        """Return the kernel function a process sleeps in; empty if it runs, is gone or may not be seen.

        The file has `0` where ptrace rights are missing, so the link `cwd`, which takes the same rights, is read first.
        """
        if not self.cwd(pid):
            return ""
        text = self._text(f"{pid}/wchan", 128)
        return "" if text == "0" else text

    def cwd(self, pid: int) -> str | None:
        """Return a process's working directory as the kernel tells it, ` (deleted)` included.

        Empty if the process is gone, None if it lives and its directory may not be seen (see `ptrace_denied`).
        """
        if self._guard.held_off(pid):
            return None
        path = f"{self._root}/{pid}/cwd"
        try:
            directory = os.readlink(path)
        except PermissionError:
            self._guard.denied(pid, path)
            return None
        except OSError:
            return ""
        self._guard.granted()
        return directory

    def ptrace_denied(self) -> DeploymentFault | None:
        """Return why ptrace rights on other processes were denied in the last minute; None if they were not."""
        return self._guard.latest()

    def nested(self, pid: int) -> bool:
        """Whether a process lives in a pid namespace below this procfs's: another node's (kind) or a container's.

        `NSpid` of /proc/N/status has one number per namespace (proc(5), Linux 4.1); it takes no rights to read.
        """
        lines = self._text(f"{pid}/status", MAX_FILE_BYTES).split("\n")
        return any(line.startswith("NSpid:") and len(line.split()) > 2 for line in lines)

    def uid(self, pid: int) -> int | None:
        """Return the real uid of a process; None if it is gone."""
        lines = self._text(f"{pid}/status", MAX_FILE_BYTES).split("\n")
        words = next((line.split() for line in lines if line.startswith("Uid:")), [])
        return int(words[1]) if len(words) > 1 and words[1].isdigit() else None

    def cgroups(self, pid: int) -> tuple[str, ...]:
        """Return the lines of /proc/N/cgroup (cgroups(7)); empty if the process is gone."""
        lines = self._text(f"{pid}/cgroup", MAX_FILE_BYTES).split("\n")
        return self._cgroup_names(tuple(line for line in lines if line))

    def threads(self, pid: int, limit: int) -> tuple[int, ...]:
        """Return the ids of a process's threads, at most so many. Raises OSError if it is gone."""
        with os.scandir(f"{self._root}/{pid}/task") as entries:
            return tuple(int(entry.name) for entry in islice(entries, limit) if entry.name.isdigit())

    def has_ended(self, process: Process) -> bool:
        """Whether a process has ended, as far as its line tells: a first thread may be defunct before the others."""
        if process.state not in {"Z", "X"}:
            return False
        try:
            return len(self.threads(process.pid, 2)) < 2
        except OSError:
            return True

    def file(self, pid: int, name: ProcessFile, thread: int | None = None) -> str:
        """Return one small file of a process, or of one of its threads, as the kernel wrote it.

        Raises OSError, with the reason, if it is gone or may not be read. `stack` and `syscall` wait while the process
        is inside execve(2), on old kernels for as long as one of its threads cannot die.
        """
        folder = str(pid) if thread is None else f"{pid}/task/{thread}"
        return self._read(f"{folder}/{name}", MAX_FILE_BYTES).decode(errors="backslashreplace").strip()

    def local_addresses(self, pid: int) -> frozenset[str]:
        """Return the IP addresses of the network namespace a process lives in, loopback left out."""
        return local_addresses.ipv4(self._text(f"{pid}/net/fib_trie", 1 << 18)) | local_addresses.ipv6(
            self._text(f"{pid}/net/if_inet6", 1 << 16)
        )

    def boot_id(self) -> str:
        """Return this boot's UUID; empty if it cannot be read."""
        return self._text("sys/kernel/random/boot_id", 64)

    def tasks(self) -> int | None:
        """Return how many tasks (processes and threads, zombies too) hold a pid; None if it cannot be read.

        The fourth word of /proc/loadavg is `running/total` (proc(5)).
        """
        words = self._text("loadavg", 128).split()
        total = words[3].partition("/")[2] if len(words) > 3 else ""
        return int(total) if total.isdigit() else None

    def pid_max(self) -> int | None:
        """Return kernel.pid_max, or None if it cannot be read."""
        text = self._text("sys/kernel/pid_max", 32)
        return int(text) if text.isdigit() else None

    def age_seconds(self, process: ProcessId) -> float | None:
        """Return how long ago a process was started; None if it is gone, defunct included."""
        now = self.process(process.pid)
        if now is None or now.id != process or now.state == "Z":
            return None
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - process.start_time / CLOCK_TICKS)

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        """Let one thread at a time read all of /proc: two take twice the CPU time, handing the interpreter to and fro.

        Whoever has waited too long goes ahead: one that hangs must not hold up another.
        """
        mine = self._turn.acquire(timeout=TURN_SECONDS)
        try:
            yield
        finally:
            if mine:
                self._turn.release()

    def _is_quiet(self) -> bool:
        """Whether to keep to files whose reading is not recorded on the node."""
        return not self._exact and self._guard.recorded(lambda: self.cwd(INIT_PID))

    def _quiet_lines(self) -> Iterator[bytes]:
        pids = {int(name) for name in os.listdir(self._root) if name.isdigit()}
        self._quiet_stat.keep(pids)
        for pid in pids:
            with suppress(OSError, ValueError):
                yield self._quiet_stat.line(pid)

    def _stat_lines(self) -> Iterator[bytes]:
        if self._is_quiet():
            yield from self._quiet_lines()
            return
        root = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for name in os.listdir(root):
                if not name.isdigit():
                    continue
                try:
                    stat = os.open(f"{name}/stat", os.O_RDONLY, dir_fd=root)
                except OSError:
                    continue
                try:
                    line = os.read(stat, MAX_STAT_BYTES)
                except OSError:
                    continue
                finally:
                    os.close(stat)
                yield line
        finally:
            os.close(root)

    def _read(self, path: str, limit: int) -> bytes:
        """Read up to `limit` bytes, however many reads that takes: the net files come a page at a time."""
        with open(f"{self._root}/{path}", "rb") as stream:
            return stream.read(limit)

    def _text(self, path: str, limit: int) -> str:
        try:
            return self._read(path, limit).decode(errors="backslashreplace").strip()
        except OSError:
            return ""
