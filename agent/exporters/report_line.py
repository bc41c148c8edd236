"""The report in one line of ASCII, the worst first: for node-problem-detector and whoever else reads the first line.

node-problem-detector keeps the first `max_output_length` bytes of a plugin's output (80 unless set), so the reason and
whose it is come before everything else, and a cut anywhere leaves text that can be read.
"""

from collections.abc import Iterator

from agent.model import Condition, DetectorState, NodeReport, Status
from agent.printable import printable

MAX_LINE = 1024
"""Characters, the newline not counted."""


def line(report: NodeReport) -> str:
    """Return the line, with its newline. Pure.

    What is wrong; without that, what could not be seen; without that, what is well or not on this node.
    """
    told = " | ".join(_wrong(report) or _deployment(report) + _unseen(report) or _quiet(report))
    told = told or "nothing was looked at"
    return printable(told.encode("ascii", "backslashreplace").decode("ascii"), MAX_LINE) + "\n"


def _wrong(report: NodeReport) -> list[str]:
    """The findings in the order of the report, each condition's longest standing first."""
    conditions = _of(report, Status.TRUE)
    findings = [
        f"{active.finding.reason}: {active.finding.message}" for each in conditions for active in each.findings
    ] or [f"{each.reason}: {each.message}" for each in conditions]
    if len(findings) > 1:
        reason, _, message = findings[0].partition(": ")
        findings[0] = f"{reason} (1 of {len(findings)}): {message}"
    return findings


def _deployment(report: NodeReport) -> list[str]:
    return [f"the agent's deployment is at fault: {fault.message}" for fault in report.deployment]


def _unseen(report: NodeReport) -> list[str]:
    why: dict[str, list[str]] = {}
    for each in _of(report, Status.UNKNOWN):
        why.setdefault(each.message or each.reason, []).append(each.type)
    return [f"{', '.join(types)} unknown: {message}" for message, types in why.items()]


def _quiet(report: NodeReport) -> list[str]:
    return [*_well(report), *_absent(report)]


def _well(report: NodeReport) -> Iterator[str]:
    well = ", ".join(each.type for each in _of(report, Status.FALSE))
    if well:
        yield f"nothing wrong: {well}"


def _absent(report: NodeReport) -> Iterator[str]:
    for each in report.detectors:
        if each.state is DetectorState.NOT_APPLICABLE:
            yield f"{each.name} is not on this node: {each.message}"


def _of(report: NodeReport, status: Status) -> list[Condition]:
    return [condition for condition in report.conditions if condition.status is status]
