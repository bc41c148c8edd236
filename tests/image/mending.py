"""The acts of the remediation overlay: the fault each mends, and what is said where something for it is missing."""

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field

from agent.acts import Outcome
from agent.client import ClientError
from agent.model import Action, Finding, Target, TargetKind
from tests.image.deployed import Deployed, ImageNode
from tests.lab import conntrack_faults, shim_faults, zombies
from tests.lab.containers import run_container
from tests.lab.dns_servers import DnsMode
from tests.lab.pods import Pod
from tests.lab.supervised import supervised
from tests.lab.whole_node import NAMESERVER, ThisNode

NAMESPACE = "shop"
SOMEBODY = 1000
"""The user of the pods that are mended: not root, as in any cluster that minds itself."""
ZOMBIES = 200
FLOWS = 15
CLIENT_ADDRESS = "10.244.0.7"

Fits = Callable[[Finding], bool]


@dataclass(frozen=True)
class Act:
    """An action, the fault it mends, and the words it is refused with (or fails) by what is missing for it.

    A word for `dry run` names what a dry run tells where the act takes another way instead.
    """

    action: Action
    make: Callable[[ImageNode], AbstractContextManager[Fits]]
    lacking: dict[str, str] = field(default_factory=dict)
    otherwise: dict[str, str] = field(default_factory=dict)


def _about(pod: str) -> Fits:
    return lambda finding: finding.pod is not None and finding.pod.name == pod


def _of(kind: TargetKind) -> Fits:
    return lambda finding: finding.target.kind is kind


@contextmanager
def _stopped(node: ImageNode) -> Iterator[Fits]:
    victim = run_container(node.containerd, pod=Pod("hung", NAMESPACE), user=SOMEBODY)
    with shim_faults.stopped_shim(victim):
        yield _about("hung")
    node.containerd.forget(victim)


@contextmanager
def _frozen(node: ImageNode) -> Iterator[Fits]:
    victim = run_container(node.containerd, pod=Pod("cold", NAMESPACE), user=SOMEBODY)
    with shim_faults.frozen_shim(victim):
        yield _about("cold")


@contextmanager
def _forgetful(node: ImageNode) -> Iterator[Fits]:
    maker = zombies.zombies_under_container(node.containerd, ZOMBIES, pod=Pod("forgetful", NAMESPACE), user=SOMEBODY)
    with maker as breeder:
        breeder.heed_sigchld()
        yield _about("forgetful")


@contextmanager
def _negligent(node: ImageNode) -> Iterator[Fits]:
    with zombies.zombies_under_container(node.containerd, ZOMBIES, pod=Pod("negligent", NAMESPACE), user=SOMEBODY):
        yield _about("negligent")


@contextmanager
def _waiting_flows(node: ImageNode) -> Iterator[Fits]:
    """Flows to the DNS server that it never answers, since what is sent is no DNS, while it loses one of each pair."""
    here = ThisNode()
    with ExitStack() as stack:
        stack.enter_context(conntrack_faults.tracking(here))
        here.add_address(CLIENT_ADDRESS)
        for _ in range(FLOWS):
            client = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            client.bind((CLIENT_ADDRESS, 0))
            client.sendto(b"?", (NAMESERVER, 53))
        node.dns.set_mode(DnsMode.DROPS_SECOND)
        stack.callback(node.dns.set_mode, DnsMode.HEALTHY)
        yield lambda finding: finding.condition == "ConntrackDNSRace"


@contextmanager
def _kubelet_hangs(node: ImageNode) -> Iterator[Fits]:
    node.kubelet.hang()
    yield _of(TargetKind.KUBELET)


@contextmanager
def _containerd_hangs(node: ImageNode) -> Iterator[Fits]:
    with supervised(node.containerd):
        node.containerd.pause()
        yield _of(TargetKind.CONTAINERD)


_CGROUP = "/sys/fs/cgroup does not show the node's cgroups"
_PTRACE = "CAP_SYS_PTRACE"
_BUS = "/run/dbus/system_bus_socket"

ACTS = (
    Act(
        Action.KILL_SHIM, _stopped,
        {
            "/run/containerd": "CONDITION_NOT_TRUE", "DAC_READ_SEARCH": "CONDITION_NOT_TRUE",
            "/var/lib/nodediag": "/var/lib/nodediag",
        },
    ),
    Act(Action.THAW_CGROUP, _frozen, {"/sys/fs/cgroup": _CGROUP}),
    Act(Action.SIGNAL_PARENT, _forgetful, {"KILL": "the agent needs CAP_KILL"}),
    Act(Action.KILL_PARENT, _negligent, {"KILL": "the agent needs CAP_KILL"}),
    Act(Action.DELETE_CONNTRACK_FLOWS, _waiting_flows, {"NET_ADMIN": "the agent needs CAP_NET_ADMIN"}),
    Act(Action.RESTART_KUBELET, _kubelet_hangs, {"SYS_PTRACE": _PTRACE}, {"/run/dbus": _BUS}),
    Act(Action.RESTART_CONTAINERD, _containerd_hangs, {"SYS_PTRACE": _PTRACE}, {"/run/dbus": _BUS}),
)  # fmt: skip
"""In the order in which they are made: containerd last, since its restart is not to be asked for while shims hang."""


def asked(agent: Deployed, action: Action, target: Target, *, dry_run: bool = False) -> tuple[str, str]:
    """Ask one agent for an action; return how it ended (an outcome, or an error's code), and its words."""
    with agent.client() as client:
        try:
            done = client.remediate(action, target, dry_run=dry_run)
        except ClientError as error:
            return (Outcome.REFUSED.value if error.refusal else error.code.name), str(error)
    return done.outcome.value, done.message
