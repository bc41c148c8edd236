"""What the machines are made of: the image and kernels that tools/vm keeps outside of the clone."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

from tests.vm.machine import Kernel

ROOT = Path(__file__).parents[2]
NOT_IN_THE_MIRROR = 3


class KernelMissingError(Exception):
    """This kernel cannot be fetched from this machine's mirror."""


@cache
def image() -> Path:
    """Return the folder of the image; made now, in a minute or two, if it was not yet."""
    subprocess.run([ROOT / "tools" / "debian-packages", "qemu-system-x86", "util-linux"], check=True, stdout=sys.stderr)
    return _folder("image", str(Path(sys.executable).with_name("pip")))


def kernel() -> Kernel:
    """Return the kernel of the image's own Debian."""
    return _kernel(image())


@cache
def old_kernel() -> Kernel:
    """Return Debian bullseye's kernel 5.10. Raises KernelMissingError."""
    try:
        return _kernel(_folder("old-kernel"))
    except subprocess.CalledProcessError as error:
        if error.returncode == NOT_IN_THE_MIRROR:
            raise KernelMissingError("this machine's mirror has no Debian bullseye any more") from error
        raise


def _folder(tool: str, *arguments: str) -> Path:
    command = [str(ROOT / "tools" / "vm" / tool), *arguments]
    return Path(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ).stdout.strip())


def _kernel(folder: Path) -> Kernel:
    return Kernel(folder / "vmlinuz", folder / "initrd")
