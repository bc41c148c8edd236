"""What a controller is told over gRPC, on real containers."""

import pytest

from agent.client import Client
from agent.model import Action, Changed, Condition, Snapshot, Status, TargetKind
from tests.e2e.conftest import LabNode
from tests.lab.shim_faults import stopped_shim
from tests.lab.waiting import wait_until

HUNG = "ContainerdShimHung"

pytestmark = [pytest.mark.lab, pytest.mark.timeout(60)]


def hung(client: Client) -> Condition:
    return next(condition for condition in client.get_node_report().conditions if condition.type == HUNG)


def test_a_hung_shim_is_told_with_its_exact_identity_and_so_is_its_end(lab_node: LabNode) -> None:
    wait_until(lab_node.agent.all_well, 15, "the node is well before the fault")
    pod = lab_node.pods[0]
    with Client(lab_node.agent.endpoint) as client:
        events = client.watch([HUNG])
        before = next(events)
        assert isinstance(before, Snapshot)
        assert [condition.status for condition in before.conditions] == [Status.FALSE]
        with stopped_shim(pod):
            told = next(events)
            assert isinstance(told, Changed)
            assert (told.condition.status, told.condition.reason) == (Status.TRUE, "ShimUnresponsive")
            (active,) = told.condition.findings
            assert hung(client).findings[0].finding.key == active.finding.key
        finding = active.finding
        assert finding.recommended_action is Action.KILL_SHIM
        assert (finding.target.kind, finding.target.container_id) == (TargetKind.SHIM, pod.id)
        assert (finding.target.pid, finding.target.start_time) == (pod.shim.pid, pod.shim.start_time)
        assert finding.target.boot_id
        assert finding.pod is not None
        assert (finding.pod.namespace, finding.pod.name) == (pod.pod_namespace, pod.pod_name)
        after = next(events)
        assert isinstance(after, Changed)
        assert (after.condition.status, after.condition.findings) == (Status.FALSE, ())
        assert hung(client).status is Status.FALSE
