"""Exit codes: the plugin protocol of node-problem-detector (OK, NonOK, Unknown)."""

from agent.model import NodeReport, Status

EXIT_OK = 0
EXIT_NON_OK = 1
EXIT_UNKNOWN = 2


def exit_code(report: NodeReport) -> int:
    """0 no condition is True, 1 some condition is True, 2 undetermined."""
    statuses = {condition.status for condition in report.conditions}
    if Status.TRUE in statuses:
        return EXIT_NON_OK
    return EXIT_UNKNOWN if Status.UNKNOWN in statuses else EXIT_OK
