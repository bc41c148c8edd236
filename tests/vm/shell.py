"""Runs commands in a fresh machine: `python -m tests.vm.shell [--old-kernel] [--pods N] COMMAND...`.

The kubelet, a DNS server, N pods (web-0 ...) and this checkout's agent run in it; `mkpod.py` is in /opt/guest.
"""

import argparse
import sys

from tests.vm.image import kernel, old_kernel
from tests.vm.node import READY_SECONDS, booted


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.vm.shell", description=__doc__)
    parser.add_argument("--old-kernel", action="store_true", help="boot kernel 5.10 instead of the image's 6.1")
    parser.add_argument("--pods", type=int, default=2, help="how many pods run")
    parser.add_argument("commands", nargs="+", metavar="COMMAND", help="for the guest's bash, one after the other")
    arguments = parser.parse_args()
    code = 0
    with booted(old_kernel() if arguments.old_kernel else kernel()) as node:
        for number in range(arguments.pods):
            node.pod(f"web-{number}")
        node.wait_until_well()
        for command in arguments.commands:
            done = node.run(command, READY_SECONDS)
            print(f"$ {command}\n{done.output}[exit code {done.code}, {done.seconds:.1f} s]", flush=True)
            code = code or done.code
    return code


if __name__ == "__main__":
    sys.exit(main())
