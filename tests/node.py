"""`make node` and `make node-down`: a one-node Kubernetes on this machine, in namespaces and cgroups of its own.

Three processes take part. `python -m tests.node up` starts the keeper, prints what it reports, and ends. The keeper
makes the whole node (`tests.lab.whole_node`) and stays; it ends on SIGTERM, and takes the node away. Inside of the
node, a third one starts the cluster and holds it.

What the node consists of is written to `build/node/state.json` before any of it is made, so that `down` can also take
away what a keeper that was killed has left.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.lab import cgroups
from tests.lab.agent_image import build_image
from tests.lab.kubernetes.binaries import kubernetes_binaries
from tests.lab.kubernetes.cluster import KUBECONFIG, KUBECTL, Cluster
from tests.lab.processes import Process, has_ended, identify, send_signal
from tests.lab.versions import choose
from tests.lab.waiting import LabTimeoutError, wait_until
from tests.lab.whole_node import WholeNode

_ROOT = Path(__file__).resolve().parents[1]
_FOLDER = _ROOT / "build" / "node"
_STATE = _FOLDER / "state.json"
_LOG = _FOLDER / "log"
_IS_READY = _FOLDER / "ready"
_BINARIES = "NODEDIAG_NODE_BINARIES"
"""Set in the environment of what runs inside, to the folder with Kubernetes' programs."""
_INSIDE = [sys.executable, "-m", "tests.node", "inside"]
_REPORT = "node: "
"""Begins each line of the log that is for the person who waits."""
_READY = "ready"
_START_SECONDS = 300.0
_END_SECONDS = 60.0
_HOW_TO = """
A Kubernetes node of its own runs on this machine. Its logs: {logs}

  build/node/kubectl get pods --all-namespaces
  build/node/kubectl apply --validate=false -f deploy/daemonset.yaml
  build/node/kubectl -n nodediag rollout status ds/nodediag
  build/node/kubectl -n nodediag exec ds/nodediag -- nodediag report
  build/node/enter ps -e                # any command in the node's namespaces, to cause a fault for instance

To remove it: make node-down
"""


def main() -> int:
    """Do what the one argument says."""
    _end_in_order_on_sigterm()
    try:
        return {"up": up, "down": down, "keep": keep, "inside": inside}[sys.argv[1]]()
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130


def _end_in_order_on_sigterm() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


# -- up and down ----------------------------------------------------------------


def up() -> int:
    """Start the node unless it runs, and print how to use it."""
    try:
        cgroups.require_v1()
    except cgroups.CgroupV1MissingError as error:
        raise SystemExit(str(error)) from None
    with _locked():
        state = _read_state()
        if state is not None and _IS_READY.exists() and not has_ended(_keeper(state)):
            print("The node runs already." + _how_to(state))
            return 0
        _take_away(state)
        print(f"The node will have {choose()}.", flush=True)
        build_image()
        _FOLDER.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, _BINARIES: str(kubernetes_binaries())}
        with _LOG.open("wb") as log:
            keeper = subprocess.Popen(
                [sys.executable, "-m", "tests.node", "keep"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=_ROOT, start_new_session=True,
            )  # fmt: skip
        try:
            _follow(keeper)
        except BaseException:
            keeper.terminate()
            keeper.wait(_END_SECONDS)
            _take_away(_read_state())
            raise
        state = _read_state()
        if state is not None:
            print(_how_to(state))
        return 0


def down() -> int:
    """Take the node away, whatever has become of it."""
    with _locked():
        state = _read_state()
        if state is None:
            print("No node runs here.")
            return 0
        _take_away(state)
        print("The node is removed.")
        return 0


def _follow(keeper: subprocess.Popen[bytes]) -> None:
    """Print what the keeper reports until the node is ready; raise if it ends before."""
    deadline = time.monotonic() + _START_SECONDS
    with _LOG.open() as log:
        while True:
            line = log.readline()
            if line.startswith(_REPORT):
                print(line.removeprefix(_REPORT).rstrip(), flush=True)
                if line.strip() == _REPORT + _READY:
                    return
            elif not line and keeper.poll() is not None:
                raise SystemExit(f"The node could not be started:\n{_LOG.read_text()[-3000:]}")
            elif not line and time.monotonic() > deadline:
                raise SystemExit(f"The node was not ready after {_START_SECONDS:.0f} s; see {_LOG}")
            elif not line:
                time.sleep(0.1)


def _take_away(state: dict[str, Any] | None) -> None:
    """End the keeper, which takes the node away; and take away what is left where it was killed."""
    if state is None:
        return
    keeper = _keeper(state)
    send_signal(keeper, signal.SIGTERM)
    with suppress(LabTimeoutError):
        wait_until(lambda: has_ended(keeper), _END_SECONDS, "the end of the node's keeper")
    send_signal(keeper, signal.SIGKILL)
    cgroups.kill_members(state["cgroup"])
    cgroups.remove(state["cgroup"])
    shutil.rmtree(state["base"], ignore_errors=True)
    shutil.rmtree(_FOLDER, ignore_errors=True)


# -- the keeper -------------------------------------------------------------------


def keep() -> int:
    """Make the whole node, run the cluster in it, and take it away in the end."""
    node = WholeNode()
    state = {**asdict(identify(os.getpid())), "base": str(node.base), "cgroup": node.cgroup}
    _STATE.write_text(json.dumps(state))
    with node:
        folder = node.base / "cluster"
        kubectl = [f"KUBECONFIG={folder / KUBECONFIG}", str(KUBECTL)]
        _write_command(_FOLDER / "kubectl", node, ["--net"], kubectl)
        _write_command(_FOLDER / "enter", node, ["--pid", "--net", "--mount", "--cgroup", "--ipc"], ['--chdir="$PWD"'])
        return node.run(*_INSIDE, str(folder))


def inside() -> int:
    """Start the cluster, report that it is ready, and hold it until the node ends."""

    def report(what: str) -> None:
        print(f"{_REPORT}{what}", flush=True)

    with Cluster(Path(os.environ[_BINARIES]), Path(sys.argv[2]), report):
        _IS_READY.touch()
        report(_READY)
        threading.Event().wait()
    return 0


def _write_command(file: Path, node: WholeNode, namespaces: list[str], command: list[str]) -> None:
    """Write a script that runs a command with its own arguments in namespaces of this very node."""
    init = node.init
    lines = [
        "#!/bin/sh",
        f"started=$(cut -d ' ' -f 22 /proc/{init.pid}/stat 2>/dev/null)",
        f'if [ "$started" != {init.start_time} ] || [ ! -e /proc/{init.pid}/ns/net ]; then',  # that of a zombie is gone
        "    echo 'The node does not run (make node starts it).' >&2",
        "    exit 1",
        "fi",
        f'exec nsenter --target={init.pid} {" ".join(namespaces)} -- env {" ".join(command)} "$@"',
    ]
    file.write_text("\n".join(lines) + "\n")
    file.chmod(0o755)


# -- the state ----------------------------------------------------------------------


@contextmanager
def _locked() -> Iterator[None]:
    """Hold off every other `make node` and `make node-down` of this clone."""
    _FOLDER.parent.mkdir(exist_ok=True)
    with (_FOLDER.parent / "node.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another `make node` or `make node-down` is at work here; waiting for its end.", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read_state() -> dict[str, Any] | None:
    try:
        state: dict[str, Any] = json.loads(_STATE.read_text())
    except FileNotFoundError:
        return None
    return state


def _keeper(state: dict[str, Any]) -> Process:
    return Process(state["pid"], state["start_time"])


def _how_to(state: dict[str, Any]) -> str:
    return _HOW_TO.format(logs=f"{state['base']}/cluster")


if __name__ == "__main__":
    sys.exit(main())
