"""The manifest without one of its capabilities or mounts: what is lost is reported. So each of them is needed.

All of them run side by side, and before they start two faults are made that some of them are needed for: a shim whose
bundle is gone, and a frozen one.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.cluster.deployed import Agent, copy_of, deployed, shipped
from tests.cluster.pods import NAMESPACE, running_pod, shim_of
from tests.lab import cgroups, shim_faults
from tests.lab.containers import running_container
from tests.lab.kubernetes.cluster import Cluster
from tests.lab.pod_spec import Manifest
from tests.lab.pods import Pod
from tests.lab.waiting import wait_until

MANIFEST = shipped()
REPORTED = {
    "NET_ADMIN": "the agent needs CAP_NET_ADMIN",
    "DAC_READ_SEARCH": "the agent needs CAP_DAC_READ_SEARCH",
    "SYS_PTRACE": "the agent needs CAP_SYS_PTRACE",
    "containerd": "mount /run/containerd",
    "cgroup": "/sys/fs/cgroup does not show",
}
"""By capability or volume: words of the report without it."""
NOT_STARTED = {"config": "/etc/nodediag"}
"""By volume: words of the log of an agent that does not start without it."""
NO_REPORT = {"run": "/run/nodediag/nodediag.sock"}
"""By volume: words of `nodediag report`, which has nowhere to ask without it."""
FIRST_COPY = 100
"""Its port, and those of the others, are none that the overlays have on the same node."""
TAKEN_AWAY = (*MANIFEST.capabilities, *(volume["name"] for volume in MANIFEST.pod["volumes"]))


def without(name: str) -> Manifest:
    """Return the manifest without a capability or a volume."""
    if name in MANIFEST.capabilities:
        return MANIFEST.without_capability(name)
    return MANIFEST.without_volume(name)


@pytest.fixture(scope="module")
def lacking(cluster: Cluster) -> Iterator[dict[str, Agent]]:
    with ExitStack() as stack:
        pod = Pod("orphaned", NAMESPACE, parent_cgroup="/nodediag-lab-pods")
        known = stack.enter_context(running_container(cluster.containerd, pod=pod))
        stack.enter_context(shim_faults.orphaned_shim(cluster.containerd, known))
        frozen = stack.enter_context(running_pod(cluster, "frozen"))
        stack.enter_context(cgroups.frozen(shim_of(frozen)))
        copies = {
            name: copy_of(without(name), f"without-{name.lower().replace('_', '-')}", number)
            for number, name in enumerate(TAKEN_AWAY, FIRST_COPY)
        }
        agents = {name: stack.enter_context(deployed(cluster, manifest)) for name, manifest in copies.items()}
        with ThreadPoolExecutor(len(agents)) as pool:
            list(pool.map(Agent.await_rollout, (agents[name] for name in agents if name not in NOT_STARTED)))
        yield agents


def test_the_manifest_has_all_that_is_needed_and_nothing_else() -> None:
    """What is removed from deploy/ is not taken away below, so the list of what is needed stands here by itself."""
    assert set(TAKEN_AWAY) == {*REPORTED, *NOT_STARTED, *NO_REPORT}


@pytest.mark.parametrize("name", TAKEN_AWAY)
def test_what_is_lost_without_it_is_reported(lacking: dict[str, Agent], name: str) -> None:
    agent, last = lacking[name], ""

    def reported() -> bool:
        nonlocal last
        if name in NOT_STARTED:
            words = ("--namespace", agent.namespace, "logs", "daemonset/nodediag")
            done = agent.kubectl.run(*words, check=False)
            last = done.stdout + done.stderr
            return NOT_STARTED[name] in last
        _, last = agent.exec("nodediag", "report")
        return {**REPORTED, **NO_REPORT}[name] in last

    try:
        wait_until(reported, 90, f"the loss of {name} is reported")
    except AssertionError as error:
        raise AssertionError(f"{error}: {last}") from None
