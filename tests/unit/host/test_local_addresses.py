"""A network namespace's own addresses, from literal tables and from this machine's."""

import json
import subprocess
from pathlib import Path

from agent.host import local_addresses

FIB_TRIE = """\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 10.88.0.0
        /16 link UNICAST
Local:
  +-- 0.0.0.0/0 3 0 5
     |-- 10.88.0.7
        /32 host LOCAL
     |-- 10.88.255.255
        /32 link BROADCAST
     |-- 127.0.0.1
        /32 host LOCAL
     |-- 169.254.20.10
        /32 host LOCAL
"""
IF_INET6 = """\
00000000000000000000000000000001 01 80 10 80       lo
fe80000000000000a42f1cfffe3c0001 02 40 20 80     eth0
fd00000000000000000000000000000a 02 40 00 80     eth0

garbage
"""


def test_broadcast_loopback_and_link_local_are_nobodys_address() -> None:
    assert local_addresses.ipv4(FIB_TRIE) == {"10.88.0.7", "169.254.20.10"}
    assert local_addresses.ipv6(IF_INET6) == {"fd00::a"}
    assert local_addresses.ipv4("") == local_addresses.ipv6("") == frozenset()


def test_this_machines_addresses_are_those_ip_shows() -> None:
    shown = json.loads(subprocess.run(["ip", "-json", "address"], capture_output=True, check=True).stdout)
    entries = [entry for link in shown for entry in link["addr_info"]]
    seen = {e["local"] for e in entries if e["family"] == "inet" and not e["local"].startswith("127.")}
    assert local_addresses.ipv4(Path("/proc/net/fib_trie").read_text()) == seen
    seen = {e["local"] for e in entries if e["family"] == "inet6" and e["scope"] == "global"}
    assert local_addresses.ipv6(Path("/proc/net/if_inet6").read_text()) == seen
