"""Guaranteed, whatever is switched on: who tells of a node's trouble must not be the first that it hits."""

import pytest

from tests.delivery.deploy.kustomize import Object, containers, pod
from tests.delivery.deploy.qos import qos_class, quantity

EQUAL = {"limits": {"cpu": "100m", "memory": "64Mi"}, "requests": {"cpu": "0.1", "memory": "65536Ki"}}


def test_every_overlay_is_guaranteed(every: tuple[Object, ...]) -> None:
    assert qos_class(pod(every)) == "Guaranteed"


def test_every_container_requests_what_it_may_use(every: tuple[Object, ...]) -> None:
    for container in containers(pod(every)):
        resources = container["resources"]
        assert resources["requests"] == resources["limits"]
        assert set(resources["limits"]) == {"cpu", "memory"}


def test_no_volume_in_memory_may_eat_the_limit(every: tuple[Object, ...]) -> None:
    """What is in it counts as the pod's memory."""
    in_memory = [each["emptyDir"] for each in pod(every)["volumes"] if "emptyDir" in each]
    assert in_memory
    for volume in in_memory:
        assert volume["medium"] == "Memory"
        assert quantity(volume["sizeLimit"]) <= quantity("1Mi")


@pytest.mark.parametrize(
    ("resources", "of_init", "expected"),
    [
        (EQUAL, EQUAL, "Guaranteed"),
        ({"limits": EQUAL["limits"]}, EQUAL, "Guaranteed"),
        (EQUAL, {}, "Burstable"),
        (EQUAL, {"limits": {"cpu": "1"}}, "Burstable"),
        ({**EQUAL, "requests": {"cpu": "99m", "memory": "64Mi"}}, EQUAL, "Burstable"),
        ({"requests": EQUAL["requests"]}, EQUAL, "Burstable"),
        ({"limits": {"cpu": "0", "memory": "64Mi"}}, EQUAL, "Burstable"),
        ({"limits": {"ephemeral-storage": "1Gi"}}, {}, "BestEffort"),
        ({}, {}, "BestEffort"),
    ],
)
def test_the_class_is_computed_as_kubernetes_does(resources: Object, of_init: Object, expected: str) -> None:
    spec = {"containers": [{"resources": resources}], "initContainers": [{"resources": of_init}]}
    assert qos_class(spec) == expected


@pytest.mark.parametrize(
    ("text", "value"), [("100m", "0.1"), (1, 1), ("64Mi", 64 << 20), ("1G", 10**9), ("1.5Ki", 1536), ("5k", 5000)]
)
def test_a_quantity_is_read_as_kubernetes_does(text: str | int, value: str | int) -> None:
    assert quantity(text) == quantity(value)
