"""Single flows of the conntrack table: which wait for an answer undisturbed, and deleting these one by one.

The kernel's own filtered delete is never asked for: a kernel that does not know the filter flushes the whole table, and
so does a delete without a tuple (ctnetlink_del_conntrack, net/netfilter/nf_conntrack_netlink.c). Each delete therefore
names one flow by family, complete original tuple, zone and CTA_ID, right after a look at it that shows it unanswered
still. Between that look and the delete an answer may come all the same, within microseconds; it has then been passed
on, and what is lost is an entry that nothing needs any more.

CTA_ID alone does not tell a flow from the next one with the same tuple, which often gets the same place in memory. What
tells them apart is the timer: it runs down from the last packet on, and each packet sets it anew. Entries give it in
whole seconds, rounded down.
"""

import asyncio
import errno
import math
import socket
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from agent.clock import Clock
from agent.host.ctnetlink import FlowEntry, Netlink, ctnetlink, flow_entry, run_limited
from agent.host.rights import Rights
from agent.remediation.remedy import ActError

ANSWER_SECONDS = 10.0
"""For one answer of the kernel; 4096 flows are read in 0.3 s, and in some seconds under a tight CPU limit."""
DELETE_SECONDS = 20.0
"""For all flows of one act; 4096 take about 4 s."""
_MSG_GET, _MSG_DELETE = 1, 2
_SPARE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Look:
    """The unanswered DNS flows at one moment, `began` to `ended` in monotonic seconds; `complete`: these are all."""

    flows: tuple[FlowEntry, ...]
    began: float
    ended: float
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Deletion:
    """What became of the flows that were to be deleted.

    `deleted` maps each deleted flow to the moment (monotonic seconds) it was deleted at; of the others it is only
    counted why they were left: `answered`, `gone`, or `renewed` (its client has sent another packet).
    """

    deleted: Mapping[FlowEntry, float] = field(default_factory=dict)
    left: Counter[str] = field(default_factory=Counter)


class FlowTable(Protocol):
    """What is asked of the table of this network namespace. Methods raise OSError, ValueError."""

    def look(self, server: str, limit: int) -> Look:
        """Return up to `limit` unanswered DNS flows, to one server or (if empty) to all."""
        ...

    def delete(self, flows: tuple[FlowEntry, ...], seen_at: float) -> Deletion:
        """Delete those that wait undisturbed still since `seen_at`; raises ActError if that fails on the way."""
        ...


class NetlinkFlowTable:
    """The kernel's table, by ctnetlink; needs CAP_NET_ADMIN."""

    def __init__(
        self,
        clock: Clock,
        answer_seconds: float = ANSWER_SECONDS,
        delete_seconds: float = DELETE_SECONDS,
        rights: Rights | None = None,
    ) -> None:
        self._clock = clock
        self._netlink = Netlink(answer_seconds)
        self._answer_seconds = answer_seconds
        self._delete_seconds = delete_seconds
        self._rights = rights or Rights()

    def look(self, server: str, limit: int) -> Look:
        """Read both families, or the server's. Raises OSError, TimeoutError, ValueError."""
        ctnetlink()  # so that no time limit runs while it is imported
        began = self._clock.monotonic()
        flows: list[FlowEntry] = []
        complete = True
        for family in _families(server):
            found, whole = self._netlink.entries(family, server, limit - len(flows))
            flows += found
            complete = complete and whole
        return Look(tuple(flows), began, self._clock.monotonic(), complete)

    def delete(self, flows: tuple[FlowEntry, ...], seen_at: float) -> Deletion:
        """Look at each flow once more and delete it if nothing has come of it. Raises ActError."""
        ctnetlink()
        deletion = _Deleter(self._clock, self._answer_seconds, self._clock.monotonic() + self._delete_seconds, seen_at)
        try:
            run_limited(lambda: deletion.run(flows), self._delete_seconds + _SPARE_SECONDS)
        except OSError as error:
            done = len(deletion.deleted)
            denied = error.errno in {errno.EPERM, errno.EACCES}
            why = str(self._rights.netlink()) if denied else error.strerror or str(error)
            raise ActError(f"{done} of {len(flows)} flows were deleted, then it failed: {why}") from None
        return Deletion(deletion.deleted, deletion.left)


class _Deleter:
    """One act's deletions, and how far they have come."""

    def __init__(self, clock: Clock, answer_seconds: float, until: float, seen_at: float) -> None:
        self._clock = clock
        self._answer_seconds = answer_seconds
        self._until = until
        self._seen_at = seen_at
        self.deleted: dict[FlowEntry, float] = {}
        self.left: Counter[str] = Counter()

    async def run(self, flows: tuple[FlowEntry, ...]) -> None:
        """Delete, one after the other. Raises OSError, and pyroute2's NetlinkError."""
        for family in sorted({flow.family for flow in flows}):
            async with ctnetlink().AsyncNFCTSocket(nfgen_family=family) as client:
                for flow in flows:
                    if flow.family == family:
                        await self._one(client, flow)

    async def _one(self, client: Any, flow: FlowEntry) -> None:  # noqa: ANN401 - pyroute2 has no types
        if self._clock.monotonic() >= self._until:
            raise OSError(errno.ETIME, "it takes too long; ask again for the rest")
        asked_at = self._clock.monotonic()
        now = await self._ask(client, _MSG_GET, flow)
        seen = next((entry for entry in map(flow_entry, now or ()) if entry is not None), None)
        if now is None or (seen is not None and not same_name(flow, seen)):
            self.left["gone"] += 1
        elif seen is None:
            self.left["answered"] += 1
        elif not undisturbed(flow, seen, asked_at - self._seen_at):
            self.left["renewed"] += 1
        elif await self._ask(client, _MSG_DELETE, flow) is None:
            self.left["gone"] += 1
        else:
            self.deleted[seen] = self._clock.monotonic()

    async def _ask(self, client: Any, kind: int, flow: FlowEntry) -> list[Any] | None:  # noqa: ANN401
        """Return the kernel's messages about one flow, or None if it does not have it."""
        nfct = ctnetlink()
        named = nfct.NFCTAttrTuple(
            family=flow.family,
            saddr=flow.source,
            daddr=flow.server,
            proto=socket.IPPROTO_UDP,
            sport=flow.source_port,
            dport=flow.server_port,
        )
        # a kernel without zones refuses any request that has one
        request = nfct.nfct_msg.create_from(tuple_orig=named, zone=flow.zone or None, id=flow.id)
        flags = nfct.NLM_F_REQUEST | nfct.NLM_F_ACK
        try:
            async with asyncio.timeout(self._answer_seconds):
                answer = await client.request(request, kind, msg_flags=flags, terminate=nfct.terminate_error_msg)
                return [message async for message in answer if message["header"]["type"] != nfct.NLMSG_ERROR]
        except TimeoutError:
            raise OSError(errno.ETIME, f"the kernel did not answer within {self._answer_seconds:g} s") from None
        except Exception as error:
            if getattr(error, "code", None) == errno.ENOENT:  # NetlinkError, which is no OSError
                return None
            raise


def same_name(before: FlowEntry, now: FlowEntry) -> bool:
    """Whether two entries have all in common but the timer. They may still be two flows one after the other."""
    return before._replace(remaining_seconds=0) == now._replace(remaining_seconds=0)


def undisturbed(before: FlowEntry, now: FlowEntry, seconds: float) -> bool:
    """Whether an entry, seen at least `seconds` later, is the same flow and has seen no packet meanwhile.

    Then its timer has gone down by the whole seconds passed. If it has, more than these less one have passed since its
    last packet (both readings are rounded down).
    """
    return same_name(before, now) and before.remaining_seconds - now.remaining_seconds >= math.floor(seconds)


def survivors(deleted: Mapping[FlowEntry, float], look: Look) -> tuple[FlowEntry, ...]:
    """Return the deleted flows that are there still; one of the same name that was begun anew is not counted."""
    by_name: Mapping[FlowEntry, tuple[FlowEntry, float]] = {
        flow._replace(remaining_seconds=0): (flow, at) for flow, at in deleted.items()
    }
    found = ((by_name.get(now._replace(remaining_seconds=0)), now) for now in look.flows)
    return tuple(now for known, now in found if known is not None and undisturbed(known[0], now, look.began - known[1]))


def _families(server: str) -> tuple[int, ...]:
    if not server:
        return (socket.AF_INET, socket.AF_INET6)
    return (socket.AF_INET6,) if ":" in server else (socket.AF_INET,)
