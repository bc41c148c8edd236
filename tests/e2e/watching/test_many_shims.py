"""One hung shim among many delays and hides none of the others."""

from pathlib import Path

import pytest

from tests.e2e.agent_process import AgentProcess
from tests.e2e.conftest import settings_for
from tests.lab.containerd import Containerd
from tests.lab.containers import run_containers
from tests.lab.dns_servers import DnsServer
from tests.lab.kubelet_standin import KubeletStandin
from tests.lab.shim_faults import stopped_shim
from tests.lab.waiting import wait_until

COUNT = 30

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]


def test_with_1_of_30_shims_stopped_the_other_29_are_measured_as_before(tmp_path: Path) -> None:
    with Containerd() as containerd, KubeletStandin() as kubelet, DnsServer() as dns:
        pods = run_containers(containerd, COUNT)
        with AgentProcess(tmp_path, settings_for(containerd, kubelet, dns)) as agent:
            wait_until(lambda: agent.metric("nodediag_shims", state="serving") == COUNT, 15, "all shims serve")
            with stopped_shim(pods[7]):
                wait_until(lambda: agent.metric("nodediag_shims", state="hung") == 1, 15, "the hung shim is counted")
                states = agent.metrics(*(("nodediag_shims", {"state": each}) for each in ("serving", "hung")))
                assert states == [COUNT - 1, 1]
                assert (agent.metric("nodediag_shim_hung_seconds", pod=pods[7].pod_name) or 0) > 0
                before = _pings(agent)
                wait_until(lambda: _pings(agent)[0] >= before[0] + 2 * (COUNT - 1), 20, "two more looks")
                count, quick = _pings(agent)
                assert count - before[0] == quick - before[1], "a healthy shim was measured as slow"
                assert (count - before[0]) % (COUNT - 1) == 0


def _pings(agent: AgentProcess) -> tuple[float, float]:
    """All answers counted so far, and those within 250 ms."""
    name = "nodediag_shim_ping_seconds"
    count, quick = agent.metrics((f"{name}_count", {}), (f"{name}_bucket", {"le": "0.25"}))
    return count or 0, quick or 0
