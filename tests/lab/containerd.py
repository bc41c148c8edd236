"""A private containerd: own root, state, socket and runc root, and nothing left of it afterwards.

Everything which this containerd starts (shims, runc, clean-up helpers) is born
into one cgroup of the lab, and every container into a pod cgroup which the lab
made, so both can be found again without guessing and whatever has happened.
Only the shims' sockets lie outside: containerd 1.6 fixes their folder.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from . import cgroups, shim_sockets
from .pods import KUBERNETES, Container
from .processes import Process, identify, send_signal, state_of
from .rootfs import make_rootfs
from .versions import is_at_least
from .waiting import wait_until

_LONGEST_SOCKET = 107
_USELESS_PLUGINS = (
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
)
_CRI_PLUGIN = "io.containerd.grpc.v1.cri"
PAUSE_IMAGE = "localhost/nodediag-lab/pause:1"


class Containerd:
    """A containerd of the lab's own, as a context manager.

    ``cri`` switches the CRI plugin on.  Only `cri_pods` needs it, and on 2.x with it `survivors`: there it is on
    unless it is switched off.
    """

    def __init__(self, *, cri: bool | None = None, binary: str = "containerd") -> None:
        self.cri = is_at_least(2) if cri is None else cri
        self.binary = binary
        self.base = Path(tempfile.mkdtemp(prefix="ndlab-"))
        self.root = self.base / "root"
        self.state_dir = self.base / "state"
        self.address = self.base / "c.sock"
        self.runc_root = self.base / "runc"
        self.rootfs = self.base / "rootfs"
        self.log_file = self.base / "containerd.log"
        self.containers: dict[str, Container] = {}
        self._cgroup = f"/nodediag-lab-{secrets.token_hex(4)}"
        self._pod_cgroups: set[str] = set()
        self._shim_sockets: set[Path] = set()
        self._daemon: subprocess.Popen[bytes] | None = None
        self._identity: Process | None = None
        if len(f"{self.address}.ttrpc") > _LONGEST_SOCKET:
            raise ValueError(f"the temporary directory is too long for a unix socket: {self.base}")

    # -- life ---------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            make_rootfs(self.rootfs)
            self._share_shim_sockets()
            cgroups.make(self._cgroup, cgroups.tracking_hierarchy())
            self._write_config()
            self.start()
        except BaseException:
            self._clean_up()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._clean_up()

    def start(self, timeout: float = 20.0) -> None:
        """Start the daemon (again) on the same root and state and wait until it answers."""
        if self._daemon is not None:
            raise RuntimeError("containerd is running already")
        procs = cgroups.tracking_hierarchy().at(self._cgroup) / "cgroup.procs"
        into_cgroup = 'echo $$ >"$0" && exec "$@"'
        command = ["sh", "-c", into_cgroup, str(procs), self.binary, "-c", str(self._config)]
        with self.log_file.open("ab") as log:
            self._daemon = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "TMPDIR": str(self.base)},
                start_new_session=True,
            )
        self._identity = identify(self._daemon.pid)
        wait_until(self._answers, timeout, f"an answer of containerd (see {self.log_file})")

    def has_ended(self, within: float) -> bool:
        """Wait so long for the daemon to end without our doing, and reap it; False while it runs or was stopped."""
        daemon = self._daemon
        if daemon is None:
            return False
        with suppress(subprocess.TimeoutExpired):
            daemon.wait(within)
        return daemon.returncode is not None

    def start_again(self) -> None:
        """Start the daemon anew after it has ended without our doing."""
        self._daemon = None
        self.start()

    def stop(self, timeout: float = 15.0) -> None:
        """End the daemon as a service manager does; its shims and containers live on."""
        self._end(signal.SIGTERM, timeout)

    def crash(self, timeout: float = 15.0) -> None:
        """End the daemon as the OOM killer does; its shims and containers live on."""
        self._end(signal.SIGKILL, timeout)

    def pause(self) -> None:
        """Stop the daemon with SIGSTOP: its socket still takes connections and answers none."""
        send_signal(self.process, signal.SIGSTOP)
        wait_until(lambda: state_of(self.process) == "T", 5.0, "containerd stopped")

    def resume(self) -> None:
        """Undo ``pause`` and wait until the daemon answers."""
        send_signal(self.process, signal.SIGCONT)
        wait_until(self._answers, 20.0, "an answer of the resumed containerd")

    # -- what others need of it ---------------------------------------------

    @property
    def process(self) -> Process:
        """The running daemon's identity."""
        if self._identity is None:
            raise RuntimeError("containerd is not running")
        return self._identity

    @property
    def pid(self) -> int:
        """The running daemon's pid."""
        return self.process.pid

    def bundle(self, container_id: str, namespace: str = KUBERNETES) -> Path:
        """Return where the bundle of a container is, or would be."""
        return self.state_dir / "io.containerd.runtime.v2.task" / namespace / container_id

    def ctr(
        self,
        *args: str,
        timeout: float = 20.0,
        namespace: str = KUBERNETES,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run ``ctr`` against this containerd and return its output."""
        done = subprocess.run(
            self.ctr_command(*args, namespace=namespace),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"ctr {' '.join(args)}: exit {done.returncode}: {done.stderr.strip()}")
        return done

    def ctr_command(self, *args: str, namespace: str = KUBERNETES) -> list[str]:
        """Return the command line which ``ctr`` runs, for those who start it themselves."""
        return ["ctr", "--address", str(self.address), "--namespace", namespace, *args]

    def task_status(self, container_id: str, namespace: str = KUBERNETES) -> str:
        """Return what containerd says of a task: RUNNING, STOPPED, ... or ``""`` for none.

        It lists all tasks, and waits two seconds for each shim that hangs.
        """
        for line in self.ctr("tasks", "ls", namespace=namespace).stdout.splitlines()[1:]:
            fields = line.split()
            if fields[0] == container_id:
                return fields[-1]
        return ""

    def has_task(self, container_id: str, namespace: str = KUBERNETES) -> bool:
        """Tell whether containerd knows a task; asks after this one alone, so other hung shims do not delay it."""
        done = self.ctr("tasks", "ps", container_id, namespace=namespace, check=False)
        return "not found" not in done.stderr

    def adopt_cgroup(self, pod_cgroup: str) -> None:
        """Make a pod's cgroup, to be emptied and removed at the end."""
        self._pod_cgroups.add(pod_cgroup)
        cgroups.make(pod_cgroup)

    def all_cgroups(self) -> list[str]:
        """Return every cgroup which is the lab's to empty and remove."""
        return [self._cgroup, *self._pod_cgroups]

    def adopt(self, container: Container) -> None:
        """Remember a container and its shim's socket."""
        self.containers[container.id] = container
        self._shim_sockets.add(container.shim_socket)

    def forget(self, container: Container) -> None:
        """Drop a container that is gone, and its socket when no other container needs it."""
        self.containers.pop(container.id, None)
        if all(c.shim_socket != container.shim_socket for c in self.containers.values()):
            container.shim_socket.unlink(missing_ok=True)

    # -- inside ---------------------------------------------------------------

    def _share_shim_sockets(self) -> None:
        shim_sockets.hold(self.base.name)

    @property
    def _config(self) -> Path:
        return self.base / "config.toml"

    def _write_config(self) -> None:
        disabled = [*_USELESS_PLUGINS, *([] if self.cri else [_CRI_PLUGIN])]
        lines = [
            "version = 2",
            f'root = "{self.root}"',
            f'state = "{self.state_dir}"',
            f"disabled_plugins = {disabled!r}".replace("'", '"'),
            "[grpc]",
            f'  address = "{self.address}"',
            '[plugins."io.containerd.internal.v1.opt"]',
            f'  path = "{self.base / "opt"}"',
            '[plugins."io.containerd.nri.v1.nri"]',
            "  disable = true",  # it would listen at the machine's /run/nri, and leave that
        ]
        if self.cri:
            # Without CAP_SYS_RESOURCE an oom_score_adj cannot be lowered: leave it.
            lines += [
                f'[plugins."{_CRI_PLUGIN}"]',
                "  restrict_oom_score_adj = true",
                # The agent must not be confined: Kubernetes 1.20 drops the manifest's appArmorProfile.
                "  disable_apparmor = true",
                f'  sandbox_image = "{PAUSE_IMAGE}"',
                '  stream_server_address = "127.0.0.1"',
                f'[plugins."{_CRI_PLUGIN}".cni]',
                f'  bin_dir = "{self.base / "cni-bin"}"',
                f'  conf_dir = "{self.base / "cni-conf"}"',
                f'[plugins."{_CRI_PLUGIN}".containerd.runtimes.runc]',
                '  runtime_type = "io.containerd.runc.v2"',
                f'[plugins."{_CRI_PLUGIN}".containerd.runtimes.runc.options]',
                f'  Root = "{self.runc_root}"',
            ]
        self._config.write_text("\n".join(lines) + "\n")

    def _answers(self) -> bool:
        daemon = self._daemon
        if daemon is not None and daemon.poll() is not None:
            raise RuntimeError(f"containerd ended: {self.log_file.read_text()[-2000:]}")
        with suppress(subprocess.TimeoutExpired):
            return self.ctr("version", timeout=5.0, check=False).returncode == 0
        return False

    def _end(self, number: signal.Signals, timeout: float) -> None:
        daemon, self._daemon = self._daemon, None
        if daemon is None:
            return
        send_signal(self.process, signal.SIGCONT)
        send_signal(self.process, number)
        try:
            daemon.wait(timeout)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait(timeout)
        self._identity = None

    def _clean_up(self) -> None:
        # The daemon goes first: it must neither clean up nor start anything meanwhile.
        self.crash()
        cgroups.kill_members(*self.all_cgroups())
        self._unmount_all()
        for path in self.all_cgroups():
            cgroups.remove(path)
        for socket in self._shim_sockets:
            socket.unlink(missing_ok=True)
        shim_sockets.leave(self.base.name)
        shutil.rmtree(self.base, ignore_errors=True)

    def _unmount_all(self) -> None:
        below = f"{self.base}/"
        mounts = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for mount in sorted((m for m in mounts if m.startswith(below)), reverse=True):
            subprocess.run(["umount", "--lazy", mount], check=True)


class NodeContainerd(Containerd):
    """The containerd of a `whole_node`: with CRI, and where Kubernetes expects it."""

    def __init__(self) -> None:
        super().__init__(cri=True)
        self.root = Path("/var/lib/containerd")
        self.state_dir = shim_sockets.SHIM_SOCKETS.parent
        self.address = self.state_dir / "containerd.sock"
        self.runc_root = self.state_dir / "runc"

    def _share_shim_sockets(self) -> None:
        """Leave the folder's parent to containerd, whose state directory it is; all of it ends with the node."""
