"""Where nothing is wrong nobody is accused: not while containers come and go, not across the agent's own stalls."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.e2e.agent_process import AgentProcess
from tests.e2e.conftest import settings_for
from tests.lab.churn import churning
from tests.lab.containerd import Containerd
from tests.lab.dns_servers import DnsServer
from tests.lab.kubelet_standin import KubeletStandin
from tests.lab.waiting import wait_until

CHURN_SECONDS = 180.0
STOPPED_SECONDS = 30.0
QUOTA_SHARE = 0.05

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]


@contextmanager
def cpu_quota(pid: int, share: float) -> Iterator[Path]:
    """Hold a process to a share of one core, by the CPU controller of cgroup v1 or v2."""
    v1 = Path("/sys/fs/cgroup/cpu")
    folder = (v1 if v1.is_dir() else Path("/sys/fs/cgroup")) / f"nodediag-lab-quota-{os.getpid()}"
    folder.mkdir()
    try:
        if v1.is_dir():
            (folder / "cpu.cfs_period_us").write_text("100000")
            (folder / "cpu.cfs_quota_us").write_text(str(int(100_000 * share)))
        else:
            (folder / "cpu.max").write_text(f"{int(100_000 * share)} 100000")
        (folder / "cgroup.procs").write_text(str(pid))
        yield folder
    finally:
        with suppress(ProcessLookupError):
            (folder.parent / "cgroup.procs").write_text(str(pid))
        wait_until(lambda: not (folder / "cgroup.procs").read_text(), 20, "the quota's cgroup is empty")
        folder.rmdir()


def throttled_periods(folder: Path) -> int:
    """Return how often the quota held its process back."""
    words = (folder / "cpu.stat").read_text().split()
    return int(words[words.index("nr_throttled") + 1])


def test_three_minutes_of_healthy_life_accuse_nobody(tmp_path: Path) -> None:
    """Twenty containers start, run execs and stop, watched by three agents at once.

    One is left alone, one is stopped for 30 s in the middle, one lives under a 5 % CPU quota.
    """
    with ExitStack() as stack:
        containerd = stack.enter_context(Containerd())
        kubelet, dns = stack.enter_context(KubeletStandin()), stack.enter_context(DnsServer())
        settings = settings_for(containerd, kubelet, dns)
        calm, stopped, throttled = (
            stack.enter_context(AgentProcess(tmp_path / name, settings)) for name in ("calm", "stopped", "throttled")
        )
        quota = stack.enter_context(cpu_quota(throttled.process.pid, QUOTA_SHARE))
        churn = stack.enter_context(churning(containerd, containers=20))
        began = time.monotonic()
        stopped.process.send_signal(signal.SIGSTOP)
        # Time itself is what is tested here: there is no event to await.
        time.sleep(STOPPED_SECONDS)
        stopped.process.send_signal(signal.SIGCONT)
        time.sleep(CHURN_SECONDS - (time.monotonic() - began))
        for agent in (calm, stopped, throttled):
            assert agent.accusations() == []
        assert calm.all_well()
        wait_until(stopped.all_well, 30, "the agent that was stopped finds the node well")
        assert (stopped.metric("nodediag_self_stall_seconds_total") or 0) >= STOPPED_SECONDS - 5
        assert throttled_periods(quota) > 0
        looked = throttled.metric("nodediag_detector_last_run_timestamp_seconds", detector="containerd_shim")
        assert looked is not None
        assert time.time() - looked < 60
        assert min(churn.started, churn.execs, churn.deleted) >= 20
