"""Least privilege, over every overlay: what may be seen and done, and nothing besides."""

from typing import Any

import pytest
import yaml

from tests.delivery.deploy.kustomize import Object, containers, of_kind, overlay, pod

WATCHING = {"NET_ADMIN", "DAC_READ_SEARCH", "SYS_PTRACE"}
MENDING = WATCHING | {"KILL"}
WRITABLE = {"/var/lib/nodediag", "/sys/fs/cgroup"}
"""Places of the node that the remediation overlay may write to."""

Rule = tuple[str, str, str]
RIGHTS: dict[str, set[Rule]] = {
    "watch-only": set(),
    "remediation": set(),
    "kubelet-api": {("", resource, "get") for resource in ("nodes/pods", "nodes/metrics", "nodes/healthz")},
    "node-conditions": {("", "nodes/status", "patch"), ("", "events", "create"), ("", "events", "patch")},
}


def mends(every: tuple[Object, ...]) -> bool:
    return any(mount["mountPath"] == "/var/lib/nodediag" for mount in pod(every)["containers"][0]["volumeMounts"])


def host_paths(spec: Object) -> dict[str, Object]:
    return {volume["name"]: volume["hostPath"] for volume in spec["volumes"] if "hostPath" in volume}


def rules(every: tuple[Object, ...]) -> set[Rule]:
    return {
        (group, resource, verb)
        for role in [*of_kind(every, "ClusterRole"), *of_kind(every, "Role")]
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_every_container_is_root_without_the_rights_of_root(every: tuple[Object, ...]) -> None:
    for container in containers(pod(every)):
        security = container["securityContext"]
        assert security["privileged"] is False
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"]["drop"] == ["ALL"]
        assert security.get("seccompProfile", pod(every)["securityContext"]["seccompProfile"]) == {
            "type": "RuntimeDefault"
        }


def test_only_mending_adds_a_capability_to_those_of_watching(every: tuple[Object, ...]) -> None:
    for container in containers(pod(every)):
        assert set(container["securityContext"]["capabilities"]["add"]) == (MENDING if mends(every) else WATCHING)


def test_the_node_is_mounted_read_only_save_for_what_mending_writes(every: tuple[Object, ...]) -> None:
    spec = pod(every)
    of_node = host_paths(spec)
    writable = {
        mount["mountPath"]
        for container in containers(spec)
        for mount in container["volumeMounts"]
        if mount["name"] in of_node and not mount.get("readOnly", False)
    }
    assert writable == (WRITABLE if mends(every) else set())


def test_every_host_path_is_of_a_type_that_is_checked_and_not_wider_than_needed(every: tuple[Object, ...]) -> None:
    for host_path in host_paths(pod(every)).values():
        assert host_path["type"]
        assert host_path["path"] not in {"/", "/etc", "/run", "/var", "/var/lib", "/var/lib/kubelet", "/sys", "/proc"}


def test_what_the_node_unmounts_below_a_mounted_folder_goes_here_too(every: tuple[Object, ...]) -> None:
    """The root file systems of other containers are mounted below containerd's state."""
    (mount,) = (each for each in pod(every)["containers"][0]["volumeMounts"] if each["name"] == "containerd")
    assert mount["mountPropagation"] == "HostToContainer"


def test_the_node_s_own_namespaces_are_entered_and_its_resolver_is_asked(every: tuple[Object, ...]) -> None:
    spec = pod(every)
    assert spec["hostPID"] is True
    assert spec["hostNetwork"] is True
    assert "hostIPC" not in spec
    assert spec["dnsPolicy"] == "Default"


@pytest.mark.parametrize("name", sorted(RIGHTS))
def test_the_rights_of_an_overlay_are_exactly(name: str) -> None:
    assert rules(overlay(name)) == RIGHTS[name]


def test_nothing_is_listed_or_watched_and_no_kubelet_is_proxied(every: tuple[Object, ...]) -> None:
    for group, resource, verb in rules(every):
        assert verb in {"get", "create", "patch"}
        assert resource not in {"nodes/proxy", "nodes", "pods", "secrets"}
        assert "*" not in group + resource
    assert "nodes/proxy" not in yaml.safe_dump_all(every)


def test_rights_are_bound_to_the_agent_alone(every: tuple[Object, ...]) -> None:
    bindings = [*of_kind(every, "ClusterRoleBinding"), *of_kind(every, "RoleBinding")]
    roles = {each["metadata"]["name"] for each in [*of_kind(every, "ClusterRole"), *of_kind(every, "Role")]}
    assert {each["roleRef"]["name"] for each in bindings} == roles
    for each in bindings:
        assert each["subjects"] == [{"kind": "ServiceAccount", "name": "nodediag", "namespace": "nodediag"}]


def test_events_may_be_written_in_the_namespace_of_node_events_alone() -> None:
    (role,) = of_kind(overlay("node-conditions"), "Role")
    assert role["metadata"]["namespace"] == "default"
    assert not any(resource == "events" for _, resource, _ in rules(tuple(of_kind((role,), "ClusterRole"))))


@pytest.mark.parametrize("name", ["watch-only", "remediation"])
def test_who_has_no_rights_has_no_token(name: str) -> None:
    assert not token_sources(overlay(name))


def test_a_token_is_mounted_only_where_there_are_rights(every: tuple[Object, ...]) -> None:
    assert bool(token_sources(every)) == bool(rules(every))


def token_sources(every: tuple[Object, ...]) -> list[Any]:
    """Every way by which a token comes into the pods."""
    spec = pod(every)
    (account,) = of_kind(every, "ServiceAccount")
    mounted = spec.get("automountServiceAccountToken", account.get("automountServiceAccountToken", True))
    projected = [
        source["serviceAccountToken"]
        for volume in spec["volumes"]
        for source in volume.get("projected", {}).get("sources", [])
        if "serviceAccountToken" in source
    ]
    return [*projected, *(["the account's own"] if mounted else [])]


def test_keys_and_tokens_are_for_root_alone_and_a_token_is_of_an_hour(every: tuple[Object, ...]) -> None:
    secret = [each for each in pod(every)["volumes"] if {"secret", "projected"} & set(each)]
    for volume in secret:
        source = volume.get("secret") or volume["projected"]
        assert source["defaultMode"] == 0o400, volume["name"]
        tokens = [part["serviceAccountToken"] for part in source.get("sources", ()) if "serviceAccountToken" in part]
        assert {token["expirationSeconds"] for token in tokens} <= {3600}
