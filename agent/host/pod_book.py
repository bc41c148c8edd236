"""What the kubelet has told about the pods of this node; read on need, in a thread of its own, and remembered.

Whoever asks gets at once what stands in the book, and is never told to wait. What does not stand there is wished for:
then the list of pods is read, at most once in 30 s, later and later if that fails or does not bring what was wished
for, and never a second time while one reading is under way. So a healthy node is not asked at all.

The bundles' annotations have the first word on whose a container is, and the book adds to that what they do not tell:
so the same finding names the same pod whatever becomes of the kubelet's API.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from agent.clock import Clock
from agent.host.pod_list import ListedPod
from agent.model import Finding, PodRef

log = logging.getLogger("nodediag.kubelet")

PAUSE_SECONDS = 30.0
"""Between the beginnings of two readings at least."""
LONGEST_PAUSE_SECONDS = 300.0
"""After readings that failed."""
FORGOTTEN_SECONDS = 600.0
"""A wish that a whole list did not fulfil is repeated this late at last: it may be no container of the kubelet's."""
MAX_DOUBLINGS = 10
MAX_PODS = 1024
MAX_CONTAINERS = 4096
MAX_WISHES = 256

Read: TypeAlias = Callable[[Callable[[ListedPod], None]], None]
"""Reads the list and hands over each pod; pods handed over before it raises are taken, too."""


@dataclass(slots=True)
class _Wish:
    """A container id or pod uid that somebody asked for; after `misses` whole lists without it, not before `due`."""

    due: float = 0.0
    misses: int = 0


class PodBook:
    """The book. Safe to use from several threads."""

    def __init__(self, read: Read, clock: Clock) -> None:
        self._read = read
        self._clock = clock
        self._lock = threading.Lock()
        self._pods: OrderedDict[str, PodRef] = OrderedDict()
        self._containers: OrderedDict[str, tuple[str, str]] = OrderedDict()
        self._wishes: OrderedDict[str, _Wish] = OrderedDict()
        self._reading = False
        self._due = 0.0
        self._failures = 0
        self._trouble = ""

    def pod_of(self, container_id: str) -> PodRef | None:
        """Return whose container it is; None if that is not known yet."""
        with self._lock:
            found = self._by_container(container_id)
        if found is None and container_id:
            self._wish(container_id)
        return found

    def identify(self, finding: Finding) -> Finding:
        """Return the same finding with all that is known now of whose it is."""
        pod, container_id = finding.pod, finding.target.container_id
        if pod is None:
            found = self.pod_of(container_id)
            return finding if found is None else replace(finding, pod=found)
        if pod.owner or pod.qos_class:
            return finding  # it comes from the book
        with self._lock:
            known = self._pods.get(pod.uid) if pod.uid else self._by_container(container_id)
            container = self._containers.get(container_id, ("", ""))
        if known is None:
            self._wish(pod.uid or container_id)
            return finding
        if pod.name and (pod.namespace, pod.name) != (known.namespace, known.name):
            return finding  # of two words about one thing, the bundle's counts
        named = pod.container or ("" if pod.name or container[0] != known.uid else container[1])
        return replace(finding, pod=replace(known, container=named))

    def _by_container(self, container_id: str) -> PodRef | None:
        """The caller holds the lock."""
        uid, name = self._containers.get(container_id, ("", ""))
        pod = self._pods.get(uid)
        return pod and replace(pod, container=name)

    def _wish(self, key: str) -> None:
        """Have the list read, unless it is too soon for that. Waits for nothing."""
        if not key:
            return
        with self._lock:
            now = self._clock.monotonic()
            wish = self._wishes.setdefault(key, _Wish())
            if len(self._wishes) > MAX_WISHES:
                self._wishes.popitem(last=False)
            if self._reading or now < self._due or now < wish.due:
                return
            self._reading = True
            self._due = now + PAUSE_SECONDS
            wishes = tuple(self._wishes)
        try:
            threading.Thread(target=self._look, args=(wishes,), name="kubelet-pods", daemon=True).start()
        except RuntimeError as error:  # no further thread can be had
            self._finish(wishes, [], str(error))

    def _look(self, wishes: tuple[str, ...]) -> None:
        pods: list[ListedPod] = []
        trouble = ""
        try:
            self._read(pods.append)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong here, findings are named from the bundles
            trouble = f"{error}" or type(error).__name__
        self._finish(wishes, pods, trouble)

    def _finish(self, wishes: tuple[str, ...], pods: list[ListedPod], trouble: str) -> None:
        with self._lock:
            now = self._clock.monotonic()
            for pod in pods:
                self._enter(pod)
            for key in wishes:
                self._judge(key, now, whole=not trouble)
            self._failures = min(self._failures + 1, MAX_DOUBLINGS) if trouble else 0
            if trouble:
                began = self._due - PAUSE_SECONDS
                self._due = began + min(PAUSE_SECONDS * 2 ** (self._failures - 1), LONGEST_PAUSE_SECONDS)
            before, self._trouble = self._trouble, trouble
            self._reading = False
        if trouble and trouble != before:
            log.warning("pods are named by their bundles alone", extra={"why": trouble})
        elif before and not trouble:
            log.info("the kubelet names pods again", extra={"pods": len(pods)})

    def _enter(self, pod: ListedPod) -> None:
        self._pods[pod.ref.uid] = pod.ref
        self._pods.move_to_end(pod.ref.uid)
        for container_id, name in pod.containers:
            self._containers[container_id] = (pod.ref.uid, name)
            self._containers.move_to_end(container_id)
        while len(self._pods) > MAX_PODS:
            self._pods.popitem(last=False)
        while len(self._containers) > MAX_CONTAINERS:
            self._containers.popitem(last=False)

    def _judge(self, key: str, now: float, *, whole: bool) -> None:
        """Strike out a wish that is fulfilled; put off one that a whole list did not fulfil."""
        wish = self._wishes.get(key)
        if key in self._pods or key in self._containers:
            self._wishes.pop(key, None)
        elif wish is not None and whole:
            wish.misses = min(wish.misses + 1, MAX_DOUBLINGS)
            wish.due = now + min(PAUSE_SECONDS * 2**wish.misses, FORGOTTEN_SECONDS)
