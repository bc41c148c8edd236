"""Images for a lab that no registry serves: one of a single layer, made here, and archives others have made."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from contextlib import suppress
from pathlib import Path

from .containerd import PAUSE_IMAGE, Containerd


def import_image(containerd: Containerd, archive: Path, *names: str) -> None:
    """Import an OCI or Docker archive of one image, and give it further names."""
    before = set(containerd.ctr("images", "ls", "-q").stdout.split())
    containerd.ctr("images", "import", str(archive), timeout=120.0)  # versions print different things
    after = set(containerd.ctr("images", "ls", "-q").stdout.split())
    (found,) = (each for each in after - before if not each.startswith("sha256:") and "@" not in each)
    for name in {_full(each) for each in names} - {found}:
        containerd.ctr("images", "tag", found, name)


def import_pause_image(containerd: Containerd) -> None:
    """Import the image of the pods' sandboxes: busybox asleep."""
    archive = containerd.base / "pause.tar"
    archive.write_bytes(_docker_archive(containerd.rootfs, PAUSE_IMAGE, ["/bin/sleep", "1000000000"]))
    containerd.ctr("images", "import", str(archive), timeout=120.0)


def forget_pages(folder: Path) -> None:
    """Let the kernel drop what it keeps of these files, so that the next to read them is charged for their pages.

    On a node that was booted since an image was unpacked, that is the container itself.
    """
    os.sync()  # pages that are not written yet stay
    for directory, _, names in os.walk(folder):
        for path in (Path(directory, name) for name in names):
            with suppress(FileNotFoundError):
                if path.is_file() and not path.is_symlink():
                    with path.open("rb") as file:
                        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _full(name: str) -> str:
    """Return the name the runtime knows an image by that was named without its registry."""
    first, _, rest = name.partition("/")
    if not rest:
        return f"docker.io/library/{name}"
    return name if "." in first or ":" in first or first == "localhost" else f"docker.io/{name}"


def _docker_archive(rootfs: Path, name: str, command: list[str]) -> bytes:
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(rootfs, arcname=".")
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    config = {
        "architecture": "amd64", "os": "linux", "config": {"Cmd": command},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }  # fmt: skip
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    files = {
        "manifest.json": json.dumps(manifest).encode(),
        "config.json": json.dumps(config).encode(),
        "layer.tar": layer.getvalue(),
    }
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return archive.getvalue()
