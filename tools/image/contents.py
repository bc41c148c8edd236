"""Writes docs/image.md, how large the image is and what fills it: `python -m tools.image.contents ARCHIVE`."""

import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tools.image.archive import Layer, OciArchive

MIB = 1 << 20
SMALL = MIB // 4
"""Parts below this are told together."""
PARTS = (
    (re.compile(r"usr(/local)?/bin/python3"), "the interpreter"),
    (re.compile(r"usr(/local)?/lib/python3\.\d+/(?!(dist|site)-packages)"), "its standard library"),
    (re.compile(r"usr/local/lib/python3\.\d+/(?:dist|site)-packages/agent/|usr/local/bin/nodediag"), "nodediag itself"),
    (re.compile(r"usr/local/lib/python3\.\d+/(?:dist|site)-packages/(?P<name>[^/.]+)"), "package {name}"),
    (re.compile(r"(?:usr/)?lib(?:64)?/(?:.*/)?(?P<name>lib[^/]+|ld-[^/]+)"), "library {name}"),
)
LAYERS = ("interpreter and libraries", "packages", "nodediag")


def main() -> None:
    """Print the page."""
    with OciArchive(Path(sys.argv[1])) as image:
        print("\n".join(page(image.reference, list(image.layers()))))  # noqa: T201 - the page


def page(reference: str, layers: list[Layer]) -> Iterator[str]:
    """Yield the page's lines."""
    sizes = Counter[str]()
    for layer in layers:
        sizes.update(_sizes(layer))
    bytecode = sum(entry.size for layer in layers for entry in layer.entries if entry.name.endswith(".pyc"))
    pulled = sum(layer.compressed for layer in layers)
    yield from ("<!-- Made from the built image by `make image-size`; do not edit. -->", "# The image", "")
    name = reference.rpartition("/")[2]
    yield f"`{name}` is {pulled / MIB:.1f} MiB to pull and {sizes.total() / MIB:.1f} MiB on disk,"
    yield f"{bytecode / MIB:.1f} MiB of it bytecode, which a read-only root could not be given later."
    yield from ("", "| layer | to pull, MiB | on disk, MiB |", "|---|---:|---:|")
    for name, layer in zip(LAYERS, layers, strict=True):
        yield f"| {name} | {layer.compressed / MIB:.1f} | {sum(_sizes(layer).values()) / MIB:.1f} |"
    yield from ("", "An upgrade of nodediag alone pulls the last layer.", "")
    yield from ("| what fills it | on disk, MiB |", "|---|---:|")
    small = {part: size for part, size in sizes.items() if size < SMALL}
    for part, size in sizes.most_common():
        if part not in small:
            yield f"| {part} | {size / MIB:.1f} |"
    yield f"| {len(small)} smaller parts | {sum(small.values()) / MIB:.1f} |"


def _sizes(layer: Layer) -> Counter[str]:
    sizes = Counter[str]()
    for entry in layer.entries:
        sizes[_part(entry.name.removeprefix("./"))] += entry.size
    return sizes


def _part(name: str) -> str:
    for pattern, part in PARTS:
        found = pattern.match(name)
        if found:
            return part.format(**found.groupdict())
    return "copyright notices and the names of Debian's packages"


if __name__ == "__main__":
    main()
