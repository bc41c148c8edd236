"""Which process a service is, where several have its name."""

from agent.app import Senses
from agent.clock import StallMeter
from agent.host.kubelet import place
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
