"""What ListActions tells: every action as it stands now for one caller."""

from collections.abc import Iterable

from agent.acts import ActionStatus, Caller, Limits, RemediationStatus
from agent.remediation import gate
from agent.remediation.gate import Act
from agent.remediation.ledger import LedgerError
from agent.remediation.remedy import Remedy
from agent.remediation.standing import Standings
