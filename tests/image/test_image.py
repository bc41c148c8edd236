"""What is in the built image, what is not, and that it runs: on the archive that `make image` leaves."""

import json
import re
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from agent import __version__
from tools.image.archive import Layer, OciArchive

ROOT = Path(__file__).resolve().parents[2]
ARCHIVE = ROOT / "build" / "nodediag.tar"
PYTHON = "python3.13"
SITE = f"usr/local/lib/{PYTHON}/dist-packages"
UNCHECKED_HASH = 0b01
"""The flags of a .pyc that is never compared with its source (PEP 552)."""


@pytest.fixture(scope="session")
def image() -> Iterator[OciArchive]:
    if not ARCHIVE.exists():
        subprocess.run(["make", "--no-print-directory", "image"], cwd=ROOT, check=True)
    with OciArchive(ARCHIVE) as archive:
        yield archive


@pytest.fixture(scope="session")
def layers(image: OciArchive) -> list[Layer]:
    return list(image.layers())


@pytest.fixture(scope="session")
def entries(layers: list[Layer]) -> list[tarfile.TarInfo]:
    return [entry for layer in layers for entry in layer.entries]


@pytest.fixture(scope="session")
def root(image: OciArchive, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image")
    image.unpack(folder)
    return folder


def run(image: OciArchive, root: Path, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the image's files, with the image's environment and nothing of ours."""
    own = dict(line.split("=", 1) for line in image.config["config"]["Env"])
    return subprocess.run(
        ["/usr/sbin/chroot", root, *command], env={**own, **environ}, capture_output=True, text=True, check=False
    )


# What it says of itself


def test_it_is_named_by_its_version(image: OciArchive) -> None:
    assert image.reference == f"localhost/nodediag:{__version__}"


def test_its_labels_tell_what_it_is_and_what_it_was_made_of(image: OciArchive) -> None:
    prefix = "org.opencontainers.image."
    labels: dict[str, str] = {
        name.removeprefix(prefix): value
        for name, value in image.config["config"]["Labels"].items()
        if name.startswith(prefix)
    }
    assert labels["title"] == "nodediag"
    assert labels["licenses"] == "Apache-2.0"
    assert labels["version"] == __version__
    assert labels["source"].startswith("https://")
    assert "shim" in labels["description"]
    assert re.fullmatch(r"([0-9a-f]{40}|unknown)(-changed)?", labels["revision"])


def test_it_starts_nodediag_as_root_and_leaves_health_to_kubernetes(image: OciArchive) -> None:
    config: dict[str, Any] = image.config["config"]
    assert config["Entrypoint"] == ["nodediag"]
    assert config["User"] == "0:0"
    assert "Healthcheck" not in config
    assert "Healthcheck" not in json.dumps(image.config)


def test_it_has_three_layers_and_the_agent_s_is_small(layers: list[Layer]) -> None:
    assert len(layers) == 3
    assert layers[-1].compressed < 4 << 20


def test_its_page_tells_its_size(layers: list[Layer]) -> None:
    told = re.search(r"is ([0-9.]+) MiB to pull", (ROOT / "docs" / "image.md").read_text())
    assert told is not None
    pulled = sum(layer.compressed for layer in layers) / (1 << 20)
    assert float(told[1]) == pytest.approx(pulled, rel=0.05), "run: make image-size"


# What is in it


def test_nothing_in_it_can_be_run_but_python_and_nodediag(entries: list[tarfile.TarInfo]) -> None:
    """No shell, no package manager, no compiler."""
    programs = {each.name for each in entries if each.isfile() and each.mode & 0o111}
    loader = {name for name in programs if re.fullmatch(r"usr/lib(64)?/ld-linux-[^/]+", name)}
    assert len(loader) == 1
    assert programs - loader == {f"usr/bin/{PYTHON}", "usr/local/bin/nodediag"}


def test_nothing_in_it_installs_or_builds(root: Path) -> None:
    unwanted = re.compile(r"(pip|setuptools|wheel|_distutils_hack|ensurepip|idlelib|tkinter|venv)([-.].*)?")
    folders = [root / SITE, root / "usr/lib" / PYTHON, root / "usr/local/bin", root / "usr/bin"]
    assert not [entry.name for folder in folders for entry in folder.iterdir() if unwanted.fullmatch(entry.name)]
    assert not list(root.rglob("*.whl"))
    assert not (root / "usr/include").exists()


def test_nobody_but_root_owns_or_may_write_anything(entries: list[tarfile.TarInfo]) -> None:
    assert {(each.uid, each.gid) for each in entries} == {(0, 0)}
    assert not [each.name for each in entries if not each.issym() and each.mode & (stat.S_IWGRP | stat.S_IWOTH)]


def test_nothing_changes_who_somebody_is_and_nothing_is_a_device(entries: list[tarfile.TarInfo]) -> None:
    assert not [each.name for each in entries if each.mode & (stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX)]
    assert not [each.name for each in entries if not (each.isfile() or each.isdir() or each.issym())]
    assert not [each.name for each in entries if any(name.startswith("security.") for name in each.pax_headers)]


def test_no_link_leads_to_nothing(root: Path) -> None:
    for path in root.rglob("*"):
        if path.is_symlink():
            target = path.readlink()
            place = root / target.relative_to("/") if target.is_absolute() else path.parent / target
            assert place.exists(), f"{path} -> {target}"


def test_its_packages_are_the_locked_ones_and_ours(root: Path) -> None:
    installed: dict[str, str] = {}
    for metadata in (root / SITE).glob("*.dist-info/METADATA"):
        said = HeaderParser().parsestr(metadata.read_text())
        installed[canonicalize_name(said["Name"])] = said["Version"]
    assert installed == {**locked(), "nodediag": __version__}


def locked() -> dict[str, str]:
    """Return the locked versions that are for Linux."""
    found: dict[str, str] = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if "==" in line:
            requirement = Requirement(line.removesuffix("\\"))
            if requirement.marker is None or requirement.marker.evaluate({"sys_platform": "linux"}):
                (version,) = (each.version for each in requirement.specifier)
                found[canonicalize_name(requirement.name)] = version
    return found


def test_scanners_find_what_it_has_of_debian_and_its_licences_are_kept(root: Path) -> None:
    packages = {file.name for file in (root / "var/lib/dpkg/status.d").iterdir()}
    assert {"libc6", "libssl3t64", f"{PYTHON}-minimal", "libsqlite3-0"} <= packages
    for name in packages:
        assert f"Package: {name}\n" in (root / "var/lib/dpkg/status.d" / name).read_text()
        assert (root / "usr/share/doc" / name / "copyright").exists()


# That it runs


def test_it_runs(image: OciArchive, root: Path) -> None:
    done = run(image, root, *image.config["config"]["Entrypoint"], "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"nodediag {__version__}\n", "")


def test_every_module_of_the_agent_can_be_imported_and_nothing_had_to_be_compiled(
    image: OciArchive, root: Path
) -> None:
    """So every library that anything loads is there, and all bytecode is, though it could be written here."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted((ROOT / "agent").rglob("*.py"))
        if path.name not in {"__init__.py", "__main__.py"}
    ]
    before = bytecode(root)

    done = run(image, root, "python3", "-c", f"import {', '.join(modules)}", PYTHONDONTWRITEBYTECODE="")

    assert (done.returncode, done.stderr) == (0, "")
    assert len(modules) > 80
    assert bytecode(root) == before


def test_what_is_left_of_kubernetes_is_what_the_agent_loads(image: OciArchive, root: Path) -> None:
    load = "from agent.exporters.node_conditions.api import _library; print(_library().rest.__module__)"

    done = run(image, root, "python3", "-c", load)

    assert (done.returncode, done.stdout, done.stderr) == (0, "kubernetes.client.rest\n", "")
    assert sum(file.stat().st_size for file in (root / SITE / "kubernetes").rglob("*")) < 4 << 20


def test_every_module_has_bytecode_that_no_clock_can_make_stale(root: Path) -> None:
    sources = [path for path in root.rglob("*.py") if compiles(path)]
    assert len(sources) > 1000
    for source in sources:
        compiled = source.parent / "__pycache__" / f"{source.stem}.cpython-313.pyc"
        assert int.from_bytes(compiled.read_bytes()[4:8], "little") == UNCHECKED_HASH, source


def test_a_traceback_names_a_file_that_is_there(image: OciArchive, root: Path) -> None:
    done = run(image, root, "python3", "-c", "from agent.settings import inline; print(inline.__code__.co_filename)")
    assert (root / done.stdout.strip().lstrip("/")).is_file()


def bytecode(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in root.rglob("*.pyc")}


def compiles(source: Path) -> bool:
    """Templates of code, which some packages ship, are no modules."""
    return source.stem.isidentifier()
