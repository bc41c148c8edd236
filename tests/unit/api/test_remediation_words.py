"""The act flow's words and the protos: nothing is lost on the way, and unknown words claim nothing."""

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from agent import acts
from agent.acts import Outcome, RefusalReason
from agent.api import remediation_words as words
from agent.api.pb import diagnostics_service_pb2 as diagnostics_pb
from agent.api.pb import remediation_service_pb2 as pb
from agent.model import Action, Target, TargetKind
from agent.printable import encodable
from tests.unit.api.strategies import MOMENTS, SPANS, TARGETS, TEXTS

TOKENS = st.integers(0, acts.MAX_TOKEN)
COUNTS = st.integers(0, 2**32 - 1)
REQUESTS = st.builds(
    acts.Request,
    request_id=TEXTS,
    action=st.sampled_from(Action),
    target=TARGETS,
    caller=TEXTS,
    dry_run=st.booleans(),
    fencing_token=TOKENS,
    reason=TEXTS,
)
REFUSALS = st.builds(
    acts.Refusal, reason=st.sampled_from(RefusalReason), message=TEXTS, retry_seconds=st.none() | SPANS
)
REMEDIATIONS = st.builds(
    acts.Remediation,
    request=REQUESTS,
    outcome=st.sampled_from(Outcome),
    message=TEXTS,
    received_at=MOMENTS,
    finished_at=st.just(0.0) | MOMENTS,
    acted=st.booleans(),
    refusal=st.none() | REFUSALS,
    evidence_id=TEXTS,
)
MENDS: st.SearchStrategy[Mapping[str, tuple[str, ...]]] = st.dictionaries(
    TEXTS, st.lists(TEXTS, max_size=2).map(tuple), max_size=2
)
ACTIONS = st.builds(
    acts.ActionStatus,
    action=st.sampled_from([each for each in Action if each is not Action.NONE]),
    does=TEXTS,
    requires=TEXTS,
    risk=TEXTS,
    targets=st.lists(st.sampled_from(TargetKind), max_size=3).map(tuple),
    mends=MENDS,
    enabled=st.booleans(),
    allowed=st.booleans(),
    cooldown_seconds=SPANS,
    cooldown_left_seconds=SPANS,
    max_per_hour=COUNTS,
    left_this_hour=COUNTS,
)
STATUSES = st.builds(
    acts.RemediationStatus,
    enabled=st.booleans(),
    dry_run=st.booleans(),
    paused=TEXTS,
    trouble=TEXTS,
    highest_token=TOKENS,
    max_per_hour=COUNTS,
    left_this_hour=COUNTS,
    actions=st.lists(ACTIONS, max_size=2).map(tuple),
)
EVIDENCE = st.builds(
    acts.Evidence,
    id=TEXTS,
    request_id=TEXTS,
    action=TEXTS,
    created_at=MOMENTS,
    size=st.integers(0, 2**63 - 1),
    sha256=TEXTS,
)


@given(REQUESTS)
def test_a_request_survives_the_wire_and_its_caller_is_not_sent(asked: acts.Request) -> None:
    sent = pb.RemediateRequest.FromString(words.write_request(asked).SerializeToString())
    assert words.read_request(sent, asked.caller) == asked
    assert words.read_request(sent, "somebody else").caller == "somebody else"


@given(REMEDIATIONS)
def test_a_remediation_survives_the_wire(done: acts.Remediation) -> None:
    sent = pb.Remediation.FromString(words.write_remediation(done).SerializeToString())
    assert words.read_remediation(sent) == done


@given(STATUSES)
def test_the_state_of_all_actions_survives_the_wire(status: acts.RemediationStatus) -> None:
    sent = pb.ListActionsResponse.FromString(words.write_status(status).SerializeToString())
    assert words.read_status(sent) == status


@given(EVIDENCE)
def test_what_evidence_is_survives_the_wire(stored: acts.Evidence) -> None:
    sent = diagnostics_pb.Evidence.FromString(words.write_evidence(stored).SerializeToString())
    assert words.read_evidence(sent) == stored


def test_every_outcome_has_a_number_of_its_own_and_none_is_unspecified() -> None:
    assert set(words.OUTCOMES) == set(Outcome)
    assert len(set(words.OUTCOMES.values())) == len(Outcome)
    assert 0 not in words.OUTCOMES.values()
    assert {f"OUTCOME_{word.name}" for word in Outcome} | {"OUTCOME_UNSPECIFIED"} == set(pb.Outcome.keys())


def test_no_delay_is_not_a_delay_of_nothing() -> None:
    for seconds in (None, 0.0):
        sent = words.write_refusal(acts.Refusal(RefusalReason.BUSY, "one is under way", seconds))
        assert sent.HasField("retry_delay") is (seconds is not None)
        assert words.read_refusal(sent).retry_seconds == seconds


def test_words_of_a_newer_agent_claim_nothing() -> None:
    sent = pb.Remediation(action="RebootNode", outcome=99, refusal=pb.Refusal(reason="FULL_MOON", message="wait"))  # type: ignore[arg-type]
    read = words.read_remediation(sent)
    assert (read.request.action, read.outcome) == (Action.NONE, Outcome.INTERRUPTED)
    assert read.refusal == acts.Refusal(RefusalReason.GATE_FAILED, "FULL_MOON: wait")
    status = words.read_status(
        pb.ListActionsResponse(
            actions=[
                pb.ActionStatus(action="RebootNode"),
                pb.ActionStatus(action="KillShim", target_kinds=[99, 1]),  # type: ignore[list-item]
            ]
        )
    )
    assert [(each.action, each.targets) for each in status.actions] == [(Action.KILL_SHIM, (TargetKind.SHIM,))]


def test_bytes_that_are_no_text_leave_escaped() -> None:
    odd = "x\udcff"
    asked = acts.Request("id", Action.KILL_SHIM, Target(TargetKind.SHIM, container_id=odd), odd, reason=odd)
    done = acts.Remediation(asked, Outcome.REFUSED, odd, 1.0, refusal=acts.Refusal(RefusalReason.PAUSED, odd))
    sent = words.write_remediation(done)
    told = [sent.message, sent.caller, sent.reason, sent.target.container_id, sent.refusal.message]
    assert told == [encodable(odd)] * 5 == ["x\\xff"] * 5


def test_what_is_under_way_has_no_end() -> None:
    asked = acts.Request("id", Action.KILL_SHIM, Target(TargetKind.SHIM), "uid:0")
    assert not words.write_remediation(acts.Remediation(asked, Outcome.RUNNING, "", 1.0)).HasField("finished_at")
    assert words.write_remediation(acts.Remediation(asked, Outcome.FAILED, "", 1.0, 2.0)).HasField("finished_at")
