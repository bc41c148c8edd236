"""The overlay for remediation: every act, by a caller with a certificate, and what is said where a right is missing.

One tour for all tests here, as in `test_watch_only`: before each act, every agent that lacks something for it is asked
for it first, and then the one that lacks nothing.
"""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from agent.client import ClientTls
from agent.model import Action
from tests.delivery.deploy.kustomize import overlay
from tests.detections import REMEDIATIONS, record_outcome
from tests.e2e.mending import QUICK
from tests.image.deployed import Deployed, ImageNode, memory_to_spare
from tests.image.mending import ACTS, Act, asked
from tests.lab.certificates import CA, CERT, KEY, Authority
from tests.lab.pod_spec import Manifest
from tests.lab.processes import send_signal
from tests.lab.systemd_standin import PrivateBus, SystemdStandin, UnitStandin

MANIFEST = Manifest(overlay("remediation"))
CALLER = "tour.test"
READER = "reader.nodediag.svc"
"""A caller the overlay itself names, who may read."""
STATE = "/var/lib/nodediag"
BLIND = {"/run/containerd", "DAC_READ_SEARCH"}
"""Without which a hung shim is not found."""
BUS = Path("/run/dbus/system_bus_socket")


def paths(manifest: Manifest) -> dict[str, str]:
    """Return the volumes that are paths of the node: path, name."""
    volumes = manifest.pod["volumes"]
    return {volume["hostPath"]["path"]: volume["name"] for volume in volumes if "hostPath" in volume}


def lessened() -> dict[str, Manifest]:
    """Return the manifest without each of its capabilities and paths, one at a time."""
    return {
        **{name: MANIFEST.without_capability(name) for name in MANIFEST.capabilities},
        **{path: MANIFEST.without_volume(name) for path, name in paths(MANIFEST).items()},
    }


def ready_to_act(manifest: Manifest, authority: Authority, state: str) -> Manifest:
    """Return the manifest as an operator finishes it: a Secret, a caller, no dry run, and here no rest between acts."""
    changed = manifest.copy()
    files = changed.settings
    settings = yaml.safe_load(files["remediation.yaml"])
    every = [action.value for action in Action if action is not Action.NONE]
    settings["grpc"]["callers"].append({"identity": CALLER, "actions": every})
    free = {action: {"cooldown_seconds": 0, "max_per_hour": 1000} for action in every}
    settings["remediation"] |= {"dry_run": False, "max_per_hour": 1000, "actions": free}
    files["remediation.yaml"] = yaml.safe_dump(settings)
    files["tour.yaml"] = yaml.safe_dump({"detectors": QUICK})
    issued = authority.issue(*(f"192.0.2.{number}" for number in range(20, 120)), READER)
    data = {CERT: issued.cert.decode(), KEY: issued.key.decode(), CA: authority.pem.decode()}
    secret = {"kind": "Secret", "metadata": {"name": "nodediag-tls"}, "stringData": data}
    for volume in changed.pod["volumes"]:
        if volume.get("hostPath", {}).get("path") == STATE:
            volume["hostPath"]["path"] = state  # a ledger belongs to one agent
    return Manifest((*changed.objects, secret))


@dataclass
class Tour:
    """What came of it: by action, and by what was missing and action; and of the agent that lacked nothing."""

    agent: Deployed
    done: dict[Action, tuple[str, str]] = field(default_factory=dict)
    lacking: dict[tuple[str, Action], tuple[str, str]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def tour(node: ImageNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tour]:
    authority, folder = Authority("callers and agents"), tmp_path_factory.mktemp("caller")
    cert, key = authority.issue(CALLER).write(folder, "caller")
    (folder / CA).write_bytes(authority.pem)
    tls = ClientTls(str(cert), str(key), str(folder / CA))
    with ExitStack() as stack, ThreadPoolExecutor(16) as pool:
        stack.enter_context(_systemd(node))
        manifests = {"": MANIFEST, **lessened()}
        starting = {
            name: pool.submit(
                stack.enter_context, node.running(ready_to_act(each, authority, f"{STATE}-{number}"), tls)
            )
            for number, (name, each) in enumerate(manifests.items())
        }
        agents = {name: future.result() for name, future in starting.items()}
        for each in agents.values():
            each.ready()
        agent = agents.pop("")
        seen = Tour(agent)
        for act in ACTS:
            _perform(node, seen, act, agents)
        yield seen


def _perform(node: ImageNode, seen: Tour, act: Act, others: dict[str, Deployed]) -> None:
    with act.make(node) as fits:
        target = seen.agent.found(fits, f"what {act.action} mends is found").target
        for name in (*act.lacking, *act.otherwise):
            if name not in BLIND:  # it is refused for what it lacks, not for what it has not seen yet
                others[name].found(fits, f"what {act.action} mends is found without {name}")
            dry_run = name in act.otherwise
            seen.lacking[name, act.action] = asked(others[name], act.action, target, dry_run=dry_run)
        seen.done[act.action] = asked(seen.agent, act.action, target)
        fault = next(fault for action, fault in REMEDIATIONS if action == act.action.value)
        record_outcome(act.action.value, fault, "image", seen.done[act.action][0])


def _systemd(node: ImageNode) -> ExitStack:
    """A system bus where a node has it, and on it who restarts the kubelet and containerd."""
    BUS.parent.mkdir(exist_ok=True)  # the kubelet has made it for a pod that wants it, where one was run before
    stack = ExitStack()

    def unit_of(pid: int) -> UnitStandin | None:
        mains = {node.kubelet.process.pid: "kubelet.service", node.containerd.pid: "containerd.service"}
        return UnitStandin(mains[pid], pid) if pid in mains else None

    def restart(unit: str) -> None:
        process = node.kubelet.process if unit == "kubelet.service" else node.containerd.process
        send_signal(process, signal.SIGKILL)

    bus = stack.enter_context(PrivateBus(socket=BUS))
    stack.enter_context(SystemdStandin(bus, unit_of, restart))
    return stack


@pytest.mark.parametrize("action", [act.action for act in ACTS])
def test_every_act_is_performed_and_verified_for_a_caller_with_a_certificate(tour: Tour, action: Action) -> None:
    assert tour.done[action][0] == "verified", tour.done[action]


@pytest.mark.parametrize("name", lessened())
def test_without_it_an_act_refuses_or_fails_and_says_what_is_missing(tour: Tour, name: str) -> None:
    each = {act.action: {**act.lacking, **act.otherwise} for act in ACTS}
    lacking = {action: words[name] for action, words in each.items() if name in words}
    assert lacking, f"nothing shows that {name} is needed: take it out of the overlay"
    for action, words in lacking.items():
        how, message = tour.lacking[name, action]
        assert words in message, (action, how, message)
        assert how in {"refused", "failed", "dry_run"}, (action, how, message)


def test_every_action_is_in_the_tour() -> None:
    assert {act.action for act in ACTS} == set(Action) - {Action.NONE}


def test_memory_stays_under_the_limit_with_a_quarter_to_spare_also_while_it_is_asked_inside(
    tour: Tour, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {f"--{word}": f"/etc/nodediag-tls/{name}" for word, name in (("cert", CERT), ("key", KEY), ("ca", CA))}
    access = ["--endpoint", tour.agent.endpoint, *(word for pair in files.items() for word in pair)]
    check = ["nodediag", "check", "--config", "/etc/nodediag"]
    told = memory_to_spare(tour.agent, "remediation", ["nodediag", "report", *access], check)
    with capsys.disabled():
        print(f"\n{told}")
