"""kubectl, as an administrator uses it."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab.waiting import wait_until


@dataclass(frozen=True)
class Kubectl:
    """kubectl with the administrator's kubeconfig."""

    program: Path
    kubeconfig: Path

    def run(
        self, *words: str, given: str | None = None, check: bool = True, timeout: float = 120.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; `given` is its standard input."""
        done = subprocess.run(
            [str(self.program), *words], input=given, capture_output=True, text=True, timeout=timeout, check=False,
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig)},
        )  # fmt: skip
        if check and done.returncode != 0:
            raise RuntimeError(f"kubectl {' '.join(words)}: exit {done.returncode}: {done.stderr.strip()}")
        return done

    def get(self, *words: str) -> Any:
        """Return what `kubectl get WORDS` returns as an object."""
        return json.loads(self.run("get", *words, "--output=json").stdout)

    def items(self, *words: str) -> list[dict[str, Any]]:
        """Return the items of what `kubectl get WORDS` lists."""
        found: list[dict[str, Any]] = self.get(*words)["items"]
        return found

    def apply(self, *objects: dict[str, Any]) -> str:
        """Apply objects, unvalidated: 1.20 does not know every field of the manifests."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        return self.run("apply", "--validate=false", "--filename=-", given=json.dumps(listed)).stdout

    def delete(self, *objects: dict[str, Any], wait: bool = True, timeout: float = 120.0) -> None:
        """Delete objects, and wait until they are gone."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        words = ("delete", "--ignore-not-found", "--filename=-", f"--wait={str(wait).lower()}")
        self.run(*words, given=json.dumps(listed), timeout=timeout)

    def await_phase(self, pod: str, namespace: str, phase: str = "Running", timeout: float = 60.0) -> dict[str, Any]:
        """Wait until a pod is in a phase, and return it."""

        def reached() -> dict[str, Any] | None:
            for found in self.items("pods", f"--namespace={namespace}", f"--field-selector=metadata.name={pod}"):
                if found["status"].get("phase") == phase:
                    return found
            return None

        return wait_until(reached, timeout, f"pod {namespace}/{pod} is {phase}")
