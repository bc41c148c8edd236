"""For every reason of every condition: the series of a fault, and what its alert must say, word by word."""

from collections.abc import Mapping

from tests.delivery.monitoring.promtool import STEP, Case, Course, on, scraped_from

HUNG = {
    'nodediag_shim_hung_seconds{namespace="shop",pod="web-0",container_id="c1"}': "312",
    'nodediag_shim_hung_seconds{namespace="shop",pod="cart-1",container_id="c2"}': "7",
    'nodediag_shim_hung_seconds{namespace="",pod="",container_id="c3"}': "4",
}
PARENTS = {
    'nodediag_defunct_processes_by_parent{pid="958",comm="<!channel>",namespace="shop",pod="cart-1"}': "40",
    'nodediag_defunct_processes_by_parent{pid="77",comm="sshd",namespace="",pod=""}': "2",
}
LOOKBACK = 300
"""Seconds for which one sighting of an episodic reason counts."""
KEPT = 180
"""Seconds for which an alert goes on once its fault is no longer told of."""


def _case(
    condition: str,
    reason: str,
    severity: str,
    held: int,
    summary: str,
    description: str,
    extra: Mapping[str, str] | None = None,
) -> Case:
    """A steady fault: one finding. It fires `held` after its first scrape, no sooner, and goes KEPT after its last."""
    course = Course("0", "1", held, extra or {})
    return Case(
        name=reason,
        alert=f"Nodediag{condition}",
        series=course.series(f'nodediag_findings{{type="{condition}",reason="{reason}"}}'),
        fires_at=course.fires_at,
        quiet_at=(course.fires_at - STEP, course.over_at + KEPT),
        labels={**scraped_from("sick"), "type": condition, "reason": reason, "severity": severity},
        summary=f"sick: {summary} ({reason})",
        description=description,
        runbook=f"runbooks/{condition}.md#{reason.lower()}",
        reason=reason,
    )


def _episodic(condition: str, reason: str, summary: str, description: str) -> Case:
    """A fault that is seen at every third scrape only; seen once, it counts for five minutes and must not fire."""
    length, begin, held = 90, 20, 600
    again = ["1" if begin <= n <= begin + 24 and n % 3 == begin % 3 else "0" for n in range(length)]
    once = ["1" if n == begin else "0" for n in range(length)]
    selector = f'nodediag_findings{{type="{condition}",reason="{reason}"}}'
    courses = {"well": ["0"] * length, "sick": again, "blip": once}
    series = {on(selector, node): " ".join(values) for node, values in courses.items()}
    begun = begin * STEP
    return Case(
        name=reason,
        alert=f"Nodediag{condition}",
        series=series,
        fires_at=begun + held,
        quiet_at=(begun + held - STEP, begun + 24 * STEP + LOOKBACK + STEP + KEPT),
        labels={**scraped_from("sick"), "type": condition, "reason": reason, "severity": "warning"},
        summary=f"sick: {summary} ({reason})",
        description=description,
        runbook=f"runbooks/{condition}.md#{reason.lower()}",
        reason=reason,
    )


CONDITION_CASES = (
    _case(
        "ContainerdShimHung",
        "ShimUnresponsive",
        "critical",
        60,
        "a containerd shim is hung",
        "A shim does not answer; its pod can be neither deleted nor exec'd into. Whatever asks every shim hangs as "
        "well, such as the kubelet's /metrics and /stats/summary. Findings: 1. "
        "Hung: shop/web-0 for 5m 12s, shop/cart-1 for 7s, container c3 for 4s.",
        HUNG,
    ),
    _case(
        "ContainerdShimHung",
        "ShimOperationStuck",
        "warning",
        300,
        "a containerd shim is hung",
        "A shim answers, but an operation on one of its containers never ends. "
        "Its pod stays as it is, Terminating if it was to go. Findings: 1.",
    ),
    _case(
        "ContainerdShimLeaked",
        "ShimDead",
        "warning",
        300,
        "something of a container is left over",
        "A container's bundle is there but no shim serves it; containerd still believes in it. "
        "Its pod is taken for running, and can be neither deleted nor exec'd into. Findings: 1.",
    ),
    _case(
        "ContainerdShimLeaked",
        "ShimWithoutContainers",
        "warning",
        900,
        "something of a container is left over",
        "A shim runs on although it has no living container or its bundle is gone. "
        "It holds memory and pids. Findings: 1.",
    ),
    _case(
        "ContainerdShimLeaked",
        "ProcessesWithoutShim",
        "critical",
        120,
        "something of a container is left over",
        "A container's processes run on without a shim; there may be a second copy of it. "
        "Two copies may write to the same volume. Findings: 1.",
    ),
    _case(
        "ExcessiveDefunctProcesses",
        "PidExhaustionAhead",
        "critical",
        60,
        "zombies pile up",
        "Zombies are using up the pids of a pod or of the node; soon nothing can be started. "
        "Neither exec nor probe works then. Findings: 1. Parents: pid 958 with 40 of shop/cart-1, pid 77 with 2.",
        PARENTS,
    ),
    _case(
        "ExcessiveDefunctProcesses",
        "ParentNotReaping",
        "warning",
        900,
        "zombies pile up",
        "A process does not reap its ended children; each keeps a pid. When the pids are used up, nothing can be "
        "started. Findings: 1. Parents: pid 958 with 40 of shop/cart-1, pid 77 with 2.",
        PARENTS,
    ),
    _case(
        "ExcessiveDefunctProcesses",
        "TooManyDefunctProcesses",
        "warning",
        900,
        "zombies pile up",
        "The node has more zombies than any healthy one. When the pids are used up, nothing can be "
        "started. Findings: 1.",
    ),
    _episodic(
        "ConntrackDNSRace",
        "DNSQueriesLost",
        "DNS queries are lost to a race in conntrack",
        "Of DNS queries sent in parallel from one socket one is lost again and again, while queries sent one after the "
        "other are all answered: clients wait 5 s for names. Run NodeLocal DNSCache, or set `options "
        "single-request-reopen` (glibc) or `use-vc` in the pods' dnsConfig. Findings: 1.",
    ),
    _episodic(
        "ConntrackDNSRace",
        "InsertFailed",
        "DNS queries are lost to a race in conntrack",
        "The kernel lost packets that raced for a conntrack entry, and DNS queries go unanswered meanwhile. Run "
        "NodeLocal DNSCache or a kernel from 5.10 on. Clients on this node wait 5 s for a name now and then. "
        "Findings: 1.",
    ),
    _case(
        "ConntrackTablePressure",
        "TableFull",
        "critical",
        60,
        "the conntrack table is under pressure",
        "The conntrack table has no room and packets of new connections are dropped. Raise "
        "net.netfilter.nf_conntrack_max and find out who opens so many connections. It concerns every pod of the node. "
        "Findings: 1.",
    ),
    _case(
        "ConntrackTablePressure",
        "TableNearlyFull",
        "warning",
        300,
        "the conntrack table is under pressure",
        "The conntrack table is nearly full; when it is full, new connections fail. Raise "
        "net.netfilter.nf_conntrack_max in time. It concerns every pod of the node. Findings: 1.",
    ),
    _episodic(
        "ConntrackTablePressure",
        "EarlyDrop",
        "the conntrack table is under pressure",
        "The kernel evicts live conntrack entries to make room for new ones: connections may break. "
        "Idle connections are the first to go. Findings: 1.",
    ),
    _episodic(
        "ConntrackTablePressure",
        "ChainTooLong",
        "the conntrack table is under pressure",
        "Packets are dropped because a hash chain of the conntrack table is too long. Raise "
        "net.netfilter.nf_conntrack_buckets. New connections fail at random. Findings: 1.",
    ),
    _case(
        "DNSUnavailable",
        "ServerUnreachable",
        "critical",
        120,
        "a DNS server this node uses does not do its work",
        "A DNS server of this node answers no queries, or loses most: it or the path is down. "
        "Names are looked up late, by the next server, or not at all. Findings: 1.",
    ),
    _case(
        "DNSUnavailable",
        "ServerSlow",
        "warning",
        600,
        "a DNS server this node uses does not do its work",
        "A DNS server of this node answers, but late. "
        "Whatever looks a name up first takes that much longer. Findings: 1.",
    ),
    _case(
        "KubeletHealthzFailing",
        "HealthzTimeout",
        "critical",
        60,
        "the kubelet does not answer as it should",
        "The kubelet accepts connections or lets them hang, but does not answer its healthz in time. "
        "No pod is started, ended or probed, and the node soon turns NotReady. Findings: 1.",
    ),
    _case(
        "KubeletHealthzFailing",
        "HealthzRefused",
        "critical",
        120,
        "the kubelet does not answer as it should",
        "Nothing listens at the kubelet's healthz address, or it drops connections without an answer. "
        "No pod is started, ended or probed, and the node soon turns NotReady. Findings: 1.",
    ),
    _case(
        "KubeletHealthzFailing",
        "HealthzNotOK",
        "critical",
        120,
        "the kubelet does not answer as it should",
        "The kubelet's healthz answers something other than 200; the failing checks are named. "
        "It does part of its work at best. Findings: 1.",
    ),
    _case(
        "KubeletHealthzFailing",
        "HealthzSlow",
        "warning",
        600,
        "the kubelet does not answer as it should",
        "The kubelet's healthz answers 200, but far too late. Probes and starts of pods are late, too. Findings: 1.",
    ),
    _case(
        "PLEGUnhealthy",
        "RelistSlow",
        "critical",
        60,
        "the kubelet is late to notice what its containers do",
        "The kubelet lists its containers too slowly or not at all, so it notices late what they do. "
        "No pod turns ready, and none that ended is restarted. Findings: 1.",
    ),
    _case(
        "PLEGUnhealthy",
        "EventsDiscarded",
        "warning",
        600,
        "the kubelet is late to notice what its containers do",
        "The kubelet threw changes of containers away, because it did not get round to them. "
        "Pods stay for a while in a state they are no longer in. Findings: 1.",
    ),
    _case(
        "ContainerRuntimeUnresponsive",
        "CRITimeout",
        "critical",
        60,
        "containerd does not answer",
        "containerd takes connections or lets them hang, but does not answer in time. No container is started or "
        "ended; those that run live on. The kubelet tells of it minutes later. Findings: 1.",
    ),
    _case(
        "ContainerRuntimeUnresponsive",
        "RuntimeRefused",
        "critical",
        120,
        "containerd does not answer",
        "Nothing listens at containerd's socket, or it drops connections without an answer. No container is started or "
        "ended; those that run live on. The kubelet tells of it minutes later. Findings: 1.",
    ),
)
