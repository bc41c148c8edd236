"""The faults of the agent's own deployment, from all detectors, each told once."""

from collections.abc import Iterable
from dataclasses import replace

from agent.model import DeploymentFault


def merged(faults: Iterable[DeploymentFault]) -> tuple[DeploymentFault, ...]:
    """Join the faults with the same cause and subject: the first message, and every condition any of them concerns."""
    joined: dict[tuple[str, str], DeploymentFault] = {}
    for fault in faults:
        key = (fault.cause.value, fault.subject)
        before = joined.get(key, fault)
        hides = tuple(dict.fromkeys((*before.hides, *fault.hides)))
        impairs = tuple(dict.fromkeys(each for each in (*before.impairs, *fault.impairs) if each not in hides))
        joined[key] = replace(before, hides=hides, impairs=impairs)
    return tuple(joined.values())
