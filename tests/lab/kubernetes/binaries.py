"""Where Kubernetes' programs are, built at need."""

from __future__ import annotations

import subprocess
from pathlib import Path

_TOOL = Path(__file__).resolve().parents[3] / "tools" / "get-kubernetes"


def kubernetes_binaries() -> Path:
    """Return the folder with Kubernetes' programs; the first time on a machine they are built, which takes minutes."""
    done = subprocess.run([_TOOL], stdout=subprocess.PIPE, text=True, check=True)
    return Path(done.stdout.strip())
