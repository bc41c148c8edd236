"""What this process may do, and which right it lacks for what was denied.

A denial (EACCES, EPERM) does not name the missing right. `missing` decides it from what the process holds:
the capabilities in /proc/self/status (capabilities(7)), its user namespace and its AppArmor or SELinux confinement.
A capability that the process holds is never named.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum

from agent.model import DeploymentCause, DeploymentFault
from agent.printable import printable


class Capability(IntEnum):
    """The capabilities the agent uses, by their bits (linux/capability.h)."""

    DAC_OVERRIDE = 1
    DAC_READ_SEARCH = 2
    KILL = 5
    NET_ADMIN = 12
    SYS_PTRACE = 19

    def __str__(self) -> str:
        """`CAP_NET_ADMIN`, as in capabilities(7)."""
        return f"CAP_{self.name}"


READ, WRITE, SEARCH = 4, 2, 1
"""The bits of a mode, for one class of users."""
NO_OWNER = 65534
"""The uid shown for one that the user namespace does not map (kernel.overflowuid)."""
MAX_LABEL = 200


@dataclass(frozen=True, slots=True)
class Held:
    """The rights of a process; `apparmor` and `selinux` name the profile or context that confines it, if any."""

    uid: int = 0
    groups: frozenset[int] = field(default_factory=frozenset)
    capabilities: int = 0
    apparmor: str = ""
    selinux: str = ""
    initial_user_namespace: bool = True

    @property
    def confined(self) -> bool:
        """Whether a security module confines the process."""
        return bool(self.apparmor or self.selinux)

    def has(self, capability: Capability) -> bool:
        """Whether a capability is effective."""
        return bool(self.capabilities >> capability & 1)

    def permitted(self, found: os.stat_result, bit: int) -> bool:
        """Whether the mode of a file permits an access without any capability."""
        if found.st_uid == self.uid:
            return bool(found.st_mode >> 6 & bit)
        if found.st_gid in self.groups:
            return bool(found.st_mode >> 3 & bit)
        return bool(found.st_mode & bit)


class Rights:
    """Reads the rights of this process below one procfs root, and explains denials by them."""

    def __init__(self, proc: str = "/proc") -> None:
        self._self = f"{proc}/self"

    def held(self) -> Held:
        """Return the rights as they are now; what cannot be read is taken for not confining."""
        status = dict(line.partition(":\t")[::2] for line in _text(f"{self._self}/status").split("\n"))
        uids, gids = status.get("Uid", "").split(), status.get("Gid", "").split()
        label = _text(f"{self._self}/attr/current")
        return Held(
            uid=int(uids[1]) if len(uids) > 1 else os.geteuid(),
            groups=frozenset(int(gid) for gid in [*gids[1:2], *status.get("Groups", "").split()]),
            capabilities=int(status.get("CapEff") or "ffffffff", 16),  # not readable: none is to be blamed
            apparmor=_apparmor(_text(f"{self._self}/attr/apparmor/current") or label),
            selinux=_selinux(label),
            initial_user_namespace=_maps_everything(_text(f"{self._self}/uid_map")),
        )

    def path(self, path: str, error: OSError, bit: int = READ) -> DeploymentFault:
        """Explain why a path could not be read (READ), connected to (WRITE) or entered (SEARCH)."""
        held = self.held()
        blocker = _blocker(path, held, bit)
        if blocker is None:
            return missing(held, None, f"{path}: {_denied(error)}")
        place, found, wanted = blocker
        mode = f"{place} has mode {stat.S_IMODE(found.st_mode):04o}"
        if found.st_uid not in {held.uid, NO_OWNER} and found.st_mode >> 6 & wanted:
            return _lacks_user(held, found.st_uid, f"{mode} and belongs to uid {found.st_uid}")
        # DAC_OVERRIDE permits all of it (capabilities(7)); of what is missing the smaller right is named.
        override = wanted == WRITE or held.has(Capability.DAC_OVERRIDE)
        return missing(held, Capability.DAC_OVERRIDE if override else Capability.DAC_READ_SEARCH, mode)

    def process(self, what: str) -> DeploymentFault:
        """Explain why something of another process that takes ptrace rights (ptrace(2)) could not be read."""
        return missing(self.held(), Capability.SYS_PTRACE, f"{what} may be read with ptrace rights alone")

    def signal(self, what: str, uid: int | None) -> DeploymentFault:
        """Explain why a process that runs as `uid` (None: not known) could not be signalled (kill(2))."""
        held = self.held()
        return missing(held, None if uid == held.uid else Capability.KILL, what)

    def write(self, what: str) -> DeploymentFault:
        """Explain why a file that root may write could not be written."""
        held = self.held()
        return _lacks_user(held, 0, f"{what} is writable for root alone") if held.uid else missing(held, None, what)

    def netlink(self) -> DeploymentFault:
        """Explain why conntrack could not be read or changed over netlink."""
        return missing(self.held(), Capability.NET_ADMIN, "conntrack answers over netlink only with it")


def missing(held: Held, capability: Capability | None, why: str) -> DeploymentFault:
    """Decide which right is missing where one was denied that takes this capability (None: that takes none)."""
    if capability is not None and not held.has(capability):
        return DeploymentFault(
            DeploymentCause.CAPABILITY,
            str(capability),
            f"Permission denied: the agent needs {capability}, because {why}",
            f"add {capability.name} to securityContext.capabilities.add of the agent's container, as the manifests do "
            "(outside of a pod: run it as root)",
        )
    if capability is not None and not held.initial_user_namespace:
        return DeploymentFault(
            DeploymentCause.NAMESPACE,
            "hostUsers",
            f"Permission denied: {capability} counts for nothing in a user namespace of the agent's own; {why}",
            "remove hostUsers: false from the pod's spec",
        )
    holds = f"although the agent holds {capability}" if capability is not None else "although no capability is missing"
    if held.apparmor:
        return DeploymentFault(
            DeploymentCause.APPARMOR,
            printable(held.apparmor, MAX_LABEL),
            f"Permission denied by the AppArmor profile {held.apparmor}, {holds}; {why}",
            "set appArmorProfile: {type: Unconfined} in the container's securityContext, as the manifests do",
        )
    if held.selinux:
        return DeploymentFault(
            DeploymentCause.SELINUX,
            printable(held.selinux, MAX_LABEL),
            f"Permission denied in the SELinux context {held.selinux}, {holds}; {why}",
            "set seLinuxOptions: {type: spc_t} in the container's securityContext",
        )
    return DeploymentFault(
        DeploymentCause.PERMISSION,
        "unknown",
        f"Permission denied, {holds} and neither AppArmor nor SELinux confines it; {why}",
        "see the kernel log (dmesg) and the container's seccomp profile for what denies it",
    )


def _lacks_user(held: Held, owner: int, mode: str) -> DeploymentFault:
    return DeploymentFault(
        DeploymentCause.USER,
        f"uid {owner}",
        f"Permission denied: the agent runs as uid {held.uid}, and {mode}",
        f"set runAsUser: {owner} in the container's securityContext, as the manifests do (outside of a pod: run it as "
        "that user)",
    )


def _blocker(path: str, held: Held, bit: int) -> tuple[str, os.stat_result, int] | None:
    """Return the first place on the way whose mode denies what is wanted of it, and what that is."""
    for place in _folders(path):
        try:
            found = os.stat(place)
        except OSError:
            return None
        if not held.permitted(found, SEARCH):
            return place, found, SEARCH
    try:
        found = os.stat(path)
    except OSError:
        return None
    bits = [bit, SEARCH] if stat.S_ISDIR(found.st_mode) and bit == READ else [bit]
    return next(((path, found, each) for each in bits if not held.permitted(found, each)), None)


def _folders(path: str) -> Iterator[str]:
    """The folders above a path, the root first."""
    steps = os.path.realpath(path).split("/")[1:-1]
    yield "/"
    for length in range(1, len(steps) + 1):
        yield "/" + "/".join(steps[:length])


def _denied(error: OSError) -> str:
    return error.strerror or str(error)


def _apparmor(label: str) -> str:
    """`cri-containerd.apparmor.d (enforce)` from the label; empty if AppArmor does not confine us."""
    # Each security module has a label of its own since Linux 5.8; before, there is one in attr/current.
    confined = label.endswith((" (enforce)", " (kill)", " (prompt)"))
    return label if confined else ""


def _selinux(label: str) -> str:
    """A context has three colons or more: user:role:type:level. spc_t and unconfined_t are confined by nothing."""
    parts = label.split(":")
    unconfined = len(parts) < 4 or parts[2] in {"spc_t", "unconfined_t", "unconfined_service_t"}
    return "" if unconfined else label


def _maps_everything(uid_map: str) -> bool:
    """Whether this is the initial user namespace: it maps all ids onto themselves (user_namespaces(7))."""
    return not uid_map or uid_map.split() == ["0", "0", "4294967295"]


def _text(path: str) -> str:
    try:
        with open(path, "rb") as stream:
            return stream.read(8192).decode(errors="replace").strip().strip("\0")
    except OSError:
        return ""
