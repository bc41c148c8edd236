"""The scripts behind `make image` that need neither buildah nor a network to be tested."""

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from tools.image.archive import Layer
from tools.image.contents import page

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("base", ["python:3.13-slim-trixie", "registry.example.org/debian@latest"])
def test_a_base_without_its_digest_is_refused_before_anything_is_built(tmp_path: Path, base: str) -> None:
    archive = tmp_path / "nodediag.tar"

    done = subprocess.run(
        ["tools/image/build", "0.1.0", archive, base], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 2
    assert done.stderr == f"the base {base} is not pinned: name it with its digest, as in NAME@sha256:...\n"
    assert not archive.exists()


def test_the_page_tells_every_byte_of_what_fills_the_image() -> None:
    mib = 1 << 20
    files = {
        "usr/bin/python3.13": 6 * mib,
        "usr/lib/python3.13/os.py": mib,
        "usr/lib/python3.13/__pycache__/os.cpython-313.pyc": mib,
        "usr/lib/x86_64-linux-gnu/libc.so.6": 2 * mib,
    }
    packages = {"usr/local/lib/python3.13/dist-packages/grpc/a.so": 16 * mib, "etc/passwd": 40}
    own = {"usr/local/lib/python3.13/dist-packages/agent/app.py": 2 * mib, "usr/local/bin/nodediag": 100}

    text = "\n".join(page("localhost/nodediag:0.1.0", [_layer(files), _layer(packages), _layer(own)]))

    assert "`nodediag:0.1.0` is 3.0 MiB to pull and 28.0 MiB on disk,\n1.0 MiB of it bytecode" in text
    for row in (
        "| package grpc | 16.0 |",
        "| the interpreter | 6.0 |",
        "| its standard library | 2.0 |",
        "| library libc.so.6 | 2.0 |",
        "| nodediag itself | 2.0 |",
        "| 1 smaller parts | 0.0 |",
        "| nodediag | 1.0 | 2.0 |",
    ):
        assert row in text.splitlines()


def _layer(files: dict[str, int]) -> Layer:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, size in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = size
            tar.addfile(entry, io.BytesIO(b"\0" * size))
    stream.seek(0)
    with tarfile.open(fileobj=stream) as tar:
        return Layer("sha256:0", 1 << 20, tuple(tar))
