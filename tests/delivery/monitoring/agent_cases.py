"""The alerts about the agents themselves: how each comes to fire, and what it then says."""

from tests.delivery.monitoring.fleet_cases import MINUTE, condition
from tests.delivery.monitoring.promtool import Case, labelled, rising, scraped_from, values

DETECTOR = {"detector": "conntrack_dns"}
MISSING = {"cause": "capability", "subject": "CAP_NET_ADMIN"}
HIDDEN = {**MISSING, "type": "DNSUnavailable", "effect": "hides"}
IMPAIRED = {**MISSING, "type": "ConntrackDNSRace", "effect": "impairs"}
HOUR = 60 * MINUTE
"""In scrapes."""


def _up(node: str, *runs: tuple[str, int]) -> tuple[str, str]:
    return f'up{{job="nodediag",instance="{node}:9797",node="{node}"}}', values(*runs)


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
            'kube_node_info{node="well",instance="kube-state-metrics:8080",kernel_version="6.1"}': values(("1", 80)),
            'kube_node_info{node="sick",instance="kube-state-metrics:8080",kernel_version="6.1"}': values(("1", 80)),
            'kube_node_info{node="blip",instance="kube-state-metrics:8080",kernel_version="6.1"}': values(("1", 80)),
            'kube_node_info{node="other",os_image="Windows Server 2022 Datacenter"}': values(("1", 80)),
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
            labelled("process_start_time_seconds", "well"): values(("100", 2 * HOUR)),
            labelled("process_start_time_seconds", "blip"): values(("100", 10), ("500", 10), ("900", 2 * HOUR)),
            labelled("process_start_time_seconds", "sick"): values(
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
            labelled("nodediag_detector_overdue", "well", **DETECTOR): values(("0", 60)),
            labelled("nodediag_detector_overdue", "blip", **DETECTOR): values(("0", 20), ("1", 10), ("0", 30)),
            labelled("nodediag_detector_overdue", "sick", **DETECTOR): values(("0", 20), ("1", 14), ("0", 26)),
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
        name="deployed without a capability",
        alert="NodediagDeploymentFault",
        series={
            labelled("nodediag_deployment_fault", "blip", **HIDDEN, **DETECTOR): values(
                ("_", 20), ("1", 10), ("stale", 1), ("_", 29)
            ),
            labelled("nodediag_deployment_fault", "sick", **HIDDEN, **DETECTOR): values(
                ("_", 20), ("1", 14), ("stale", 1), ("_", 25)
            ),
            labelled("nodediag_deployment_fault", "sick", **IMPAIRED, **DETECTOR): values(
                ("_", 20), ("1", 14), ("stale", 1), ("_", 25)
            ),
        },
        quiet_at=(14 * 60 + 30, 17 * 60 + 30),
        fires_at=15 * 60,
        labels={**scraped_from("sick"), **MISSING, "severity": "warning"},
        summary="sick: the nodediag agent is deployed without what it needs (capability: CAP_NET_ADMIN)",
        description="The node is not at fault. 2 conditions are Unknown, or less is known about them. "
        "`nodediag report` begins with what is missing or in the way, and with what to change.",
        runbook="agent-alerts.md#nodediagdeploymentfault",
    ),
    Case(
        name="failing, which an overdue look is not",
        alert="NodediagDetectorFailing",
        series={
            labelled("nodediag_detector_success", "well", **DETECTOR): values(("1", 80)),
            labelled("nodediag_detector_success", "blip", **DETECTOR): values(("1", 20), ("0", 20), ("1", 40)),
            labelled("nodediag_detector_success", "sick", **DETECTOR): values(("1", 20), ("0", 24), ("1", 36)),
            labelled("nodediag_detector_overdue", "sick", **DETECTOR): values(("0", 80)),
            labelled("nodediag_detector_success", "overdue", **DETECTOR): values(("0", 80)),
            labelled("nodediag_detector_overdue", "overdue", **DETECTOR): values(("1", 80)),
            labelled("nodediag_detector_success", "misdeployed", **DETECTOR): values(("0", 80)),
            labelled("nodediag_deployment_fault", "misdeployed", **HIDDEN, **DETECTOR): values(("1", 80)),
        },
        quiet_at=(19 * 60 + 30, 22 * 60),
        fires_at=20 * 60,
        labels={**scraped_from("sick"), **DETECTOR, "severity": "warning"},
        summary="sick: conntrack_dns fails",
        description="It cannot see what it should: what it reads is broken, or gives answers it does not understand. "
        "Its conditions are Unknown; their message says why.",
        runbook="agent-alerts.md#nodediagdetectorfailing",
    ),
    Case(
        name="not running",
        alert="NodediagDetectorNotRunning",
        series={  # the clock of promtool begins at 0
            labelled("nodediag_detector_last_run_timestamp_seconds", "well", **DETECTOR): rising(0, 30, 4 * HOUR),
            labelled("nodediag_detector_last_run_timestamp_seconds", "sick", **DETECTOR): values(
                ("0", 130 * MINUTE), ("7800", 60)
            ),
            labelled("nodediag_detector_overdue", "sick", **DETECTOR): values(("0", 4 * HOUR)),
            labelled("nodediag_detector_last_run_timestamp_seconds", "overdue", **DETECTOR): values(("0", 4 * HOUR)),
            labelled("nodediag_detector_overdue", "overdue", **DETECTOR): values(("1", 4 * HOUR)),
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
                condition("well", "Unknown", ("0", 100)),
                condition("blip", "Unknown", ("1", 60), ("0", 40)),
                condition("sick", "Unknown", ("1", 64), ("0", 36)),
                condition("sick", "True", ("0", 100)),
                condition("misdeployed", "Unknown", ("1", 100)),
                (labelled("nodediag_deployment_fault", "misdeployed", **HIDDEN, **DETECTOR), values(("1", 100))),
                (labelled("nodediag_deployment_fault", "sick", **IMPAIRED, **DETECTOR), values(("1", 100))),
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
            labelled("nodediag_looks_discarded_total", "well", **DETECTOR): values(("7", 120)),
            labelled("nodediag_looks_discarded_total", "blip", **DETECTOR): values(("0", 20), ("9", 100)),
            labelled("nodediag_looks_discarded_total", "two in 15 min", **DETECTOR): " ".join(
                str(n // 15) for n in range(120)
            ),
            labelled("nodediag_looks_discarded_total", "sick", **DETECTOR): f"{values(('0', 20))} {rising(1, 1, 60)}",
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
            labelled("nodediag_self_stall_seconds_total", "well"): rising(0, 2, 120),
            labelled("nodediag_self_stall_seconds_total", "blip"): f"{values(('0', 20))} {values(('120', 100))}",
            labelled("nodediag_self_stall_seconds_total", "sick"): f"{values(('0', 20))} {rising(15, 15, 100)}",
        },
        quiet_at=(27 * 60 - 30,),
        fires_at=27 * 60,  # half of the time from minute 10 on is more than a tenth of ten minutes at minute 12
        labels={**scraped_from("sick"), "severity": "warning"},
        summary="sick: the nodediag agent stands still for 50% of the time",
        description="It is throttled at its CPU limit, or the node has no CPU to give. Faults are named late.",
        runbook="agent-alerts.md#nodediagstalled",
    ),
    Case(
        name="series are dropped",
        alert="NodediagSeriesDropped",
        series={
            labelled("nodediag_series_dropped_total", "well"): values(("5", 300)),
            labelled("nodediag_series_dropped_total", "sick"): values(("0", 20), ("1", 280)),
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
            labelled("scrape_samples_scraped", "well"): values(("210", 80)),
            labelled("scrape_samples_scraped", "blip"): values(("210", 10), ("501", 30), ("210", 40)),
            labelled("scrape_samples_scraped", "sick"): values(("210", 10), ("501", 34), ("210", 36)),
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
            labelled("nodediag_kubelet_api_requests_total", "well", path="/pods", code="200"): rising(0, 1, 120),
            labelled("nodediag_kubelet_api_requests_total", "well", path="/pods", code="403"): values(("8", 120)),
            labelled("nodediag_kubelet_api_requests_total", "blip", path="/pods", code="403"): values(
                ("0", 20), ("1", 100)
            ),
            labelled("nodediag_kubelet_api_requests_total", "sick", path="/pods", code="403"): (
                f"{values(('0', 20))} {rising(1, 1, 20)} {values(('20', 100))}"
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
    Case(
        name="the API server is not told",
        alert="NodediagNodeConditionsPending",
        series={
            labelled("nodediag_node_conditions_pending", "well"): values(("0", 100)),
            labelled("nodediag_node_conditions_pending", "blip"): values(("0", 20), ("3", 60), ("0", 20)),
            labelled("nodediag_node_conditions_pending", "sick"): values(("0", 20), ("3", 64), ("0", 16)),
        },
        quiet_at=(40 * 60 - 30, 42 * 60),
        fires_at=40 * 60,
        labels={**scraped_from("sick"), "severity": "warning"},
        summary="sick: the API server does not take the node's conditions from nodediag",
        description="What kubectl shows of this node is old, and who acts on it acts on what was. The agent's log says "
        "why: a right that is missing, an API server that cannot be reached, or one that asks to come back later.",
        runbook="agent-alerts.md#nodediagnodeconditionspending",
    ),
)


def _remediations(node: str, outcome: str, values: str) -> dict[str, str]:
    return {labelled("nodediag_remediations_total", node, action="KillShim", outcome=outcome): values}


def _remediation(name: str, outcome: str, sick: str, fires_at: int, over_at: int) -> Case:
    return Case(
        name=name,
        alert="NodediagRemediationFailed",
        series={
            **_remediations("well", "verified", rising(0, 1, 100)),
            **_remediations("dry", "dry_run", rising(0, 1, 100)),
            **_remediations("old", outcome, values(("3", 100))),
            **_remediations("away", outcome, values(("3", 2), ("_", 36), ("3", 62))),
            **dict(_up(node, ("1", 100)) for node in ("well", "dry", "old", "sick")),
            **dict([_up("away", ("1", 2), ("_", 36), ("1", 62))]),
            **_remediations("sick", outcome, sick),
        },
        quiet_at=(10 * 60, fires_at - 30, over_at),
        fires_at=fires_at,
        labels={**scraped_from("sick"), "action": "KillShim", "outcome": outcome, "severity": "warning"},
        summary=f"sick: KillShim was {outcome}",
        description="A remediation did not mend what it was to mend, failed, or was cut off by an end of the agent. "
        "The fault needs a person; `nodediag remediations` and `nodediag evidence` tell what was done.",
        runbook="agent-alerts.md#nodediagremediationfailed",
    )


REMEDIATION_CASES = (
    _remediation("the first of its kind", "ineffective", values(("_", 40), ("1", 60)), 20 * 60, 36 * 60),
    _remediation("one more", "failed", values(("2", 40), ("3", 60)), 20 * 60, 36 * 60),
    _remediation("cut off", "interrupted", values(("_", 40), ("1", 60)), 20 * 60, 36 * 60),
)


AGENT_CASES = (*REACH_CASES, *LOOK_CASES, *FOOTPRINT_CASES, *RIGHTS_CASES, *REMEDIATION_CASES)
