"""The settings in the manifests, by the agent's own loader; and that probes, ports and mounts are those it uses."""

import argparse
from ipaddress import ip_address
from pathlib import Path

import pytest
import yaml

from agent.cli import run
from agent.settings import Loaded, load
from tests.delivery.deploy.kustomize import Object, containers, of_kind, overlay, pod, settings_files

NODE = {"v4": "192.0.2.7", "v6": "2001:db8::7"}


@pytest.fixture(params=sorted(NODE))
def loaded(request: pytest.FixtureRequest, every: tuple[Object, ...], tmp_path: Path) -> Loaded:
    return settings_of(every, tmp_path / "etc", NODE[request.param])


def settings_of(every: tuple[Object, ...], folder: Path, node_ip: str) -> Loaded:
    """Load the settings as the kubelet mounts them, by the path in the container's arguments."""
    folder.mkdir()
    for name, text in settings_files(every).items():
        (folder / name).write_text(text)
    (container,) = containers(pod(every))
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    config: Path = parser.parse_args(container["args"][1:]).config
    place = Path(mounts(every)["config"])
    return load(folder / config.relative_to(place), {"NODE_IP": node_ip})


def mounts(every: tuple[Object, ...]) -> dict[str, str]:
    return {mount["name"]: mount["mountPath"] for mount in pod(every)["containers"][0]["volumeMounts"]}


def test_the_agent_takes_the_settings(loaded: Loaded) -> None:
    assert loaded.is_set("http.listen")


def test_it_listens_on_the_node_s_own_address_or_the_loopback_never_on_all(loaded: Loaded) -> None:
    listened = [loaded.settings.http.listen, loaded.settings.grpc.listen]
    for address in (each for each in listened if not each.startswith("unix:")):
        host = ip_address(address.rpartition(":")[0].strip("[]"))
        assert host.is_loopback or str(host) in NODE.values()


def test_no_address_stands_for_all_of_them_anywhere(every: tuple[Object, ...]) -> None:
    text = yaml.safe_dump_all(every)
    assert "0.0.0.0" not in text
    assert "[::]" not in text


def test_ports_are_those_that_are_listened_on(every: tuple[Object, ...], loaded: Loaded) -> None:
    ports = {port["name"]: port["containerPort"] for port in pod(every)["containers"][0]["ports"]}
    listened = {"metrics": loaded.settings.http.listen, "grpc": loaded.settings.grpc.listen}
    assert ports == {
        name: int(address.rpartition(":")[2]) for name, address in listened.items() if not address.startswith("unix:")
    }


def test_probes_ask_what_is_served_where_it_is_served(every: tuple[Object, ...], loaded: Loaded) -> None:
    """Without a host the kubelet asks the pod's address, which under hostNetwork is the node's: NODE_IP."""
    (container,) = containers(pod(every))
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    listened = int(loaded.settings.http.listen.rpartition(":")[2])
    paths = {}
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        get = container[name]["httpGet"]
        assert ports[get["port"]] == listened
        assert set(get) == {"path", "port"}
        paths[name] = get["path"]
    assert paths == {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}


def test_a_throttled_start_is_waited_for(every: tuple[Object, ...]) -> None:
    probe = containers(pod(every))[0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 60
    assert probe["timeoutSeconds"] >= 3


def test_a_throttled_agent_is_not_ended_for_it(every: tuple[Object, ...]) -> None:
    probe = containers(pod(every))[0]["livenessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 60
    assert probe["timeoutSeconds"] >= 5


def test_the_environment_tells_the_node_s_name_and_address(every: tuple[Object, ...]) -> None:
    told = {each["name"]: each["valueFrom"]["fieldRef"]["fieldPath"] for each in containers(pod(every))[0]["env"]}
    assert told == {"NODE_NAME": "spec.nodeName", "NODE_IP": "status.hostIP"}


def test_what_must_be_there_is_mounted_where_the_settings_look(every: tuple[Object, ...], loaded: Loaded) -> None:
    settings, places = loaded.settings, [Path(each) for each in mounts(every).values()]
    needed = [settings.containerd.address, settings.containerd.state_dir, f"{settings.host.sys}/fs/cgroup"]
    tls = settings.grpc.tls
    needed += [tls.cert_file, tls.key_file, tls.client_ca_file, settings.kubelet.token_file, settings.kubelet.ca_file]
    if settings.remediation.enabled:
        needed += [settings.host.state_dir, settings.host.dbus_socket]
    if settings.grpc.listen.startswith("unix:"):
        needed.append(settings.grpc.listen.removeprefix("unix:"))
    for path in filter(None, needed):
        assert any(Path(path).is_relative_to(place) for place in places), path


def test_the_node_s_folders_are_seen_at_their_own_paths(every: tuple[Object, ...]) -> None:
    """A bundle names its shim's socket, and a shim its folder, by the node's path."""
    places = mounts(every)
    for volume in pod(every)["volumes"]:
        if "hostPath" in volume:
            assert places[volume["name"]] == volume["hostPath"]["path"]


def test_containerd_and_the_kubelet_are_expected_to_be_there(loaded: Loaded) -> None:
    for path in ("containerd.address", "containerd.state_dir", "kubelet.healthz_url"):
        assert loaded.is_set(path)


def test_mending_begins_with_dry_runs_and_takes_certificates(tmp_path: Path) -> None:
    settings = settings_of(overlay("remediation"), tmp_path / "etc", NODE["v4"]).settings

    assert (settings.remediation.enabled, settings.remediation.dry_run) == (True, True)
    assert settings.grpc.listen == f"{NODE['v4']}:9798"
    assert settings.grpc.callers


@pytest.mark.parametrize("name", ["watch-only", "kubelet-api", "node-conditions"])
def test_nobody_mends_unless_the_remediation_overlay_is_applied(name: str, tmp_path: Path) -> None:
    settings = settings_of(overlay(name), tmp_path / "etc", NODE["v4"]).settings

    assert not settings.remediation.enabled
    assert settings.grpc.listen.startswith("unix:")


def test_the_secret_that_the_certificates_come_from_is_named_as_promised() -> None:
    secrets = [each["secret"]["secretName"] for each in pod(overlay("remediation"))["volumes"] if "secret" in each]
    assert secrets == ["nodediag-tls"]
    assert not of_kind(overlay("remediation"), "Secret")
