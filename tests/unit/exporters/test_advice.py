"""Commands that can be typed as they stand, whatever a workload calls itself."""

import shlex
from dataclasses import replace

import pytest

from agent.exporters.advice import advise
from agent.model import Action, Finding, PodRef, Target, TargetKind

HOSTILE = "x;$(reboot)`id`\n\u202e'\""


def finding(action: Action, target: Target, pod: PodRef | None = None) -> Finding:
    return Finding("Condition", "Reason", "message", action, target, pod)


@pytest.mark.parametrize("action", Action)
@pytest.mark.parametrize("kind", TargetKind)
def test_every_action_and_target_has_an_answer(action: Action, kind: TargetKind) -> None:
    advice = advise(finding(action, Target(kind)))
    assert advice.words.endswith(".")
    assert all("None" not in command for command in advice.commands)


@pytest.mark.parametrize("action", Action)
@pytest.mark.parametrize("kind", TargetKind)
@pytest.mark.parametrize("address", [HOSTILE, "-x", "fe80::1%;reboot", "1.2.3.4:53;reboot", "1.2.3.4:٣"])
def test_no_name_of_a_stranger_becomes_a_command(action: Action, kind: TargetKind, address: str) -> None:
    target = Target(kind, 7, 1, HOSTILE, HOSTILE, HOSTILE, "/x;reboot '$(id)'", address)
    pods = (PodRef(HOSTILE, "x"), PodRef("x", HOSTILE), PodRef("x", "--all"), PodRef("--all", "x"), None)
    for command in (command for pod in pods for command in advise(finding(action, target, pod)).commands):
        assert " --all" not in command
        assert command.isprintable()
        lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        operators = [word for word in lexer if set(word) <= set("();<>|&")]
        assert operators in ([], [">"])
        assert "reboot" not in command or "'" in command


def test_the_agents_own_command_comes_first_and_by_hand_is_looked_before_it_is_killed() -> None:
    advice = advise(finding(Action.KILL_SHIM, Target(TargetKind.SHIM, pid=42)))
    assert advice.commands == ("nodediag remediate KillShim --target 42", "cat /proc/42/comm", "kill -9 42")


@pytest.mark.parametrize(
    ("action", "target", "name"),
    [
        (Action.THAW_CGROUP, Target(TargetKind.PROCESS, pid=42, container_id="a" * 64), "42"),
        (Action.SIGNAL_PARENT, Target(TargetKind.PROCESS, pid=42), "42"),
        (Action.KILL_PARENT, Target(TargetKind.PROCESS, pid=42), "42"),
        (Action.RESTART_CONTAINERD, Target(TargetKind.SHIM, container_id="a1" * 32), "a1a1a1a1a1a1"),
        (Action.RESTART_CONTAINERD, Target(TargetKind.CONTAINERD, pid=42), "containerd"),
        (Action.RESTART_KUBELET, Target(TargetKind.KUBELET, pid=42), "kubelet"),
        (Action.DELETE_CONNTRACK_FLOWS, Target(TargetKind.CONNTRACK), "conntrack"),
        (Action.DELETE_CONNTRACK_FLOWS, Target(TargetKind.DNS_SERVER, address="[fd00::a]:5353"), "fd00::a"),
    ],
)
def test_the_agents_own_command_names_the_target_as_it_can_be_typed(action: Action, target: Target, name: str) -> None:
    assert advise(finding(action, target)).commands[0] == f"nodediag remediate {action} --target {name}"


@pytest.mark.parametrize("action", [each for each in Action if each is not Action.NONE])
def test_a_target_without_a_name_to_type_has_no_command_of_the_agent(action: Action) -> None:
    for target in (Target(TargetKind.NODE), Target(TargetKind.SHIM, container_id="web-0")):
        assert not [each for each in advise(finding(action, target)).commands if each.startswith("nodediag")]


def test_a_stopped_shim_is_continued_before_it_is_killed_by_anybody() -> None:
    stopped = replace(finding(Action.KILL_SHIM, Target(TargetKind.SHIM, pid=42)), values={"processState": "T"})
    assert advise(stopped).commands == (
        "cat /proc/42/comm",
        "kill -CONT 42",
        "nodediag remediate KillShim --target 42",
        "kill -9 42",
    )


def test_a_shim_containerd_no_longer_knows_is_not_said_to_come_back() -> None:
    stray = replace(finding(Action.KILL_SHIM, Target(TargetKind.SHIM, pid=42)), values={"orphanedSeconds": 9.0})
    assert "nothing is started again" in advise(stray).words
    assert advise(stray).commands[0] == "cat /proc/42/task/*/children"


def test_a_parent_in_a_pod_ends_with_its_pod_and_another_by_signal() -> None:
    target = Target(TargetKind.PROCESS, pid=42)
    assert advise(finding(Action.KILL_PARENT, target, PodRef("shop", "cart-1"))).commands[1:] == (
        "kubectl -n shop delete pod cart-1",
    )
    assert advise(finding(Action.KILL_PARENT, target)).commands[-1] == "kill 42"


@pytest.mark.parametrize("key", ["frozenCgroup", "frozen_cgroup"])
def test_the_frozen_ancestor_is_thawed_not_the_target(key: str) -> None:
    frozen = replace(
        finding(Action.THAW_CGROUP, Target(TargetKind.PROCESS, cgroup="/kubepods/pod1/abc")),
        values={key: "/kubepods/pod1"},
    )
    assert advise(frozen).commands == (
        "echo 0 > /sys/fs/cgroup/kubepods/pod1/cgroup.freeze",
        "echo THAWED > /sys/fs/cgroup/freezer/kubepods/pod1/freezer.state",
    )


def test_no_path_leaves_the_cgroups() -> None:
    assert advise(finding(Action.THAW_CGROUP, Target(TargetKind.SHIM, cgroup="/../../etc"))).commands == ()


@pytest.mark.parametrize(
    ("address", "command"),
    [
        ("10.96.0.10", "dig @10.96.0.10 kubernetes.default.svc.cluster.local"),
        ("10.96.0.10:5353", "dig @10.96.0.10 -p 5353 kubernetes.default.svc.cluster.local"),
        ("fd00::a", "dig @fd00::a kubernetes.default.svc.cluster.local"),
        ("[fd00::a]:5353", "dig @fd00::a -p 5353 kubernetes.default.svc.cluster.local"),
    ],
)
def test_a_dns_server_is_asked_where_it_listens(address: str, command: str) -> None:
    assert advise(finding(Action.NONE, Target(TargetKind.DNS_SERVER, address=address))).commands == (command,)


def test_flows_are_looked_at_before_they_are_deleted() -> None:
    advice = advise(finding(Action.DELETE_CONNTRACK_FLOWS, Target(TargetKind.DNS_SERVER, address="fd00::a")))
    assert advice.commands[1:] == (
        "conntrack -L -f ipv6 -p udp --dport 53 -d fd00::a",
        "conntrack -D -f ipv6 -p udp --dport 53 -d fd00::a",
    )
