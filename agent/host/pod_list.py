"""Reads the kubelet's list of pods as it arrives, one pod at a time, without ever holding the list.

The kubelet answers `/pods` with one PodList (kubernetes, pkg/kubelet/server, encodePods): a head, then an array of
pods. The array is cut at the brackets outside of strings; one pod's text is kept until it is whole, and of what
the text says only the few words needed are kept while it is parsed. So the cost is one pod's text and not 20 MB of
JSON as Python objects, and what a tenant writes into a pod (10,000 environment variables) is dropped as it is read.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

from agent.host.kubelet_calls import PODS
from agent.model import PodRef

MAX_SECONDS = 10.0
MAX_BYTES = 20 << 20
MAX_PODS = 500
"""Bounds of one reading: time of everything together, length of the answer, pods taken from it."""
MAX_POD_BYTES = 512 * 1024
"""Text of one pod. etcd takes 1.5 MiB, real ones have 5 to 50 KB; a larger one is passed over."""
MAX_COMMAS = 20_000
"""In the text of one pod: there are hardly more values than commas, and each costs some 60 bytes when it is parsed."""
MAX_HEAD_BYTES = 4096
"""Within this the array must begin: ListMeta is a few short words."""
MAX_CONTAINERS = 64
"""Containers of one pod that are kept."""
MAX_NAME = 253
"""Characters of a Kubernetes name (RFC 1123 subdomain); of a longer word nothing is believed."""
QOS_CLASSES = frozenset({"Guaranteed", "Burstable", "BestEffort"})
NODE_CRITICAL = "system-node-critical"
"""The priority class; admission and the kubelet (IsNodeCriticalPod) tie the priority to it."""

_HEAD = re.compile(rb'\A\s*\{[^\[\]]*?"items"\s*:\s*(\[|null)')
_INSIDE = rb'(?:[^"\\]++|\\.)*+'
_NEXT = re.compile(
    rb'(?:[^"\[\]{}]++|"' + _INSIDE + rb'")*+' + rb"(?:(?P<bracket>[\[\]{}])|(?P<unended>\"" + _INSIDE + rb"))?",
    re.DOTALL,
)
"""Everything up to the next bracket outside of strings, or a string that goes on beyond what has arrived."""
_REST_OF_STRING = re.compile(_INSIDE + rb'("?)', re.DOTALL)
_STATUSES = ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses")
_WORDS = frozenset(
    {
        *("metadata", "spec", "status", "namespace", "name", "uid", "labels", "ownerReferences", "controller", "kind"),
        *("priorityClassName", "qosClass", "containerID", "state", "lastState", "terminated", *_STATUSES),
    }
)
_ID = re.compile(r"[a-z0-9.+-]{1,32}://([A-Za-z0-9._-]{1,128})")
_NOTHING: Mapping[str, Any] = {}


class PodListError(ValueError):
    """What arrived is no PodList, or not a whole one; the text says in which way."""


@dataclass(frozen=True, slots=True)
class ListedPod:
    """One pod as the kubelet tells it; `containers` has (container id, name), those that ended before included."""

    ref: PodRef
    containers: tuple[tuple[str, str], ...]


class Api(Protocol):
    """What is asked of a KubeletApi."""

    def get(self, path: str, take: Callable[[bytes], bool], *, seconds: float, max_bytes: int) -> None:
        """Hand over a body piece by piece; see KubeletApi."""


def read_pods(api: Api, labels: tuple[str, ...], take: Callable[[ListedPod], None]) -> None:
    """Ask for the pods and hand over each as soon as it is read.

    Raises PodListError, and what the API raises; the pods handed over before are right all the same.
    """
    reader, room = PodListReader(labels), MAX_PODS

    def hear(data: bytes) -> bool:
        nonlocal room
        for pod in reader.feed(data):
            if not room:
                raise PodListError(f"the kubelet lists more than {MAX_PODS} pods; the others are not read")
            room -= 1
            take(pod)
        return not reader.ended

    api.get(PODS, hear, seconds=MAX_SECONDS, max_bytes=MAX_BYTES)
    if not reader.ended:
        raise PodListError("the kubelet's list of pods ends in the middle of it")
    if reader.too_large:
        large = f"{reader.too_large} of its pods have more than {MAX_POD_BYTES >> 10} KiB, or {MAX_COMMAS} values"
        raise PodListError(f"the kubelet's list of pods is not read in full: {large}")


class PodListReader:
    """Takes the bytes of a PodList in any pieces and gives its pods. `labels` are the names of those that are kept.

    `ended` is True once the array has ended; `too_large` counts the pods passed over because of their size.
    """

    def __init__(self, labels: tuple[str, ...] = ()) -> None:
        self.ended = False
        self.too_large = 0
        self._labels = tuple(sorted(labels))
        self._wanted = _WORDS | set(labels)
        self._head = bytearray()
        self._began = False
        self._depth = 0
        self._in_string = False
        self._carried = b""
        self._pod = bytearray()

    def feed(self, data: bytes) -> Iterator[ListedPod]:
        """Take the next bytes and yield the pods that are whole with them. Raises PodListError."""
        if not self._began:
            data = self._find_array(data)
        if self._began and not self.ended:
            yield from self._scan(data)

    def _find_array(self, data: bytes) -> bytes:
        """Return what follows the beginning of the array, once it is there."""
        self._head += data
        found = _HEAD.match(self._head)
        if found is None:
            if len(self._head) > MAX_HEAD_BYTES or not b"{".startswith(self._head.lstrip()[:1]):
                raise PodListError(f"it begins with {bytes(self._head[:40])!r}, which is no list of pods")
            return b""
        rest = bytes(self._head[found.end() :])
        self._head.clear()
        self._began = True
        self.ended = found[1] == b"null"  # Go writes an empty list so
        return rest

    def _scan(self, data: bytes) -> Iterator[ListedPod]:
        data = self._carried + data
        position = self._end_of_string(data)
        kept_from = 0
        while position < len(data) and not self._in_string:
            found = cast("re.Match[bytes]", _NEXT.match(data, position))  # it matches the empty text, too
            position = found.end()
            self._in_string = found["unended"] is not None
            match found["bracket"]:
                case None:
                    pass
                case b"{" | b"[":
                    if self._depth == 0:
                        kept_from = position - 1
                    self._depth += 1
                case _:
                    self._depth -= 1
                    if self._depth < 0:
                        self.ended = True
                        return
                    if self._depth == 0:
                        self._keep(data[kept_from:position])
                        yield from self._whole()
        self._carried = data[position:]  # a backslash whose other half is still to come
        if self._depth > 0:
            self._keep(data[kept_from:position])

    def _end_of_string(self, data: bytes) -> int:
        """Go to the end of a string that began earlier, and return where to go on."""
        if not self._in_string:
            return 0
        rest = cast("re.Match[bytes]", _REST_OF_STRING.match(data))
        self._in_string = not rest[1]
        return rest.end()

    def _keep(self, text: bytes) -> None:
        """Add to the text of the pod under way, up to the bound."""
        if len(self._pod) <= MAX_POD_BYTES:
            self._pod += text[: MAX_POD_BYTES + 1 - len(self._pod)]

    def _whole(self) -> Iterator[ListedPod]:
        text, self._pod = self._pod, bytearray()
        if len(text) > MAX_POD_BYTES or text.count(b",") > MAX_COMMAS:
            self.too_large += 1
            return
        try:
            read = json.loads(text, object_pairs_hook=self._words)
        except (ValueError, RecursionError) as error:
            raise PodListError(f"one of its pods is no JSON: {str(error)[:80]}") from None
        pod = self._listed(read) if isinstance(read, dict) else None
        if pod is not None:
            yield pod

    def _words(self, pairs: list[tuple[str, Any]]) -> dict[str, Any] | None:
        """Keep of a JSON object only what is asked for later; what has nothing but a name costs nothing."""
        kept = {key: value for key, value in pairs if key in self._wanted and value is not None}
        return kept if kept and (len(kept) > 1 or "name" not in kept) else None

    def _listed(self, read: Mapping[str, Any]) -> ListedPod | None:
        metadata, status = _table(read, "metadata"), _table(read, "status")
        name, uid = _word(metadata, "name"), _word(metadata, "uid")
        if not name or not uid:
            return None
        qos_class = _word(status, "qosClass")
        labels = _table(metadata, "labels")
        ref = PodRef(
            namespace=_word(metadata, "namespace"),
            name=name,
            uid=uid,
            owner=_owner(metadata),
            qos_class=qos_class if qos_class in QOS_CLASSES else "",
            node_critical=_word(_table(read, "spec"), "priorityClassName") == NODE_CRITICAL,
            labels=tuple((key, _word(labels, key)) for key in self._labels if isinstance(labels.get(key), str)),
        )
        return ListedPod(ref, tuple(_containers(status)))


def _table(words: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = words.get(key)
    return found if isinstance(found, dict) else _NOTHING


def _tables(words: Mapping[str, Any], key: str) -> Iterator[Mapping[str, Any]]:
    found = words.get(key)
    if isinstance(found, list):
        yield from (each for each in found if isinstance(each, dict))


def _word(words: Mapping[str, Any], key: str) -> str:
    found = words.get(key)
    return found if isinstance(found, str) and len(found) <= MAX_NAME else ""


def _owner(metadata: Mapping[str, Any]) -> str:
    """The controller among the owners, as `Kind/name`; there is one at most."""
    for each in _tables(metadata, "ownerReferences"):
        kind, name = _word(each, "kind"), _word(each, "name")
        if each.get("controller") is True and kind and name:
            return f"{kind}/{name}"
    return ""


def _containers(status: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The ids of containers that are there and of those that ended last, with the container's name."""
    count = 0
    for each in (each for key in _STATUSES for each in _tables(status, key)):
        name = _word(each, "name")
        ended = (_table(_table(each, state), "terminated") for state in ("state", "lastState"))
        urls = (_word(words, "containerID") for words in (each, *ended))
        for container_id in dict.fromkeys(found[1] for url in urls if (found := _ID.fullmatch(url))):
            if name and count < MAX_CONTAINERS:
                count += 1
                yield container_id, name
