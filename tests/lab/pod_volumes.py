"""What a pod's volumes become on the node, as the kubelet makes them: directories below the pod's own, or the node's.

Only the kinds a node agent may sensibly have; any other is an error, so that a manifest never says more than is run.
"""

from __future__ import annotations

import base64
import os
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Objects = Mapping[tuple[str, str], Mapping[str, Any]]
"""The ConfigMaps and Secrets of the pod's namespace, by kind and name."""

_MIB = 1 << 20
_NAMESPACE = "metadata.namespace"
TOKEN = "first-token"
"""Every service account's, and what the lab's API server takes."""


class Volumes:
    """Makes volumes below one pod's directory."""

    def __init__(self, pod_dir: Path, objects: Objects, namespace: str) -> None:
        self._dir = pod_dir / "volumes"
        self._namespace = namespace
        self._objects = objects
        self._mounted: list[Path] = []

    def make(self, volume: Mapping[str, Any]) -> tuple[Path, bool]:
        """Make one volume; return where it is on the node, and whether it is read-only by its kind.

        Raises FileNotFoundError for a hostPath or object that is not there: the kubelet would wait for it.
        """
        (kind, source) = next((key, value) for key, value in volume.items() if key != "name")
        name = volume["name"]
        match kind:
            case "hostPath":
                return _host_path(Path(source["path"]), source.get("type", "")), False
            case "emptyDir":
                return self._empty_dir(name, source or {}), False
            case "configMap":
                return self._written(name, "configmap", source, self._object("ConfigMap", source["name"], source)), True
            case "secret":
                files = self._object("Secret", source["secretName"], source)
                return self._written(name, "secret", source, files), True
            case "projected":
                return self._written(name, "projected", source, self._projected(source)), True
        raise NotImplementedError(f"a volume of kind {kind}: {name}")

    def unmount(self) -> None:
        """Take the file systems away that volumes were given."""
        while self._mounted:
            subprocess.run(["umount", str(self._mounted.pop())], check=True)

    def _empty_dir(self, name: str, source: Mapping[str, Any]) -> Path:
        place = self._dir / "kubernetes.io~empty-dir" / name
        place.mkdir(parents=True)
        if source.get("medium") == "Memory":
            options = f"mode=777,size={_bytes(source['sizeLimit'])}" if "sizeLimit" in source else "mode=777"
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)
            self._mounted.append(place)
        place.chmod(0o777)
        return place

    def _written(self, name: str, kind: str, source: Mapping[str, Any], files: Mapping[str, bytes]) -> Path:
        """Lay files out as the kubelet's atomic writer does: links through `..data`."""
        place = self._dir / f"kubernetes.io~{kind}" / name
        generation = place / "..2026_01_01_00_00_00.1"
        generation.mkdir(parents=True)
        for file, content in files.items():
            (generation / file).write_bytes(content)
            (generation / file).chmod(source.get("defaultMode", 0o644))
        (place / "..data").symlink_to(generation.name)
        for file in files:
            (place / file).symlink_to(f"..data/{file}")
        return place

    def _projected(self, source: Mapping[str, Any]) -> dict[str, bytes]:
        files: dict[str, bytes] = {}
        for part in source["sources"]:
            for kind, what in part.items():
                match kind:
                    case "configMap":
                        files |= self._object("ConfigMap", what["name"], what)
                    case "secret":
                        files |= self._object("Secret", what["name"], what)
                    case "serviceAccountToken":
                        files[what["path"]] = TOKEN.encode()
                    case "downwardAPI" if [item["fieldRef"]["fieldPath"] for item in what["items"]] == [_NAMESPACE]:
                        files[what["items"][0]["path"]] = self._namespace.encode()
                    case _:
                        raise NotImplementedError(f"a projected source of kind {kind}")
        return files

    def _object(self, kind: str, name: str, source: Mapping[str, Any]) -> dict[str, bytes]:
        found = self._objects.get((kind, name))
        if found is None:
            if source.get("optional"):
                return {}
            raise FileNotFoundError(f"there is no {kind} {name}")
        files = {key: text.encode() for key, text in (found.get("data") or {}).items()}
        if kind == "Secret":
            files = {key: base64.b64decode(content) for key, content in files.items()}
            files |= {key: text.encode() for key, text in (found.get("stringData") or {}).items()}
        if "items" in source:
            return {item["path"]: files[item["key"]] for item in source["items"]}
        return files


_KINDS = {"Directory": stat.S_ISDIR, "File": stat.S_ISREG, "Socket": stat.S_ISSOCK, "CharDevice": stat.S_ISCHR}


def _host_path(path: Path, kind: str) -> Path:
    """Check a hostPath by its type, as the kubelet does before it mounts it; make what is to be made."""
    if kind == "DirectoryOrCreate":
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
    elif kind == "FileOrCreate":
        path.touch(mode=0o644)
    elif kind:
        found = os.stat(path).st_mode  # noqa: PTH116 - beside stat's predicates
        if not _KINDS[kind](found):
            raise FileNotFoundError(f"hostPath type check failed: {path} is not a {kind}")
    return path


def _bytes(quantity: str) -> int:
    if not quantity.endswith("Mi"):
        raise NotImplementedError(f"a size of {quantity}")
    return int(quantity.removesuffix("Mi")) * _MIB
