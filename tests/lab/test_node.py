"""`make node-down`: nothing is left of a node, whether its keeper ends in order or is killed."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import node
from tests.lab import cgroups
from tests.lab.waiting import wait_until

pytestmark = pytest.mark.lab

KEEPER = """
import sys
from pathlib import Path
from tests import node
folder = Path(sys.argv[1])
node._FOLDER, node._STATE = folder, folder / "state.json"
node._INSIDE = ["sh", "-c", "touch $0/held; exec sleep 1000000", str(folder)]
node._end_in_order_on_sigterm()
sys.exit(node.keep())
"""


@pytest.mark.parametrize("number", [None, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals | None) -> None:
    folder = tmp_path / "node"
    folder.mkdir()
    monkeypatch.setattr(node, "_FOLDER", folder)
    monkeypatch.setattr(node, "_STATE", folder / "state.json")
    keeper = subprocess.Popen([sys.executable, "-c", KEEPER, str(folder)])
    try:
        wait_until((folder / "held").exists, 30.0, "the node runs")
        state = json.loads((folder / "state.json").read_text())
        inside = subprocess.run([folder / "enter", "cat", "/proc/1/comm"], capture_output=True, text=True, check=True)
        assert inside.stdout == "init\n"
        assert cgroups.members(state["cgroup"])
        if number:
            keeper.send_signal(number)
            keeper.wait(30)
            wait_until(lambda: _refuses(folder / "enter"), 30.0, "the command reports in one line that no node runs")
    finally:
        node._take_away(node._read_state())
        keeper.wait(30)
    assert not folder.exists()
    assert not Path(state["base"]).exists()
    assert not any(tree.at(state["cgroup"]).exists() for tree in cgroups.hierarchies())


def _refuses(enter: Path) -> bool:
    """Whether the command that enters the node says that it does not run; its first process may still be ending."""
    done = subprocess.run([enter, "true"], capture_output=True, text=True, check=False)
    return (done.returncode, done.stderr) == (1, "The node does not run (make node starts it).\n")
