"""Whether this process sees the node, or only the inside of its own container."""

import os
from collections.abc import Callable

from agent.model import DeploymentCause, DeploymentFault

INITIAL_PID_NAMESPACE = "pid:[4026531836]"
"""PROC_PID_INIT_INO of include/linux/proc_ns.h: the initial pid namespace has this number on every kernel."""

NODE_PROCESSES = frozenset({"containerd", "kubelet"})


class Namespaces:
    """Compares our own namespaces with those of the node's first process."""

    def __init__(self, proc: str) -> None:
        self._proc = proc

    def pid_problem(self, comms: Callable[[], frozenset[str]]) -> DeploymentFault | None:
        """Return why the processes seen are not the node's, or None if they are.

        `comms` returns the names of the processes to be seen. A node may itself be a container (kind), so
        a namespace that is not the initial one still is the node's if containerd or the kubelet run in it.
        """
        try:
            own = os.readlink(f"{self._proc}/self/ns/pid")
        except OSError as error:
            return self._no_procfs(f"cannot tell which pid namespace this is: {self._proc}/self/ns/pid", error)
        if own == INITIAL_PID_NAMESPACE or comms() & NODE_PROCESSES:
            return None
        return DeploymentFault(
            DeploymentCause.NAMESPACE,
            "hostPID",
            "this process sees only its own container's processes, not the node's",
            "set hostPID: true in the pod's spec (or run it outside the container)",
        )

    def signal_problem(self) -> str | None:
        """Return why a pid read here is not the one a system call would take, or None if it is.

        A procfs of the node mounted into a pod shows the node's pids, and pidfd_open(2) takes those of our own pid
        namespace. In one and the same we are the same number in both.
        """
        try:
            seen = os.readlink(f"{self._proc}/self")
        except OSError as error:
            return f"cannot tell whether pids are the same here as in {self._proc}: {error.strerror}"
        if seen == str(os.getpid()):
            return None
        return (
            f"{self._proc} shows the pids of another namespace than this process lives in, and it cannot reach them; "
            "set hostPID: true in the pod's spec"
        )

    def network_problem(self) -> DeploymentFault | None:
        """Return why our network namespace is not that of the node's first process, or None if it is.

        The inode numbers of /proc/N/net/dev are compared: the kernel makes that file once per network namespace, and
        it takes no ptrace rights to read. The links ns/net, which take them, are read only where there is no such file.
        """
        try:
            same = os.stat(f"{self._proc}/1/net/dev").st_ino == os.stat(f"{self._proc}/self/net/dev").st_ino
        except OSError:
            try:
                same = os.readlink(f"{self._proc}/1/ns/net") == os.readlink(f"{self._proc}/self/ns/net")
            except OSError as error:
                return self._no_procfs(f"cannot tell which network namespace this is: {error.filename}", error)
        if same:
            return None
        return DeploymentFault(
            DeploymentCause.NAMESPACE,
            "hostNetwork",
            "this process is in a network namespace of its own, not the node's, and sees neither its loopback nor its "
            "conntrack",
            "set hostNetwork: true in the pod's spec",
        )

    def _no_procfs(self, what: str, error: OSError) -> DeploymentFault:
        return DeploymentFault(
            DeploymentCause.MOUNT,
            self._proc,
            f"{what}: {error.strerror}",
            f"mount the node's procfs at {self._proc}, or set host.proc",
        )
