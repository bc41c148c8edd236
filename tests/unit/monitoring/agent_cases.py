"""The alerts that no condition has: about the agents themselves, and about many nodes at once."""

from tests.unit.monitoring.promtool import Case, scraped_from

DETECTOR = {"detector": "conntrack_dns"}
HOUR, MINUTE = 120, 2
"""In scrapes, of which there are two a minute."""


def _values(*runs: tuple[str, int]) -> str:
    """Return each value so many times."""
    return " ".join(" ".join([value] * times) for value, times in runs)


def _rising(start: int, by: int, times: int) -> str:
    return " ".join(str(start + n * by) for n in range(times))


def _on(name: str, node: str, **labels: str) -> str:
    """Return a series scraped from a node."""
    pairs = ",".join(f'{key}="{value}"' for key, value in {**scraped_from(node), **labels}.items())
    return f"{name}{{{pairs}}}"


def _up(node: str, *runs: tuple[str, int]) -> tuple[str, str]:
    return f'up{{job="nodediag",instance="{node}:9797",node="{node}"}}', _values(*runs)


def _condition(node: str, status: str, *runs: tuple[str, int]) -> tuple[str, str]:
    return _on("nodediag_condition", node, type="DNSUnavailable", status=status), _values(*runs)


def _fleet(kind: str, sick: int, of: int, minutes: int) -> dict[str, str]:
    """Return a condition of a fleet, which some nodes have from minute 10 on for so many minutes."""
    well, ill = _values(("0", 40 * MINUTE)), _values(("0", 10 * MINUTE), ("1", minutes * MINUTE), ("0", 30 * MINUTE))
    return {
        _on("nodediag_condition", f"n{number}", type=kind, status="True"): ill if number < sick else well
        for number in range(of)
    }


REACH_CASES = (
    Case(
        name="absent",
        alert="NodediagAbsent",
        series=dict([_up("n1", ("1", 10 * MINUTE), ("stale", 1), ("_", 20 * MINUTE))]),
        quiet_at=(0, 19 * 60 + 30),
        fires_at=20 * 60,
        labels={"job": "nodediag", "severity": "critical"},
        summary="no nodediag agent is scraped",
        description="Prometheus has no target of the job nodediag, so no node is watched: the DaemonSet is gone, or it "
        "is not selected by the PodMonitor or the scrape configuration.",
        runbook="agent-alerts.md#nodediagabsent",
    ),
    Case(
        name="absent for a moment, then one of two is down for longer",
        alert="NodediagTargetDown",
        series=dict(
            [
                _up("well", ("1", 30 * MINUTE)),
                _up("blip", ("0", 9 * MINUTE + 1), ("1", 20 * MINUTE)),
                _up("sick", ("0", 12 * MINUTE), ("1", 20 * MINUTE)),
            ]
        ),
        quiet_at=(9 * 60 + 30, 12 * 60),
        fires_at=10 * 60,
        labels={**scraped_from("sick"), "severity": "warning"},
        summary="sick: the nodediag agent cannot be scraped",
        description="Nothing is known of this node. The kubelet or the node may be down, the agent may be killed at "
        "its memory limit, or its answer has more than the 1000 series that are taken.",
        runbook="agent-alerts.md#nodediagtargetdown",
    ),
    Case(
        name="a tenth is down, then some more",
        alert="NodediagManyTargetsDown",
        series=dict(
            [
                *(_up(f"n{number}", ("1", 100)) for number in range(7)),
                _up("n7", ("1", 20), ("0", 48), ("1", 32)),
                _up("n8", ("1", 44), ("0", 24), ("1", 32)),
                _up("n9", ("1", 44), ("0", 24), ("1", 32)),
            ]
        ),
        quiet_at=(21 * 60, 31 * 60 + 30, 34 * 60),
        fires_at=32 * 60,
        labels={"job": "nodediag", "severity": "critical"},
        summary="30% of the nodediag agents are down",
        description="So many agents at once rarely fail by their nodes: look for a bad release, a policy that refuses "
        "the pods, or a network between them and Prometheus.",
        runbook="agent-alerts.md#nodediagmanytargetsdown",
    ),
    Case(
        name="a node without an agent",
        alert="NodediagNodeWithoutAgent",
        series={
            'kube_node_info{node="well",instance="kube-state-metrics:8080",kernel_version="6.1"}': _values(("1", 80)),
            'kube_node_info{node="sick",instance="kube-state-metrics:8080",kernel_version="6.1"}': _values(("1", 80)),
            'kube_node_info{node="blip",instance="kube-state-metrics:8080",kernel_version="6.1"}': _values(("1", 80)),
            **dict(
                [
                    _up("well", ("1", 80)),
                    _up("blip", ("_", 14 * MINUTE), ("1", 52)),
                    _up("sick", ("_", 17 * MINUTE), ("1", 46)),
                ]
            ),
        },
        quiet_at=(14 * 60 + 30, 17 * 60),
        fires_at=15 * 60,
        labels={"node": "sick", "severity": "warning"},
        summary="sick: no nodediag agent runs there",
        description="The node is known to Kubernetes, but Prometheus has no agent of it: see whether the DaemonSet has "
        "a pod there, and why that does not start.",
        runbook="agent-alerts.md#nodediagnodewithoutagent",
    ),
    Case(
        name="restarted again and again",
        alert="NodediagRestarting",
        series={
            _on("process_start_time_seconds", "well"): _values(("100", 2 * HOUR)),
            _on("process_start_time_seconds", "blip"): _values(("100", 10), ("500", 10), ("900", 2 * HOUR)),
            _on("process_start_time_seconds", "sick"): _values(
                ("100", 10), ("400", 10), ("700", 10), ("1000", 10), ("1300", 2 * HOUR)
            ),
        },
        quiet_at=(39 * 30, 110 * 60),
        fires_at=40 * 30,
        labels={**scraped_from("sick"), "severity": "warning"},
        summary="sick: the nodediag agent was restarted 4 times within an hour",
        description="It ends by a fault of its own, at its memory limit, or by its liveness probe; the pod's last "
        "state says which.",
        runbook="agent-alerts.md#nodediagrestarting",
    ),
)

LOOK_CASES = (
    Case(
        name="stuck in a look",
        alert="NodediagDetectorOverdue",
        series={
            _on("nodediag_detector_overdue", "well", **DETECTOR): _values(("0", 60)),
            _on("nodediag_detector_overdue", "blip", **DETECTOR): _values(("0", 20), ("1", 10), ("0", 30)),
            _on("nodediag_detector_overdue", "sick", **DETECTOR): _values(("0", 20), ("1", 14), ("0", 26)),
        },
        quiet_at=(14 * 60 + 30, 17 * 60),
        fires_at=15 * 60,
        labels={**scraped_from("sick"), **DETECTOR, "severity": "warning"},
        summary="sick: conntrack_dns is stuck in a look",
        description="What it reads does not answer, which is often a fault of the node itself: a process or a disk "
        "that hangs in the kernel. Its conditions are Unknown until the look returns.",
        runbook="agent-alerts.md#nodediagdetectoroverdue",
    ),
    Case(
        name="failing, which an overdue look is not",
        alert="NodediagDetectorFailing",
        series={
            _on("nodediag_detector_success", "well", **DETECTOR): _values(("1", 80)),
            _on("nodediag_detector_success", "blip", **DETECTOR): _values(("1", 20), ("0", 20), ("1", 40)),
            _on("nodediag_detector_success", "sick", **DETECTOR): _values(("1", 20), ("0", 24), ("1", 36)),
            _on("nodediag_detector_overdue", "sick", **DETECTOR): _values(("0", 80)),
            _on("nodediag_detector_success", "overdue", **DETECTOR): _values(("0", 80)),
            _on("nodediag_detector_overdue", "overdue", **DETECTOR): _values(("1", 80)),
        },
        quiet_at=(19 * 60 + 30, 22 * 60),
        fires_at=20 * 60,
        labels={**scraped_from("sick"), **DETECTOR, "severity": "warning"},
        summary="sick: conntrack_dns fails",
        description="It cannot see what it should: a capability or a mount is missing, or what it reads gives answers "
        "it does not understand. Its conditions are Unknown; their message says why.",
        runbook="agent-alerts.md#nodediagdetectorfailing",
    ),
    Case(
        name="not running",
        alert="NodediagDetectorNotRunning",
        series={  # the clock of promtool begins at 0
            _on("nodediag_detector_last_run_timestamp_seconds", "well", **DETECTOR): _rising(0, 30, 4 * HOUR),
            _on("nodediag_detector_last_run_timestamp_seconds", "sick", **DETECTOR): _values(
                ("0", 130 * MINUTE), ("7800", 60)
            ),
            _on("nodediag_detector_overdue", "sick", **DETECTOR): _values(("0", 4 * HOUR)),
            _on("nodediag_detector_last_run_timestamp_seconds", "overdue", **DETECTOR): _values(("0", 4 * HOUR)),
            _on("nodediag_detector_overdue", "overdue", **DETECTOR): _values(("1", 4 * HOUR)),
        },
        quiet_at=(7200 + 300, 7800),
        fires_at=7230 + 300,
        labels={**scraped_from("sick"), **DETECTOR, "severity": "warning"},
        summary="sick: conntrack_dns has not looked for 2h 5m 30s",
        description="Its conditions still tell what it saw last. Either its thread has ended by a fault of the agent, "
        "or the node's clock is wrong.",
        runbook="agent-alerts.md#nodediagdetectornotrunning",
    ),
    Case(
        name="unknown for long",
        alert="NodediagConditionUnknown",
        series=dict(
            [
                _condition("well", "Unknown", ("0", 100)),
                _condition("blip", "Unknown", ("1", 60), ("0", 40)),
                _condition("sick", "Unknown", ("1", 64), ("0", 36)),
                _condition("sick", "True", ("0", 100)),
            ]
        ),
        quiet_at=(29 * 60 + 30, 32 * 60),
        fires_at=30 * 60,
        labels={**scraped_from("sick"), "type": "DNSUnavailable", "status": "Unknown", "severity": "warning"},
        summary="sick: nothing can be said about DNSUnavailable",
        description="This node is not watched for it, and nobody else may tell. The condition's message says what the "
        "agent cannot see.",
        runbook="agent-alerts.md#nodediagconditionunknown",
    ),
)

FOOTPRINT_CASES = (
    Case(
        name="looks are thrown away",
        alert="NodediagLooksDiscarded",
        series={
            _on("nodediag_looks_discarded_total", "well", **DETECTOR): _values(("7", 120)),
            _on("nodediag_looks_discarded_total", "blip", **DETECTOR): _values(("0", 20), ("9", 100)),
            _on("nodediag_looks_discarded_total", "two in 15 min", **DETECTOR): " ".join(
                str(n // 15) for n in range(120)
            ),
            _on("nodediag_looks_discarded_total", "sick", **DETECTOR): f"{_values(('0', 20))} {_rising(1, 1, 60)}",
        },
        quiet_at=(11 * 60 + 900 - 30, 60 * 60),
        fires_at=11 * 60 + 900,  # three are thrown away by the scrape at minute 11
        labels={**scraped_from("sick"), **DETECTOR, "severity": "warning"},
        summary="sick: looks of conntrack_dns are thrown away",
        description="The agent stood still for more than a second while it looked, so it accuses nobody by what it "
        "saw, and faults are named late. It is throttled at its CPU limit, or the whole node stands still.",
        runbook="agent-alerts.md#nodediaglooksdiscarded",
    ),
    Case(
        name="stands still",
        alert="NodediagStalled",
        series={
            _on("nodediag_self_stall_seconds_total", "well"): _rising(0, 3, 120),
            _on("nodediag_self_stall_seconds_total", "blip"): f"{_values(('0', 20))} {_values(('120', 100))}",
            _on("nodediag_self_stall_seconds_total", "sick"): f"{_values(('0', 20))} {_rising(15, 15, 100)}",
        },
        quiet_at=(30 * 60 - 30,),
        fires_at=30 * 60,  # half of the time from minute 10 on is more than a quarter of ten minutes at minute 15
        labels={**scraped_from("sick"), "severity": "warning"},
        summary="sick: the nodediag agent stands still for 50% of the time",
        description="It is throttled at its CPU limit, or the node has no CPU to give. Faults are named late.",
        runbook="agent-alerts.md#nodediagstalled",
    ),
    Case(
        name="series are dropped",
        alert="NodediagSeriesDropped",
        series={
            _on("nodediag_series_dropped_total", "well"): _values(("5", 300)),
            _on("nodediag_series_dropped_total", "sick"): _values(("0", 20), ("1", 280)),
        },
        quiet_at=(19 * 30, 20 * 30 + 3600 + 60),
        fires_at=20 * 30,
        labels={**scraped_from("sick"), "severity": "warning"},
        summary="sick: the nodediag agent leaves series out",
        description="A metric has more than the 64 series the agent gives it. That is a fault of the agent: please "
        "report it, with its log.",
        runbook="agent-alerts.md#nodediagseriesdropped",
    ),
    Case(
        name="too many series",
        alert="NodediagTooManySeries",
        series={
            _on("scrape_samples_scraped", "well"): _values(("210", 80)),
            _on("scrape_samples_scraped", "blip"): _values(("210", 10), ("501", 30), ("210", 40)),
            _on("scrape_samples_scraped", "sick"): _values(("210", 10), ("501", 34), ("210", 36)),
        },
        quiet_at=(19 * 60 + 30, 22 * 60),
        fires_at=20 * 60,
        labels={**scraped_from("sick"), "severity": "warning"},
        summary="sick: the nodediag agent has 501 series",
        description="A scrape with more than 1000 is refused as a whole, and the node then counts as down. That is a "
        "fault of the agent: please report it.",
        runbook="agent-alerts.md#nodediagtoomanyseries",
    ),
)

RIGHTS_CASES = (
    Case(
        name="the kubelet refuses",
        alert="NodediagKubeletApiRefused",
        series={
            _on("nodediag_kubelet_api_requests_total", "well", path="/pods", code="200"): _rising(0, 1, 120),
            _on("nodediag_kubelet_api_requests_total", "well", path="/pods", code="403"): _values(("8", 120)),
            _on("nodediag_kubelet_api_requests_total", "blip", path="/pods", code="403"): _values(
                ("0", 20), ("1", 100)
            ),
            _on("nodediag_kubelet_api_requests_total", "sick", path="/pods", code="403"): (
                f"{_values(('0', 20))} {_rising(1, 1, 20)} {_values(('20', 100))}"
            ),
        },
        quiet_at=(10 * 60 + 900 - 30, 40 * 60),
        fires_at=10 * 60 + 900,
        labels={**scraped_from("sick"), "path": "/pods", "code": "403", "severity": "warning"},
        summary="sick: the kubelet refuses /pods to nodediag with 403",
        description="401: it does not take the token; 403: the ClusterRole lacks a right. Pods are then told by less, "
        "and PLEGUnhealthy is Unknown.",
        runbook="agent-alerts.md#nodediagkubeletapirefused",
    ),
)


def _remediations(node: str, outcome: str, values: str) -> dict[str, str]:
    return {_on("nodediag_remediations_total", node, action="KillShim", outcome=outcome): values}


def _remediation(name: str, outcome: str, sick: str, fires_at: int, over_at: int) -> Case:
    return Case(
        name=name,
        alert="NodediagRemediationFailed",
        series={
            **_remediations("well", "verified", _rising(0, 1, 100)),
            **_remediations("dry", "dry_run", _rising(0, 1, 100)),
            **_remediations("old", outcome, _values(("3", 100))),
            **_remediations("sick", outcome, sick),
        },
        quiet_at=(fires_at - 30, over_at),
        fires_at=fires_at,
        labels={**scraped_from("sick"), "action": "KillShim", "outcome": outcome, "severity": "warning"},
        summary=f"sick: KillShim was {outcome}",
        description="A remediation did not mend what it was to mend, failed, or was cut off by an end of the agent. "
        "The fault needs a person; `nodediag remediations` and `nodediag evidence` tell what was done.",
        runbook="agent-alerts.md#nodediagremediationfailed",
    )


REMEDIATION_CASES = (
    _remediation("the first of its kind", "ineffective", _values(("_", 40), ("1", 60)), 20 * 60, 36 * 60),
    _remediation("one more", "failed", _values(("2", 40), ("3", 60)), 20 * 60, 36 * 60),
    _remediation("cut off", "interrupted", _values(("_", 40), ("1", 60)), 20 * 60, 36 * 60),
)

BEYOND_CASES = (
    Case(
        name="on a tenth of the nodes",
        alert="NodediagConditionWidespread",
        series={
            **_fleet("DNSUnavailable", sick=4, of=40, minutes=7),
            **_fleet("KubeletHealthzFailing", sick=2, of=10, minutes=20),
            **_fleet("ConntrackDNSRace", sick=4, of=100, minutes=20),
        },
        quiet_at=(14 * 60 + 30, 17 * 60),
        fires_at=15 * 60,
        labels={"type": "DNSUnavailable", "severity": "critical"},
        summary="DNSUnavailable on 10% of the nodes",
        description="Look for one cause: a release of the kernel, the runtime or the kubelet, cluster DNS, one "
        "workload that runs everywhere.",
        runbook="runbooks/DNSUnavailable.md",
    ),
    Case(
        name="comes and goes",
        alert="NodediagConditionFlapping",
        series=dict(
            [
                _condition("well", "True", ("0", 160)),
                _condition("steady", "True", ("0", 20), ("1", 140)),
                _condition("blip", "True", *([("0", 2), ("1", 2)] * 3), ("0", 148)),
                _condition("sick", "True", *([("0", 2), ("1", 2)] * 20), ("0", 80)),
            ]
        ),
        quiet_at=(12 * 60 - 30, 70 * 60),
        fires_at=12 * 60,  # it changes every minute, the seventh time at minute 7
        labels={**scraped_from("sick"), "type": "DNSUnavailable", "status": "True", "severity": "warning"},
        summary="sick: DNSUnavailable comes and goes",
        description="It changed 12 times in half an hour.",
        runbook="runbooks/DNSUnavailable.md",
    ),
    Case(
        name="a condition these rules do not know",
        alert="NodediagConditionTrue",
        series={
            **dict(
                [
                    _condition("well", "True", ("0", 160)),
                    _condition("known", "True", ("0", 20), ("1", 140)),
                    _condition("blip", "True", ("0", 20), ("1", 40), ("0", 100)),
                    _condition("sick", "True", ("0", 20), ("1", 44), ("0", 96)),
                ]
            ),
            _on("nodediag_findings", "known", type="DNSUnavailable", reason="ServerUnreachable"): _values(
                ("0", 20), ("1", 140)
            ),
        },
        quiet_at=(29 * 60 + 30, 32 * 60),
        fires_at=30 * 60,
        labels={**scraped_from("sick"), "type": "DNSUnavailable", "status": "True", "severity": "warning"},
        summary="sick: DNSUnavailable is True",
        description="No other alert tells of it: the rules may be older than the agent.",
        runbook="runbooks/DNSUnavailable.md",
        reads_alerts=True,
    ),
)

AGENT_CASES = (*REACH_CASES, *LOOK_CASES, *FOOTPRINT_CASES, *RIGHTS_CASES, *REMEDIATION_CASES, *BEYOND_CASES)
