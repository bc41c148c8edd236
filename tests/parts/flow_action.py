"""Runs DeleteConntrackFlows in the network namespace it is started in, and prints what came of it as one line of JSON.

python -m tests.parts.flow_action ADDRESS     # `-` for all servers
"""

import json
import sys

from agent.acts import RefusedError
from agent.clock import StallMeter
from agent.host.conntrack import Conntrack
from agent.model import Action, Finding, Target, TargetKind
from agent.remediation.actions.delete_conntrack_flows import DeleteConntrackFlows
from agent.remediation.flows import NetlinkFlowTable


def main(address: str) -> dict[str, object]:
    clock = StallMeter()
    clock.start()
    conntrack = Target(TargetKind.CONNTRACK)
    target = conntrack if address == "-" else Target(TargetKind.DNS_SERVER, address=address)
    finding = Finding("ConntrackDNSRace", "InsertFailed", "", Action.DELETE_CONNTRACK_FLOWS, target)
    remedy = DeleteConntrackFlows(Conntrack(), NetlinkFlowTable(clock), clock, lambda: None)
    try:
        with remedy.confirm(target, finding) as case:
            evidence, done, outcome = case.evidence(), case.perform(), case.verify()
    except RefusedError as error:
        return {"refused": error.refusal.reason.value, "message": error.refusal.message}
    return {"flows": evidence["flowsInAll"], "done": done, "helped": outcome.helped, "message": outcome.message}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
