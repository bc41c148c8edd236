"""A machine leaves nothing behind, however its tests end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.lab.waiting import wait_until
from tests.vm.image import ROOT
from tests.vm.node import Node

STARTS_A_MACHINE = """
import sys, time
from pathlib import Path
from tests.vm.image import image, kernel
from tests.vm.machine import Machine
from tests.vm.payload import make_payload
folder = Path(sys.argv[1])
make_payload(folder / "payload.tar")
print(Machine(image() / "root.ext4", kernel(), folder / "payload.tar", folder).pid, flush=True)
time.sleep(600)
"""


def test_a_machine_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STARTS_A_MACHINE, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        machine = int(owner.stdout.readline())
        os.kill(machine, 0)
        owner.send_signal(signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{machine}").exists(), 60, "the machine has ended")
    assert {each.name for each in tmp_path.iterdir()} <= {"payload.tar", "console", "qemu"}


def test_each_test_begins_at_the_snapshot(node: Node) -> None:
    node.output("touch /root/changed && systemctl stop kubelet")
    node.machine.restore("healthy")
    assert node.run("test -e /root/changed").code == 1
    assert node.main_pid("kubelet") > 0


def test_a_command_that_does_not_end_is_ended(node: Node) -> None:
    done = node.run("echo begun; sleep 1000", timeout=1)
    assert (done.code, done.output) == (124, "begun\n")
    assert node.output("echo next") == "next"
