"""The admission policies of own-node-only, evaluated by a real CEL engine on requests as an API server has them."""

from copy import deepcopy
from typing import Any

import pytest
from cel_expr_python import cel

from agent.app import DETECTOR_CLASSES
from tests.delivery.deploy.kustomize import DEPLOY, Object, objects, of_kind

POLICIES = objects((DEPLOY / "components/own-node-only/policies.yaml").read_text())
AGENT = "system:serviceaccount:nodediag:nodediag"
NODE_CLAIM = "authentication.kubernetes.io/node-name"
READY = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
OURS = {"type": "ContainerdShimHung", "status": "False", "reason": "AsExpected"}
NODE: dict[str, Any] = {
    "metadata": {"name": "worker-3", "labels": {"kubernetes.io/os": "linux"}},
    "status": {
        "addresses": [{"type": "InternalIP", "address": "192.0.2.7"}],
        "capacity": {"cpu": "8"},
        "allocatable": {"cpu": "7"},
        "conditions": [READY],
    },
}
EVENT: dict[str, Any] = {
    "metadata": {"name": "nodediag.1", "namespace": "default"},
    "involvedObject": {"kind": "Node", "name": "worker-3"},
}


def evaluate(expression: str, values: dict[str, Any]) -> Any:
    env = cel.NewEnv(variables=dict.fromkeys(values, cel.Type.DYN))
    return env.compile(expression).eval(data=values).plain_value()


def policy(name: str) -> Object:
    (found,) = (each for each in of_kind(POLICIES, "ValidatingAdmissionPolicy") if each["metadata"]["name"] == name)
    spec: Object = found["spec"]
    return spec


def denied(
    name: str, old: Object | None, new: Object, *, user: str = AGENT, on: str | None = "worker-3"
) -> list[str] | None:
    """Return the messages a request is denied with; None if the policy is not about it."""
    spec = policy(name)
    values: dict[str, Any] = {
        "object": new,
        "oldObject": old,
        "request": {
            "operation": "UPDATE" if old else "CREATE",
            "userInfo": {"username": user, "extra": {NODE_CLAIM: [on]} if on else {}},
        },
    }
    if not all(evaluate(each["expression"], values) for each in spec["matchConditions"]):
        return None
    values["variables"] = {}
    for variable in spec.get("variables", []):
        values["variables"] = {
            **values["variables"],
            variable["name"]: evaluate(variable["expression"], values),
        }
    return [each["message"] for each in spec["validations"] if evaluate(each["expression"], values) is not True]


def status(**changed: Any) -> Object:
    """Return the node with a part of its status changed."""
    node = deepcopy(NODE)
    node["status"].update(changed)
    return node


def changed_status(new: Object, **request: Any) -> list[str] | None:
    return denied("nodediag-own-node-status", NODE, new, **request)


def test_the_agent_may_write_its_own_conditions_on_its_own_node() -> None:
    assert changed_status(status(conditions=[READY, OURS])) == []
    assert changed_status(status(conditions=[OURS, READY])) == []


def test_it_may_take_its_own_conditions_away() -> None:
    before = status(conditions=[READY, OURS])
    assert denied("nodediag-own-node-status", before, status(conditions=[READY])) == []


def test_the_first_conditions_of_a_node_may_be_its_own() -> None:
    assert (
        denied(
            "nodediag-own-node-status",
            {"metadata": NODE["metadata"], "status": {}},
            {"metadata": NODE["metadata"], "status": {"conditions": [OURS]}},
        )
        == []
    )


@pytest.mark.parametrize("on", ["worker-4", None])
def test_another_node_is_denied_and_so_is_a_token_that_is_bound_to_none(on: str | None) -> None:
    (message,) = changed_status(status(conditions=[READY, OURS]), on=on) or []
    assert message == "nodediag may write the status of the node it runs on, and of no other"


@pytest.mark.parametrize(
    "conditions",
    [
        [{**READY, "status": "False"}],
        [],
        [READY, {"type": "KernelDeadlock", "status": "True"}],
    ],
)
def test_the_conditions_of_others_are_out_of_reach(conditions: list[Object]) -> None:
    assert changed_status(status(conditions=conditions)) == ["nodediag may write conditions of its own types alone"]


def test_labels_and_annotations_are_out_of_reach() -> None:
    """The status of a node is written together with its metadata."""
    for part in ("labels", "annotations"):
        node = deepcopy(NODE)
        node["metadata"][part] = {"node-role.kubernetes.io/control-plane": ""}
        assert changed_status(node) == ["nodediag may not change a node's labels and annotations"]


@pytest.mark.parametrize("part", ["addresses", "capacity", "allocatable"])
def test_what_pods_and_callers_go_by_is_out_of_reach(part: str) -> None:
    emptied = status(**{part: {} if part != "addresses" else []})
    assert changed_status(emptied) == ["nodediag may not change a node's addresses, capacity and allocatable"]


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("ownerReferences", [{"apiVersion": "v1", "kind": "Node", "name": "gone", "uid": "0"}]),
        ("finalizers", ["nodediag.example/never"]),
    ],
)
def test_a_node_can_be_neither_given_away_nor_kept_for_ever(part: str, value: list[Any]) -> None:
    """The garbage collector deletes what belongs to an owner that there is not."""
    node = deepcopy(NODE)
    node["metadata"][part] = value
    assert changed_status(node) == ["nodediag may not change a node's owners and finalizers"]
    assert denied("nodediag-own-node-status", node, NODE) == ["nodediag may not change a node's owners and finalizers"]


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("daemonEndpoints", {"kubeletEndpoint": {"Port": 4194}}),
        ("nodeInfo", {"kubeletVersion": "v1.20.0"}),
        ("images", [{"names": ["elsewhere"]}]),
        ("volumesAttached", [{"name": "v", "devicePath": ""}]),
        ("volumesInUse", ["v"]),
    ],
)
def test_the_rest_of_what_the_kubelet_tells_is_out_of_reach(part: str, value: Any) -> None:
    assert changed_status(status(**{part: value})) == [
        "nodediag may not change a node's endpoints, versions, images and volumes"
    ]


@pytest.mark.parametrize("user", ["system:node:worker-3", "system:serviceaccount:nodediag:default"])
def test_nobody_else_is_concerned(user: str) -> None:
    assert changed_status(status(conditions=[]), user=user) is None
    assert denied("nodediag-own-node-events", None, EVENT, user=user) is None


def test_it_may_write_events_about_its_own_node() -> None:
    assert denied("nodediag-own-node-events", None, EVENT) == []
    assert denied("nodediag-own-node-events", EVENT, {**EVENT, "count": 2}) == []


@pytest.mark.parametrize("involved", [{"kind": "Node", "name": "worker-4"}, {"kind": "Pod", "name": "worker-3"}])
def test_events_about_anything_else_are_denied_and_not_taken_over(involved: Object) -> None:
    other = {**EVENT, "involvedObject": involved}

    assert denied("nodediag-own-node-events", None, other) == [
        "nodediag may write Events about the node it runs on, and about no other"
    ]
    assert denied("nodediag-own-node-events", other, EVENT) == [
        "nodediag may not turn an Event about another object into one of its own"
    ]


def test_its_own_types_are_those_of_the_detectors() -> None:
    (ours,) = (each for each in policy("nodediag-own-node-status")["variables"] if each["name"] == "ours")
    assert sorted(evaluate(ours["expression"], {})) == sorted(
        kind for each in DETECTOR_CLASSES for kind in each.conditions
    )


def test_both_policies_are_bound_and_deny() -> None:
    bindings = of_kind(POLICIES, "ValidatingAdmissionPolicyBinding")
    names = [each["metadata"]["name"] for each in of_kind(POLICIES, "ValidatingAdmissionPolicy")]
    assert sorted(each["spec"]["policyName"] for each in bindings) == sorted(names)
    assert all(each["spec"]["validationActions"] == ["Deny"] for each in bindings)
    assert all(policy(name)["failurePolicy"] == "Fail" for name in names)
