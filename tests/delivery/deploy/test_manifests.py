"""What is in deploy/ can be applied: built, valid for the Kubernetes of years, and consistent in itself."""

import json
from functools import cache
from typing import Any

import kubernetes_validate
import pytest

from agent import __version__
from tests.delivery.deploy.kustomize import (
    COMPONENTS,
    DEPLOY,
    GUARD,
    OVERLAYS,
    Object,
    built,
    containers,
    daemon_set,
    objects,
    of_kind,
    overlay,
    pod,
)

KUBERNETES = ("1.30", "1.33", "1.35", "1.37")
"""The first is the oldest that takes the manifests as they are, as deploy/README.md says."""
NAMESPACED = {"ConfigMap", "DaemonSet", "ResourceQuota", "ServiceAccount"}


@pytest.mark.parametrize("version", KUBERNETES)
def test_every_object_is_valid_in(version: str, every: tuple[Object, ...]) -> None:
    for each in every:
        validated(json.dumps(each, sort_keys=True), version)


@pytest.mark.parametrize("version", KUBERNETES)
def test_an_object_with_a_typo_is_not_valid_in(version: str) -> None:
    typo: dict[str, Any] = {**daemon_set(overlay("watch-only")), "specs": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(typo, version, strict=True)


def test_the_plain_manifest_is_the_watch_only_overlay_and_the_default() -> None:
    plain = objects((DEPLOY / "daemonset.yaml").read_text())

    assert _sorted(plain) == _sorted(overlay("watch-only")) == _sorted(built(DEPLOY))


def test_there_is_an_overlay_for_every_component() -> None:
    assert {*OVERLAYS} == {*COMPONENTS, "watch-only"} - {GUARD}


def test_everything_namespaced_is_in_the_one_namespace(every: tuple[Object, ...]) -> None:
    assert [each["metadata"]["name"] for each in of_kind(every, "Namespace")] == ["nodediag"]
    for each in every:
        if each["kind"] in NAMESPACED:
            assert each["metadata"]["namespace"] == "nodediag"


def test_everything_carries_the_name_by_which_it_is_found(every: tuple[Object, ...]) -> None:
    for each in every:
        assert each["metadata"]["labels"]["app.kubernetes.io/name"] == "nodediag"
    spec = daemon_set(every)["spec"]
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()


def test_the_image_is_of_the_version_of_this_code_and_its_entrypoint_is_used(every: tuple[Object, ...]) -> None:
    (container,) = containers(pod(every))
    assert container["image"] == f"nodediag:{__version__}"
    assert "command" not in container
    assert container["args"][0] == "run"


def test_every_mount_has_its_volume_and_every_volume_its_mount(every: tuple[Object, ...]) -> None:
    spec = pod(every)
    mounted = [mount["name"] for container in containers(spec) for mount in container["volumeMounts"]]
    assert sorted(mounted) == sorted(volume["name"] for volume in spec["volumes"])


def test_an_upgrade_goes_through_a_tenth_of_the_nodes_at_a_time(every: tuple[Object, ...]) -> None:
    spec = daemon_set(every)["spec"]
    assert spec["updateStrategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "10%"}}
    assert spec["minReadySeconds"] >= 10


def test_it_runs_on_every_linux_node_and_is_the_last_to_go(every: tuple[Object, ...]) -> None:
    spec = pod(every)
    assert spec["priorityClassName"] == "system-node-critical"
    assert spec["tolerations"] == [{"operator": "Exists"}]
    assert spec["nodeSelector"] == {"kubernetes.io/os": "linux"}


def test_its_pods_are_admitted_in_its_namespace_on_every_node(every: tuple[Object, ...]) -> None:
    (namespace,) = of_kind(every, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "privileged"
    (quota,) = of_kind(every, "ResourceQuota")
    assert int(quota["spec"]["hard"]["pods"]) >= 10_000, "more than the nodes of the largest cluster, twice"
    (scope,) = quota["spec"]["scopeSelector"]["matchExpressions"]
    assert (scope["scopeName"], scope["operator"]) == ("PriorityClass", "In")
    assert scope["values"] == [pod(every)["priorityClassName"]]


def test_an_image_that_is_there_is_not_asked_for_again(every: tuple[Object, ...]) -> None:
    """A registry that is away must not keep the agent of a restarted node from starting."""
    assert [each["imagePullPolicy"] for each in containers(pod(every))] == ["IfNotPresent"]


def test_it_is_given_the_time_it_needs_to_stop(every: tuple[Object, ...]) -> None:
    """Two seconds, and three more for a remediation under way; twice that where it is throttled."""
    assert 5 < pod(every)["terminationGracePeriodSeconds"] <= 15


@cache
def validated(text: str, version: str) -> None:
    """Hold an object against the schema; most of them stand in every overlay."""
    kubernetes_validate.validate(json.loads(text), version, strict=True)


def _sorted(every: tuple[Object, ...]) -> list[Object]:
    return sorted(every, key=lambda each: (each["kind"], each["metadata"]["name"]))
