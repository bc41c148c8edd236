"""clash COUNT: let packets of one flow race for its conntrack entry until so many have; print as JSON what rose.

Two processes, each on a processor of its own, send from one socket at the same moment. A long chain of rules that match
nothing lies between the making of an entry and its insertion, which makes the two overlap. (A queue that holds both
packets, as in tests/lab, makes no clash here: up to 5.15 the kernel looks the flow up again when it releases them.)
"""

import json
import mmap
import os
import socket
import subprocess
import sys

SERVER = ("127.0.0.1", 53)
QUERY = bytes.fromhex("1234010000010000000000000a6b756265726e657465730000010001")
RULES = 4000
MOST_PAIRS = 3000
EVENTS = ("clash_resolve", "insert_failed", "drop")


def main() -> None:
    """Make the clashes and print the rise of each counter, and the number of pairs that it took."""
    tracking_by_a_long_chain()
    before = counters()
    pairs = race(int(sys.argv[1]), before)
    after = counters()
    print(json.dumps({"pairs": pairs, **{name: after[name] - before[name] for name in after}}))


def tracking_by_a_long_chain() -> None:
    """Switch tracking on, and make the way from a packet's entry to its insertion long."""
    rule = "-A OUTPUT -p udp -m udp --dport 53 -s 192.0.2.1 -j DROP\n"
    text = f"*filter\n-A INPUT -m conntrack --ctstate INVALID -j DROP\n{rule * RULES}COMMIT\n"
    subprocess.run(["iptables-restore", "--noflush"], input=text, text=True, check=True)


def counters() -> dict[str, int]:
    """Return conntrack's counters, summed over the processors."""
    total = dict.fromkeys(EVENTS, 0)
    printed = subprocess.run(["conntrack", "-S"], capture_output=True, text=True, check=True).stdout
    for line in printed.splitlines():
        for word in line.split()[1:]:
            name, _, value = word.partition("=")
            total[name] = total.get(name, 0) + int(value)
    return total


def race(wanted: int, before: dict[str, int]) -> int:
    """Send pairs from fresh sockets until so many have clashed, and return how many pairs it took."""
    pairs = 0
    while pairs < MOST_PAIRS and sum(counters()[name] - before[name] for name in EVENTS) < wanted:
        for _ in range(20):
            one_pair()
            pairs += 1
    return pairs


def one_pair() -> None:
    """Send two packets of one new flow from two processors, as close to one moment as a shared byte allows."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client, mmap.mmap(-1, 2) as ready:
        client.connect(SERVER)
        child = os.fork()
        mine = 0 if child else 1
        os.sched_setaffinity(0, {mine})
        ready[mine] = 1
        while not ready[1 - mine]:
            pass
        client.send(QUERY)
        if not child:
            os._exit(0)
        os.waitpid(child, 0)


main()
