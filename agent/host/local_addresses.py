"""A network namespace's own addresses, from the tables procfs shows of it."""

import socket


def ipv4(fib_trie: str) -> frozenset[str]:
    """Return the addresses of /proc/N/net/fib_trie (the leaf before each `/32 host LOCAL`); loopback left out."""
    found: set[str] = set()
    leaf = ""
    for line in fib_trie.splitlines():
        text = line.strip()
        if text.startswith("|-- "):
            leaf = text[4:]
        elif text.startswith("/32 host LOCAL") and not leaf.startswith("127."):
            found.add(leaf)
    return frozenset(found)


def ipv6(if_inet6: str) -> frozenset[str]:
    """Return the addresses of /proc/N/net/if_inet6, written as in RFC 5952; link-local and loopback left out."""
    found: set[str] = set()
    for line in if_inet6.splitlines():
        digits = line.split(None, 1)[0] if line.strip() else ""
        if len(digits) == 32 and not digits.startswith(("fe80", "0" * 31)):
            found.add(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits)))
    return frozenset(found)
