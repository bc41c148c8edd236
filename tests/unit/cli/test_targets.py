"""What a person types leads to one exact target, or to a list of what there is."""

from dataclasses import replace

import pytest

from agent.acts import ActionStatus
from agent.cli.targets import MAX_LISTED, NoSingleTargetError, could_be, look_up
from agent.model import Action, ActiveFinding, PodRef, Target, TargetKind
from tests.unit.accused import CONTAINER, SANDBOX, hung_shim, lazy_parent, lost_queries, silent_kubelet
from tests.unit.agent_double import KILL_SHIM, report_of

KILL_PARENT = replace(
    KILL_SHIM,
    action=Action.KILL_PARENT,
    targets=(TargetKind.PROCESS,),
    mends={"ExcessiveDefunctProcesses": ("ParentNotReaping",)},
)
RESTART_KUBELET = replace(
    KILL_SHIM,
    action=Action.RESTART_KUBELET,
    targets=(TargetKind.KUBELET,),
    mends={"KubeletHealthzFailing": ("HealthzTimeout",)},
)
DELETE_FLOWS = replace(
    KILL_SHIM,
    action=Action.DELETE_CONNTRACK_FLOWS,
    targets=(TargetKind.DNS_SERVER, TargetKind.CONNTRACK),
    mends={"ConntrackDNSRace": ("DNSQueriesLost",)},
)
ALL = (hung_shim(), lazy_parent(), silent_kubelet(), lost_queries(), lost_queries("[fd00::a]:5353"))


def why_not(word: str, action: ActionStatus, *found: ActiveFinding) -> str:
    with pytest.raises(NoSingleTargetError) as caught:
        look_up(word, report_of(*found), action)
    return str(caught.value)


@pytest.mark.parametrize(
    ("word", "action", "finding"),
    [
        ("4242", KILL_SHIM, hung_shim()),
        (SANDBOX, KILL_SHIM, hung_shim()),
        (SANDBOX[:4], KILL_SHIM, hung_shim()),
        (CONTAINER[:12], KILL_SHIM, hung_shim()),  # another container of the pod than the one the shim is named by
        ("shop/cart-7d9f4c", KILL_SHIM, hung_shim()),
        ("shop/cart-7d9f4c", KILL_PARENT, lazy_parent()),
        (CONTAINER, KILL_PARENT, lazy_parent()),
        ("777", KILL_PARENT, lazy_parent()),
        ("kubelet", RESTART_KUBELET, silent_kubelet()),
        ("640", RESTART_KUBELET, silent_kubelet()),
        ("10.96.0.10", DELETE_FLOWS, lost_queries()),
        ("fd00::a", DELETE_FLOWS, lost_queries("[fd00::a]:5353")),
        ("fd00:0:0::a", DELETE_FLOWS, lost_queries("[fd00::a]:5353")),
        ("[fd00::a]:5353", DELETE_FLOWS, lost_queries("[fd00::a]:5353")),
    ],
)
def test_what_a_person_has_at_hand_leads_to_the_exact_target(
    word: str, action: ActionStatus, finding: ActiveFinding
) -> None:
    accused = look_up(word, report_of(*ALL), action)
    assert (accused.target, accused.findings) == (finding.finding.target, (finding,))


def test_all_that_was_found_about_a_target_comes_with_it() -> None:
    leaked = hung_shim().finding
    leaked = replace(leaked, condition="ContainerdShimLeaked", reason="ShimWithoutContainers")
    second = ActiveFinding(leaked, 1.0)
    assert look_up("4242", report_of(hung_shim(), second), KILL_SHIM).findings == (hung_shim(), second)


@pytest.mark.parametrize("word", ["424", "9c0", "cart-7d9f4c", "shop/cart", "", "containerd", "10.96.0.11", "4243"])
def test_what_names_nothing_is_told_with_what_there_is(word: str) -> None:
    told = why_not(word, KILL_SHIM, *ALL)
    assert told.startswith("nothing was found about ")
    assert "KillShim may be done to:\n  4242 " in told
    assert "777" not in told


@pytest.mark.parametrize("word", ["/", "0a1b2c3d", "no/such"])
def test_a_pod_without_a_name_is_no_name_of_a_target(word: str) -> None:
    finding = replace(lazy_parent().finding, pod=PodRef("", "", "0a1b2c3d-0000-4000-8000-000000000000"))
    told = why_not(word, KILL_PARENT, ActiveFinding(finding, 1.0), ActiveFinding(replace(finding, pod=None), 1.0))
    assert told.startswith("nothing was found about ")


def test_a_prefix_that_is_too_short_is_told_so() -> None:
    assert "at least 4 characters" in why_not("9c0", KILL_SHIM, *ALL)


def test_where_nothing_permits_the_action_it_is_said() -> None:
    told = why_not("4242", KILL_SHIM)
    assert told == (
        "nothing was found about 4242.\n"
        "Nothing that was found permits KillShim; `nodediag report` tells what was found."
    )


def test_findings_that_do_not_permit_the_action_are_told_with_what_is_recommended() -> None:
    told = why_not("777", KILL_SHIM, *ALL)
    assert told.startswith("what was found about 777 does not permit KillShim:")
    assert "ParentNotReaping: process 777 (redis-server) does not reap" in told
    assert "Recommended: SignalParent." in told


def test_a_reason_that_does_not_permit_the_action_is_no_permission_though_its_condition_is_named() -> None:
    found = hung_shim()
    found = replace(found, finding=replace(found.finding, reason="ShimDead", recommended_action=Action.NONE))
    assert "No action is recommended" in why_not("4242", KILL_SHIM, found)


def test_a_target_of_another_kind_is_no_permission_though_its_reason_is_named() -> None:
    found = hung_shim()
    other = replace(found.finding.target, kind=TargetKind.CONTAINER)
    told = why_not("4242", KILL_SHIM, replace(found, finding=replace(found.finding, target=other)))
    assert "does not permit KillShim" in told


def test_several_targets_are_listed_by_names_that_are_exact() -> None:
    one, two = hung_shim(), hung_shim(4243, "9c0f" * 16)
    told = why_not("shop/cart-7d9f4c", KILL_SHIM, one, two)
    assert told.startswith("shop/cart-7d9f4c names 2 targets of KillShim.")
    assert [line.split()[0] for line in told.splitlines()[1:]] == ["4242", "4243"]
    assert look_up("4243", report_of(one, two), KILL_SHIM).target == two.finding.target


def test_a_pid_that_is_also_the_beginning_of_a_container_id_is_not_guessed() -> None:
    one, two = hung_shim(4242, SANDBOX), hung_shim(99, "4242" * 16)
    told = why_not("4242", KILL_SHIM, one, two)
    assert [line.split()[0] for line in told.splitlines()[1:]] == [SANDBOX[:12], "99"]


def test_a_long_list_is_cut() -> None:
    told = why_not("nobody", KILL_SHIM, *(hung_shim(pid, f"{pid:064x}") for pid in range(1000, 1100)))
    assert len(told.splitlines()) == MAX_LISTED + 3
    assert told.endswith(f"and {100 - MAX_LISTED} more; `nodediag report` tells all")


def test_names_of_strangers_are_shown_as_escapes() -> None:
    odd = hung_shim(pod="x\x1b[31m\n")
    odd = replace(odd, finding=replace(odd.finding, target=Target(TargetKind.SHIM, container_id="\x1b]0;")))
    for told in (why_not("\x1b\u202e", KILL_SHIM, odd), why_not("4e5f", KILL_PARENT, odd)):
        assert "\x1b" not in told
        assert "\u202e" not in told


@pytest.mark.parametrize(
    ("word", "may"),
    [
        ("4242", True),
        (SANDBOX[:6], True),
        ("shop/cart", True),
        ("abcdef", True),  # perhaps another container of this shim
        ("4243", False),
        ("kubelet", False),
        ("10.96.0.10", False),
    ],
)
def test_a_word_that_cannot_have_led_to_a_target_is_noticed(word: str, may: bool) -> None:
    assert could_be(word, hung_shim().finding.target) is may
