"""The overlays that talk to somebody, alone and all together: they start, find a fault, tell of it, and have room."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.client import ClientTls
from tests.delivery.deploy.kustomize import COMPONENTS, combination, overlay
from tests.image.deployed import NAMED_SECONDS, NODE_NAME, Deployed, ImageNode, memory_to_spare
from tests.image.test_remediation import CALLER, ready_to_act
from tests.lab import shim_faults
from tests.lab.api_standin import ApiStandin
from tests.lab.certificates import CA, Authority
from tests.lab.containers import running_container
from tests.lab.kubelet_api import KubeletApi, replying
from tests.lab.kubelet_standin import Reply
from tests.lab.pod_spec import ROOT_CA, Manifest
from tests.lab.pods import Pod
from tests.lab.waiting import wait_until

KUBELET_CERTIFICATE = Path("/var/lib/kubelet/pki/kubelet.crt")
NOTHING = Reply(b'{"kind":"PodList","apiVersion":"v1","items":[]}')
METRICS = Reply(b"# no metrics\n")
TALKING = {
    "kubelet-api": Manifest(overlay("kubelet-api")),
    "node-conditions": Manifest(overlay("node-conditions")),
    "all together": Manifest(combination(tuple(sorted(COMPONENTS)))),
}


@dataclass
class Told:
    """An agent that has found a fault, and those it talks to."""

    agent: Deployed
    kubelet: KubeletApi
    api_server: ApiStandin


@pytest.fixture(scope="module")
def told(node: ImageNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Told]]:
    folder = tmp_path_factory.mktemp("cluster")
    authority = Authority("callers and agents")
    (folder / CA).write_bytes(authority.pem)
    cert, key = authority.issue(CALLER).write(folder, "caller")
    tls = ClientTls(str(cert), str(key), str(folder / CA))
    with ExitStack() as stack, ThreadPoolExecutor(len(TALKING)) as pool:
        starting = {
            name: pool.submit(_start, stack, node, name, manifest, authority, tls, folder)
            for name, manifest in TALKING.items()
        }
        found = {name: future.result() for name, future in starting.items()}
        victim = stack.enter_context(running_container(node.containerd, pod=Pod("silent", "shop")))
        with shim_faults.stopped_shim(victim):
            for each in found.values():
                each.agent.found(lambda finding: finding.reason == "ShimUnresponsive", "the stopped shim is named")
            yield found


def _start(
    stack: ExitStack,
    node: ImageNode,
    name: str,
    manifest: Manifest,
    authority: Authority,
    tls: ClientTls,
    folder: Path,
) -> Told:
    address = node.new_address()
    place = folder / name.replace(" ", "-")
    place.mkdir()
    issued = authority.issue(address)
    server = stack.enter_context(ApiStandin(place, NODE_NAME))
    answer = replying(pods=NOTHING, metrics=METRICS)
    kubelet = stack.enter_context(KubeletApi(place / "kubelet", issued, answer, address=address, port=10250))
    shown = place / "kubelet.crt"
    shown.write_bytes(issued.cert)
    complete = manifest.copy()
    root = {"kind": "ConfigMap", "metadata": {"name": ROOT_CA}, "data": {CA: server.ca_file.read_text()}}
    for volume in complete.pod["volumes"]:
        if volume.get("hostPath", {}).get("path") == str(KUBELET_CERTIFICATE):
            volume["hostPath"]["path"] = str(shown)  # each has a kubelet of its own here
    acts = "remediation.yaml" in complete.settings
    if acts:
        complete = ready_to_act(complete, authority, f"/var/lib/nodediag-{place.name}")
    complete = Manifest((*complete.objects, root))
    running = node.running(complete, tls if acts else None, address, ("127.0.0.1", server.port))
    return Told(stack.enter_context(running).ready(), kubelet, server)


@pytest.mark.parametrize("name", [name for name in TALKING if name != "node-conditions"])
def test_the_kubelet_is_asked_with_the_tokens_it_is_to_be_asked_with(told: dict[str, Told], name: str) -> None:
    wait_until(lambda: told[name].kubelet.requests, NAMED_SECONDS, "the kubelet is asked")
    assert all(b"authorization: bearer first-token" in each.lower() for each in told[name].kubelet.requests)


@pytest.mark.parametrize("name", [name for name in TALKING if name != "kubelet-api"])
def test_the_node_object_tells_of_the_fault(told: dict[str, Told], name: str) -> None:
    def conditions() -> bool:
        stated = told[name].api_server.conditions.get("ContainerdShimHung", {})
        return stated.get("status") == "True"

    wait_until(conditions, NAMED_SECONDS, "the node's condition is told")
    assert not told[name].api_server.complaints


@pytest.mark.parametrize("name", TALKING)
def test_memory_stays_under_the_limit_with_a_quarter_to_spare(
    told: dict[str, Told], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = memory_to_spare(told[name].agent, name)
    with capsys.disabled():
        print(f"\n{figures}")
