"""Runs a script where it may mount things: in a mount namespace of its own, which ends with it. Needs root."""

import subprocess
import sys
from pathlib import Path


def run_with_tmpfs(folder: Path, script: str, size: str = "512k") -> str:
    """Run a Python script with an empty tmpfs on `folder`; `folder` is defined in it. Returns what it prints."""
    folder.mkdir(exist_ok=True)
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c"]
    mount = f'mount -t tmpfs -o size={size},mode=0700 nodediag-test "$1" && exec "$2" -c "$3" "$1"'
    begin = "import sys, subprocess; from pathlib import Path; folder = Path(sys.argv[1])\n"
    done = subprocess.run(
        [*command, mount, "sh", folder, sys.executable, begin + script],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


FILL = """
def fill(path, leave=0):
    with open(path, "wb", buffering=0) as stream:
        try:
            while True:
                stream.write(bytes(4096))
        except OSError:
            pass
        stream.truncate(max(0, stream.tell() - leave))
"""
"""Fills a file system to the last page, less what is to be left."""
