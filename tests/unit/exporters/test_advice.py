"""Steps that each belong to one decision, with commands that can be typed as they stand."""

import re
import shlex
from collections.abc import Mapping

import pytest

from agent.exporters.advice import advise
from agent.model import Action, Finding, PodRef, Target, TargetKind, Value

HOSTILE = "x;$(reboot)`id`\n\u202e'\""
SANDBOX, APP = "a1" * 32, "b2" * 32
AGENT = "nodediag remediate "
SURVIVORS = "for p in $(grep -lsE 'a1a1a1a1a1a1|b2b2b2b2b2b2' /proc/[0-9]*/cgroup | cut -d / -f 3); do "
LISTED = "echo $p $(cat /proc/$p/comm; grep State /proc/$p/status); done"
ENDS = re.compile(
    r"\bkill\b|systemctl (?:re)?start|delete pod|conntrack -D|echo .* > /sys|systemctl thaw|nodediag remediate"
)
DISRUPTS = re.compile(r"kill -9|kill \d|kill \$p|systemctl (?:re)?start|delete pod|conntrack -D")


def finding(
    action: Action, target: Target, pod: PodRef | None = None, values: Mapping[str, Value] | None = None
) -> Finding:
    return Finding("Condition", "Reason", "message", action, target, pod, values or {})


def commands(seen: Finding) -> list[str]:
    return [command for step in advise(seen).steps for command in step.commands]


def shim(**values: Value) -> Finding:
    target = Target(TargetKind.SHIM, pid=42, start_time=7, container_id=SANDBOX)
    return finding(Action.KILL_SHIM, target, values={"containerIds": (SANDBOX, APP), **values})


def _values(*each: Mapping[str, Value]) -> tuple[Mapping[str, Value], ...]:
    return each


EVERY_FINDING = [
    finding(action, Target(kind, 42, 7, "boot", SANDBOX, "k8s.io", "/kubepods/x", "10.96.0.10:53"), pod, values)
    for action in Action
    for kind in TargetKind
    for pod in (None, PodRef("shop", "cart-1"))
    for values in _values(
        {"containerIds": (SANDBOX, APP)},
        {"processState": "T"},
        {"processState": "D"},
        {"runcPid": 43, "runcState": "S"},
        {"orphanedSeconds": 9.0},
        {"thawFile": "/sys/fs/cgroup/system.slice/web.service/cgroup.freeze"},
    )
]


@pytest.mark.parametrize("action", Action)
@pytest.mark.parametrize("kind", TargetKind)
def test_every_action_and_target_has_an_answer(action: Action, kind: TargetKind) -> None:
    advice = advise(finding(action, Target(kind)))
    assert advice.steps
    assert all(step.do.endswith(".") for step in advice.steps)
    assert all("None" not in command for step in advice.steps for command in step.commands)


@pytest.mark.parametrize("action", Action)
@pytest.mark.parametrize("kind", TargetKind)
@pytest.mark.parametrize("address", [HOSTILE, "-x", "fe80::1%;reboot", "1.2.3.4:53;reboot", "1.2.3.4:٣"])
def test_no_name_of_a_stranger_becomes_a_command(action: Action, kind: TargetKind, address: str) -> None:
    target = Target(kind, 7, 1, HOSTILE, HOSTILE, HOSTILE, "/x;reboot '$(id)'", address)
    values: dict[str, Value] = {"thawFile": f"/{HOSTILE}/cgroup.freeze", "containerIds": (HOSTILE,), "runcPid": HOSTILE}
    pods = (PodRef(HOSTILE, "x"), PodRef("x", HOSTILE), PodRef("x", "--all"), PodRef("--all", "x"), None)
    for command in (command for pod in pods for command in commands(finding(action, target, pod, values))):
        assert " --all" not in command
        assert command.isprintable()
        lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        operators = {word for word in lexer if set(word) <= set("();<>|&")}
        assert operators <= {">", "&&", "|", ";"}
        assert "reboot" not in command


def test_a_path_that_only_looks_odd_is_quoted() -> None:
    odd = finding(Action.THAW_CGROUP, Target(TargetKind.SHIM), values={"thawFile": "/sys/a;reboot/cgroup.freeze"})
    assert commands(odd) == ["echo 0 > '/sys/a;reboot/cgroup.freeze'"]


def test_what_changes_the_node_is_never_in_one_step_with_another_decision() -> None:
    for seen in EVERY_FINDING:
        for step in advise(seen).steps:
            changing = [command for command in step.commands if ENDS.search(command)]
            assert len(changing) <= 1
            assert not changing or len(step.commands) == 1, "a step that changes something looks at nothing else"


def test_what_disrupts_by_hand_has_a_condition() -> None:
    for seen in EVERY_FINDING:
        for step in advise(seen).steps:
            for command in step.commands:
                assert step.when or not DISRUPTS.search(command), command


def test_wherever_a_shim_is_killed_by_hand_its_survivors_are_ended_too() -> None:
    for seen in EVERY_FINDING:
        steps = advise(seen).steps
        kills = [at for at, step in enumerate(steps) if any("&& kill -9 42" in command for command in step.commands)]
        for at in kills:
            assert "containerd 2.x" in steps[at].do
            assert "second copy" in steps[at].do
            assert steps[at].commands[0].startswith("grep -x containerd-shim /proc/42/comm && kill -9 42 && for p")
            assert [step.commands for step in steps[at + 1 :]] == [
                (command,) for command in (step.commands[0] for step in steps[at + 1 :])
            ]
            assert steps[at + 1].commands[0].endswith(LISTED)
            assert steps[at + 2].commands[0].endswith("do kill -9 $p; done")
        assert bool(kills) == (seen.recommended_action is Action.KILL_SHIM)


def test_a_shim_whose_containers_cannot_be_named_is_not_killed_without_the_warning() -> None:
    step = advise(finding(Action.KILL_SHIM, Target(TargetKind.SHIM, pid=42, container_id="web-0"))).steps[-1]
    assert step.commands == ("grep -x containerd-shim /proc/42/comm && kill -9 42",)
    assert "containerd 2.x" in step.do
    assert "no process of its containers is left" in step.do


def test_the_agents_own_command_comes_first() -> None:
    assert commands(shim())[:2] == [
        "nodediag remediate KillShim --target 42",
        (f"grep -x containerd-shim /proc/42/comm && kill -9 42 && {SURVIVORS}kill -9 $p; done"),
    ]


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
    own = [command for command in commands(finding(action, target)) if command.startswith(AGENT)]
    assert own == [f"nodediag remediate {action} --target {name}"]


@pytest.mark.parametrize("action", [each for each in Action if each is not Action.NONE])
def test_a_target_without_a_name_to_type_has_no_command_of_the_agent(action: Action) -> None:
    for target in (Target(TargetKind.NODE), Target(TargetKind.SHIM, container_id="web-0")):
        assert not [each for each in commands(finding(action, target)) if each.startswith(AGENT)]


@pytest.mark.parametrize("state", ["T", "t"])
def test_a_stopped_shim_is_continued_before_it_is_killed_by_anybody(state: str) -> None:
    first, agent, by_hand, *_ = advise(shim(processState=state)).steps
    assert first.commands == ("grep -x containerd-shim /proc/42/comm && kill -CONT 42",)
    assert first.when == "Only if nobody stopped it on purpose (a debugger, a checkpoint)"
    for step in (agent, by_hand):
        assert step.when.startswith("Only if this finding is still reported 15 s after step 1")
    assert "remediation is disabled" in by_hand.when


def test_the_runc_that_holds_the_lock_is_ended_before_the_shim_is() -> None:
    first, agent, *_ = advise(shim(runcPid=43, runcState="S")).steps
    assert first.commands == ("grep -xE 'runc|crun' /proc/43/comm && kill 43",)
    assert agent.when == "Only if this finding is still reported 15 s after step 1"


def test_a_runc_in_the_kernel_is_not_signalled_in_vain() -> None:
    assert "kill 43" not in " ".join(commands(shim(runcPid=43, runcState="D")))


def test_a_shim_in_the_kernel_is_looked_into_before_it_is_killed() -> None:
    first, agent, *_ = advise(shim(processState="D")).steps
    assert first.commands[0].startswith("cat /proc/42/wchan")
    assert agent.when


def test_a_shim_containerd_no_longer_knows_is_not_said_to_come_back() -> None:
    first, agent, by_hand, *_ = advise(shim(orphanedSeconds=9.0)).steps
    assert first.commands == ("cat /proc/42/task/*/children", SURVIVORS + LISTED)
    assert "nothing is started again" in agent.do
    assert agent.when == "Only if nothing runs there, or what runs there may end"
    assert by_hand.when.startswith(agent.when)


def test_a_parent_in_a_pod_ends_with_its_pod_and_another_by_signal() -> None:
    target = Target(TargetKind.PROCESS, pid=42)
    assert commands(finding(Action.KILL_PARENT, target, PodRef("shop", "cart-1")))[1:] == [
        "kubectl -n shop delete pod cart-1"
    ]
    _, look, end, _ = advise(finding(Action.KILL_PARENT, target)).steps
    assert (look.commands, end.commands) == (("cat /proc/42/comm",), ("kill 42",))
    assert end.when.startswith("Only if it prints the name")


@pytest.mark.parametrize("key", ["thawFile", "thaw_file"])
@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("/sys/fs/cgroup/freezer/kubepods/pod1/freezer.state", "echo THAWED > "),
        ("/sys/fs/cgroup/kubepods/pod1/cgroup.freeze", "echo 0 > "),
        ("/sys/fs/cgroup/unified/kubepods/pod1/cgroup.freeze", "echo 0 > "),
    ],
)
def test_the_cgroup_is_thawed_by_the_file_of_this_nodes_hierarchy(key: str, file: str, command: str) -> None:
    target = Target(TargetKind.PROCESS, pid=42, cgroup="/kubepods/pod1/abc")
    frozen = finding(Action.THAW_CGROUP, target, values={key: file, "frozenCgroup": "/kubepods/pod1"})
    assert commands(frozen) == ["nodediag remediate ThawCgroup --target 42", command + file]


@pytest.mark.parametrize(
    "folder",
    [
        "system.slice/containerd.service",
        "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod7136b167_4ea5.slice",
        f"kubepods.slice/cri-containerd-{APP}.scope",
    ],
)
def test_a_unit_that_systemd_froze_is_thawed_by_systemd(folder: str) -> None:
    unit = folder.rpartition("/")[2]
    file = f"/sys/fs/cgroup/{folder}/cgroup.freeze"
    look, by_systemd, by_hand = advise(
        finding(Action.THAW_CGROUP, Target(TargetKind.SHIM), values={"thawFile": file})
    ).steps
    assert look.commands == (f"systemctl show -p FreezerState {unit}",)
    assert by_systemd.commands == (f"systemctl thaw {unit}",)
    assert by_systemd.when == "Only if it prints FreezerState=frozen"
    assert by_hand.commands == (f"echo 0 > {file}",)


@pytest.mark.parametrize("file", ["/../../etc/cgroup.freeze", "cgroup.freeze", "/sys/fs/cgroup/a/cgroup.kill", ""])
def test_no_other_file_is_written_to(file: str) -> None:
    assert commands(finding(Action.THAW_CGROUP, Target(TargetKind.SHIM), values={"thawFile": file})) == []


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
    assert commands(finding(Action.NONE, Target(TargetKind.DNS_SERVER, address=address))) == [command]


def test_flows_are_listed_before_they_are_deleted() -> None:
    _, listed, deleted = advise(
        finding(Action.DELETE_CONNTRACK_FLOWS, Target(TargetKind.DNS_SERVER, address="fd00::a"))
    ).steps
    assert listed.commands == ("conntrack -L -f ipv6 -p udp --dport 53 -d fd00::a",)
    assert deleted.commands == ("conntrack -D -f ipv6 -p udp --dport 53 -d fd00::a",)
    assert deleted.when.startswith("Only if it lists UNREPLIED flows")


def test_processes_without_a_shim_are_ended_only_after_two_conditions() -> None:
    target = Target(TargetKind.CONTAINER, 42, 7, container_id=APP, cgroup=f"/kubepods/pod1/{APP}")
    listed, second, ended, killed = advise(finding(Action.NONE, target, PodRef("shop", "cart-1"))).steps
    assert listed.commands[0].endswith(f"do {LISTED}")
    assert second.commands == ("kubectl -n shop get pod -o wide cart-1",)
    assert ended.commands == (
        "for p in $(grep -lsE 'b2b2b2b2b2b2' /proc/[0-9]*/cgroup | cut -d / -f 3); do kill $p; done",
    )
    assert ended.when.startswith("Only if the pod is gone")
    assert killed.when.startswith("Only if the first step still lists")


def test_a_pod_whose_name_is_forgotten_is_found_by_its_uid() -> None:
    target = Target(TargetKind.CONTAINER, 42, 7, container_id=APP, cgroup=f"/kubepods/pod1/{APP}")
    uid = "7136b167-4ea5-4a6c-a402-675024ddd86d"
    _, second, *_ = advise(finding(Action.NONE, target, values={"podUid": uid})).steps
    assert second.commands[0].endswith(f",NODE:.spec.nodeName | grep {uid}")
    hostile = finding(Action.NONE, target, values={"podUid": "x; reboot"})
    assert not [command for command in commands(hostile) if "kubectl" in command]


@pytest.mark.parametrize(
    ("action", "kind", "name"),
    [
        (Action.RESTART_KUBELET, TargetKind.KUBELET, "kubelet"),
        (Action.RESTART_CONTAINERD, TargetKind.CONTAINERD, "containerd"),
    ],
)
def test_a_service_that_is_only_stopped_is_continued_before_it_is_restarted(
    action: Action, kind: TargetKind, name: str
) -> None:
    look, continued, *others = advise(finding(action, Target(kind, pid=42))).steps
    assert look.commands == ("grep State /proc/42/status",)
    assert continued.commands == (f"grep -x {name} /proc/42/comm && kill -CONT 42",)
    assert others[-1].commands == (f"systemctl reset-failed {name}; systemctl restart {name}",)


SERVICES = pytest.mark.parametrize(
    ("action", "kind", "usual"),
    [
        (Action.RESTART_KUBELET, TargetKind.KUBELET, "kubelet"),
        (Action.RESTART_CONTAINERD, TargetKind.CONTAINERD, "containerd"),
    ],
)


@SERVICES
@pytest.mark.parametrize(
    ("unit", "named"),
    [
        ("k3s.service", "k3s.service"),
        ("snap.microk8s.daemon-kubelite.service", "snap.microk8s.daemon-kubelite.service"),
        (r"rke2\x2dserver.service", r"'rke2\x2dserver.service'"),
        ("", ""),
        ("session-1.scope", ""),
        ("--force.service", ""),
        ("x;reboot.service", ""),
    ],
)
def test_by_hand_the_unit_that_the_finding_names_is_restarted(
    action: Action, kind: TargetKind, usual: str, unit: str, named: str
) -> None:
    name = named or usual
    file = (named or f"{usual}.service").replace(".service", ".log")
    typed = commands(finding(action, Target(kind, pid=42), values={"unit": unit}))
    assert typed[-1] == f"systemctl reset-failed {name}; systemctl restart {name}"
    assert f"journalctl -u {name} -n 200 --no-pager > /var/tmp/{file}" in typed
    if kind is TargetKind.CONTAINERD:
        assert f"systemctl show -p KillMode {name}" in typed


@SERVICES
def test_a_service_that_has_ended_is_started_unless_somebody_switched_it_off(
    action: Action, kind: TargetKind, usual: str
) -> None:
    ended = finding(action, Target(kind, boot_id="boot", cgroup=f"/system.slice/k3s-{usual}.service"))
    agent, _, states, start = advise(ended).steps
    assert agent.do.startswith(f"Have the agent start {'the ' if usual == 'kubelet' else ''}{usual}.")
    unit = f"k3s-{usual}.service"
    assert states.commands == (f"systemctl show -p ActiveState,UnitFileState,Result {unit}",)
    assert "masked or disabled" in states.do
    assert start.commands == (f"systemctl reset-failed {unit}; systemctl start {unit}",)
    assert start.when.startswith("Only if it prints neither masked nor disabled")
    assert "remediation is disabled" in start.when
    assert not [command for command in commands(ended) if "systemctl restart" in command]


@SERVICES
def test_the_journal_of_the_unit_that_the_finding_names_is_read_first(
    action: Action, kind: TargetKind, usual: str
) -> None:
    named = finding(Action.NONE, Target(kind, pid=42), values={"unit": "k3s.service"})
    assert commands(named) == ["journalctl -u k3s.service -n 200 --no-pager"]
    assert commands(finding(Action.NONE, Target(kind, pid=42))) == [f"journalctl -u {usual} -n 200 --no-pager"]


def test_a_shims_cgroup_does_not_name_the_unit_of_containerd() -> None:
    target = Target(TargetKind.SHIM, container_id=APP, cgroup="/system.slice/web.service")
    typed = commands(finding(Action.RESTART_CONTAINERD, target))
    assert typed[-1] == "systemctl reset-failed containerd; systemctl restart containerd"


def test_containerd_is_not_restarted_beside_a_hung_shim_nor_by_a_unit_that_ends_the_shims() -> None:
    agent, *_, by_hand = advise(finding(Action.RESTART_CONTAINERD, Target(TargetKind.SHIM, container_id=APP))).steps
    assert agent.when.startswith("Only if ContainerdShimHung is not reported")
    assert "KillMode=process" in by_hand.when
    assert "ContainerdShimHung is not reported" in by_hand.when


def test_steps_are_numbered_where_there_are_several() -> None:
    numbers = [number for number, _ in advise(shim(processState="T")).numbered]
    assert numbers == ["1. ", "2. ", "3. ", "4. ", "5. "]
    one = finding(Action.NONE, Target(TargetKind.KUBELET))
    assert advise(one).numbered[0][0] == ""
    assert advise(one).steps[0].text == "Nothing on this node fixes this safely by itself. Start here."
