"""One line, the worst first, that says what matters in the 80 bytes node-problem-detector keeps."""

from dataclasses import replace

from agent.exporters.report_line import MAX_LINE, line
from agent.model import Condition, DetectorState, DetectorStatus, NodeReport, Status

NPD_BYTES = 80
"""max_output_length of a custom plugin unless it is set."""


def test_the_first_bytes_say_what_is_wrong_and_whose_it_is(report: NodeReport) -> None:
    kept = line(report).encode()[:NPD_BYTES].decode()
    assert kept == "ShimUnresponsive (1 of 2): the shim of shop/cart-7d9f4c (pid 4242) does not answ"


def test_it_is_one_line_with_every_finding_in_it(report: NodeReport) -> None:
    text = line(report)
    assert text.endswith("\n")
    assert text.count("\n") == 1
    assert " | ParentNotReaping: " in text


def test_one_finding_is_not_counted(report: NodeReport) -> None:
    alone = replace(report, conditions=tuple(c for c in report.conditions if c.type == "ContainerdShimHung"))
    assert line(alone).startswith("ShimUnresponsive: the shim of ")


def test_a_condition_without_findings_is_told_by_its_own_message(report: NodeReport) -> None:
    bare = Condition("ContainerdShimHung", Status.TRUE, "ShimUnresponsive", "a shim hangs", 0)
    assert line(replace(report, conditions=(bare,))) == "ShimUnresponsive: a shim hangs\n"


def test_a_fault_of_the_deployment_comes_before_what_it_hides(misdeployed_report: NodeReport) -> None:
    quiet = tuple(c for c in misdeployed_report.conditions if c.status is not Status.TRUE)
    text = line(replace(misdeployed_report, conditions=quiet))
    assert text.startswith("the agent's deployment is at fault: Permission denied: the agent needs CAP_DAC_READ_SEARCH")
    assert " | ConntrackDNSRace, ConntrackTablePressure unknown: " in text


def test_what_could_not_be_seen_is_told_if_nothing_is_wrong(report: NodeReport) -> None:
    blind = replace(report, conditions=tuple(c for c in report.conditions if c.status is not Status.TRUE))
    text = line(blind)
    assert text.startswith("ConntrackDNSRace, ConntrackTablePressure unknown: cannot read conntrack: Operation not ")
    assert text.count("cannot read conntrack") == 1


def test_a_healthy_node_says_what_was_looked_at(healthy_report: NodeReport) -> None:
    assert line(healthy_report).startswith("nothing wrong: ")


def test_what_is_not_on_this_node_is_said() -> None:
    absent = DetectorStatus("kubelet_healthz", DetectorState.NOT_APPLICABLE, "there is no kubelet", None, None)
    assert line(NodeReport("n", 0, (), (absent,))) == "kubelet_healthz is not on this node: there is no kubelet\n"


def test_a_workload_can_neither_break_the_line_nor_hide_in_it(hostile_report: NodeReport) -> None:
    text = line(hostile_report)
    assert text.isascii()
    assert text[:-1].isprintable()
    assert len(text) <= MAX_LINE + 1


def test_it_is_bounded_however_much_is_wrong(report: NodeReport) -> None:
    many = tuple(Condition(f"C{index}", Status.TRUE, "R", "x" * 500, 0) for index in range(50))
    assert len(line(replace(report, conditions=many))) == MAX_LINE + 1


def test_a_cut_at_any_byte_leaves_text_that_can_be_read(report: NodeReport) -> None:
    wide = Condition("C", Status.TRUE, "R", "pod shop/größe-日本", 0)
    assert line(replace(report, conditions=(wide,))) == "R: pod shop/gr\\xf6\\xdfe-\\u65e5\\u672c\n"
