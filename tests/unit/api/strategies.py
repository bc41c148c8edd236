"""Every value of the model that can be told, for hypothesis."""

from hypothesis import strategies as st

from agent.api.convert import INT64
from agent.model import (
    Action,
    ActiveFinding,
    Changed,
    Condition,
    DeploymentCause,
    DeploymentFault,
    DetectorState,
    DetectorStatus,
    Event,
    Finding,
    Gap,
    NodeReport,
    PodRef,
    Removed,
    Snapshot,
    Status,
    Target,
    TargetKind,
    Value,
)
from agent.printable import encodable

TEXTS = st.text(st.characters(exclude_categories=()), max_size=8).map(encodable)
MOMENTS = st.floats(1e9, 4e9)
SPANS = st.integers(0, 10**9).map(lambda ticks: ticks / 64)  # exact in a float and in nanoseconds

TARGETS = st.builds(
    Target,
    kind=st.sampled_from(TargetKind),
    pid=st.none() | st.integers(0, 2**22),
    start_time=st.none() | st.integers(0, 2**64 - 1),
    boot_id=TEXTS,
    container_id=TEXTS,
    containerd_namespace=TEXTS,
    cgroup=TEXTS,
    address=TEXTS,
)
VALUES: st.SearchStrategy[Value] = (
    st.none()
    | st.booleans()
    | st.integers(-INT64, INT64 - 1)
    | st.floats(allow_nan=False)
    | TEXTS
    | st.lists(TEXTS, max_size=3).map(tuple)
)


def findings(condition: str) -> st.SearchStrategy[ActiveFinding]:
    found = st.builds(
        Finding,
        condition=st.just(condition),
        reason=TEXTS,
        message=TEXTS,
        recommended_action=st.sampled_from(Action),
        target=TARGETS,
        pod=st.none()
        | st.builds(
            PodRef,
            namespace=TEXTS,
            name=TEXTS,
            uid=TEXTS,
            container=TEXTS,
            owner=TEXTS,
            qos_class=TEXTS,
            node_critical=st.none() | st.booleans(),
            labels=st.dictionaries(TEXTS, TEXTS, max_size=3).map(lambda labels: tuple(sorted(labels.items()))),
        ),
        values=st.dictionaries(TEXTS, VALUES, max_size=4),
    )
    return st.builds(ActiveFinding, found, MOMENTS)


def conditions_of(kind: str) -> st.SearchStrategy[Condition]:
    return st.builds(
        Condition,
        type=st.just(kind),
        status=st.sampled_from(Status),
        reason=TEXTS,
        message=TEXTS,
        last_transition_time=MOMENTS,
        findings=st.lists(findings(kind), max_size=2).map(tuple),
    )


CONDITIONS = TEXTS.flatmap(conditions_of)
DETECTORS = st.builds(
    DetectorStatus,
    name=TEXTS,
    state=st.sampled_from(DetectorState),
    message=TEXTS,
    duration_seconds=st.none() | SPANS,
    last_run_time=st.none() | MOMENTS,
    discarded=st.integers(0, 2**40),
)
FAULTS = st.builds(
    DeploymentFault,
    cause=st.sampled_from(DeploymentCause),
    subject=TEXTS,
    message=TEXTS,
    remedy=TEXTS,
    hides=st.lists(TEXTS, max_size=2).map(tuple),
    impairs=st.lists(TEXTS, max_size=2).map(tuple),
)
REPORTS = st.builds(
    NodeReport,
    node_name=TEXTS,
    observed_at=MOMENTS,
    conditions=st.lists(CONDITIONS, max_size=2).map(tuple),
    detectors=st.lists(DETECTORS, max_size=2).map(tuple),
    deployment=st.lists(FAULTS, max_size=2).map(tuple),
)
EVENTS: st.SearchStrategy[Event] = (
    st.builds(Snapshot, st.lists(CONDITIONS, max_size=2).map(tuple))
    | st.builds(Changed, CONDITIONS)
    | st.builds(Removed, TEXTS)
    | st.builds(Gap, st.integers(1, 2**40))
)
