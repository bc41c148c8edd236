"""Which process is a service of the node, and which only bears its name."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agent.acts import RefusalReason
from agent.model import ProcessId, Target, TargetKind
from agent.remediation.services import Identified, exact
from tests.unit.builders import container_id, kubepods
from tests.unit.remediation.fake_node import BOOT, FakeNode, ids, refusal

URL = "http://127.0.0.1:10248/healthz"
IN_A_POD = kubepods(container_id(1))


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return FakeNode(tmp_path)


# --- what a target must say


def target(**changed: Any) -> Target:
    words: dict[str, Any] = {"pid": 812, "start_time": 4000, "boot_id": BOOT, "address": URL}
    return Target(TargetKind.KUBELET, **(words | changed))


def test_a_target_of_this_boot_names_its_process(node: FakeNode) -> None:
    assert exact(target(), "kubelet", URL, node.procfs) == ProcessId(812, 4000)
    assert exact(target(address=""), "kubelet", URL, node.procfs) == ProcessId(812, 4000)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"pid": None}, RefusalReason.TARGET_GONE),
        ({"start_time": None}, RefusalReason.TARGET_GONE),
        ({"boot_id": "another"}, RefusalReason.OTHER_BOOT),
        ({"boot_id": ""}, RefusalReason.OTHER_BOOT),
        ({"boot_id": "\x1b[2J" * 50}, RefusalReason.OTHER_BOOT),
        ({"address": "http://127.0.0.1:1/"}, RefusalReason.TARGET_CHANGED),
    ],
)
def test_an_inexact_target_names_none(node: FakeNode, changed: dict[str, Any], reason: RefusalReason) -> None:
    assert refusal(lambda: exact(target(**changed), "kubelet", URL, node.procfs)).reason is reason


def test_where_the_boot_cannot_be_told_nothing_is_believed(node: FakeNode) -> None:
    node.proc.write("sys/kernel/random/boot_id", b"")
    for boot_id in ("", BOOT):
        seen = refusal(partial(exact, target(boot_id=boot_id), "kubelet", URL, node.procfs))
        assert seen.reason is RefusalReason.CANNOT_SEE


# --- the process itself


def test_the_process_that_holds_the_socket_is_the_service(node: FakeNode) -> None:
    kubelet = node.add(812, holds=(77, 78))
    node.add(900, cgroup="/user.slice", holds=(79,))
    node.listen(tcp={77: 10248})
    found = node.service().identify(kubelet.id)
    assert found == Identified(kubelet, frozenset({77}))
    assert node.service().find().process == kubelet


def test_without_a_listener_the_only_one_of_its_name_is_the_service(node: FakeNode) -> None:
    kubelet = node.add(812)
    node.add(900, cgroup=IN_A_POD)
    node.add(901, nested=True)
    node.add(902, state="Z")
    node.add(903, comm="kubelet-helper")
    assert node.service().identify(kubelet.id).sockets == frozenset()
    assert node.service().find().process == kubelet


def test_two_of_a_name_without_a_socket_cannot_be_told_apart(node: FakeNode) -> None:
    kubelet = node.add(812)
    node.add(900, cgroup="/user.slice")
    for look in (lambda: node.service().identify(kubelet.id), node.service().find):
        seen = refusal(look)
        assert seen.reason is RefusalReason.UNSAFE_NOW
        assert "pids 812, 900" in seen.message


def test_a_process_that_does_not_hold_the_socket_is_not_the_service(node: FakeNode) -> None:
    kubelet = node.add(812, holds=(80,))
    node.listen(tcp={77: 10248})
    seen = refusal(lambda: node.service().identify(kubelet.id))
    assert seen.reason is RefusalReason.UNSAFE_NOW
    assert "others listen there" in seen.message
    assert refusal(node.service().find).reason is RefusalReason.UNSAFE_NOW


def test_a_shared_address_is_nobodys(node: FakeNode) -> None:
    kubelet = node.add(812, holds=(77,))
    node.listen(tcp={77: 10248, 78: 10248})
    for look in (lambda: node.service().identify(kubelet.id), node.service().find):
        seen = refusal(look)
        assert seen.reason is RefusalReason.UNSAFE_NOW
        assert "others share that address" in seen.message


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"cgroup": IN_A_POD}, RefusalReason.PROTECTED_PROCESS),
        ({"cgroup": "/k8s.io/web"}, RefusalReason.PROTECTED_PROCESS),
        ({"nested": True}, RefusalReason.PROTECTED_PROCESS),
        ({"comm": "kubelet2"}, RefusalReason.TARGET_CHANGED),
        ({"comm": "\x1b[2J"}, RefusalReason.TARGET_CHANGED),
        ({"state": "Z"}, RefusalReason.TARGET_GONE),
    ],
)
def test_a_process_of_another_kind_is_never_it_even_if_it_listens(
    node: FakeNode, how: dict[str, Any], reason: RefusalReason
) -> None:
    process = node.add(812, holds=(77,), **how)
    node.listen(tcp={77: 10248})
    assert refusal(lambda: node.service().identify(process.id)).reason is reason


def test_a_reused_pid_is_another_process(node: FakeNode) -> None:
    node.add(812, start_time=5000)
    assert refusal(lambda: node.service().identify(ProcessId(812, 4000))).reason is RefusalReason.TARGET_CHANGED
    assert refusal(lambda: node.service().identify(ProcessId(813, 4000))).reason is RefusalReason.TARGET_GONE


def test_a_cgroup_that_cannot_be_read_is_not_taken_for_the_nodes(node: FakeNode) -> None:
    kubelet = node.add(812)
    node.proc.write("812/cgroup", b"")
    assert refusal(lambda: node.service().identify(kubelet.id)).reason is RefusalReason.CANNOT_SEE


def test_tables_that_cannot_be_read_are_no_proof(node: FakeNode) -> None:
    kubelet = node.add(812)
    (node.root / "self/net/tcp").unlink()
    assert refusal(lambda: node.service().identify(kubelet.id)).reason is RefusalReason.CANNOT_SEE


def test_nobody_of_the_name_is_gone(node: FakeNode) -> None:
    assert refusal(node.service().find).reason is RefusalReason.TARGET_GONE


# --- who comes after it


def test_only_a_new_process_is_a_successor(node: FakeNode) -> None:
    old, service = node.add(812), node.service()
    before = service.everybody()
    assert before == ids(old)
    assert service.successor(before) is None
    node.proc.remove(812)
    assert service.successor(before) is None
    new = node.add(812, start_time=old.start_time + 1)
    found = service.successor(before)
    assert found is not None
    assert found.process == new


def test_the_namesake_elsewhere_is_never_taken_for_the_successor(node: FakeNode) -> None:
    node.add(812)
    namesake, service = node.add(900, cgroup="/user.slice", holds=(90,)), node.service()
    before = service.everybody()
    node.proc.remove(812)
    assert service.successor(before) is None
    node.add(813)
    assert service.successor(before) is None, "two, and nobody listens yet"
    node.add(814, holds=(91,))
    node.listen(tcp={91: 10248})
    found = service.successor(before)
    assert found is not None
    assert found.process.pid == 814
    assert namesake.id in before
