"""Which DNS servers there are, and how their addresses are written."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

MAX_SERVERS = 3
"""As many as the C library asks (MAXNS in resolv.h)."""

DNS_PORT = 53


@dataclass(frozen=True, slots=True)
class DnsServer:
    """Address (IPv6 with its %zone, if it has one) and UDP port of a server."""

    address: str
    port: int = DNS_PORT

    def __str__(self) -> str:
        """`10.96.0.10`, or `10.96.0.10:5353` and `[::1]:5353` with a port of its own."""
        if self.port == DNS_PORT:
            return self.address
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class DnsServers:
    """The servers to ask, where the list is from, and what is wrong with it if something is."""

    servers: tuple[DnsServer, ...]
    origin: str
    problem: str = ""


def parse_server(text: str) -> DnsServer:
    """Read `1.2.3.4`, `1.2.3.4:5353`, `::1`, `[::1]:5353` or `fe80::1%eth0`.

    Raises ValueError with what would be right.
    """
    address, port = text.strip(), str(DNS_PORT)
    if address.startswith("["):
        address, _, rest = address[1:].partition("]")
        port = rest[1:] if rest.startswith(":") else (rest or port)
        if "]" not in text or (rest and not rest.startswith(":")):
            address = ""
    elif address.count(":") == 1:
        address, _, port = address.partition(":")
    try:
        ipaddress.ip_address(address)
    except ValueError:
        raise ValueError(f"{text[:80]!r} is no server address such as 10.96.0.10, ::1 or [::1]:53") from None
    if not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
        raise ValueError(f"{text[:80]!r} has no port between 1 and 65535 after its colon")
    return DnsServer(address, int(port))


def servers_problem(servers: Sequence[str]) -> str | None:
    """Return what is wrong with a list of servers for `Dns`, or None."""
    for text in servers:
        try:
            parse_server(text)
        except ValueError as error:
            return str(error)
    return None


def parse_resolv_conf(text: str) -> tuple[tuple[DnsServer, ...], tuple[str, ...]]:
    """Return the servers of the `nameserver` lines, and the addresses there that are none (resolv.conf(5))."""
    servers: list[DnsServer] = []
    bad: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            ipaddress.ip_address(words[1])
        except ValueError:
            bad.append(words[1][:80])
            continue
        if DnsServer(words[1]) not in servers:
            servers.append(DnsServer(words[1]))
    return tuple(servers[:MAX_SERVERS]), tuple(bad[:MAX_SERVERS])
