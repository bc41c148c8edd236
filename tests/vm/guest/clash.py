"""clash PAIRS: let that many pairs of DNS packets race for their conntrack entry; print as JSON what rose."""

import json
import socket
import subprocess
import sys

from tests.lab.conntrack_faults import clash_maker, counters

SERVER = "127.0.0.77"


class ThisNode:
    """This guest as the lab's faults take a node: the lab's own nodes are network namespaces."""

    def run(self, *command: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(command, capture_output=True, text=True, check=check)

    def make_socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        return socket.socket(family, kind, protocol)


node = ThisNode()
with clash_maker(node, SERVER) as maker:  # type: ignore[arg-type]
    before = counters(node)  # type: ignore[arg-type]
    maker.make(int(sys.argv[1]))
    after = counters(node)  # type: ignore[arg-type]
print(json.dumps({name: after[name] - before.get(name, 0) for name in after}))
