"""Do we see the node, or only our own container?"""

from collections.abc import Callable
from pathlib import Path

import pytest

from agent.host.namespaces import INITIAL_PID_NAMESPACE, Namespaces


def names(*comms: str) -> Callable[[], frozenset[str]]:
    return lambda: frozenset(comms)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    for process in ("1", "self"):
        (tmp_path / process / "ns").mkdir(parents=True)
        (tmp_path / process / "net").mkdir()
    return tmp_path


def link(proc: Path, process: str, kind: str, target: str) -> None:
    (proc / process / "ns" / kind).symlink_to(target)


def test_the_initial_pid_namespace_is_the_nodes_without_a_look_at_any_process(proc: Path) -> None:
    def looked() -> frozenset[str]:
        raise AssertionError

    link(proc, "self", "pid", INITIAL_PID_NAMESPACE)
    assert Namespaces(str(proc)).pid_problem(looked) is None


@pytest.mark.parametrize("comm", ["containerd", "kubelet"])
def test_a_node_that_is_itself_a_container_is_known_by_its_containerd_or_kubelet(proc: Path, comm: str) -> None:
    link(proc, "self", "pid", "pid:[4026532000]")
    assert Namespaces(str(proc)).pid_problem(names("bash", comm)) is None


def test_the_inside_of_a_container_is_told_with_what_to_set(proc: Path) -> None:
    link(proc, "self", "pid", "pid:[4026532000]")
    problem = Namespaces(str(proc)).pid_problem(names("nodediag", "containerd-shim"))
    assert problem is not None
    assert "hostPID: true" in str(problem)


def test_an_unreadable_pid_namespace_is_a_problem_and_not_a_pass(proc: Path) -> None:
    problem = Namespaces(str(proc)).pid_problem(names("kubelet"))
    assert problem is not None
    assert "No such file" in str(problem)


def test_pids_of_another_namespace_are_out_of_reach(tmp_path: Path) -> None:
    (tmp_path / "self").symlink_to("4711")
    problem = Namespaces(str(tmp_path)).signal_problem()
    assert problem is not None
    assert "hostPID: true" in str(problem)
    assert Namespaces("/proc").signal_problem() is None
    assert "cannot tell" in str(Namespaces(str(tmp_path / "nothing")).signal_problem())


def test_the_same_network_namespace_is_no_problem(proc: Path) -> None:
    link(proc, "1", "net", "net:[4026531840]")
    link(proc, "self", "net", "net:[4026531840]")
    assert Namespaces(str(proc)).network_problem() is None


def test_another_network_namespace_is_told_with_what_to_set(proc: Path) -> None:
    link(proc, "1", "net", "net:[4026531840]")
    link(proc, "self", "net", "net:[4026532111]")
    problem = Namespaces(str(proc)).network_problem()
    assert problem is not None
    assert "hostNetwork: true" in str(problem)


def test_where_pid_1s_link_is_hidden_the_inode_of_its_network_files_tells(proc: Path) -> None:
    link(proc, "self", "net", "net:[4026531840]")
    (proc / "1/net/dev").write_text("")
    (proc / "self/net/dev").hardlink_to(proc / "1/net/dev")
    assert Namespaces(str(proc)).network_problem() is None
    (proc / "self/net/dev").unlink()
    (proc / "self/net/dev").write_text("")
    assert Namespaces(str(proc)).network_problem() is not None


def test_a_network_namespace_that_cannot_be_told_is_a_problem(proc: Path) -> None:
    problem = Namespaces(str(proc)).network_problem()
    assert problem is not None
    assert "cannot tell" in str(problem)
