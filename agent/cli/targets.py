"""From what a person has at hand to the exact identity of one target, among what was found. Pure.

Nothing is guessed: what names no target, or several, or one whose findings do not permit the action, is answered with
what there is instead.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from agent.acts import ActionStatus
from agent.exporters.advice_steps import dns_server
from agent.exporters.layout import labelled, wrapped
from agent.exporters.wording import short_id, snake
from agent.model import Action, ActiveFinding, NodeReport, PodRef, Target, TargetKind
from agent.printable import printable

MIN_PREFIX = 4
MAX_LISTED = 20
NAME_WIDTH = 26
MAX_MESSAGE = 400
_WORDS: Mapping[str, TargetKind] = {
    "kubelet": TargetKind.KUBELET,
    "containerd": TargetKind.CONTAINERD,
    "conntrack": TargetKind.CONNTRACK,
}


@dataclass(frozen=True, slots=True)
class Accused:
    """A target and all that was found about it, at least one finding."""

    target: Target
    findings: tuple[ActiveFinding, ...]

    def permits(self, action: ActionStatus) -> bool:
        """Whether a finding about it permits the action."""
        return any(permits(each, action) for each in self.findings)

    def is_called(self, word: str) -> bool:
        """Whether the word is a name of it, or of one of its containers or its pod."""
        return any(_is_called(word, each) for each in self.findings)


class NoSingleTargetError(Exception):
    """The word does not lead to one target of the action; the text, of several lines, says what there is."""


def permits(active: ActiveFinding, action: ActionStatus) -> bool:
    """Whether this finding permits the action."""
    finding = active.finding
    return finding.target.kind in action.targets and finding.reason in action.mends.get(finding.condition, ())


def look_up(word: str, report: NodeReport, action: ActionStatus) -> Accused:
    """Return the one target of this name that the action may be done to. Raises NoSingleTargetError."""
    accused = _accused(report)
    called = [each for each in accused if each.is_called(word)]
    permitted = [each for each in called if each.permits(action)]
    if len(permitted) == 1:
        return permitted[0]
    if permitted:
        raise NoSingleTargetError("\n".join(_several(word, permitted, action)))
    if called:
        raise NoSingleTargetError("\n".join(_not_permitted(word, called, action)))
    raise NoSingleTargetError("\n".join(_none(word, [each for each in accused if each.permits(action)], action)))


def could_be(word: str, target: Target) -> bool:
    """Whether the word may have led to this target; of a pod or another container of a shim that cannot be told."""
    if "/" in word or _names(word, target, ()):
        return True
    something_else = word.isdecimal() or word in _WORDS or dns_server(word)[0]
    return not something_else and target.kind in {TargetKind.SHIM, TargetKind.PROCESS, TargetKind.CONTAINER}


def _accused(report: NodeReport) -> list[Accused]:
    found: dict[Target, list[ActiveFinding]] = {}
    for condition in report.conditions:
        for active in condition.findings:
            found.setdefault(active.finding.target, []).append(active)
    return [Accused(target, tuple(findings)) for target, findings in found.items()]


def _is_called(word: str, active: ActiveFinding) -> bool:
    finding = active.finding
    if "/" in word:
        return finding.pod is not None and finding.pod.named and word == _pod_name(finding.pod)
    values = finding.values.items()
    lists = [value for key, value in values if snake(key) == "container_ids" and isinstance(value, tuple)]
    return _names(word, finding.target, [each for ids in lists for each in ids])


def _names(word: str, target: Target, container_ids: Iterable[str]) -> bool:
    if word in _WORDS:
        return target.kind is _WORDS[word]
    if target.pid is not None and word == str(target.pid):
        return True
    if target.kind is TargetKind.DNS_SERVER and _same_server(word, target.address):
        return True
    ids = [each for each in (target.container_id, *container_ids) if each]
    return any(word == each or (len(word) >= MIN_PREFIX and each.startswith(word)) for each in ids)


def _same_server(word: str, address: str) -> bool:
    """Whether a word is a server's address; its port may be left out."""
    (asked, port), (there, its_port) = dns_server(word), dns_server(address)
    return word == address or (bool(asked) and asked == there and port in {"", its_port})


def _pod_name(pod: PodRef) -> str:
    return f"{pod.namespace}/{pod.name}"


def _several(word: str, accused: list[Accused], action: ActionStatus) -> Iterator[str]:
    yield f"{_safe(word)} names {len(accused)} targets of {action.action}. Name one of them with --target:"
    yield from _listed(accused)


def _not_permitted(word: str, accused: list[Accused], action: ActionStatus) -> Iterator[str]:
    yield f"what was found about {_safe(word)} does not permit {action.action}:"
    for each in accused[:MAX_LISTED]:
        for active in each.findings:
            finding = active.finding
            yield from wrapped(f"{_safe(finding.condition)}: {_safe(finding.reason)}: {_safe(finding.message)}", "  ")
            yield from wrapped(_recommended(finding.recommended_action), "    ")


def _recommended(action: Action) -> str:
    if action is Action.NONE:
        return "No action is recommended; `nodediag report` says where to look."
    return f"Recommended: {action}."


def _none(word: str, permitted: list[Accused], action: ActionStatus) -> Iterator[str]:
    short = f" (a container id needs at least {MIN_PREFIX} characters)" if len(word) < MIN_PREFIX else ""
    yield f"nothing was found about {_safe(word)}{short}."
    if not permitted:
        yield f"Nothing that was found permits {action.action}; `nodediag report` tells what was found."
        return
    yield f"{action.action} may be done to:"
    yield from _listed(permitted)


def _listed(accused: list[Accused]) -> Iterator[str]:
    for each in accused[:MAX_LISTED]:
        message = "; ".join(_safe(active.finding.message) for active in each.findings)
        name = next((name for name in _own_names(each) if _only(name, accused)), "(no name of its own)")
        yield from labelled(_safe(name), message, "  ", NAME_WIDTH)
    if len(accused) > MAX_LISTED:
        yield f"  and {len(accused) - MAX_LISTED} more; `nodediag report` tells all"


def _only(name: str, accused: list[Accused]) -> bool:
    return sum(each.is_called(name) for each in accused) == 1


def _own_names(accused: Accused) -> Iterator[str]:
    """Yield what can be typed for a target, the shortest first."""
    target = accused.target
    yield from (word for word, kind in _WORDS.items() if kind is target.kind)
    if target.pid is not None:
        yield str(target.pid)
    if target.kind is TargetKind.DNS_SERVER:
        yield target.address
    if target.container_id:
        yield from (short_id(target.container_id), target.container_id)
    pods = (each.finding.pod for each in accused.findings)
    yield from (_pod_name(pod) for pod in pods if pod is not None and pod.named)


def _safe(text: str) -> str:
    return printable(text, MAX_MESSAGE)
