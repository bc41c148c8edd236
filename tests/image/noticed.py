"""When an agent reported each fault, by its own stream of changes: no query that would cost it processor time."""

import threading
import time
from types import TracebackType
from typing import Self

from agent.client import ClientError
from agent.model import Changed, Condition
from tests.detections import record
from tests.image.deployed import Deployed
from tests.image.faults import Fault


class Noticed:
    """Follows an agent, as a context manager, and records the seconds from each fault to its report."""

    def __init__(self, agent: Deployed) -> None:
        self._client = agent.client()
        self._conditions: list[tuple[float, Condition]] = []
        self._thread = threading.Thread(target=self._follow, name="lab-noticed", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
        self._thread.join()

    def record(self, fault: Fault, made: float) -> None:
        """Record a fault that was made at this moment (epoch seconds) and has been found."""
        for at, condition in tuple(self._conditions):
            if at >= made and any(fault.fits(active.finding) for active in condition.findings):
                record(fault.name, "image", at - made, condition=fault.condition, reason=fault.reason)
                return

    def _follow(self) -> None:
        try:
            for event in self._client.watch():
                if isinstance(event, Changed):
                    self._conditions.append((time.time(), event.condition))
        except ClientError as error:
            print(f"the agent's changes are no longer followed: {error}")
