"""How long a fault on the cluster took to be reported, printed and recorded for docs/tested-on.md."""

import time

from agent.model import Finding
from tests.cluster.deployed import FOUND_SECONDS, Agent
from tests.detections import FAULTS, record


class Fault:
    """One of `tests.detections.FAULTS`, made just now; `pod` is whose it is, as `namespace/name`."""

    def __init__(self, name: str, pod: str = "", *, reasons: tuple[str, ...] = ()) -> None:
        self.name = name
        self.pod = pod
        self.condition, usual = FAULTS[name]
        self.reasons = reasons or (usual,)
        self._began = time.monotonic()

    def fits(self, finding: Finding) -> bool:
        """Return whether a finding is about this fault."""
        whose = f"{finding.pod.namespace}/{finding.pod.name}" if finding.pod else ""
        return finding.condition == self.condition and finding.reason in self.reasons and whose == self.pod

    def detected(self, agent: Agent, timeout: float = FOUND_SECONDS) -> Finding:
        """Wait until the agent reports it; print and record the seconds."""
        finding = agent.found(self.fits, f"{self.name} is reported", timeout)
        seconds = time.monotonic() - self._began
        print(f"{self.name}: {self.condition} {finding.reason} after {seconds:.1f} s")
        record(self.name, "cluster", seconds, condition=self.condition, reason=finding.reason)
        return finding
