"""`nodediag remediate`: what is shown, what is asked, what is sent, and what is told of it."""

import json
import os
import signal
import subprocess
import threading
from dataclasses import replace
from uuid import UUID

import pytest

from agent.acts import Outcome, Refusal, RefusalReason, Request
from agent.model import Action
from tests.unit.accused import BOOT, hung_shim, lazy_parent
from tests.unit.agent_double import READY, AgentDouble, Lost, report_of
from tests.unit.cli.asking import CommandLine
from tests.unit.cli.processes import SECONDS, command, running

ID = UUID("1b4e28ba-2fa1-41d2-883f-0016d3cca427")
KILL = ("remediate", "KillShim", "--target", "4242")


@pytest.fixture(autouse=True)
def hung(agent: AgentDouble) -> None:
    """There is a hung shim, and a parent that does not reap."""
    agent.report = report_of(hung_shim(), lazy_parent())


# -- what is sent


def test_the_exact_target_is_sent_with_the_highest_token(agent: AgentDouble, run: CommandLine) -> None:
    done = run(*KILL, "--yes", "--reason", "it hangs since noon")
    (asked,) = agent.asked
    assert done.code == 0
    assert asked.target == hung_shim().finding.target
    assert (asked.target.start_time, asked.target.boot_id) == (987654, BOOT)
    assert (asked.action, asked.dry_run, asked.fencing_token) == (Action.KILL_SHIM, False, 7)
    assert asked.reason == "it hangs since noon"
    assert str(UUID(asked.request_id)) == asked.request_id


def test_two_requests_never_share_an_id_and_a_given_one_is_kept(agent: AgentDouble, run: CommandLine) -> None:
    run(*KILL, "--yes")
    run(*KILL, "--yes")
    run(*KILL, "--yes", "--request-id", str(ID).upper())
    ids = [asked.request_id for asked in agent.asked]
    assert len(set(ids)) == 3
    assert ids[2] == str(ID)


def test_a_dry_run_is_sent_as_one(agent: AgentDouble, run: CommandLine) -> None:
    agent.answers = [Outcome.DRY_RUN]
    done = run(*KILL, "--dry-run", "--yes")
    assert (done.code, agent.asked[0].dry_run) == (0, True)
    assert "dry run      yes: everything but the last step" in done.err
    assert done.out.startswith("dry_run: ")


def test_a_dry_run_needs_neither_a_terminal_nor_a_confirmation(agent: AgentDouble) -> None:
    agent.answers = [Outcome.DRY_RUN]
    words = command(*KILL, "--dry-run", "--endpoint", agent.endpoint)
    done = subprocess.run(words, input="", capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (done.returncode, [asked.dry_run for asked in agent.asked]) == (0, [True])
    assert "[y/N]" not in done.stderr
    assert done.stdout.startswith("dry_run: ")


@pytest.mark.parametrize("typed", ["n\n", "", "y\n"])
def test_a_dry_run_on_a_terminal_does_not_ask_either(agent: AgentDouble, run: CommandLine, typed: str) -> None:
    agent.answers = [Outcome.DRY_RUN]
    done = run(*KILL, "--dry-run", typed=typed)
    assert (done.code, len(agent.asked)) == (0, 1)
    assert "[y/N]" not in done.err


def test_an_agent_in_dry_run_is_still_asked_only_after_a_confirmation(agent: AgentDouble, run: CommandLine) -> None:
    agent.status = replace(READY, dry_run=True)  # it may have been restarted to act by the time it is asked
    assert run(*KILL, typed="n\n").code == 2
    assert agent.asked == []


def test_without_a_confirmation_only_a_dry_run_is_sent(agent: AgentDouble, run: CommandLine) -> None:
    assert run(*KILL).code == 2
    assert agent.asked == []


# -- what is shown and asked


def test_it_is_shown_what_will_be_done_to_whom(agent: AgentDouble, run: CommandLine) -> None:
    shown = " ".join(run(*KILL, typed="y\n").err.split())
    assert shown.startswith("KillShim: Kills the shim by pidfd and ends what is left of its containers.")
    for words in (
        "risk The pod's containers end without their grace period.",
        "target shim, pid 4242, started at tick 987654",
        "pod shop/cart-7d9f4c (container web)",
        "found ContainerdShimHung: ShimUnresponsive since 2026-08-01 03:09:40 UTC: shim 4242 of pod",
        "dry run no: the node will be changed",
        f"request id {agent.asked[0].request_id}",
        "Do KillShim? [y/N]",
    ):
        assert words in shown


def test_another_recommendation_is_shown(agent: AgentDouble, run: CommandLine) -> None:
    agent.report = report_of(hung_shim(action=Action.THAW_CGROUP))
    assert "recommended  ThawCgroup, not KillShim" in run(*KILL, typed="n\n").err


def test_an_agent_that_only_does_dry_runs_is_shown_as_one(agent: AgentDouble, run: CommandLine) -> None:
    agent.status = replace(READY, dry_run=True)
    shown = run(*KILL, typed="n\n").err
    assert "remediation.dry_run stops everything before its last step" in " ".join(shown.split())
    assert "Do the dry run of KillShim? [y/N]" in shown


@pytest.mark.parametrize("typed", ["y\n", "yes\n", " YES \n", "Y"])
def test_yes_is_yes(agent: AgentDouble, run: CommandLine, typed: str) -> None:
    assert run(*KILL, typed=typed).code == 0
    assert len(agent.asked) == 1


@pytest.mark.parametrize("typed", ["", "\n", "n\n", "no\n", "ye\n", "yy\n", "j\n", "x y\n", "ye\x08s\n"])
def test_anything_but_yes_is_no(agent: AgentDouble, run: CommandLine, typed: str) -> None:
    done = run(*KILL, typed=typed)
    assert (done.code, done.out, agent.asked) == (2, "", [])
    assert done.err.endswith("nodediag: not agreed to\nnodediag: nothing was done\n")


def test_without_a_terminal_nobody_is_asked_and_nothing_is_done(agent: AgentDouble) -> None:
    words = command(*KILL, "--endpoint", agent.endpoint)
    done = subprocess.run(words, input="y\n", capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (done.returncode, done.stdout, agent.asked) == (2, "", [])
    assert done.stderr == (
        "nodediag: nobody can be asked, because this is no terminal; --yes does it without asking\n"
        "nodediag: nothing was done\n"
    )


def test_on_a_terminal_the_question_waits_for_its_answer(agent: AgentDouble) -> None:
    ours, theirs = os.openpty()
    words = command(*KILL, "--endpoint", agent.endpoint)
    with (
        os.fdopen(ours, "r+b", buffering=0) as terminal,
        subprocess.Popen(words, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, text=True) as process,
    ):
        os.close(theirs)
        shown = b""
        while not shown.endswith(b"[y/N] "):
            shown += terminal.read(1000)
        assert agent.asked == []
        terminal.write(b"y\n")
        output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    assert output.startswith("verified: it is verified\n")
    assert len(agent.asked) == 1


# -- what does not lead to one target


def test_what_names_no_target_ends_before_anything_is_asked(agent: AgentDouble, run: CommandLine) -> None:
    done = run("remediate", "KillShim", "--target", "4243", typed="y\n")
    assert (done.code, done.out, agent.asked) == (2, "", [])
    assert done.err.startswith("nodediag: nothing was found about 4243.\nKillShim may be done to:\n  4242 ")
    assert done.err.endswith("nodediag: nothing was done\n")


def test_an_action_this_agent_does_not_have_is_told(agent: AgentDouble, run: CommandLine) -> None:
    done = run("remediate", "ThawCgroup", "--target", "4242", "--yes")
    assert (done.code, agent.asked) == (2, [])
    assert "this agent does not know ThawCgroup" in done.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["killshim", "--target", "1"], "there is no action killshim; did you mean KillShim? There are: KillShim, "),
        (["KillShin", "--target", "1"], "did you mean KillShim?"),
        (["None", "--target", "1"], "there is no action None. There are: KillShim, "),
        (["KillShim"], "the following arguments are required: --target"),
        (["KillShim", "--target", "1", "--request-id", "1234"], "must be a UUID"),
        (["KillShim", "--target", "1", "--reason", "x" * 1025], "has 1025 characters; there may be 1024"),
    ],
)
def test_wrong_usage_is_told_before_anybody_is_asked(
    agent: AgentDouble, run: CommandLine, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        run("remediate", *words, "--yes")
    assert caught.value.code == 2
    assert told in capsys.readouterr().err
    assert agent.asked == []


# -- what came of it


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (Outcome.VERIFIED, 0),
        (Outcome.DRY_RUN, 0),
        (Outcome.PERFORMED, 0),
        (Outcome.INEFFECTIVE, 1),
        (Outcome.FAILED, 1),
        (Outcome.INTERRUPTED, 1),
        (Outcome.REFUSED, 2),
        (Outcome.RUNNING, 2),
    ],
)
def test_the_exit_code_tells_the_outcome(agent: AgentDouble, run: CommandLine, outcome: Outcome, code: int) -> None:
    agent.answers = [outcome]
    done = run(*KILL, "--yes")
    assert done.code == code
    assert done.out.startswith(f"{outcome}: it is {outcome}\n")


def test_programs_read_nothing_but_json_on_standard_output(agent: AgentDouble, run: CommandLine) -> None:
    done = run(*KILL, "--yes", "--format", "json")
    told = json.loads(done.out)
    assert (told["outcome"], told["requestId"], told["target"]["pid"]) == ("verified", agent.asked[0].request_id, 4242)


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        (Refusal(RefusalReason.COOLING_DOWN, "KillShim rests", 40.0), "may be sent again in 40 s"),
        (Refusal(RefusalReason.BUSY, "another is under way", 0.0), "may be sent again at once."),
        (Refusal(RefusalReason.TARGET_CHANGED, "pid 4242 is another process by now"), "Waiting alone does not help."),
        (Refusal(RefusalReason.CALLER_NOT_ALLOWED, "uid:7 may not"), "Waiting alone does not help."),
        (Refusal(RefusalReason.WRONG_TARGET_KIND, "no shim"), "Waiting alone does not help."),
    ],
)
def test_a_refusal_is_told_by_word_and_sentence_and_when_to_try_again(
    agent: AgentDouble, run: CommandLine, refusal: Refusal, told: str
) -> None:
    agent.answers = [refusal]
    done = run(*KILL, "--yes")
    assert (done.code, done.out) == (2, "")
    assert f"refused: {refusal.reason}: {refusal.message}\n" in done.err
    assert told in done.err
    assert ("--request-id" in done.err) is (refusal.retry_seconds is not None)
    as_json = json.loads(run(*KILL, "--yes", "--format", "json").out)
    assert (as_json["outcome"], as_json["refusal"]["reason"]) == ("refused", refusal.reason)
    assert as_json["refusal"]["retrySeconds"] == refusal.retry_seconds


def test_a_lost_answer_is_told_with_how_to_find_it(agent: AgentDouble, run: CommandLine) -> None:
    agent.answers = [Lost(Outcome.VERIFIED)]
    done = run(*KILL, "--yes")
    (asked,) = agent.asked
    assert (done.code, done.out) == (2, "")
    assert f"may have been begun all the same: `nodediag remediations --request-id {asked.request_id}`" in done.err


def test_no_agent_is_told_plainly(agent: AgentDouble, run: CommandLine) -> None:
    agent.stop()
    done = run(*KILL, "--yes")
    assert done.code == 2
    assert "no agent answers on unix:" in done.err
    assert done.err.endswith("nothing was done\n")


def test_ctrl_c_while_it_waits_says_that_it_goes_on(agent: AgentDouble) -> None:
    go_on = threading.Event()
    agent.answers = [go_on]
    try:
        with running(command(*KILL, "--yes", "--endpoint", agent.endpoint)) as process:
            assert agent.waiting.wait(SECONDS)
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=SECONDS)
    finally:
        go_on.set()
    request_id = agent.asked[0].request_id
    assert (process.returncode, output) == (130, "")
    assert f"Request {request_id} is sent; waiting" in errors
    assert errors.endswith(
        "nodediag: no longer waiting. What was begun goes on; "
        f"`nodediag remediations --request-id {request_id}` tells what came of it\n"
    )


# -- the same request again


def earlier(*, dry_run: bool = False) -> Request:
    return Request(str(ID), Action.KILL_SHIM, hung_shim().finding.target, "", dry_run=dry_run, fencing_token=3)


def test_what_was_answered_before_is_told_and_not_sent_again(agent: AgentDouble, run: CommandLine) -> None:
    agent.record(earlier(), Outcome.INEFFECTIVE)
    agent.report = report_of()  # what was mended is found no longer
    done = run(*KILL, "--yes", "--request-id", ID)
    assert (done.code, agent.asked) == (1, [])
    assert done.out.startswith("ineffective: ")
    assert "was made before; nothing is done twice" in done.err


def test_what_is_still_under_way_is_waited_for(agent: AgentDouble, run: CommandLine) -> None:
    agent.record(earlier(), Outcome.RUNNING, finished_at=0.0)
    agent.report = report_of()
    done = run(*KILL, "--yes", "--request-id", ID)
    assert (done.code, [asked.asks_the_same_as for asked in agent.asked]) == (
        0,
        [replace(earlier(), caller="uid:0").asks_the_same_as],
    )


def test_what_was_refused_before_may_be_asked_for_again(agent: AgentDouble, run: CommandLine) -> None:
    agent.record(earlier(), Outcome.REFUSED)
    assert run(*KILL, "--yes", "--request-id", ID).code == 0
    assert [asked.request_id for asked in agent.asked] == [str(ID)]


@pytest.mark.parametrize(
    "words", [("KillParent", "--target", "4242"), ("KillShim", "--target", "999"), (*KILL[1:], "--dry-run")]
)
def test_an_id_that_was_used_for_something_else_is_not_used_again(
    agent: AgentDouble, run: CommandLine, words: tuple[str, ...]
) -> None:
    agent.record(earlier())
    done = run("remediate", *words, "--yes", "--request-id", ID)
    assert (done.code, done.out, agent.asked) == (2, "", [])
    assert f"request {ID} was for KillShim of shim 4242" in done.err
