"""Who listens where: the listening sockets at an address, and the sockets a process holds.

From /proc/net/{tcp,tcp6,unix} of the network namespace we are in, and the links of /proc/N/fd (proc(5)):
text of the kernel that never blocks. The inode of a socket is what the two have in common. It proves more than a
name does: a process that holds the socket which is asked is the one that is to answer.
"""

import os
import socket
import sys
from collections.abc import Iterator
from ipaddress import ip_address

from agent.host.backoff import Backoff
from agent.host.rights import Rights
from agent.model import CannotSeeError, DeploymentFault

MAX_TABLE_BYTES = 8 << 20
MAX_LINKS = 200_000
"""More than any service has open (`fs.nr_open` allows a million); so many take a quarter of a second."""
LISTEN = b"0A"
"""TCP_LISTEN of include/net/tcp_states.h."""
ACCEPTING = 0x10000
"""__SO_ACCEPTCON of include/uapi/linux/net.h, in the column `Flags` of /proc/net/unix."""


class Listeners:
    """Reads below one procfs root. Everything raises CannotSeeError where it may not or cannot look."""

    def __init__(self, root: str, rights: Rights | None = None) -> None:
        self._root = root
        self._rights = rights or Rights()
        self._backoff = Backoff()

    def tcp(self, host: str, port: int) -> frozenset[int]:
        """Return the inodes of the sockets that get a connection to an IP address and port; empty if nobody listens.

        Of several the kernel takes the one bound most closely: to the address itself, to all of its family, to all
        of IPv6's (which hears IPv4 too). More than one inode: they share the port (SO_REUSEPORT).
        """
        address = ip_address(host.partition("%")[0])
        mapped = f"::ffff:{address}" if address.version == 4 else str(address)
        places = [("tcp6", mapped), ("tcp6", "::")]
        if address.version == 4:
            places = [("tcp", str(address)), places[0], ("tcp", "0.0.0.0"), places[1]]  # noqa: S104 - looked for only
        tables = {name: tuple(self._tcp_listening(name)) for name in dict(places)}
        for table, bound in places:
            wanted = f"{_as_the_kernel_writes(bound)}:{port:04X}".encode()
            found = frozenset(inode for local, inode in tables[table] if local == wanted)
            if found:
                return found
        return frozenset()

    def unix(self, path: str) -> frozenset[int]:
        """Return the inodes of the sockets that listen at a path, links in it followed; empty if nobody does.

        More than one: a socket whose file was removed keeps its path in the table for as long as it lives.
        """
        wanted = {os.fsencode(path), os.fsencode(os.path.realpath(path))}
        found = set()
        for line in self._lines("unix"):
            words = line.split(None, 7)
            if len(words) == 8 and words[7] in wanted and _number(words[3], 16) & ACCEPTING:
                found.add(_number(words[6], 10))
        return frozenset(found)

    def held_by(self, pid: int) -> frozenset[int]:
        """Return the inodes of the sockets a process holds; empty if it is gone."""
        folder = f"{self._root}/{pid}/fd"
        if denied := self._backoff.held_off(pid):
            raise _not_known(folder, pid, denied)
        found = set()
        try:
            with os.scandir(folder) as links:
                for count, link in enumerate(links):
                    if count >= MAX_LINKS:
                        raise CannotSeeError(f"process {pid} has more than {MAX_LINKS} files open: not all were read")
                    kind, _, inode = _link(link.path).partition(":[")
                    if kind == "socket":
                        found.add(int(inode.removesuffix("]")))
        except FileNotFoundError:
            return frozenset()
        except PermissionError:
            raise _not_known(folder, pid, self._backoff.note(pid, self._rights.process(folder))) from None
        except OSError as error:
            raise CannotSeeError(f"{folder} cannot be read: {error.strerror}") from None
        return frozenset(found)

    def _tcp_listening(self, table: str) -> Iterator[tuple[bytes, int]]:
        """Yield local address and inode of each listening socket; the kernel lists them before all others."""
        for number, line in enumerate(self._lines(table)):
            words = line.split(None, 10)
            if number == 0:
                continue
            if len(words) < 10 or words[3] != LISTEN:
                return
            yield words[1], _number(words[9], 10)

    def _lines(self, table: str) -> Iterator[bytes]:
        """Yield the lines of a table, its heading first; a kernel without IPv6 has no tcp6."""
        path = f"{self._root}/self/net/{table}"
        left = MAX_TABLE_BYTES
        try:
            with open(path, "rb") as stream:
                while line := stream.readline(left):
                    left -= len(line)
                    yield line.rstrip(b"\n")
        except FileNotFoundError:
            if table != "tcp6" or not os.path.isdir(os.path.dirname(path)):
                raise CannotSeeError(f"{path} does not exist: this is not the node's procfs") from None
        except OSError as error:
            raise CannotSeeError(f"{path} cannot be read: {error.strerror}") from None
        if left <= 0:
            raise CannotSeeError(f"{path} is longer than {MAX_TABLE_BYTES >> 20} MiB: not all of it was read")


def _not_known(folder: str, pid: int, fault: DeploymentFault) -> CannotSeeError:
    why = f"{folder} may not be read, so it is not known which sockets process {pid} holds: {fault}"
    return CannotSeeError(why, fault)


def _link(path: str) -> str:
    """Where a link of /proc/N/fd points; empty if the file was closed meanwhile."""
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return ""


def _as_the_kernel_writes(address: str) -> str:
    """An address in hex as /proc/net/tcp has it: 32 bits at a time, each in the byte order of this machine."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    raw = socket.inet_pton(family, address)
    words = (raw[at : at + 4] for at in range(0, len(raw), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)


def _number(text: bytes, base: int) -> int:
    try:
        return int(text, base)
    except ValueError:
        return 0
