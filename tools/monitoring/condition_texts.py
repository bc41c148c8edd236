"""How urgent each condition is, and in which words its alert says so.

The one file to edit when a condition or a reason is new; what a reason *means* stands with its detector and is taken
from there. `for` is short, because the agent has confirmed a finding before it tells of it: it only has to outlast
what passes by itself. Two scrapes, 1m, is the least that rules a single scrape out.

No alert repeats the name of a process: the workload chooses it, and `<!channel>` has ten characters.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tools.monitoring.rule import Severity

CRITICAL, WARNING = Severity


@dataclass(frozen=True, slots=True)
class Urgency:
    """Of one reason: how loud, held for how long (`for`), why so long, and what comes of it.

    `harm` is empty if the reason's meaning says enough. `whose` is a template that names those it is about, where a
    metric has them. `episodic`: what it finds comes in bursts, and is gone between them at the very next look; then any
    sighting within five minutes counts as one, and `held` is longer than that, so that it takes several.
    """

    severity: Severity
    held: str
    why: str
    harm: str = ""
    whose: str = ""
    episodic: bool = False


@dataclass(frozen=True, slots=True)
class ConditionText:
    """Of one condition: `says` completes the sentence "NODE: ..."; every reason it may have."""

    says: str
    reasons: Mapping[str, Urgency]


def _largest(title: str, metric: str, row: str) -> str:
    """Return a template that tells of the three largest series of a metric, for the alert's own node."""
    return (
        f'{{{{ with printf "topk(3, {metric}{{instance=%q}})" $labels.instance | query }}}}'
        f" {title}: {{{{ range $i, $each := . }}}}{{{{ if $i }}}}, {{{{ end }}}}{row}{{{{ end }}}}.{{{{ end }}}}"
    )


_HUNG_PODS = _largest(
    "Hung",
    "nodediag_shim_hung_seconds",
    "{{ if $each.Labels.pod }}{{ $each.Labels.namespace }}/{{ $each.Labels.pod }}"
    "{{ else }}container {{ $each.Labels.container_id }}{{ end }} for {{ humanizeDuration $each.Value }}",
)
_PARENTS = _largest(
    "Parents",
    "nodediag_defunct_processes_by_parent",
    "pid {{ $each.Labels.pid }} with {{ $each.Value }}"
    "{{ if $each.Labels.pod }} of {{ $each.Labels.namespace }}/{{ $each.Labels.pod }}{{ end }}",
)
_ZOMBIES = "When the pids are used up, nothing can be started."
_NO_KUBELET = "No pod is started, ended or probed, and the node soon turns NotReady."
_NO_RUNTIME = "No container is started or ended; those that run live on. The kubelet tells of it minutes later."

TEXTS: Mapping[str, ConditionText] = {
    "ContainerdShimHung": ConditionText(
        "a containerd shim is hung",
        {
            "ShimUnresponsive": Urgency(
                CRITICAL,
                "1m",
                "A shim that was asked for 5 s without a word rarely recovers.",
                "Whatever asks every shim hangs as well, such as the kubelet's /metrics and /stats/summary.",
                _HUNG_PODS,
            ),
            "ShimOperationStuck": Urgency(
                WARNING,
                "5m",
                "A slow disk can hold a kill or a delete up for minutes without anything being broken.",
                "Its pod stays as it is, Terminating if it was to go.",
            ),
        },
    ),
    "ContainerdShimLeaked": ConditionText(
        "something of a container is left over",
        {
            "ShimDead": Urgency(
                WARNING,
                "5m",
                "containerd cleans up after a dead shim within seconds, and when it is restarted.",
                "Its pod is taken for running, and can be neither deleted nor exec'd into.",
            ),
            "ShimWithoutContainers": Urgency(
                WARNING,
                "15m",
                "It is in nobody's way, and a busy node may still be ending it.",
                "It holds memory and pids.",
            ),
            "ProcessesWithoutShim": Urgency(
                CRITICAL,
                "2m",
                "Processes that are being ended may take their grace of half a minute; the kubelet starts the second "
                "copy within seconds.",
                "Two copies may write to the same volume.",
            ),
        },
    ),
    "ExcessiveDefunctProcesses": ConditionText(
        "zombies pile up",
        {
            "PidExhaustionAhead": Urgency(
                CRITICAL,
                "1m",
                "The agent has followed their growth already.",
                "Neither exec nor probe works then.",
                _PARENTS,
            ),
            "ParentNotReaping": Urgency(
                WARNING,
                "15m",
                "A parent may be late after a burst; one that never reaps, never does.",
                _ZOMBIES,
                _PARENTS,
            ),
            "TooManyDefunctProcesses": Urgency(
                WARNING, "15m", "Their number alone does no harm until pids run short.", _ZOMBIES, _PARENTS
            ),
        },
    ),
    "ConntrackDNSRace": ConditionText(
        "DNS queries are lost to a race in conntrack",
        {
            "DNSQueriesLost": Urgency(WARNING, "10m", "A race is lost now and then, not all the time.", episodic=True),
            "InsertFailed": Urgency(
                WARNING,
                "10m",
                "A race is lost now and then, not all the time.",
                "Clients on this node wait 5 s for a name now and then.",
                episodic=True,
            ),
        },
    ),
    "ConntrackTablePressure": ConditionText(
        "the conntrack table is under pressure",
        {
            "TableFull": Urgency(
                CRITICAL, "1m", "A crowd that comes once is gone by then.", "It concerns every pod of the node."
            ),
            "TableNearlyFull": Urgency(
                WARNING, "5m", "A crowd of connections passes; a trend does not.", "It concerns every pod of the node."
            ),
            "EarlyDrop": Urgency(
                WARNING, "10m", "Entries are evicted in bursts.", "Idle connections are the first to go.", episodic=True
            ),
            "ChainTooLong": Urgency(
                WARNING, "10m", "Packets are dropped in bursts.", "New connections fail at random.", episodic=True
            ),
        },
    ),
    "DNSUnavailable": ConditionText(
        "a DNS server this node uses does not do its work",
        {
            "ServerUnreachable": Urgency(
                CRITICAL,
                "2m",
                "A DNS server that is replaced in a rollout is away for a minute.",
                "Names are looked up late, by the next server, or not at all.",
            ),
            "ServerSlow": Urgency(
                WARNING, "10m", "A peak of load passes.", "Whatever looks a name up first takes that much longer."
            ),
        },
    ),
    "KubeletHealthzFailing": ConditionText(
        "the kubelet does not answer as it should",
        {
            "HealthzTimeout": Urgency(
                CRITICAL,
                "1m",
                "It was given 10 s on each of two connections; no kubelet is known that recovers after that.",
                _NO_KUBELET,
            ),
            "HealthzRefused": Urgency(
                CRITICAL,
                "2m",
                "The agent excuses a restart; an upgrade of the kubelet takes longer than one.",
                _NO_KUBELET,
            ),
            "HealthzNotOK": Urgency(
                CRITICAL,
                "2m",
                "A check may fail for the first minute after a start.",
                "It does part of its work at best.",
            ),
            "HealthzSlow": Urgency(
                WARNING, "10m", "A peak of load passes.", "Probes and starts of pods are late, too."
            ),
        },
    ),
    "PLEGUnhealthy": ConditionText(
        "the kubelet is late to notice what its containers do",
        {
            "RelistSlow": Urgency(
                CRITICAL,
                "1m",
                "The kubelet calls its node NotReady after 3 min without a list; the agent tells after half of that.",
                "No pod turns ready, and none that ended is restarted.",
            ),
            "EventsDiscarded": Urgency(
                WARNING,
                "10m",
                "One burst counts for 5 min already, so it takes more than one.",
                "Pods stay for a while in a state they are no longer in.",
            ),
        },
    ),
    "ContainerRuntimeUnresponsive": ConditionText(
        "containerd does not answer",
        {
            "CRITimeout": Urgency(
                CRITICAL,
                "1m",
                "It was given the whole deadline; no containerd is known that recovers after that.",
                _NO_RUNTIME,
            ),
            "RuntimeRefused": Urgency(
                CRITICAL,
                "2m",
                "The agent excuses a restart; an upgrade of containerd takes longer than one.",
                _NO_RUNTIME,
            ),
        },
    ),
}
