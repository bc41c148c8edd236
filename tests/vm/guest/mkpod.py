"""mkpod NAME [--argv ...]: run a pod of one container as a kubelet does on systemd and cgroup v2; print its parts."""

import argparse
import json
import secrets
import subprocess
import uuid
from pathlib import Path

CAPABILITIES = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_SETGID", "CAP_SETUID"]
MOUNTS = [
    {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
    {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
]
BUNDLES = Path("/run/containerd/io.containerd.runtime.v2.task/k8s.io")
FOLDER = Path("/run/pods")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--namespace", default="shop")
    parser.add_argument("--cgroupfs", action="store_true", help="the kubelet's other cgroup driver")
    parser.add_argument("--qos", default="besteffort", choices=["besteffort", "burstable", "guaranteed"])
    parser.add_argument("--argv", nargs=argparse.REMAINDER, default=["/bin/sleep", "1000000"])
    arguments = parser.parse_args()
    uid, container = str(uuid.uuid4()), secrets.token_hex(32)
    cgroup = cgroup_of(arguments, uid, container)
    FOLDER.mkdir(exist_ok=True)
    config = FOLDER / f"{container}.json"
    config.write_text(json.dumps(spec(arguments, uid, container, cgroup)))
    options = [] if arguments.cgroupfs else ["--runc-systemd-cgroup", "--cgroup", cgroup]
    command = ["ctr", "-n", "k8s.io", "run", "--detach", "--null-io", *options, "--config", str(config), container]
    subprocess.run(command, check=True)
    pod = made_of(arguments, uid, container)
    (FOLDER / arguments.name).write_text(json.dumps(pod))
    print(json.dumps(pod))


def cgroup_of(arguments: argparse.Namespace, uid: str, container: str) -> str:
    if arguments.cgroupfs:
        qos = "" if arguments.qos == "guaranteed" else f"/{arguments.qos}"
        return f"/kubepods{qos}/pod{uid}/{container}"
    qos = "" if arguments.qos == "guaranteed" else f"{arguments.qos}-"
    return f"kubepods-{qos}pod{uid.replace('-', '_')}.slice:cri-containerd:{container}"


def spec(arguments: argparse.Namespace, uid: str, container: str, cgroup: str) -> dict[str, object]:
    cri = "io.kubernetes.cri."
    process = {
        "args": arguments.argv,
        "env": ["PATH=/bin"],
        "cwd": "/",
        "user": {"uid": 0, "gid": 0},
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES),
        "noNewPrivileges": True,
    }
    return {
        "ociVersion": "1.0.2",
        "process": process,
        "root": {"path": "/opt/rootfs", "readonly": True},
        "hostname": arguments.name,
        "mounts": MOUNTS,
        "annotations": {
            cri + "sandbox-id": container,
            cri + "sandbox-name": arguments.name,
            cri + "sandbox-namespace": arguments.namespace,
            cri + "sandbox-uid": uid,
            cri + "container-type": "container",
            cri + "container-name": "app",
            cri + "image-name": "localhost/lab:latest",
        },
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network", "cgroup")],
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        },
    }


def made_of(arguments: argparse.Namespace, uid: str, container: str) -> dict[str, object]:
    pid = int((BUNDLES / container / "init.pid").read_text())
    shim = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    cgroup = Path(f"/proc/{pid}/cgroup").read_text().strip().removeprefix("0::")
    return {
        "name": arguments.name,
        "namespace": arguments.namespace,
        "uid": uid,
        "container": container,
        "pid": pid,
        "shim": shim,
        "cgroup": f"/sys/fs/cgroup{cgroup}",
    }


main()
