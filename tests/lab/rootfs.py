"""The file system all containers of the lab share: busybox, and room for mounts.

It is one read-only directory and no image: thirty containers start as fast as
one, since nothing is unpacked or mounted for each.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

_EMPTY_DIRECTORIES = ("control", "dev", "etc", "proc", "run", "sys", "tmp")


def make_rootfs(directory: Path) -> None:
    """Build the file system from the static busybox of the machine."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise FileNotFoundError("busybox is missing: install the package busybox-static")
    for name in _EMPTY_DIRECTORIES:
        (directory / name).mkdir(parents=True)
    binaries = directory / "bin"
    binaries.mkdir()
    shutil.copy2(busybox, binaries / "busybox")
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout
    for applet in applets.split():
        if applet != "busybox":
            (binaries / applet).symlink_to("busybox")


def compile_static(source: Path, target: Path) -> None:
    """Compile one C file so that it runs in the containers, where there is no libc."""
    compiler = shutil.which("gcc")
    if compiler is None:
        raise FileNotFoundError("gcc is missing: install the packages gcc and libc6-dev")
    command = [compiler, "-O2", "-Wall", "-Wextra", "-static", "-o", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"gcc could not compile {source.name}: {done.stderr}")
