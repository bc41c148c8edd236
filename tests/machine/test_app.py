"""Which process a service is, where several have its name."""

import pytest

from agent.app import Senses
from agent.clock import StallMeter
from agent.host.kubelet import place
from agent.host.procfs import Process
from agent.model import ProcessId
from agent.settings import load
from tests.lab.supervised import KubeletProcess


def test_of_two_processes_of_one_name_the_service_is_the_one_that_listens() -> None:
    senses = Senses(load(None), StallMeter())
    with KubeletProcess() as one, KubeletProcess() as other:
        for kubelet in (one, other):
            address = place(kubelet.url)
            find = senses.service("kubelet", lambda address=address: senses.listeners.tcp(*address))  # type: ignore[misc]
            assert find() == ProcessId(kubelet.process.pid, kubelet.process.start_time)
        assert senses.service("kubelet", frozenset)() is None, "nobody listens: nobody is named"


def test_a_service_that_was_found_is_not_looked_for_again_while_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    senses = Senses(load(None), StallMeter())
    searches: list[str] = []
    named = senses.procfs.named

    def counted(comm: str) -> tuple[Process, ...]:
        searches.append(comm)
        return named(comm)

    monkeypatch.setattr(senses.procfs, "named", counted)
    find = senses.service("kubelet", frozenset)
    assert (find(), find(), len(searches)) == (None, None, 2), "what is not there is looked for every time"
    with KubeletProcess() as kubelet:
        process = ProcessId(kubelet.process.pid, kubelet.process.start_time)
        assert [find(), find(), find()] == [process] * 3
        assert len(searches) == 3
        monkeypatch.setattr("agent.app.KNOWN_SECONDS", -1.0)
        assert find() == process
        assert len(searches) == 4, "after a while it may not be the only one any more"
        monkeypatch.undo()
    assert find() is None, "it has ended"
