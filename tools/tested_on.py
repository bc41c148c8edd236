"""Writes docs/tested-on.md, what was made and detected where, from the records below build/detections.

`python -m tools.tested_on`. The page has one row a fault and one column for each place and version of containerd.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from statistics import median

from agent.app import DETECTOR_CLASSES
from tests.detections import FAULTS, REMEDIATIONS, ROOT, Record, commit, read

NOTICE = "<!-- Made from the records of the test runs by `make tested-on`; do not edit. -->"
PAGE = ROOT / "docs" / "tested-on.md"
NOT_RUN = "not run"

PLACES = {
    "lab": "a private containerd on the machine itself, faults made by `tests/lab`, `nodediag run` as a process",
    "image": "the same, on a node with Kubernetes' own paths; the built image runs over CRI as the manifests say",
    "cluster": "a one-node cluster of `make node`: API server, registered kubelet, the DaemonSet applied by kubectl",
    "VM": "a virtual machine with systemd, cgroup v2 and AppArmor, emulated without KVM",
}
COMMANDS = {
    "lab": "make lane-watching lane-remediation; pytest tests/machine",
    "image": "make lane-image",
    "cluster": "make lane-cluster",
    "VM": "make vm-test",
}
PLANNED = (
    *(("lab", version) for version in ("1.6", "1.7", "2.1")),
    *(("image", version) for version in ("1.6", "2.1")),
    *(("cluster", version) for version in ("1.6", "1.7", "2.1")),
    ("VM", "1.6"),
)
"""The columns, run or not; where more was run, there are more."""
FACTS = ("containerd", "runc", "kubernetes", "kernel", "cgroup", "systemd")

_OLD_KERNEL = "kernels from about 5.10 on resolve the race, so it needs an older one"
_NO_PLEG = "no kubelet with PLEG runs there"
_NO_SURVIVORS = "before containerd 2.0 the containers' processes end with their shim (containerd#10727)"
IMPOSSIBLE = {
    **dict.fromkeys([("InsertFailed", place) for place in PLACES], _OLD_KERNEL),
    **dict.fromkeys(
        [(reason, at) for reason in ("RelistSlow", "EventsDiscarded") for at in ("lab", "image", "VM")], _NO_PLEG
    ),
    ("EventsDiscarded", "cluster"): "the kubelet discards events only once a channel of 1,000 of them is full",
}
"""By reason and place: why the fault cannot be made there."""
SURVIVORS = "shim killed, containers live on"
"""The fault that only containerd 2.0 and later have."""

Column = tuple[str, str]
Row = tuple[str, str, str]


def main() -> None:
    """Write the page."""
    PAGE.write_text("\n".join([*page(read()), ""]))


def page(records: list[Record], now: datetime | None = None) -> Iterator[str]:
    """Yield the page's lines."""
    columns = _columns(records)
    yield from (NOTICE, "# Tested on", "")
    yield "What was made on real parts, where, and how many seconds after it was made nodediag reported it."
    moment = f"{now or datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    yield f"Produced {moment} at commit {commit()} by `make tested-on` from {len(records)} records of the runs below."
    yield from ("", "## Places", "", "| place | what it is | command |", "|---|---|---|")
    yield from (f"| {place} | {what} | `{COMMANDS[place]}` |" for place, what in PLACES.items())
    yield from ("", "The variable `CONTAINERD` chooses the version of containerd: `CONTAINERD=2.1 make lane-watching`.")
    yield from ("", "## Machines", "", *_machines(records, columns))
    yield from ("", "## Seconds to detection", "", *_detections(records, columns))
    yield from ("", "## Remediation", "", *_remediations(records, columns))


def _columns(records: Iterable[Record]) -> list[Column]:
    further = sorted({(each.where, each.containerd) for each in records} - set(PLANNED))
    order = list(PLACES)
    return sorted((*PLANNED, *further), key=lambda each: (order.index(each[0]), each[1]))


def _machines(records: list[Record], columns: list[Column]) -> Iterator[str]:
    yield f"| place, containerd | {' | '.join(FACTS)} | commits | last run |"
    yield "|---" * (len(FACTS) + 3) + "|"
    for column in columns:
        found = [each for each in records if (each.where, each.containerd) == column]
        facts = [_all(each.facts.get(name, "") for each in found) for name in FACTS]
        last = max((each.at for each in found), default=NOT_RUN)
        yield f"| {_title(column)} | {' | '.join((*facts, _all(each.commit for each in found), last))} |"


def _all(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(filter(None, values))) or "-"


def _title(column: Column) -> str:
    return f"{column[0]} {column[1]}"


def _detections(records: list[Record], columns: list[Column]) -> Iterator[str]:
    made = [each for each in records if each.seconds is not None]
    found: dict[tuple[Row, Column], list[float]] = {}
    others = _other_reasons(made)
    for each in made:
        row = (each.condition, each.reason, each.fault)
        found.setdefault((row, (each.where, each.containerd)), []).append(each.seconds or 0.0)
    notes: dict[str, int] = {}
    yield "The median, and in brackets the number of runs. Conditions and reasons are those of"
    yield "[conditions](conditions.md); `see` names the reason under which a run reported the fault instead."
    yield from ("", f"| condition: reason | fault | {' | '.join(map(_title, columns))} |")
    yield "|---" * (len(columns) + 2) + "|"
    for row in _rows(made):
        none = others.get(row, NOT_RUN)
        cells = (_cell(found.get((row, column), []), _impossible(row, column), notes, none) for column in columns)
        yield f"| {row[0]}: `{row[1]}` | {row[2]} | {' | '.join(cells)} |"
    yield ""
    yield from (f"{number}. Cannot be made there: {why}." for why, number in notes.items())


def _other_reasons(made: Iterable[Record]) -> dict[Row, str]:
    """Return what stands in the empty cells of a fault that a run saw under another reason than the usual one.

    Which reason reports it first may depend on the machine, so the usual one may never be recorded.
    """
    seen: dict[Row, list[str]] = {}
    for each in made:
        usual = FAULTS.get(each.fault, (each.condition, each.reason))
        if usual != (each.condition, each.reason):
            seen.setdefault((*usual, each.fault), []).append(f"`{each.reason}`")
    return {row: f"see {' and '.join(sorted(set(reasons)))}" for row, reasons in seen.items()}


def _impossible(row: Row, column: Column) -> str:
    """Return why a fault cannot be made in this place and with this containerd; empty if it can."""
    if row[2] == SURVIVORS and column[1].startswith("1."):
        return _NO_SURVIVORS
    return IMPOSSIBLE.get((row[1], column[0]), "")


def _cell(seconds: list[float], why: str, notes: dict[str, int], none: str) -> str:
    if seconds:
        return f"{median(seconds):.1f} ({len(seconds)})"
    return f"no, note {notes.setdefault(why, len(notes) + 1)}" if why else none


def _rows(made: Iterable[Record]) -> list[Row]:
    """Return every fault that is known or was recorded, in the order of the registry of conditions."""
    known = {(*found, fault) for fault, found in FAULTS.items()}
    seen = {(each.condition, each.reason, each.fault) for each in made}
    order = {each: number for number, each in enumerate(registered())}
    return sorted(known | seen, key=lambda row: (order.get(row[:2], len(order)), row))


def registered() -> list[tuple[str, str]]:
    """Return every condition and reason that a detector may report."""
    each = (entry for detector in DETECTOR_CLASSES for entry in detector.conditions.items())
    return [(kind, reason) for kind, reasons in each for reason in reasons]


def _remediations(records: list[Record], columns: list[Column]) -> Iterator[str]:
    done: dict[tuple[str, str], dict[Column, Counter[str]]] = {each: {} for each in REMEDIATIONS}
    for each in records:
        if each.action:
            row = done.setdefault((each.action, each.fault), {})
            row.setdefault((each.where, each.containerd), Counter())[each.outcome] += 1
    yield "How each action ended against the fault that it fixes, and in brackets the number of runs."
    yield from ("", f"| action | fault | {' | '.join(map(_title, columns))} |", "|---" * (len(columns) + 2) + "|")
    for (action, fault), cells in sorted(done.items()):
        yield f"| {action} | {fault} | {' | '.join(_ended(cells.get(column)) for column in columns)} |"


def _ended(outcomes: Counter[str] | None) -> str:
    return ", ".join(f"{outcome} ({count})" for outcome, count in sorted((outcomes or {}).items())) or NOT_RUN


if __name__ == "__main__":
    main()
