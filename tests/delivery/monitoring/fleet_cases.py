"""The alerts that look past one condition of one node: how each comes to fire, and what it then says."""

from tests.delivery.monitoring.promtool import Case, labelled, scraped_from, values

MINUTE = 2
"""In scrapes."""


def condition(node: str, status: str, *runs: tuple[str, int]) -> tuple[str, str]:
    return labelled("nodediag_condition", node, type="DNSUnavailable", status=status), values(*runs)


def _fleet(kind: str, reason: str, sick: int, of: int, minutes: int) -> dict[str, str]:
    """Return the series of a fleet of which some nodes have a finding from minute 10 on, for so many minutes."""

    def course(yes: str, no: str, *, ill: bool) -> str:
        return values((no, 10 * MINUTE), (yes if ill else no, minutes * MINUTE), (no, 30 * MINUTE))

    conditions = {
        labelled("nodediag_condition", f"n{number}", type=kind, status=status): course(*values, ill=number < sick)
        for number in range(of)
        for status, values in {"True": "10", "False": "01"}.items()
    }
    return conditions | {
        labelled("nodediag_findings", f"n{number}", type=kind, reason=reason): course("1", "0", ill=number < sick)
        for number in range(of)
    }


def _widespread(kind: str, reason: str, severity: str, held: int) -> Case:
    return Case(
        name=f"{reason} on a tenth of the nodes",
        alert="NodediagConditionWidespread",
        series={
            **_fleet(kind, reason, sick=4, of=40, minutes=7),
            **_fleet("KubeletHealthzFailing", "HealthzRefused", sick=2, of=10, minutes=20),
            **_fleet("ContainerdShimLeaked", "ShimDead", sick=2, of=10, minutes=20),
            **_fleet("ConntrackDNSRace", "InsertFailed", sick=4, of=100, minutes=20),
            **_fleet("ContainerRuntimeUnresponsive", "CRITimeout", sick=4, of=100, minutes=20),
        },
        quiet_at=((10 + held) * 60 - 30, 17 * 60),
        fires_at=(10 + held) * 60,
        labels={"type": kind, "reason": reason, "severity": severity},
        summary=f"{kind} ({reason}) on 10% of the nodes",
        description="Look for one cause: a release of the kernel, the runtime or the kubelet, cluster DNS, one "
        "workload that runs everywhere.",
        runbook=f"runbooks/{kind}.md",
    )


FLEET_CASES = (
    _widespread("DNSUnavailable", "ServerUnreachable", "critical", 2),
    _widespread("ConntrackTablePressure", "TableNearlyFull", "warning", 5),
    Case(
        name="comes and goes",
        alert="NodediagConditionFlapping",
        series=dict(
            [
                condition("well", "True", ("0", 160)),
                condition("steady", "True", ("0", 20), ("1", 140)),
                condition("blip", "True", *([("0", 2), ("1", 2)] * 3), ("0", 148)),
                condition("sick", "True", *([("0", 2), ("1", 2)] * 20), ("0", 80)),
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
                    condition("well", "True", ("0", 160)),
                    condition("known", "True", ("0", 20), ("1", 140)),
                    condition("blip", "True", ("0", 20), ("1", 40), ("0", 100)),
                    condition("sick", "True", ("0", 20), ("1", 44), ("0", 96)),
                ]
            ),
            labelled("nodediag_findings", "known", type="DNSUnavailable", reason="ServerUnreachable"): values(
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
