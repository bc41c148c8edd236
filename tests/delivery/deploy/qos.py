"""The QoS class of a pod by Kubernetes' own rule.

From ComputePodQOS of pkg/apis/core/v1/helper/qos, with what the API server fills in before (pkg/apis/core/v1/defaults:
a request that is left out is its limit): of cpu and memory alone, over containers and init containers alike.
"""

from collections import Counter
from decimal import Decimal
from typing import Any

COMPUTE = ("cpu", "memory")
SUFFIXES = {
    "": Decimal(1),
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    **{letter: Decimal(1000) ** power for power, letter in enumerate("kMGTPE", 1)},
    **{f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTPE", 1)},
}


def qos_class(spec: dict[str, Any]) -> str:
    """Return Guaranteed, Burstable or BestEffort."""
    requests: Counter[str] = Counter()
    limits: Counter[str] = Counter()
    limited_all = True
    for container in [*spec.get("containers", []), *spec.get("initContainers", [])]:
        asked, most = _resources(container)
        requests.update(asked)
        limits.update(most)
        limited_all = limited_all and set(most) == set(COMPUTE)
    if not requests and not limits:
        return "BestEffort"
    return "Guaranteed" if limited_all and requests == limits else "Burstable"


def quantity(text: str | float) -> Decimal:
    """Return what a Kubernetes quantity, such as 100m or 64Mi, says."""
    written = str(text)
    digits = written.rstrip("".join(SUFFIXES))
    return Decimal(digits) * SUFFIXES[written[len(digits) :]]


def _resources(container: dict[str, Any]) -> tuple[dict[str, Decimal], dict[str, Decimal]]:
    stated = container.get("resources", {})
    limits = _positive(stated.get("limits", {}))
    return {**limits, **_positive(stated.get("requests", {}))}, limits


def _positive(stated: dict[str, str]) -> dict[str, Decimal]:
    found = {name: quantity(stated[name]) for name in COMPUTE if name in stated}
    return {name: value for name, value in found.items() if value > 0}
