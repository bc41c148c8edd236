"""What a machine gets besides its image, as a tar file on a second drive: the agent and tests/vm/guest."""

import tarfile
from pathlib import Path

from tests.vm.image import ROOT


def make_payload(path: Path) -> None:
    """Write the tar file. Always fresh, so that no machine ever runs the agent of another checkout."""
    with tarfile.open(path, "w") as tar:
        tar.add(ROOT / "agent", "opt/nodediag/agent", filter=_no_cache)
        tar.add(ROOT / "tests" / "vm" / "guest", "opt/guest", filter=_no_cache)


def _no_cache(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if entry.name.endswith("__pycache__") else entry
