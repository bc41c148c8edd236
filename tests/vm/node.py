"""A machine that is a Kubernetes node: pods under systemd, a kubelet, and this checkout's agent that watches them."""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.lab.waiting import wait_until
from tests.vm.image import image
from tests.vm.machine import Done, Kernel, Machine
from tests.vm.payload import make_payload

READY_SECONDS = 240.0
FOUND_SECONDS = 120.0
"""How soon a fault is reported is measured, not required: the processor is emulated."""

Report = dict[str, Any]
Finding = dict[str, Any]


@dataclass(frozen=True)
class Pod:
    """A pod of one container, as `mkpod` printed it."""

    name: str
    namespace: str
    uid: str
    container: str
    pid: int
    shim: int
    cgroup: str


class Node:
    """What the tests do in a machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.run = machine.run
        self.output = machine.output
        self.pods: list[Pod] = []
        """Those that run in the snapshot that tests begin at."""

    def set_up(self) -> None:
        """Bring the checkout's agent into the guest, and start it beside a kubelet and a DNS server."""
        self.output("tar -x -C / -f /dev/vdb && bash /opt/guest/files/setup.sh", READY_SECONDS)

    def pod(self, name: str, *options: str) -> Pod:
        """Run a pod."""
        printed = self.output(f"python3 /opt/guest/mkpod.py {name} {' '.join(options)}")
        return Pod(**json.loads(printed.splitlines()[-1]))

    @cached_property
    def facts(self) -> dict[str, str]:
        """What docs/tested-on.md says about the machine."""
        return {
            "kernel": self.output("uname -r"),
            "cgroup": "v2",
            "systemd": self.output("systemctl --version | sed -n '1s/[^0-9]*\\([0-9]*\\).*/\\1/p'"),
            "containerd": self.output("containerd --version").split()[2],
            "runc": self.output("runc --version").split()[2],
        }

    def lives(self, pid: int) -> bool:
        """Whether a process has not ended; a zombie has."""
        return self.run(f"grep -q '^State:\\s*[^ZX]' /proc/{pid}/status").code == 0

    def unit(self, name: str, *properties: str) -> dict[str, str]:
        """Return these properties of a unit, as `systemctl show` prints them."""
        printed = self.output(f"systemctl show {name} --property {','.join(properties)}")
        return dict(line.split("=", 1) for line in printed.splitlines())

    def main_pid(self, unit: str) -> int:
        """Return the main process of a unit; 0 if it has none."""
        return int(self.unit(unit, "MainPID")["MainPID"])

    def drop_in(self, unit: str, *lines: str) -> None:
        """Change a unit, until the next boot."""
        folder = f"/run/systemd/system/{unit}.service.d"
        text = "\\n".join(lines)
        self.output(f"mkdir -p {folder} && printf '{text}\\n' >{folder}/test.conf && systemctl daemon-reload")

    def report(self) -> Report:
        """Return the agent's report; one with an ``error`` if it does not answer."""
        printed = self.run("exec 3<>/dev/tcp/127.0.0.1/9700 && cat <&3")
        report: Report = json.loads(printed.output) if printed.code == 0 else {"error": printed.output}
        return report

    def statuses(self) -> dict[str, str]:
        """Return the status of every condition; empty while the agent does not answer."""
        return {each["type"]: each["status"] for each in self.report().get("conditions", [])}

    def wait_until_well(self) -> None:
        """Wait until every condition is False."""
        wait_until(lambda: set(self.statuses().values()) == {"False"}, READY_SECONDS, "every condition is False")

    def findings(self, condition: str) -> list[Finding]:
        """Return what is reported under a condition now."""
        conditions = self.report().get("conditions", [])
        return [finding for each in conditions if each["type"] == condition for finding in each["findings"]]

    def found(self, condition: str, fits: Callable[[Finding], bool] = lambda _: True) -> Finding:
        """Wait for a finding and return it."""
        return wait_until(
            lambda: next(filter(fits, self.findings(condition)), None), FOUND_SECONDS, f"{condition} is reported"
        )

    def nodediag(self, words: str) -> Done:
        """Run a command of nodediag."""
        return self.run(f"nodediag {words}", READY_SECONDS)

    def description(self) -> str:
        """Return what is known about the node, for the report of a failed test."""
        try:
            return self.run("nodediag report; journalctl --no-pager --lines 60 --output cat").output
        except AssertionError as error:
            return str(error)

    def remediate(self, action: str, target: object) -> Done:
        """Have the agent do something, without the question before."""
        return self.nodediag(f"remediate {action} --target {target} --yes")


def about(pod: Pod) -> Callable[[Finding], bool]:
    """Whether a finding is about this pod's container."""
    return lambda finding: bool(finding["target"].get("containerId") == pod.container)


@contextmanager
def booted(kernel: Kernel) -> Iterator[Node]:
    """Boot a machine with this kernel and bring the checkout's agent into it."""
    with tempfile.TemporaryDirectory(prefix="nodediag-vm-") as folder:
        payload = Path(folder) / "payload.tar"
        make_payload(payload)
        with Machine(image() / "root.ext4", kernel, payload, Path(folder)) as machine:
            node = Node(machine)
            node.set_up()
            yield node
