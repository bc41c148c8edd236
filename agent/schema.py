"""How a setting is declared: default, meaning, unit and bounds in one place.

The declaration is the only source: loading checks against it, `nodediag config` prints it
and the settings reference is made from it. Standard library only.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast


@dataclass(frozen=True, slots=True)
class Rule:
    """What a setting means and what it may be. `check` returns what is wrong with a value, or None.

    `presence`: to set it at all, be it to its default, says that what it names is there on this node.
    `node_ip`: in its text, `$NODE_IP` stands for the node's own address, from the environment.
    """

    meaning: str
    minimum: float | None = None
    maximum: float | None = None
    check: Callable[[Any], str | None] | None = None
    presence: bool = False
    node_ip: bool = False


def setting(default: Any, meaning: str, **limits: Any) -> Any:  # noqa: ANN401 - stands where a default stands
    """Declare one setting of a dataclass; `limits` are the further fields of Rule."""
    return field(default=default, metadata={"rule": Rule(meaning, **limits)})


def table(make: Callable[[], Any], meaning: str) -> Any:  # noqa: ANN401 - stands where a default stands
    """Declare a nested table of settings; `make` is its class, or returns it with other defaults."""
    return field(default_factory=make, metadata={"rule": Rule(meaning)})


def rule_of(metadata: Any) -> Rule:  # noqa: ANN401 - dataclasses' mapping proxy
    """Return the Rule behind a dataclass field made by `setting` or `table`."""
    return cast("Rule", metadata["rule"])


@dataclass(frozen=True, slots=True)
class DetectorSettings:
    """What every detector can be told."""

    enabled: bool = setting(default=True, meaning="whether this detector runs")
    period_seconds: float = setting(10.0, "time between two looks; each is jittered by 10 %", minimum=1, maximum=3600)
    timeout_seconds: float = setting(
        20.0, "a look still running after this long is shown as overdue", minimum=0.1, maximum=3600
    )
    failure_threshold: int = setting(
        2, "sightings in a row before a finding is confirmed; the second look follows at once", minimum=1, maximum=100
    )
    success_threshold: int = setting(1, "clean looks in a row before a finding is dropped", minimum=1, maximum=100)
