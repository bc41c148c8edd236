"""ctnetlink: what the kernel tells of connection tracking over netlink (linux/netfilter/nfnetlink_conntrack.h).

Asked through pyroute2, each question on a socket of its own and with a time limit. It needs CAP_NET_ADMIN, and answers
for the network namespace of the calling thread. Where conntrack is not loaded, the mere question would make the kernel
load it: whoever asks looks for that first.

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
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

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

MAX_MISMATCHES = 2000
"""Flows that do not match the filter and are read all the same before the kernel is given up as unable to filter."""

NETLINK_SECONDS = 2.0

_PROTO_UDP = 17
_DNS_PORT = 53
_IPS_SEEN_REPLY = 1 << 1
_IPS_FIXED_TIMEOUT = 1 << 10
_MSG_GET = 1

_import_lock = threading.Lock()
_T = TypeVar("_T")

CpuCounters = Mapping[int, Mapping[str, int]]
"""CPU -> event -> count since the counters began. A counter the kernel does not have is absent."""


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
