"""The objects that are sent, against Kubernetes' own code: kubectl's merge of a patch, and the published schemas."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from agent.app import DETECTOR_CLASSES
from agent.exporters.node_conditions.bodies import event as event_body
from agent.exporters.node_conditions.bodies import event_name, event_patch, rfc3339, status_patch
from agent.exporters.node_conditions.plan import WriteEvent, WriteStatus
from agent.exporters.node_conditions.status import Seen
from agent.model import PodRef
from tests.delivery.deploy.kustomize import KUBECTL
from tests.lab.api_objects import RefusedError, check_event, merge_event, merge_status, node
from tests.unit.node_conditions.telling import CONFIG_HASH, DNS, HUNG, SINCE, UID, finding, ill, unseen, well

NODE = "worker-3"
DOCUMENT = Path(__file__).parents[3] / "docs/node-conditions.md"
TYPES = tuple(kind for detector in DETECTOR_CLASSES for kind in detector.conditions)


def kubectl_patch(document: dict[str, Any], patch: Any, folder: Path) -> dict[str, Any]:
    """What Kubernetes' own strategic merge makes of it."""
    file = folder / "object.json"
    file.write_text(json.dumps(document))
    words = [
        str(KUBECTL),
        "patch",
        "--local",
        "-f",
        str(file),
        "--type",
        "strategic",
        "-o",
        "json",
        "-p",
        json.dumps(patch),
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=30)
    patched: dict[str, Any] = json.loads(done.stdout)
    return patched


def by_type(document: dict[str, Any]) -> dict[str, Any]:
    return {each["type"]: each for each in document["status"]["conditions"]}


@pytest.mark.parametrize(
    "seen",
    [Seen((ill(), well(DNS)), ("PLEGUnhealthy", "KubeletHealthzFailing")), Seen((unseen(),)), Seen((), TYPES)],
    ids=["some", "one", "none"],
)
def test_kubernetes_own_merge_leaves_every_other_condition_as_it_is(seen: Seen, tmp_path: Path) -> None:
    before = node(NODE)
    before["status"]["conditions"].append({**by_type(before)["Ready"], "type": "PLEGUnhealthy"})
    before["status"]["conditions"].append({**by_type(before)["Ready"], "type": HUNG, "reason": "Old"})
    patch = status_patch(WriteStatus(seen), SINCE)
    after = kubectl_patch(before, patch, tmp_path)
    foreign = {kind: each for kind, each in by_type(before).items() if kind not in TYPES and kind != "PLEGUnhealthy"}
    assert {kind: each for kind, each in by_type(after).items() if kind in foreign} == foreign
    assert {kind for kind in by_type(after) if kind not in foreign} == {each.type for each in seen.conditions} | (
        {HUNG, "PLEGUnhealthy"} - {each.type for each in seen.conditions} - set(seen.absent)
    )
    merge_status(before, json.loads(json.dumps(patch)))
    assert by_type(before) == by_type(after), "the lab's API server merges as Kubernetes does"


def test_a_heartbeat_is_the_time_of_the_write_and_a_transition_that_of_the_change() -> None:
    (told,) = status_patch(WriteStatus(Seen((well(),))), SINCE + 2400)["status"]["conditions"]
    assert told["lastHeartbeatTime"] == rfc3339(SINCE + 2400)
    assert told["lastTransitionTime"] == rfc3339(SINCE)


def test_the_command_that_cleans_up_takes_ours_away_and_nothing_else(tmp_path: Path) -> None:
    (script,) = re.findall(r"```sh\n(types=.*?)for node in", DOCUMENT.read_text(), re.DOTALL)
    echo = 'echo "{\\"status\\":{\\"conditions\\":[${patch#,}]}}"'
    assert echo.removeprefix("echo ") in DOCUMENT.read_text()
    words = ["sh", "-euc", f"{script}\n{echo}"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=30, cwd=DOCUMENT.parents[1])
    before = node(NODE)
    merge_status(before, status_patch(WriteStatus(Seen(tuple(map(well, TYPES)))), SINCE))
    assert set(TYPES) <= set(by_type(before))
    assert by_type(kubectl_patch(before, json.loads(done.stdout), tmp_path)) == by_type(node(NODE))


def test_an_event_is_one_by_the_published_schema_and_so_is_its_patch_merged(tmp_path: Path) -> None:
    request = WriteEvent(finding(pod=PodRef("shop", "web-0", UID, "app")), exists=False, count=1)
    made = dict(event_body(request, NODE, SINCE))
    kubernetes_validate.validate(made, "1.33", strict=True)
    patch = event_patch(WriteEvent(request.finding, exists=True, count=2), SINCE + 2400)
    after = kubectl_patch(made, patch, tmp_path)
    kubernetes_validate.validate(after, "1.33", strict=True)
    assert (after["count"], after["firstTimestamp"], after["lastTimestamp"]) == (
        2,
        rfc3339(SINCE),
        rfc3339(SINCE + 2400),
    )
    merge_event(made, dict(patch))
    assert {**after, "metadata": made["metadata"]} == made


@pytest.mark.parametrize(
    ("pod", "related"),
    [
        (PodRef("shop", "web-0", UID, "app"), {"namespace": "shop", "name": "web-0", "uid": UID}),
        (PodRef("kube-system", "etcd-worker-3", CONFIG_HASH), {"namespace": "kube-system", "name": "etcd-worker-3"}),
        (PodRef("shop", "web-0", ""), {"namespace": "shop", "name": "web-0"}),
        (PodRef("", "", UID), None),
        (PodRef("", "web-0", UID), None),
        (PodRef("", "", ""), None),
        (None, None),
    ],
    ids=["a pod", "a static pod", "without uid", "uid alone", "without namespace", "nothing known", "no pod"],
)
def test_an_event_is_related_to_the_pod_that_the_api_server_has(
    pod: PodRef | None, related: dict[str, str] | None
) -> None:
    made = dict(event_body(WriteEvent(finding(pod=pod), exists=False, count=1), NODE, SINCE))
    assert made.get("related") == (related and {"apiVersion": "v1", "kind": "Pod", **related})
    kubernetes_validate.validate(made, "1.33", strict=True)
    check_event(made, "default", NODE)


@pytest.mark.parametrize(
    "wrong",
    [
        {"related": {"apiVersion": "v1", "kind": "Pod", "uid": UID}},
        {"related": {"apiVersion": "v1", "kind": "Pod", "namespace": "shop", "name": "web-0", "uid": CONFIG_HASH}},
        {"involvedObject": {"apiVersion": "v1", "kind": "Node", "name": NODE, "uid": NODE, "namespace": "shop"}},
        {"metadata": {"name": "a/b", "namespace": "default"}},
        {"metadata": {"name": "worker-3.1", "namespace": "kube-system"}},
        {"reason": "x" * 129},
        {"message": "x" * 1025},
        {"firstTimestamp": "yesterday"},
        {"reportingInstance": "x" * 129},
        {"count": 2**31},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_the_labs_api_server_refuses_what_is_no_event(wrong: dict[str, Any]) -> None:
    made = dict(event_body(WriteEvent(finding(), exists=False, count=1), NODE, SINCE))
    check_event(made, "default", NODE)
    with pytest.raises(RefusedError):
        check_event({**made, **wrong}, "default", NODE)


def test_a_node_with_our_conditions_is_one_by_the_published_schema() -> None:
    document = node(NODE)
    merge_status(document, status_patch(WriteStatus(Seen((ill(), well(DNS), unseen("PLEGUnhealthy")))), SINCE))
    kubernetes_validate.validate(document, "1.33", strict=True)


def test_the_count_of_an_event_somebody_else_began_is_left_alone() -> None:
    assert "count" not in event_patch(WriteEvent(finding(), exists=True, count=None), SINCE)


@pytest.mark.parametrize("name", ["worker-3", "a" * 253, f"{'a' * 235}.-b{'c' * 15}"])
def test_the_name_of_an_event_is_one_whatever_the_node_is_called(name: str) -> None:
    made = event_name(finding().finding, name)
    assert len(made) <= 253
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", made)


def test_each_finding_has_an_event_of_its_own_and_always_the_same() -> None:
    assert event_name(finding(1).finding, NODE) == event_name(finding(1, message="otherwise").finding, NODE)
    names = {event_name(finding(number).finding, node) for number in range(50) for node in ("a", "b")}
    assert len(names) == 100


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(SINCE, "2026-08-01T03:12:45Z"), (-5.0, "1970-01-01T00:00:00Z"), (1e12, "9999-12-31T23:59:59Z")],
)
def test_a_clock_that_is_wrong_does_not_make_a_time_that_cannot_be_read(seconds: float, told: str) -> None:
    assert rfc3339(seconds) == told
