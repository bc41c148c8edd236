"""What the lab's kubelet makes of the manifests: all of each is understood, and what is not is an error."""

from pathlib import Path
from typing import Any

import pytest

from tests.delivery.deploy.kustomize import COMBINED, OVERLAYS, Object, combination, overlay
from tests.lab.pod_spec import Identity, Manifest, container_config, pod_cgroup, qos, sandbox_config, with_access

WHO = Identity("nodediag-x", "nodediag", "1111", "worker-3", "192.0.2.7")
EVERY = [overlay(name) for name in OVERLAYS] + [combination(names) for names in COMBINED]
NAMES = [*OVERLAYS, *("+".join(names) for names in COMBINED)]


def asked_for(manifest: Manifest) -> dict[str, Any]:
    """Return the container's config with every volume at a place of its own."""
    spec = with_access(manifest.pod)
    volumes = {volume["name"]: (Path("/made", volume["name"]), False) for volume in spec["volumes"]}
    return container_config(spec, spec["containers"][0], WHO, volumes)


@pytest.mark.parametrize("objects", EVERY, ids=NAMES)
def test_every_overlay_is_asked_for_as_it_is(objects: tuple[Object, ...]) -> None:
    manifest = Manifest(objects)
    config, security = asked_for(manifest), manifest.container["securityContext"]
    linux = config["linux"]
    given = linux["security_context"]
    assert given["capabilities"]["add_capabilities"] == security["capabilities"]["add"]
    assert given["capabilities"]["drop_capabilities"] == ["ALL"]
    assert given["readonly_rootfs"] is given["no_new_privs"] is True
    assert given["seccomp"] == {"profile_type": 0}, "the runtime's default"
    assert given["namespace_options"] == {"network": 2, "pid": 2, "ipc": 0}, "the node's, but for IPC"
    assert linux["resources"]["memory_limit_in_bytes"] == manifest.memory_limit
    assert linux["resources"]["cpu_quota"] == 10_000
    assert {"key": "NODE_IP", "value": "192.0.2.7"} in config["envs"]
    mounted = {each["container_path"]: each for each in config["mounts"]}
    for mount in manifest.container["volumeMounts"]:
        assert mounted[mount["mountPath"]]["readonly"] is bool(mount.get("readOnly"))
    assert sandbox_config(manifest, WHO, Path("/log"))["linux"]["cgroup_parent"] == "/kubepods/pod1111"


@pytest.mark.parametrize(
    ("where", "field"), [("pod", "shareProcessNamespace"), ("container", "lifecycle"), ("security", "procMount")]
)
def test_what_is_not_understood_is_refused(where: str, field: str) -> None:
    manifest = Manifest(overlay("watch-only")).copy()
    places = {"pod": manifest.pod, "container": manifest.container, "security": manifest.container["securityContext"]}
    places[where][field] = True
    with pytest.raises(NotImplementedError, match=field):
        asked_for(manifest), sandbox_config(manifest, WHO, Path("/log"))


def test_a_manifest_less_something_is_less_that_alone() -> None:
    manifest = Manifest(overlay("remediation"))
    assert manifest.without_capability("KILL").capabilities == ("NET_ADMIN", "DAC_READ_SEARCH", "SYS_PTRACE")
    less = asked_for(manifest.without_volume("state"))
    left = [each for each in asked_for(manifest)["mounts"] if each["container_path"] != "/var/lib/nodediag"]
    assert less["mounts"] == left
    assert manifest.capabilities == ("NET_ADMIN", "DAC_READ_SEARCH", "SYS_PTRACE", "KILL"), (
        "the manifest itself stays as it is"
    )


@pytest.mark.parametrize(
    ("resources", "kind", "above"),
    [
        ({"requests": {"cpu": "0.1", "memory": "64Mi"}, "limits": {"cpu": "100m", "memory": "64Mi"}}, "Guaranteed", ""),
        ({"limits": {"cpu": "100m", "memory": "64Mi"}}, "Guaranteed", ""),
        ({"limits": {"memory": "64Mi"}}, "Burstable", "/burstable"),
        ({"requests": {"cpu": "1m"}}, "Burstable", "/burstable"),
        ({}, "BestEffort", "/besteffort"),
    ],
)
def test_a_pods_cgroup_lies_where_its_qos_class_puts_it(resources: dict[str, Any], kind: str, above: str) -> None:
    spec = {"containers": [{"resources": resources}]}
    assert qos(spec) == kind
    assert pod_cgroup(spec, "1") == f"/kubepods{above}/pod1"
