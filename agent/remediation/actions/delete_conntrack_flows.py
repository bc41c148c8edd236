"""DeleteConntrackFlows: forget the DNS queries that wait for an answer which cannot come.

A query that lost the race for its conntrack entry, or was sent to a DNS pod that is gone, leaves an entry without a
reply. A client that asks again from the same port (glibc does, after 5 s) meets that entry: the packet is sent where
the entry says, be it a dead end, and each packet keeps the entry alive. Without it the next packet is a new flow, and
the DNS pod behind the service's address is chosen anew.

Only UDP flows to port 53 without any answer are touched, and only those that have waited undisturbed for a while: a
healthy query under way is answered in milliseconds.
"""

import ipaddress
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, ClassVar

from agent.acts import RefusalReason, RefusedError, refused
from agent.clock import Clock
from agent.host.conntrack import Conntrack, ConntrackSample, NotTrackedError
from agent.host.ctnetlink import FlowEntry
from agent.host.rights import Rights
from agent.model import Action, CannotSeeError, Finding, Target, TargetKind
from agent.remediation.flows import Deletion, FlowTable, Look, survivors, undisturbed
from agent.remediation.remedy import Case, Verification
from agent.remediation.waiting import pause

MAX_FLOWS = 4096
MAX_EVIDENCE_FLOWS = 500
MIN_WAITED_SECONDS = 2.0
DNS_PORT = 53
_ROUNDED_SECONDS = 1.0
"""Timers are read in whole seconds, so a wait is sure only after one more."""


class DeleteConntrackFlows:
    """The remedy. `network_problem` says why our network namespace is not the node's; None if it is."""

    action: ClassVar[Action] = Action.DELETE_CONNTRACK_FLOWS
    targets: ClassVar[tuple[TargetKind, ...]] = (TargetKind.DNS_SERVER, TargetKind.CONNTRACK)
    mends: ClassVar[Mapping[str, tuple[str, ...]]] = {"ConntrackDNSRace": ("DNSQueriesLost", "InsertFailed")}
    does: ClassVar[str] = (
        "Deletes the conntrack entries of UDP flows to port 53 that have no answer, one by one: those to the DNS "
        "server of the target, or all of them if the target is conntrack. At most 4096 at a time."
    )
    requires: ClassVar[str] = (
        "At least one such flow has waited for 2 s or more with no packet in between. CAP_NET_ADMIN, in the node's "
        "network namespace."
    )
    verifies: ClassVar[str] = "None of the deleted flows is in the table any more; new ones are counted, not judged."
    risk: ClassVar[str] = (
        "Small: an answer that comes after more than 2 s may be dropped, and the client asks again, as it would have "
        "done. What caused the race stays: run NodeLocal DNSCache, or set `single-request-reopen` or `use-vc`."
    )

    def __init__(
        self,
        conntrack: Conntrack,
        table: FlowTable,
        clock: Clock,
        network_problem: Callable[[], str | None],
        min_waited_seconds: float = MIN_WAITED_SECONDS,
    ) -> None:
        self._conntrack = conntrack
        self._table = table
        self._clock = clock
        self._network_problem = network_problem
        self._min_waited_seconds = min_waited_seconds

    @contextmanager
    def confirm(self, target: Target, finding: Finding) -> Iterator[Case]:  # noqa: ARG002 - all that counts is in the target
        """Look for flows that wait, twice. Raises RefusedError."""
        server = _server(target)
        problem = self._network_problem()
        if problem:
            raise refused(RefusalReason.CANNOT_SEE, problem)
        try:
            counters = self._conntrack.sample()
            look, waiting = self._waiting(server)
        except NotTrackedError as error:
            raise _not_confirmed(f"{error}, so there is no flow to delete") from None
        except CannotSeeError as error:
            raise refused(RefusalReason.CANNOT_SEE, str(error)) from None
        if not waiting:
            raise _not_confirmed(
                f"no UDP flow to {_to(server)} has waited for an answer for {self._min_waited_seconds:g} s or more; "
                f"{len(look.flows)} are without one just now"
            )
        yield _Flows(self._table, self._clock, server, waiting, look, counters)

    def _waiting(self, server: str) -> tuple[Look, tuple[FlowEntry, ...]]:
        """Return the latest look, and which of its flows have waited undisturbed long enough."""
        first = self._look(server)
        if not first.flows:
            return first, ()
        pause(self._clock, math.ceil(self._min_waited_seconds) + _ROUNDED_SECONDS)
        second = self._look(server)
        before = {flow._replace(remaining_seconds=0): flow for flow in first.flows}
        passed = second.began - first.ended
        return second, tuple(
            flow
            for flow in second.flows
            if (known := before.get(flow._replace(remaining_seconds=0))) and undisturbed(known, flow, passed)
        )

    def _look(self, server: str) -> Look:
        try:
            return self._table.look(server, MAX_FLOWS)
        except (OSError, ValueError) as error:
            why = f"cannot list the DNS flows that wait for an answer: {_why(error)}"
            raise refused(RefusalReason.CANNOT_SEE, why) from None


class _Flows:
    """Flows that wait in vain, as they were at one look."""

    def __init__(
        self,
        table: FlowTable,
        clock: Clock,
        server: str,
        waiting: tuple[FlowEntry, ...],
        look: Look,
        counters: ConntrackSample,
    ) -> None:
        more = "" if look.complete else f" (there are more than the {MAX_FLOWS} looked at: ask again afterwards)"
        self.message = f"{len(waiting)} UDP flows to {_to(server)} wait in vain for an answer{more}"
        self._table = table
        self._clock = clock
        self._server = server
        self._waiting = waiting
        self._look = look
        self._counters = counters
        self._deletion = Deletion()

    def evidence(self) -> Mapping[str, Any]:
        """Return the flows, MAX_EVIDENCE_FLOWS of them at most, and the table's counters from before."""
        return {
            "server": self._server,
            "flows": [flow._asdict() for flow in self._waiting[:MAX_EVIDENCE_FLOWS]],
            "flowsInAll": len(self._waiting),
            "complete": self._look.complete,
            "conntrack": {**asdict(self._counters), "counters": _by_cpu(self._counters)},
        }

    def perform(self) -> str:
        """Delete the flows one by one. Raises ActError."""
        self._deletion = self._table.delete(self._waiting, self._look.ended)
        words = {
            "answered": "had been answered",
            "renewed": "had been asked again",
            "gone": "were gone already",
        }
        left = "".join(
            f", {self._deletion.left[why]} {text}" for why, text in words.items() if self._deletion.left[why]
        )
        return f"deleted {len(self._deletion.deleted)} of {len(self._waiting)} UDP flows to {_to(self._server)}{left}"

    def verify(self) -> Verification:
        """Look whether a deleted flow is there still."""
        deleted = self._deletion.deleted
        if not deleted:
            return Verification(None, "no flow had to be deleted: all were gone or going on by themselves")
        try:
            look = self._table.look(self._server, MAX_FLOWS)
        except (OSError, ValueError) as error:
            return Verification(None, f"the flows cannot be listed any more: {_why(error)}")
        left = survivors(deleted, look)
        others = len(look.flows) - len(left)
        new = f"; {others} others are without an answer just now, which says nothing yet" if others else ""
        if left:
            return Verification(False, f"{len(left)} of {len(deleted)} deleted flows are still in the table{new}")
        if not look.complete:
            return Verification(
                None, f"none of the {len(deleted)} deleted flows is among the {MAX_FLOWS} looked at{new}"
            )
        return Verification(True, f"none of the {len(deleted)} deleted flows is left{new}")


def _server(target: Target) -> str:
    """Return the address whose flows are meant, as the kernel writes it; empty for all. Raises RefusedError."""
    if target.kind is TargetKind.CONNTRACK and not target.address:
        return ""
    text, port = target.address, DNS_PORT
    if target.kind is TargetKind.DNS_SERVER and text:
        try:
            address, port = _split(text)
            server = ipaddress.ip_address(address)
        except ValueError:
            pass
        else:
            if port == DNS_PORT and not server.is_unspecified and "%" not in address:
                return str(server)
    why = f"{text[:80]!r} is no DNS server's address whose flows could be told from others; it takes an IP address"
    if port != DNS_PORT:
        why = f"only flows to port {DNS_PORT} are deleted, and the target names port {port}"
    raise refused(RefusalReason.INEXACT_TARGET, why)


def _split(text: str) -> tuple[str, int]:
    """Split `10.96.0.10`, `10.96.0.10:53`, `::1`, `[::1]` or `[::1]:53`. Raises ValueError."""
    if text.startswith("["):
        address, closing, port = text[1:].partition("]")
        if not closing or (port and not port.startswith(":")):
            raise ValueError(text)
        return address, _port(port[1:]) if port else DNS_PORT
    if text.count(":") == 1:
        address, _, port = text.partition(":")
        return address, _port(port)
    return text, DNS_PORT


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5):
        raise ValueError(text)
    return int(text)


def _to(server: str) -> str:
    return f"DNS server {server}" if server else f"port {DNS_PORT} of any DNS server"


def _by_cpu(sample: ConntrackSample) -> dict[str, dict[str, int]]:
    return {str(cpu): dict(counters) for cpu, counters in sample.counters.items()}


def _why(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return str(Rights().netlink())
    return (error.strerror if isinstance(error, OSError) else "") or str(error)


def _not_confirmed(why: str) -> RefusedError:
    return refused(RefusalReason.NOT_CONFIRMED, why)
