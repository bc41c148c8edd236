"""What is wrong first, all of it true, none of it able to move the cursor.

tests/golden/report.txt is the whole plain report; after a wanted change, write it anew with
UPDATE_GOLDEN=1 and read the difference.
"""

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agent.exporters import report_rich, report_text
from agent.exporters.advice import advise
from agent.model import ActiveFinding, DetectorState, DetectorStatus, NodeReport, PodRef, Status

GOLDEN = Path(__file__).parents[2] / "golden" / "report.txt"
ALIKE = {"node", "at", "type", "what", "with"}
"""Words of headings and labels, which colour words otherwise."""
SGR = re.compile(r"\x1b\[[0-9;]*m")
"""The only escape sequences that colour needs."""


def test_the_plain_report_is_the_golden_one(report: NodeReport) -> None:
    text = report_text.plain(report)
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_sections_come_in_the_order_of_need(report: NodeReport) -> None:
    text = report_text.plain(report)
    places = [
        text.index(part)
        for part in (
            "2 things wrong",
            "WHAT IS WRONG",
            "ContainerdShimHung: ShimUnresponsive",
            "kill -9 4242",
            "ExcessiveDefunctProcesses: ",
            "WHAT IS WELL",
            "WHAT COULD NOT BE SEEN",
            "CAP_NET_ADMIN",
            "NOT ON THIS NODE",
            "no trace of a kubelet",
        )
    ]
    assert places == sorted(places)


def test_a_fault_of_the_agent_s_own_deployment_comes_before_everything(misdeployed_report: NodeReport) -> None:
    text = report_text.plain(misdeployed_report)
    lines = text.splitlines()
    headline = "The agent's own deployment has 1 fault (CAP_DAC_READ_SEARCH): it cannot see all of this node. 2 things"
    assert " ".join(lines[1:3]).startswith(headline)
    first = next(number for number, line in enumerate(lines) if line.isupper())
    assert lines[first : first + 8] == [
        "WHAT IS WRONG WITH THE AGENT'S OWN DEPLOYMENT",
        "  CAP_DAC_READ_SEARCH is missing",
        "    Permission denied: the agent needs CAP_DAC_READ_SEARCH, because /run/containerd/s has mode 0600",
        "      hides       ContainerdShimLeaked",
        "      impairs     ContainerdShimHung",
        "      what to do  add DAC_READ_SEARCH to securityContext.capabilities.add of the agent's container",
        "",
        "WHAT IS WRONG",
    ]


def test_whose_it_is_is_told_as_far_as_it_is_known(report: NodeReport) -> None:
    active = report.conditions[0].findings[0]
    assert active.finding.pod
    pod = replace(
        active.finding.pod,
        owner="DaemonSet/cart\x1b",
        qos_class="Guaranteed",
        node_critical=True,
        labels=(("app", "cart"), ("team", "pay\n")),
    )
    condition = replace(report.conditions[0], findings=(replace(active, finding=replace(active.finding, pod=pod)),))
    lines = [line.strip() for line in report_text.plain(replace(report, conditions=(condition,))).splitlines()]
    at = lines.index("pod         shop/cart-7d9f4c, container web")
    assert lines[at + 1] == "workload    DaemonSet/cart\\x1b, Guaranteed, node-critical"
    assert lines[at + 2] == "labels      app=cart, team=pay\\n"


def test_a_pod_of_which_only_the_uid_is_known_is_printed_with_it(report: NodeReport) -> None:
    active = report.conditions[0].findings[0]
    finding = replace(active.finding, pod=PodRef("", "", "0a1b2c3d-0000-4000-8000-000000000000"))
    condition = replace(report.conditions[0], findings=(replace(active, finding=finding),))
    lines = [line.strip() for line in report_text.plain(replace(report, conditions=(condition,))).splitlines()]
    assert "pod         uid 0a1b2c3d-0000-4000-8000-000000000000, name unknown" in lines
    assert str(finding.pod) == "uid 0a1b2c3d-0000-4000-8000-000000000000"


def test_the_id_of_a_pods_sandbox_is_not_shown_as_that_of_a_container(report: NodeReport) -> None:
    active = report.conditions[0].findings[0]
    assert active.finding.pod
    finding = replace(active.finding, pod=replace(active.finding.pod, container=""))
    condition = replace(report.conditions[0], findings=(replace(active, finding=finding),))
    lines = [line.strip() for line in report_text.plain(replace(report, conditions=(condition,))).splitlines()]
    at = lines.index("pod         shop/cart-7d9f4c")
    assert lines[at + 1] == "sandbox     9c0e6f0d1a2b in k8s.io"


def test_headlines(report: NodeReport, healthy_report: NodeReport) -> None:
    def headline(seen: NodeReport) -> str:
        return report_text.plain(seen).splitlines()[1]

    by_status = {status: tuple(c for c in report.conditions if c.status is status) for status in Status}
    assert headline(healthy_report) == "Nothing wrong was seen."
    blind = replace(report, conditions=by_status[Status.FALSE] + by_status[Status.UNKNOWN][:1])
    assert headline(blind) == "Nothing wrong was seen, but 1 condition could not be seen."
    assert headline(replace(report, conditions=by_status[Status.UNKNOWN])) == (
        "Nothing can be said: 2 conditions could not be seen."
    )
    assert headline(replace(report, conditions=())) == "Nothing can be said: no detector applies to this node."


def test_no_line_but_a_command_is_wider_than_100(report: NodeReport, hostile_report: NodeReport) -> None:
    long = replace(report.conditions[1], message="x" * 300)
    for seen in (report, hostile_report, replace(report, conditions=(long,))):
        for line in report_text.plain(seen).splitlines():
            assert len(line) <= 100 or re.match(r" {25}\S", line), line


@pytest.mark.parametrize("render", [report_text.plain, report_rich.render])
def test_hostile_text_stays_text(hostile_report: NodeReport, render: Callable[[NodeReport], str]) -> None:
    text = SGR.sub("", render(hostile_report))
    assert all(line.isprintable() for line in text.split("\n"))
    assert "\\x1b[31mx\\n</p><script>\\u202e\\xff" in text.replace("\n", "")


def test_plain_has_no_escape_sequence(report: NodeReport) -> None:
    assert "\x1b" not in report_text.plain(report)


@pytest.mark.parametrize("name", ["report", "misdeployed_report"])
def test_colour_says_the_same_as_plain(name: str, request: pytest.FixtureRequest) -> None:
    report: NodeReport = request.getfixturevalue(name)

    def words(text: str) -> set[str]:
        return {word.strip(",.:").lower() for word in SGR.sub("", text).split()}

    assert words(report_text.plain(report)) - words(report_rich.render(report)) <= ALIKE


def test_commands_in_colour_are_never_broken(report: NodeReport) -> None:
    text = SGR.sub("", report_rich.render(report, width=44))
    assert "kubectl -n data delete pod redis-0" in [line.strip() for line in text.splitlines()]


@pytest.mark.parametrize("render", [report_text.plain, report_rich.render])
def test_between_the_commands_of_two_steps_stands_what_the_second_is_for(
    report: NodeReport, render: Callable[[NodeReport], str]
) -> None:
    first, second, *_ = advise(report.conditions[0].findings[0].finding).steps
    text = SGR.sub("", render(report))
    at, then = text.index(first.commands[0]) + len(first.commands[0]), text.index(second.commands[0])
    between = " ".join(text[at:then].split())
    assert between == f"2. {second.text}"


def test_many_findings_are_told_briefly_after_the_first_ten(report: NodeReport) -> None:
    first = report.conditions[0].findings[0]
    many = tuple(
        ActiveFinding(replace(first.finding, message=f"shim {number} hangs", reason="ShimOperationStuck"), first.since)
        for number in range(30)
    )
    text = report_text.plain(replace(report, conditions=(replace(report.conditions[0], findings=many),)))
    assert text.count("what to do") == 10
    assert "    20 more:\n    - shim 10 hangs\n" in text
    assert all(f"shim {number} hangs" in text for number in range(30))
    assert text.count("reason      ShimOperationStuck") == 10  # it differs from the condition's own


def test_a_condition_without_findings_still_says_its_message(report: NodeReport) -> None:
    text = report_text.plain(replace(report, conditions=(replace(report.conditions[0], findings=()),)))
    assert "    a shim hangs\n      since       2026-08-01 03:09:40 UTC (3 min ago)\n" in text


def test_a_failure_is_told_once(report: NodeReport) -> None:
    assert report_text.plain(report).count("CAP_NET_ADMIN") == 1
    failed = DetectorStatus("conntrack_dns", DetectorState.FAILED, "something else broke", 0.0, report.observed_at)
    assert "something else broke" in report_text.plain(replace(report, detectors=(failed,)))


def test_a_stream_of_few_letters_gets_escapes(report: NodeReport) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    report_text.write(replace(report, node_name="wörker"), stream, colour=False)
    stream.flush()
    assert raw.getvalue().startswith(b"Node w\\xf6rker at ")


def test_write_colours_on_demand(report: NodeReport) -> None:
    plain, coloured = io.StringIO(), io.StringIO()
    report_text.write(report, plain, colour=False)
    report_text.write(report, coloured, colour=True)
    assert plain.getvalue() == report_text.plain(report)
    assert "\x1b[" in coloured.getvalue()


def test_nothing_of_the_daemon_loads_rich() -> None:
    code = (
        "import sys, agent.exporters.http, agent.exporters.metrics, agent.exporters.report_text, "
        "agent.exporters.report_json; sys.exit('rich' in sys.modules)"
    )
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
