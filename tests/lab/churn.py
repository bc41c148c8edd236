"""The healthy control: containers that start, run execs and stop, over and over, with nothing wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from .containerd import Containerd
from .containers import delete_container, exec_in, run_container
from .pods import Pod


@dataclass
class Churn:
    """How much has happened so far."""

    started: int = 0
    execs: int = 0
    deleted: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def churning(containerd: Containerd, containers: int = 20, execs_each: int = 3, workers: int = 2) -> Iterator[Churn]:
    """Keep about that many containers alive, each replaced after its execs, while the body runs.

    An error of the churn itself is raised when the body is over.
    """
    churn, ending = Churn(), threading.Event()

    def work(share: int) -> None:
        alive = []
        number = 0
        try:
            while not ending.is_set():
                number += 1
                alive.append(run_container(containerd, pod=Pod(name=f"churn-{share}-{number}")))
                with churn.lock:
                    churn.started += 1
                for _ in range(execs_each):
                    exec_in(containerd, alive[-1], "/bin/true")
                    with churn.lock:
                        churn.execs += 1
                if len(alive) >= containers // workers:
                    delete_container(containerd, alive.pop(0))
                    with churn.lock:
                        churn.deleted += 1
        finally:
            for container in alive:
                delete_container(containerd, container)

    with ThreadPoolExecutor(workers, thread_name_prefix="lab-churn") as pool:
        running: list[Future[None]] = [pool.submit(work, share) for share in range(workers)]
        try:
            yield churn
        finally:
            ending.set()
    for future in running:
        future.result()
