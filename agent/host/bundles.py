"""Task bundles: what containerd leaves on disk about each container.

`<state>/io.containerd.runtime.v2.task/<namespace>/<id>/` holds `address` (containerd 1.6 and 1.7) or
`bootstrap.json` (1.7 and 2.x), `init.pid` and the OCI `config.json` with the pod's annotations.
Everything is read without following links, bounded in size, and may vanish while it is read.
"""

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from agent.host.rights import READ, SEARCH, Rights
from agent.model import CannotSeeError, DeploymentFault, NotApplicableError, PodRef

TASKS = "io.containerd.runtime.v2.task"
MAX_BUNDLES = 4096
MAX_SMALL_FILE = 4096
MAX_CONFIG_BYTES = 1 << 20
MAX_SOCKET_PATH = 107
ANNOTATION = "io.kubernetes.cri."
NO_ADDRESS_YET = "no address yet"
"""The problem of a bundle whose shim is only being started."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose container a bundle is, from its config.json. `problem` says why it could not be learnt."""

    pod: PodRef | None = None
    sandbox_id: str = ""
    is_sandbox: bool = False
    cgroup: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Bundle:
    """One container's bundle. `address` is a Unix socket path; empty with `problem` saying why."""

    namespace: str
    id: str
    path: str
    address: str
    task_version: int
    init_pid: int | None
    modified_at: float
    identity: Identity
    problem: str = ""
    fault: DeploymentFault | None = None
    """Why something in it may not be read, if that is so."""

    @property
    def is_complete(self) -> bool:
        """Whether containerd has written all of it; what is complete never changes again."""
        return bool(self.address) and self.init_pid is not None and not self.identity.problem


class Bundles:
    """Lists the bundles of the configured namespaces. Remembers the complete ones, since they never change."""

    def __init__(self, state_dir: str, namespaces: tuple[str, ...], rights: Rights | None = None) -> None:
        self._state_dir = os.path.realpath(state_dir)  # as the kernel tells a shim's working directory
        self._namespaces = namespaces
        self._rights = rights or Rights()
        self._known: dict[tuple[str, int], Bundle] = {}

    @property
    def state_dir(self) -> str:
        """The state directory of containerd."""
        return self._state_dir

    @property
    def task_root(self) -> str:
        """Directory that holds one directory per namespace."""
        return f"{self._state_dir}/{TASKS}"

    def list(self) -> tuple[Bundle, ...]:
        """Return the bundles there are now.

        Raises NotApplicableError without the directory containerd makes when it starts, CannotSeeError if the agent
        may not read it, OSError if that fails otherwise.
        """
        try:
            os.stat(self.task_root)
        except FileNotFoundError:
            raise NotApplicableError(f"no containerd here: {self.task_root} does not exist") from None
        except PermissionError as error:
            raise self._denied(self.task_root, error, SEARCH) from None
        found: list[Bundle] = []
        known: dict[tuple[str, int], Bundle] = {}
        for namespace in self._namespaces:
            for name, inode in self._entries(namespace):
                if len(found) >= MAX_BUNDLES:
                    break
                path = f"{self.task_root}/{namespace}/{name}"
                before = self._known.get((path, inode))
                bundle = before if before and before.is_complete else self._read(namespace, name, path, before)
                if bundle is not None:
                    known[path, inode] = bundle
                    found.append(bundle)
        self._known = known
        return tuple(found)

    def find(self, container_id: str) -> tuple[Bundle, ...]:
        """Return the bundles of one container id, in whichever of the namespaces; empty if there is none."""
        if not _is_name(container_id):
            return ()
        found = (
            self._read(namespace, container_id, f"{self.task_root}/{namespace}/{container_id}", None)
            for namespace in self._namespaces
        )
        return tuple(bundle for bundle in found if bundle is not None)

    def has(self, container_id: str) -> bool:
        """Whether there is a bundle of this id now, in any namespace, also one that is not configured."""
        if not _is_name(container_id):
            return False
        try:
            namespaces = os.listdir(self.task_root)
        except FileNotFoundError:
            return False
        return any(os.path.isdir(f"{self.task_root}/{namespace}/{container_id}") for namespace in namespaces)

    def _entries(self, namespace: str) -> Iterator[tuple[str, int]]:
        """Directories of one namespace. A dot in front means containerd is removing it; it makes no links."""
        try:
            with os.scandir(f"{self.task_root}/{namespace}") as entries:
                listed = [(e.name, e.inode()) for e in entries if e.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return
        except PermissionError as error:
            raise self._denied(f"{self.task_root}/{namespace}", error) from None
        yield from sorted(item for item in listed if not item[0].startswith("."))

    def _denied(self, path: str, error: PermissionError, bit: int = READ) -> CannotSeeError:
        fault = self._rights.path(path, error, bit)
        return CannotSeeError(f"{path} may not be read: {fault}", fault)

    def _read(self, namespace: str, name: str, path: str, before: Bundle | None) -> Bundle | None:
        try:
            return _read_bundle(namespace, name, path, before)
        except PermissionError as error:
            fault = self._rights.path(f"{path}/{error.filename}" if error.filename != path else path, error)
            nobody = Identity(problem="its bundle may not be read")
            return Bundle(
                namespace, name, path, "", 2, None, 0.0, nobody, f"its bundle may not be read: {fault}", fault
            )


def _is_name(container_id: str) -> bool:
    return bool(container_id) and "/" not in container_id and not container_id.startswith(".")


def _read_bundle(namespace: str, name: str, path: str, before: Bundle | None) -> Bundle | None:
    """Read one bundle; None if it is gone. Raises PermissionError if something in it may not be read."""
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except PermissionError:
        raise
    except OSError:
        return None
    try:
        address, version, problem = _address(folder)
        init_pid = _small(folder, "init.pid")
        return Bundle(
            namespace=namespace,
            id=name,
            path=path,
            address=address,
            task_version=version,
            init_pid=int(init_pid) if init_pid.isdecimal() and len(init_pid) < 10 else None,
            modified_at=os.fstat(folder).st_mtime,
            identity=before.identity if before and not before.identity.problem else _identity(folder),
            problem=problem,
        )
    finally:
        os.close(folder)


def _address(folder: int) -> tuple[str, int, str]:
    """Return (socket path, task API version, problem)."""
    version, url = 2, ""
    bootstrap = _small(folder, "bootstrap.json")
    if bootstrap:
        try:
            data = json.loads(bootstrap)
            version, url = int(data["version"]), str(data["address"])
            protocol = str(data.get("protocol", "ttrpc"))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
            return "", 2, "its bootstrap.json is not what containerd writes"
        if protocol != "ttrpc":
            return "", version, f"its shim speaks {protocol[:20]!r}, and only ttrpc is understood"
    else:
        url = _small(folder, "address")
    if not url:
        return "", version, NO_ADDRESS_YET
    path = url.removeprefix("unix://")
    if not path.startswith("/") or not path.isprintable():
        return "", version, f"its address {url[:80]!r} is no unix socket"
    if len(path.encode()) > MAX_SOCKET_PATH:
        return "", version, f"its address is longer than the {MAX_SOCKET_PATH} bytes a unix socket can have"
    return path, version, ""


def _identity(folder: int) -> Identity:
    raw = _regular_file(folder, "config.json", MAX_CONFIG_BYTES + 1)
    if raw is None:
        return Identity(problem="its config.json cannot be read")
    if len(raw) > MAX_CONFIG_BYTES:
        return Identity(problem=f"its config.json is larger than {MAX_CONFIG_BYTES >> 20} MiB and was not read")
    try:
        spec = json.loads(raw)
        annotations = spec.get("annotations") or {}
        cgroup = str((spec.get("linux") or {}).get("cgroupsPath", ""))
        words = {key.removeprefix(ANNOTATION): str(value) for key, value in annotations.items()}
    except (ValueError, AttributeError, RecursionError):
        return Identity(problem="its config.json is not an OCI spec")
    pod = PodRef(
        namespace=words.get("sandbox-namespace", ""),
        name=words.get("sandbox-name", ""),
        uid=words.get("sandbox-uid", ""),
        container=words.get("container-name", ""),
    )
    return Identity(
        pod=pod if pod.name else None,
        sandbox_id=words.get("sandbox-id", ""),
        is_sandbox=words.get("container-type", "") == "sandbox",
        cgroup=cgroup,
    )


def _small(folder: int, name: str) -> str:
    raw = _regular_file(folder, name, MAX_SMALL_FILE)
    return raw.decode(errors="replace").strip() if raw else ""


def _regular_file(folder: int, name: str, limit: int) -> bytes | None:
    """Read at most `limit` bytes of a regular file; None if there is none (a link, a fifo and a device are none).

    Raises PermissionError.
    """
    try:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except PermissionError:
        raise
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return None
        parts: list[bytes] = []
        while limit > 0 and (part := os.read(file, limit)):
            parts.append(part)
            limit -= len(part)
        return b"".join(parts)
    except OSError:
        return None
    finally:
        os.close(file)
