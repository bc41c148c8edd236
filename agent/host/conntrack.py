"""Connection tracking: its counters, how full its table is, and which DNS flows wait for an answer.

Reads only. The counters come over netlink (`agent.host.ctnetlink`), else from /proc/net/stat/nf_conntrack; both belong
to the network namespace of the calling thread. The kernel counts per CPU in 32 bits that wrap, so a rise is taken per
CPU and then summed.

Nothing is asked over netlink where conntrack is not loaded: the mere question would make
the kernel load it (nfnetlink's request_module), and a sense changes nothing.
"""

import errno
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from agent.host.ctnetlink import EVENTS, CpuCounters, Netlink
from agent.host.rights import Rights
from agent.model import CannotSeeError, DeploymentFault

_PROC_NAMES = {"icmp_error": "error", "clashres": "clash_resolve", "chainlength": "chain_toolong"}
"""Columns of /proc/net/stat/nf_conntrack that are named otherwise than over netlink."""

COUNTER_MODULUS = 1 << 32
PLAUSIBLE_RISE = 1 << 28
"""More than this on one CPU between two looks is no traffic: the counters began anew."""

MAX_FILE_BYTES = 1 << 21
MAX_CPUS = 8192
UDP_TIMEOUT_SECONDS = 30
"""net.netfilter.nf_conntrack_udp_timeout where it cannot be read: the kernel's default."""


class NotTrackedError(Exception):
    """Conntrack is not loaded in this kernel, so no connection is tracked and none can be lost to it."""


@dataclass(frozen=True, slots=True)
class ConntrackSample:
    """One reading. `limit` 0 means no limit; None stands for what could not be read.

    `source` is `netlink` or `procfs`; `blind` says what this reading cannot show and why,
    and is empty if it shows everything; `fault` is set if the agent's deployment is why.
    """

    counters: CpuCounters
    entries: int | None
    limit: int | None
    source: str
    blind: str = ""
    fault: DeploymentFault | None = None


@dataclass(frozen=True, slots=True)
class Rise:
    """What the counters rose by between two samples, summed over the CPUs.

    `reset` says that the counters began anew in between: then nothing is known and every
    rise is 0.
    """

    events: Mapping[str, int]
    reset: bool = False


@dataclass(frozen=True, slots=True)
class DnsFlow:
    """A tracked UDP flow to port 53 that has seen no answer.

    `waited_seconds` is the time since its last packet, from the entry's remaining timeout.
    """

    source: str
    source_port: int
    server: str
    waited_seconds: int


@dataclass(frozen=True, slots=True)
class Flows:
    """The flows that were read, and whether they are all there are."""

    flows: tuple[DnsFlow, ...]
    complete: bool = True


class NetlinkReader(Protocol):
    """What is asked of ctnetlink. Methods raise OSError (with errno) or TimeoutError."""

    def totals(self) -> tuple[CpuCounters, int, int]:
        """Return (counters per CPU, entries, limit)."""
        ...

    def unreplied(self, family: int, limit: int) -> tuple[list[Any], bool]:
        """Return up to `limit` (source, port, server, remaining seconds) of one address family, and whether all."""
        ...


class Conntrack:
    """The sense. `proc` is the procfs of the network namespace to look at."""

    def __init__(
        self, proc: Path = Path("/proc"), netlink: NetlinkReader | None = None, rights: Rights | None = None
    ) -> None:
        self._proc = proc
        self._sysctl = proc / "sys/net/netfilter"
        self._netlink = netlink or Netlink()
        self._rights = rights or Rights()

    def sample(self) -> ConntrackSample:
        """Read counters and fill.

        Raises NotTrackedError where conntrack is not loaded, CannotSeeError if neither way works.
        """
        self._require_loaded()
        try:
            counters, entries, limit = self._netlink.totals()
        except (OSError, ValueError) as error:
            fault = self._fault(error)
            return self._from_procfs(fault.message if fault else _why(error), fault)
        return ConntrackSample(counters, entries, limit, source="netlink")

    def unreplied_dns_flows(self, limit: int) -> Flows:
        """Read up to `limit` UDP flows to port 53 without an answer, IPv4 and IPv6.

        The kernel filters (tuple: 5.8 and newer; status: 5.15 and newer); a kernel that does
        not is left at once rather than dumped. Raises NotTrackedError, CannotSeeError.
        """
        self._require_loaded()
        lifetime = self._number("nf_conntrack_udp_timeout") or UDP_TIMEOUT_SECONDS
        flows: list[DnsFlow] = []
        complete = True
        for family in (socket.AF_INET, socket.AF_INET6):
            try:
                found, whole = self._netlink.unreplied(family, limit - len(flows))
            except (OSError, ValueError) as error:
                fault = self._fault(error)
                why = f"cannot list the DNS flows that wait for an answer: {fault or _why(error)}"
                raise CannotSeeError(why, fault) from None
            complete = complete and whole
            flows += [
                DnsFlow(source, port, server, max(0, lifetime - remaining)) for source, port, server, remaining in found
            ]
        return Flows(tuple(flows), complete)

    def _require_loaded(self) -> None:
        if (self._proc / "sys/net").is_dir() and not (self._sysctl / "nf_conntrack_max").exists():
            raise NotTrackedError(f"conntrack is not loaded ({self._sysctl}/nf_conntrack_max does not exist)")

    def _fault(self, error: Exception) -> DeploymentFault | None:
        """Return which right is missing if a request over netlink was denied."""
        denied = isinstance(error, OSError) and error.errno in {errno.EPERM, errno.EACCES} and error.filename is None
        return self._rights.netlink() if denied else None

    def _from_procfs(self, why: str, fault: DeploymentFault | None) -> ConntrackSample:
        path = self._proc / "net/stat/nf_conntrack"
        try:
            counters = parse_stat(_read(path))
        except (OSError, ValueError) as error:
            counters, trouble = {}, f"; {path}: {_why(error)}"
        else:
            trouble = ""
        entries, limit = self._number("nf_conntrack_count"), self._number("nf_conntrack_max")
        if not counters and (entries is None or limit is None):
            raise CannotSeeError(f"conntrack cannot be read: netlink: {why}{trouble}", fault)
        missing = "single DNS flows" if counters else "packet counters and single DNS flows"
        blind = f"not visible: {missing} (netlink: {why}{trouble})"
        return ConntrackSample(counters, entries, limit, source="procfs", blind=blind, fault=fault)

    def _number(self, name: str) -> int | None:
        try:
            value = int(_read(self._sysctl / name))
        except (OSError, ValueError):
            return None
        return value if value >= 0 else None


def rise(previous: ConntrackSample, current: ConntrackSample) -> Rise:
    """Return what the counters rose by, wrap-safe per CPU.

    A counter that went back has wrapped if the step over the wrap is one that traffic can
    make; else the counters began anew (module reloaded). A CPU seen for the first time
    adds nothing, one that is gone neither.
    """
    events = dict.fromkeys((name for counters in current.counters.values() for name in counters), 0)
    if previous.source != current.source:
        return Rise(events, reset=True)
    for cpu in current.counters.keys() & previous.counters.keys():
        before, after = previous.counters[cpu], current.counters[cpu]
        for name in after.keys() & before.keys():
            step = (after[name] - before[name]) % COUNTER_MODULUS
            if step > PLAUSIBLE_RISE:
                return Rise(dict.fromkeys(events, 0), reset=True)
            events[name] += step
    return Rise(events)


def parse_stat(text: str) -> CpuCounters:
    """Parse /proc/net/stat/nf_conntrack: a header of names, then one line of hex numbers per CPU.

    Lines carry no CPU number; the order stands for it. Raises ValueError saying what is wrong.
    """
    lines = text.splitlines()
    names = lines[0].split() if lines else []
    if "insert_failed" not in names or "drop" not in names:
        raise ValueError("its header has no columns insert_failed and drop")
    wanted = [(column, _PROC_NAMES.get(name, name)) for column, name in enumerate(names)]
    wanted = [(column, event) for column, event in wanted if event in EVENTS]
    counters = {}
    for cpu, line in enumerate(lines[1 : MAX_CPUS + 1]):
        columns = line.split()
        if len(columns) < len(names):
            raise ValueError(f"line {cpu + 2} has {len(columns)} columns, its header {len(names)}")
        counters[cpu] = {event: _hex32(columns[column]) for column, event in wanted}
    if not counters:
        raise ValueError("it has a header and nothing below")
    return counters


def _read(path: Path) -> str:
    with path.open("rb") as stream:
        raw = stream.read(MAX_FILE_BYTES + 1)
    if len(raw) > MAX_FILE_BYTES:
        raise ValueError(f"is larger than {MAX_FILE_BYTES} bytes")
    return raw.decode("ascii", errors="replace")


def _hex32(text: str) -> int:
    value = int(text, 16)
    if not 0 <= value < COUNTER_MODULUS:
        raise ValueError(f"{text[:20]!r} is no 32-bit hex number")
    return value


def _why(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error)
