"""Whose container is it, and whose address? Answered at once from what is known.

Container ids are looked up in the bundle's annotations and remembered for a while after the
bundle is gone: what is left of a container still has to be named. What no bundle ever told may stand in
the pod book, where the kubelet's API is read; nobody waits for that.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping

from agent.host.bundles import Bundle, Bundles
from agent.host.pod_book import PodBook
from agent.host.procfs import INIT_PID, Procfs
from agent.model import NotApplicableError, PodRef

MAX_REMEMBERED = 4096


class Pods:
    """Names pods for the detectors; used from several threads. `book` is None where the kubelet's API is not read."""

    def __init__(self, bundles: Bundles, procfs: Procfs, book: PodBook | None = None) -> None:
        self._bundles = bundles
        self._procfs = procfs
        self._book = book
        self._lock = threading.Lock()
        self._known: OrderedDict[str, PodRef] = OrderedDict()

    def remember(self, bundles: Iterable[Bundle]) -> None:
        """Keep the identities of bundles seen now."""
        with self._lock:
            for bundle in bundles:
                if bundle.identity.pod is not None:
                    self._known[bundle.id] = bundle.identity.pod
                    self._known.move_to_end(bundle.id)
            while len(self._known) > MAX_REMEMBERED:
                self._known.popitem(last=False)

    def pod_of(self, container_id: str) -> PodRef | None:
        """Return whose container an id is or was; None if nobody ever told."""
        with self._lock:
            known = self._known.get(container_id)
        if known is None:
            self.remember(self._bundles.find(container_id))
            with self._lock:
                known = self._known.get(container_id)
        return known or (self._book.pod_of(container_id) if self._book else None)

    def owners(self, addresses: frozenset[str]) -> Mapping[str, PodRef]:
        """Return the pods that have these IP addresses; those of the node itself have no owner.

        Reads the network files of every sandbox's process, so ask only about addresses under suspicion.
        """
        try:
            bundles = self._bundles.list()
        except (NotApplicableError, OSError):
            return {}
        self.remember(bundles)
        wanted = addresses - self._procfs.local_addresses(INIT_PID)
        found: dict[str, PodRef] = {}
        for bundle in bundles:
            pod = bundle.identity.pod
            leads = bundle.identity.is_sandbox or not bundle.identity.sandbox_id
            if pod is None or bundle.init_pid is None or not leads:
                continue
            for address in wanted & self._procfs.local_addresses(bundle.init_pid):
                found[address] = pod
            if len(found) == len(wanted):
                break
        return found
