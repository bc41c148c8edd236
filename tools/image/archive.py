"""Reads an OCI archive, as `make image` leaves it (image-spec: image-layout.md, manifest.md, config.md)."""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

REFERENCE = "org.opencontainers.image.ref.name"


@dataclass(frozen=True)
class Layer:
    """One layer: its digest, its size as it is pulled, and its entries."""

    digest: str
    compressed: int
    entries: tuple[tarfile.TarInfo, ...]


class OciArchive:
    """The one image of an archive. To be used as a context."""

    def __init__(self, path: Path) -> None:
        self._tar = tarfile.open(path)  # noqa: SIM115 - closed by __exit__
        (entry,) = self._json("index.json")["manifests"]
        self.reference: str = entry["annotations"][REFERENCE]
        self.manifest: dict[str, Any] = self._json(_blob(entry["digest"]))
        self.config: dict[str, Any] = self._json(_blob(self.manifest["config"]["digest"]))

    def __enter__(self) -> Self:
        """Return itself, open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self._tar.close()

    def layers(self) -> Iterator[Layer]:
        """Yield the layers, the lowest first."""
        for layer in self.manifest["layers"]:
            with self._opened(layer["digest"]) as tar:
                yield Layer(layer["digest"], layer["size"], tuple(tar))

    def unpack(self, folder: Path) -> None:
        """Lay out the image's files; needs root for their owners. Layers that take files away are not known."""
        for layer in self.manifest["layers"]:
            with self._opened(layer["digest"]) as tar:
                tar.extractall(folder, filter="fully_trusted")  # noqa: S202 - built here, and owners are to be kept

    def _opened(self, digest: str) -> tarfile.TarFile:
        return tarfile.open(fileobj=self._tar.extractfile(_blob(digest)), mode="r:*")

    def _json(self, name: str) -> dict[str, Any]:
        stream = self._tar.extractfile(name)
        if stream is None:
            raise KeyError(name)
        found: dict[str, Any] = json.load(stream)
        return found


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"
