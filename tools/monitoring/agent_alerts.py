"""Alerts about the agents themselves, and about what no single condition tells.

An agent that sees nothing looks like a node on which nothing is wrong; these tell the difference.
"""

from tools.monitoring.condition_alerts import runbook
from tools.monitoring.condition_texts import TEXTS
from tools.monitoring.fleet_records import CONDITION_SUM, FINDING_NODES
from tools.monitoring.rule import JOB, Alert, Group, Severity
from tools.monitoring.scraping import EXPECTED_SERIES, SAMPLE_LIMIT

CRITICAL, WARNING = Severity
RUNBOOK = "agent-alerts.md"
WITHOUT_EFFECT = 'nodediag_remediations_total{outcome=~"failed|ineffective|interrupted"}'
HIDDEN = 'nodediag_deployment_fault{effect="hides"} == 1'
"""What is Unknown because of the agent's own deployment, for which there is an alert."""
WIDESPREAD_SHARE = 0.05
WIDESPREAD_NODES = 3
WIDESPREAD_HELD = {CRITICAL: "2m", WARNING: "5m"}


def agent_group() -> Group:
    """Return the alerts that no condition has."""
    return Group(
        "nodediag.agent",
        "1m",
        "Slower than the conditions, since nobody is woken within a minute for any of these.",
        (*_reach(), *_looks(), *_footprint(), *_rights(), *_beyond_one_condition()),
    )


def _alert(name: str, expr: str, held: str, why: str, severity: Severity, summary: str, description: str) -> Alert:
    return Alert(name, expr, held, why, severity, summary, description, f"{RUNBOOK}#{name.lower()}")


def _reach() -> tuple[Alert, ...]:
    up = f"up{{{JOB}}}"
    return (
        _alert(
            "NodediagAbsent",
            f"absent({up})",
            "10m",
            "A restart of Prometheus, or a change of its configuration, is over by then.",
            CRITICAL,
            "no nodediag agent is scraped",
            "Prometheus has no target of the job nodediag, so no node is watched: the DaemonSet is gone, or it is not "
            "selected by the PodMonitor or the scrape configuration.",
        ),
        _alert(
            "NodediagManyTargetsDown",
            f"1 - avg by (job) ({up}) > 0.2",
            "10m",
            "A rolling update takes a tenth away at a time (maxUnavailable: 10%).",
            CRITICAL,
            "{{ $value | humanizePercentage }} of the nodediag agents are down",
            "So many agents at once rarely fail by their nodes: look for a bad release, a policy that refuses the "
            "pods, or a network between them and Prometheus.",
        ),
        _alert(
            "NodediagTargetDown",
            f"{up} == 0",
            "10m",
            "A reboot of the node and an update of the agent are over by then.",
            WARNING,
            "{{ $labels.node }}: the nodediag agent cannot be scraped",
            "Nothing is known of this node. The kubelet or the node may be down, the agent may be killed at its memory "
            f"limit, or its answer has more than the {SAMPLE_LIMIT} series that are taken.",
        ),
        _alert(
            "NodediagNodeWithoutAgent",
            f'count by (node) (kube_node_info{{os_image!~"Windows.*"}}) unless on (node) {up}',
            "15m",
            "A new node pulls the image first. Not for Windows, where no agent runs. Silent where there is no "
            "kube-state-metrics.",
            WARNING,
            "{{ $labels.node }}: no nodediag agent runs there",
            "The node is known to Kubernetes, but Prometheus has no agent of it: see whether the DaemonSet has a pod "
            "there, and why that does not start.",
        ),
        _alert(
            "NodediagRestarting",
            f"changes(process_start_time_seconds{{{JOB}}}[1h]) > 3",
            "0s",
            "Counted over an hour already.",
            WARNING,
            "{{ $labels.node }}: the nodediag agent was restarted {{ $value }} times within an hour",
            "It ends by a fault of its own, at its memory limit, or by its liveness probe; the pod's last state says "
            "which.",
        ),
    )


def _looks() -> tuple[Alert, ...]:
    return (
        _alert(
            "NodediagDetectorOverdue",
            "nodediag_detector_overdue == 1",
            "5m",
            "The agent calls a look overdue after 20 s; one that is merely slow returns within minutes.",
            WARNING,
            "{{ $labels.node }}: {{ $labels.detector }} is stuck in a look",
            "What it reads does not answer, which is often a fault of the node itself: a process or a disk that hangs "
            "in the kernel. Its conditions are Unknown until the look returns.",
        ),
        _alert(
            "NodediagDeploymentFault",
            "count without (detector, type, effect) (nodediag_deployment_fault == 1)",
            "5m",
            "What the agent is not given does not come by itself; an update of the agent on this node takes less.",
            WARNING,
            "{{ $labels.node }}: the nodediag agent is deployed without what it needs "
            "({{ $labels.cause }}: {{ $labels.subject }})",
            "The node is not at fault. {{ $value }} conditions are Unknown, or less is known about them. "
            "`nodediag report` begins with what is missing or in the way, and with what to change.",
        ),
        _alert(
            "NodediagDetectorFailing",
            "nodediag_detector_success == 0 unless on (instance, detector) "
            f"(nodediag_detector_overdue == 1 or {HIDDEN})",
            "10m",
            "Long enough for what it reads to be restarted.",
            WARNING,
            "{{ $labels.node }}: {{ $labels.detector }} fails",
            "It cannot see what it should: what it reads is broken, or gives answers it does not understand. Its "
            "conditions are Unknown; their message says why.",
        ),
        _alert(
            "NodediagDetectorNotRunning",
            "time() - nodediag_detector_last_run_timestamp_seconds > 7200 "
            "unless on (instance, detector) nodediag_detector_overdue == 1",
            "5m",
            "The longest period that can be set is an hour. The node's clock is compared with Prometheus', too.",
            WARNING,
            "{{ $labels.node }}: {{ $labels.detector }} has not looked for {{ $value | humanizeDuration }}",
            "Its conditions still tell what it saw last. Either its thread has ended by a fault of the agent, or the "
            "node's clock is wrong.",
        ),
        _alert(
            "NodediagConditionUnknown",
            f'nodediag_condition{{status="Unknown"}} == 1 unless on (instance, type) {HIDDEN}',
            "30m",
            "Unknown after a start, or while a look is thrown away, passes within a minute; what it watches may be "
            "down for some more. What a fault of the agent's own deployment hides has an alert of its own.",
            WARNING,
            "{{ $labels.node }}: nothing can be said about {{ $labels.type }}",
            "This node is not watched for it, and nobody else may tell. The condition's message says what the agent "
            "cannot see.",
        ),
    )


def _footprint() -> tuple[Alert, ...]:
    return (
        _alert(
            "NodediagLooksDiscarded",
            "increase(nodediag_looks_discarded_total[15m]) >= 3",
            "15m",
            "A busy minute of the node may cost a look or two.",
            WARNING,
            "{{ $labels.node }}: looks of {{ $labels.detector }} are thrown away",
            "The agent stood still for more than a second while it looked, so it accuses nobody by what it saw, and "
            "faults are named late. It is throttled at its CPU limit, or the whole node stands still.",
        ),
        _alert(
            "NodediagStalled",
            "rate(nodediag_self_stall_seconds_total[10m]) > 0.1",
            "15m",
            "A busy quarter of an hour passes. With 110 shims under the manifest's limit of 100m it was 0.002.",
            WARNING,
            "{{ $labels.node }}: the nodediag agent stands still for {{ $value | humanizePercentage }} of the time",
            "It is throttled at its CPU limit, or the node has no CPU to give. Faults are named late.",
        ),
        _alert(
            "NodediagSeriesDropped",
            "increase(nodediag_series_dropped_total[1h]) > 0",
            "0s",
            "Counted over an hour already, and never for a good reason.",
            WARNING,
            "{{ $labels.node }}: the nodediag agent leaves series out",
            "A metric has more than the 64 series the agent gives it. That is a fault of the agent: please report it, "
            "with its log.",
        ),
        _alert(
            "NodediagTooManySeries",
            f"scrape_samples_scraped{{{JOB}}} > {EXPECTED_SERIES}",
            "15m",
            "More than twice what a healthy node has, and half of what is taken; a node with many faults has some more "
            "for a while.",
            WARNING,
            "{{ $labels.node }}: the nodediag agent has {{ $value }} series",
            f"A scrape with more than {SAMPLE_LIMIT} is refused as a whole, and the node then counts as down. That is "
            "a fault of the agent: please report it.",
        ),
        _alert(
            "NodediagRemediationFailed",
            f"increase({WITHOUT_EFFECT}[15m]) > 0 or ({WITHOUT_EFFECT} unless {WITHOUT_EFFECT} offset 15m) > 0 "
            f"and on (instance) up{{{JOB}}} offset 15m == 1",
            "0s",
            "Each one counts. The first of its kind begins a series, whose increase is 0: hence the second half, for "
            "agents that were scraped before, too; else what is long over would be told after each gap in the scrapes.",
            WARNING,
            "{{ $labels.node }}: {{ $labels.action }} was {{ $labels.outcome }}",
            "A remediation did not mend what it was to mend, failed, or was cut off by an end of the agent. The fault "
            "needs a person; `nodediag remediations` and `nodediag evidence` tell what was done.",
        ),
    )


def _rights() -> tuple[Alert, ...]:
    return (
        _alert(
            "NodediagKubeletApiRefused",
            'increase(nodediag_kubelet_api_requests_total{code=~"401|403"}[15m]) > 0',
            "15m",
            "A token that was just renewed, or rights that were just given, take minutes to be known. Silent where the "
            "kubelet's API is not asked.",
            WARNING,
            "{{ $labels.node }}: the kubelet refuses {{ $labels.path }} to nodediag with {{ $labels.code }}",
            "401: it does not take the token; 403: the ClusterRole lacks a right. Pods are then told by less, and "
            "PLEGUnhealthy is Unknown.",
        ),
        _alert(
            "NodediagNodeConditionsPending",
            "nodediag_node_conditions_pending > 0",
            "30m",
            "An API server that is upgraded or overloaded is waited for. Silent where node conditions are not told.",
            WARNING,
            "{{ $labels.node }}: the API server does not take the node's conditions from nodediag",
            "What kubectl shows of this node is old, and who acts on it acts on what was. The agent's log says why: a "
            "right that is missing, an API server that cannot be reached, or one that asks to come back later.",
        ),
    )


def _beyond_one_condition() -> tuple[Alert, ...]:
    telling = 'ALERTS{alertstate="firing",alertname=~"Nodediag.+",alertname!="NodediagConditionTrue"}'
    return (
        *(_widespread(severity) for severity in Severity),
        Alert(
            "NodediagConditionFlapping",
            'changes(nodediag_condition{status="True"}[30m]) > 6',
            "5m",
            "More than three times in half an hour, each too short for the condition's own alert.",
            WARNING,
            "{{ $labels.node }}: {{ $labels.type }} comes and goes",
            "It changed {{ $value }} times in half an hour.",
            runbook("{{ $labels.type }}"),
        ),
        Alert(
            "NodediagConditionTrue",
            f'nodediag_condition{{status="True"}} == 1 unless on (instance, type) {telling}',
            "20m",
            "For what the alerts above do not know: an agent newer than these rules, or reasons that take turns. Held "
            "longer than any of those.",
            WARNING,
            "{{ $labels.node }}: {{ $labels.type }} is True",
            "No other alert tells of it: the rules may be older than the agent.",
            runbook("{{ $labels.type }}"),
        ),
    )


def _widespread(severity: Severity) -> Alert:
    """Return the alert about many nodes with a reason of this urgency: many zombies are no more urgent than some."""
    reasons = "|".join(
        reason for text in TEXTS.values() for reason, urgency in text.reasons.items() if urgency.severity is severity
    )
    nodes = f'{FINDING_NODES}{{reason=~"{reasons}"}}'
    return Alert(
        "NodediagConditionWidespread",
        f"{nodes} / on (type) group_left sum by (type) ({CONDITION_SUM}) > {WIDESPREAD_SHARE} "
        f"and {nodes} >= {WIDESPREAD_NODES}",
        WIDESPREAD_HELD[severity],
        f"A twentieth of the nodes and at least {WIDESPREAD_NODES}: nodes rarely fail together by chance, and this one "
        "alert can then stand for those of all nodes (inhibit them by it). As urgent as its reason, and held about as "
        "long: what comes later than the alerts of the nodes holds none of them back.",
        severity,
        "{{ $labels.type }} ({{ $labels.reason }}) on {{ $value | humanizePercentage }} of the nodes",
        "Look for one cause: a release of the kernel, the runtime or the kubelet, cluster DNS, one workload that runs "
        "everywhere.",
        runbook("{{ $labels.type }}"),
    )
