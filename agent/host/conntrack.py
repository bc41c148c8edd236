"""Connection tracking: its counters, how full its table is, and which DNS flows wait for an answer.

Reads only. The counters come over netlink (ctnetlink, needs CAP_NET_ADMIN), else from
/proc/net/stat/nf_conntrack; both belong to the network namespace of the calling thread.
The kernel counts per CPU in 32 bits that wrap, so a rise is taken per CPU and then summed.

Nothing is asked over netlink where conntrack is not loaded: the mere question would make
the kernel load it (nfnetlink's request_module), and a sense changes nothing.

The only room that imports pyroute2; `ctnetlink` lends it to the action that deletes flows.
"""

import asyncio
import errno
import importlib
import importlib.util
import socket
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol, TypeVar

from agent.model import CannotSeeError

EVENTS = (
    "found",
    "invalid",
    "insert_failed",
    "drop",
    "early_drop",
    "error",
    "search_restart",
    "clash_resolve",
    "chain_toolong",
)
"""The events read, by the names of enum ctattr_stats_cpu. Older kernels count fewer of them."""

_PROC_NAMES = {"icmp_error": "error", "clashres": "clash_resolve", "chainlength": "chain_toolong"}
"""Columns of /proc/net/stat/nf_conntrack that are named otherwise than over netlink."""

COUNTER_MODULUS = 1 << 32
PLAUSIBLE_RISE = 1 << 28
"""More than this on one CPU between two looks is no traffic: the counters began anew."""

MAX_FILE_BYTES = 1 << 21
MAX_CPUS = 8192
MAX_MISMATCHES = 2000
"""Flows that do not match the filter and are read all the same before the kernel is given up as unable to filter."""

NETLINK_SECONDS = 2.0
UDP_TIMEOUT_SECONDS = 30
"""net.netfilter.nf_conntrack_udp_timeout where it cannot be read: the kernel's default."""

_PROTO_UDP = 17
_DNS_PORT = 53
_IPS_SEEN_REPLY = 1 << 1
_IPS_FIXED_TIMEOUT = 1 << 10
_MSG_GET = 1

_import_lock = threading.Lock()
_T = TypeVar("_T")

CpuCounters = Mapping[int, Mapping[str, int]]
"""CPU -> event -> count since the counters began. A counter the kernel does not have is absent."""


class NotTrackedError(Exception):
    """Conntrack is not loaded in this kernel, so no connection is tracked and none can be lost to it."""


@dataclass(frozen=True, slots=True)
class ConntrackSample:
    """One reading. `limit` 0 means no limit; None stands for what could not be read.

    `source` is `netlink` or `procfs`; `blind` says what this reading cannot show and why,
    and is empty if it shows everything.
    """

    counters: CpuCounters
    entries: int | None
    limit: int | None
    source: str
    blind: str = ""


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


class FlowEntry(NamedTuple):
    """An entry of the table that saw no answer, named as exactly as ctnetlink can: tuple, zone and id.

    `id` (CTA_ID) is made of the entry's place in memory and its tuples: a flow that is begun anew from the same port
    may well get the same one. `remaining_seconds` is the entry's timeout, rounded down; each packet sets it anew.
    """

    family: int
    source: str
    source_port: int
    server: str
    server_port: int
    zone: int
    id: int
    remaining_seconds: int


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

    def __init__(self, proc: Path = Path("/proc"), netlink: NetlinkReader | None = None) -> None:
        self._proc = proc
        self._sysctl = proc / "sys/net/netfilter"
        self._netlink = netlink or Netlink()

    def sample(self) -> ConntrackSample:
        """Read counters and fill.

        Raises NotTrackedError where conntrack is not loaded, CannotSeeError if neither way works.
        """
        self._require_loaded()
        try:
            counters, entries, limit = self._netlink.totals()
        except (OSError, ValueError) as error:
            return self._from_procfs(_why(error))
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
                raise CannotSeeError(f"cannot list the DNS flows that wait for an answer: {_why(error)}") from None
            complete = complete and whole
            flows += [
                DnsFlow(source, port, server, max(0, lifetime - remaining)) for source, port, server, remaining in found
            ]
        return Flows(tuple(flows), complete)

    def _require_loaded(self) -> None:
        if (self._proc / "sys/net").is_dir() and not (self._sysctl / "nf_conntrack_max").exists():
            raise NotTrackedError(f"conntrack is not loaded ({self._sysctl}/nf_conntrack_max does not exist)")

    def _from_procfs(self, why: str) -> ConntrackSample:
        path = self._proc / "net/stat/nf_conntrack"
        try:
            counters = parse_stat(_read(path))
        except (OSError, ValueError) as error:
            counters, trouble = {}, f"; {path}: {_why(error)}"
        else:
            trouble = ""
        entries, limit = self._number("nf_conntrack_count"), self._number("nf_conntrack_max")
        if not counters and (entries is None or limit is None):
            raise CannotSeeError(f"conntrack cannot be read: netlink: {why}{trouble}")
        missing = "single DNS flows" if counters else "packet counters and single DNS flows"
        blind = f"not visible: {missing} (netlink: {why}{trouble})"
        return ConntrackSample(counters, entries, limit, source="procfs", blind=blind)

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


class Netlink:
    """Ask ctnetlink through pyroute2, each question on a socket of its own and with a time limit."""

    def __init__(self, timeout_seconds: float = NETLINK_SECONDS) -> None:
        self._timeout = timeout_seconds

    def totals(self) -> tuple[CpuCounters, int, int]:
        """Return (counters per CPU, entries, limit). Raises OSError, TimeoutError, ValueError."""
        return self._run(self._totals)

    def unreplied(self, family: int, limit: int) -> tuple[list[Any], bool]:
        """Return up to `limit` unanswered UDP/53 flows of one family, and whether these are all.

        Raises OSError, TimeoutError, ValueError.
        """
        return self._run(lambda: self._unreplied(family, limit))

    def entries(self, family: int, server: str, limit: int) -> tuple[list[FlowEntry], bool]:
        """Return the unanswered UDP/53 flows of one family, exactly named, and whether these are all.

        At most `limit` are looked at. `server` narrows them to those sent to one address; empty for all. A flow with a
        zone for one direction only, which pyroute2 cannot name, is left out. Raises OSError, TimeoutError, ValueError.
        """
        return self._run(lambda: self._entries(family, server, limit))

    def _run(self, question: Callable[[], Awaitable[_T]]) -> _T:
        return run_limited(question, self._timeout)

    async def _totals(self) -> tuple[CpuCounters, int, int]:
        async with ctnetlink().AsyncNFCTSocket() as client:
            counters = {message["res_id"]: _cpu_counters(message) for message in await client.stat()}
            totals = (await client.count())[0]
        entries = totals.get_attr("CTA_STATS_GLOBAL_ENTRIES")
        limit = totals.get_attr("CTA_STATS_GLOBAL_MAX_ENTRIES")
        if entries is None:
            raise ValueError("the answer names no number of entries")
        # CTA_STATS_GLOBAL_MAX_ENTRIES came with 4.18; 0 stands for no limit
        return counters, entries, limit if limit is not None else 0

    async def _unreplied(self, family: int, limit: int) -> tuple[list[Any], bool]:
        return await _read_dump(_dump_unreplied(family), _flow, limit)

    async def _entries(self, family: int, server: str, limit: int) -> tuple[list[FlowEntry], bool]:
        # An IPv6 address filters the wrong way round: the kernel leaves out what equals it (seen on 6.18).
        by_kernel = server if family == socket.AF_INET else ""
        found, whole = await _read_dump(_dump_unreplied(family, by_kernel), flow_entry, limit)
        return [flow for flow in found if server in {"", flow.server}], whole


def run_limited(question: Callable[[], Awaitable[_T]], seconds: float) -> _T:
    """Put a question to ctnetlink, for so long at most. Raises OSError (with the kernel's errno), TimeoutError."""

    async def limited() -> _T:
        async with asyncio.timeout(seconds):
            return await question()

    try:
        return asyncio.run(limited())
    except TimeoutError:
        raise TimeoutError(errno.ETIMEDOUT, f"no answer within {seconds:g} s") from None
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - see below
        # pyroute2's NetlinkError is no OSError; what its parser raises on a broken answer is anything
        code = getattr(error, "code", None)
        raise OSError(code or errno.EBADMSG, str(error) or type(error).__name__) from None


async def _read_dump(dump: AsyncIterator[Any], read: Callable[[Any], _T | None], limit: int) -> tuple[list[_T], bool]:
    """Read up to `limit` flows of a dump; `read` returns None for what was not asked for."""
    flows: list[_T] = []
    passed_over = 0
    async for message in dump:
        flow = read(message)
        if flow is None:
            passed_over += 1
        elif len(flows) < limit:
            flows.append(flow)
        else:
            return flows, False
        if passed_over > MAX_MISMATCHES:
            raise OSError(errno.EOPNOTSUPP, "this kernel does not filter the dump, and the table is large")
    return flows, True


async def _dump_unreplied(family: int, server: str = "") -> AsyncIterator[Any]:
    """Dump with both filters at once; pyroute2's own dump() drops the status once a tuple is given."""
    nfct = ctnetlink()
    wanted = nfct.NFCTAttrTuple(family=family, daddr=server or None, proto=_PROTO_UDP, dport=_DNS_PORT)
    wanted.attrs()  # sets the flags
    request = nfct.nfct_msg.create_from(
        tuple_orig=wanted,
        filter={"attrs": [["CTA_FILTER_ORIG_FLAGS", wanted.flags]]},
        status=0,
        status_mask=_IPS_SEEN_REPLY,
    )
    async with nfct.AsyncNFCTSocket(nfgen_family=family) as client:
        answer = await client.request(request, _MSG_GET, msg_flags=nfct.NLM_F_REQUEST | nfct.NLM_F_DUMP)
        try:
            async for message in answer:
                yield message
        finally:
            await answer.aclose()


def _cpu_counters(message: Any) -> dict[str, int]:  # noqa: ANN401 - pyroute2 has no types
    read = {event: message.get_attr(f"CTA_STATS_{event.upper()}") for event in EVENTS}
    return {event: value for event, value in read.items() if value is not None}


def _flow(message: Any) -> tuple[str, int, str, int] | None:  # noqa: ANN401 - pyroute2 has no types
    """Return (source, port, server, remaining seconds), or None if this flow is not what was asked for."""
    origin = message.get_attr("CTA_TUPLE_ORIG")
    address, proto = origin.get_attr("CTA_TUPLE_IP"), origin.get_attr("CTA_TUPLE_PROTO")
    if proto.get_attr("CTA_PROTO_NUM") != _PROTO_UDP or proto.get_attr("CTA_PROTO_DST_PORT") != _DNS_PORT:
        return None
    if (message.get_attr("CTA_STATUS") or 0) & _IPS_SEEN_REPLY:
        return None
    version = "V4" if message["nfgen_family"] == socket.AF_INET else "V6"
    source, server = address.get_attr(f"CTA_IP_{version}_SRC"), address.get_attr(f"CTA_IP_{version}_DST")
    return source, proto.get_attr("CTA_PROTO_SRC_PORT"), server, message.get_attr("CTA_TIMEOUT") or 0


def flow_entry(message: Any) -> FlowEntry | None:  # noqa: ANN401 - pyroute2 has no types
    """Return a flow as it must be named to mean it and no other; None if it is not what was asked for.

    That is: UDP to port 53 without an answer, with a timeout that packets set anew, and with nothing in its tuple that
    could not be repeated (CTA_TUPLE_ZONE).
    """
    flow = _flow(message)
    if flow is None or (message.get_attr("CTA_STATUS") or 0) & _IPS_FIXED_TIMEOUT:
        return None
    named = {name for name, *_ in message.get_attr("CTA_TUPLE_ORIG")["attrs"]}
    identity = message.get_attr("CTA_ID")
    source, port, to, remaining = flow
    if named != {"CTA_TUPLE_IP", "CTA_TUPLE_PROTO"} or identity is None or not source or not to or not port:
        return None
    zone = message.get_attr("CTA_ZONE") or 0
    return FlowEntry(message["nfgen_family"], source, port, to, _DNS_PORT, zone, identity, remaining)


def ctnetlink() -> ModuleType:
    """Return pyroute2's conntrack client without loading the rest of pyroute2, which costs 9 MiB that stay."""
    with _import_lock:
        if "pyroute2" not in sys.modules:
            sys.modules["pyroute2"] = _deferred("pyroute2")
        return importlib.import_module("pyroute2.netlink.nfnetlink.nfctsocket")


def _deferred(name: str) -> ModuleType:
    """Return a package that runs its __init__ only when something is asked of it that a submodule does not give.

    The standard LazyLoader does the same, but already on the import of a submodule.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        raise OSError(errno.ENOPKG, f"the Python package {name} is not installed")
    package, load = importlib.util.module_from_spec(spec), spec.loader.exec_module

    def missing(attribute: str) -> Any:  # noqa: ANN401 - any attribute of a module
        if importlib.util.find_spec(f"{name}.{attribute}") is not None:
            return importlib.import_module(f"{name}.{attribute}")
        del package.__dict__["__getattr__"]
        load(package)
        return getattr(package, attribute)

    package.__dict__["__getattr__"] = missing
    return package


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
        if error.errno in (errno.EPERM, errno.EACCES):
            return "not permitted, CAP_NET_ADMIN is missing" if error.filename is None else "not permitted"
        return error.strerror or str(error)
    return str(error)
