"""Lays out the image's files, run by the base's own python3 in the first stage of the Dockerfile.

`assemble.py site` prints where packages belong; `assemble.py image OUT` takes the three folders of OUT (`packages` and
`agent` hold what pip installed, `python` is made here) and makes of each what one layer of the image holds.

Of the base, the image gets the interpreter, its standard library and the shared libraries these load, found by ldd(1):
no shell, no package manager, nothing that runs but python3 and nodediag. The packages they belong to are named in
/var/lib/dpkg/status.d, where scanners look, and keep their copyright files.

Bytecode is compiled here and marked unchecked-hash (PEP 552): a read-only root can never be given it later, and a build
that sets every file's time, as reproducible ones do, would make a time-checked .pyc worthless.
"""

import compileall
import os
import py_compile
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

STDLIB = Path(sysconfig.get_path("stdlib"))
DYNLOAD = Path(sysconfig.get_config_var("DESTSHARED") or STDLIB / "lib-dynload")
INTERPRETER = Path(sys.executable)

UNUSED_MODULES = re.compile(
    r"(ensurepip|venv|idlelib|tkinter|turtledemo|turtle\.py|test|pydoc_data|lib2to3|_pyrepl|config-.*|site-packages"
    r"|dist-packages|sitecustomize\.py|EXTERNALLY-MANAGED|__pycache__|.*\.whl)"
)
"""What installs, teaches or tests; sitecustomize.py is a link to what the image has not."""
UNUSED_EXTENSIONS = re.compile(r"(_test|_tkinter|xx|_curses|readline|_dbm|_gdbm|_ctypes_test).*")
UNUSED_IN_PACKAGES = ("kubernetes/aio", "kubernetes/client/api", "kubernetes/client/models")
"""115 MiB of classes for every kind of object, which nothing loads (see agent/exporters/node_conditions/api.py)."""

EMPTY_FOLDERS = ("dev", "etc/nodediag", "proc", "run/containerd", "run/dbus", "run/nodediag", "sys", "var/lib/nodediag")
"""Where a runtime mounts something: it cannot make them under a root it may not write to."""
ACCOUNTS = {"etc/passwd": "root:x:0:0:root:/:/usr/sbin/nologin\n", "etc/group": "root:x:0:\n"}
LIBRARY = re.compile(rb"=> (/\S+) \(0x|^\s+(/\S+) \(0x", re.MULTILINE)


def main(arguments: list[str]) -> None:
    """Do what was asked."""
    match arguments:
        case ["site"]:
            print(site())  # noqa: T201 - read by the Dockerfile
        case ["image", out]:
            image(Path(out))
        case _:
            raise SystemExit(__doc__)


def site() -> str:
    """Return the folder of packages that this interpreter reads without being told."""
    paths = [path for path in sys.path if path.startswith("/usr/local/") and path.endswith("-packages")]
    return paths[0] if paths else f"/usr/local/lib/python{sysconfig.get_python_version()}/dist-packages"


def image(out: Path) -> None:
    """Make the three layers."""
    python, packages, agent = out / "python", out / "packages", out / "agent"
    _without_the_unused(packages)
    _with_the_command(agent)
    copied = list(_interpreter(python))
    copied += _libraries(python, [*_programs(python), *_programs(packages)])
    _configuration(python)
    _name_debian_packages(python, copied)
    for layer in (python, packages, agent):
        _compile(layer)
        _harden(layer)


def _interpreter(root: Path) -> Iterator[Path]:
    """Copy the interpreter and its standard library; yields what was copied."""
    real = INTERPRETER.resolve()
    yield _copy(root, real)
    if real != INTERPRETER:
        _link(root, INTERPRETER, str(INTERPRETER.readlink()))
    for entry in sorted(STDLIB.iterdir()):
        if UNUSED_MODULES.fullmatch(entry.name) or entry == DYNLOAD:
            continue
        yield from _copy_tree(root, entry)
    for entry in sorted(DYNLOAD.iterdir()):
        if not UNUSED_EXTENSIONS.match(entry.name):
            yield _copy(root, entry)


def _copy_tree(root: Path, source: Path) -> Iterator[Path]:
    if source.is_dir():
        for entry in sorted(source.iterdir()):
            if entry.name != "__pycache__":
                yield from _copy_tree(root, entry)
    else:
        yield _copy(root, source)


def _copy(root: Path, source: Path) -> Path:
    """Copy a file to the same real place below root."""
    place = source.parent.resolve() / source.name
    target = root / place.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    shutil.copymode(source, target)
    return place


def _link(root: Path, name: Path, target: str) -> None:
    place = root / name.relative_to("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target)


def _programs(root: Path) -> Iterator[Path]:
    """Yield every ELF file below root."""
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as stream:
                if stream.read(4) == b"\x7fELF":
                    yield path


def _libraries(root: Path, programs: Iterable[Path]) -> list[Path]:
    """Copy the shared libraries these load, each under the name it is loaded by; returns what was copied."""
    found: set[Path] = set()
    for program in programs:
        listed = subprocess.run(["ldd", program], capture_output=True, check=False).stdout  # noqa: S603, S607
        if b"not found" in listed:
            raise SystemExit(f"{program} lacks a library of the base:\n{listed.decode()}")
        found |= {Path(os.fsdecode(name or loader)) for name, loader in LIBRARY.findall(listed)}
    copied = [_copy(root, library) for library in sorted(found) if not library.is_relative_to(root.parent)]
    for name in (Path("/bin"), Path("/lib"), Path("/lib64")):
        if name.is_symlink() and (root / name.readlink()).exists():
            _link(root, name, str(name.readlink()))
    return copied


def _configuration(root: Path) -> None:
    """Make the little that the C library and OpenSSL look for, and the folders that are mounted over."""
    for folder in EMPTY_FOLDERS:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, text in ACCOUNTS.items():
        (root / name).write_text(text)
    (root / "etc/nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")
    for path in (Path("/etc/ssl/openssl.cnf"), Path("/etc/os-release")):
        if path.exists():
            target = root / path.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    if Path("/usr/lib/ssl/openssl.cnf").is_symlink():
        _link(root, Path("/usr/lib/ssl/openssl.cnf"), "/etc/ssl/openssl.cnf")
    if Path("/etc/ld.so.conf").exists():
        shutil.copytree("/etc/ld.so.conf.d", root / "etc/ld.so.conf.d", dirs_exist_ok=True)
        shutil.copyfile("/etc/ld.so.conf", root / "etc/ld.so.conf")
    subprocess.run(["/sbin/ldconfig", "-r", root], check=True)  # noqa: S603
    shutil.rmtree(root / "var/cache", ignore_errors=True)


def _name_debian_packages(root: Path, copied: Iterable[Path]) -> None:
    """Leave word of the Debian packages that something was taken from."""
    names: set[str] = set()
    for path in {path.parent if path.is_relative_to(STDLIB) else path for path in copied}:
        found = subprocess.run(["dpkg-query", "--search", path], capture_output=True, text=True, check=False)  # noqa: S603, S607
        names |= {name.strip() for line in found.stdout.splitlines() for name in line.rpartition(": ")[0].split(",")}
    status = root / "var/lib/dpkg/status.d"
    status.mkdir(parents=True, exist_ok=True)
    for name in sorted(names - {""}):
        said = subprocess.run(["dpkg-query", "--status", name], capture_output=True, check=True).stdout  # noqa: S603, S607
        bare = name.partition(":")[0]
        (status / bare).write_bytes(said)
        notice = Path("/usr/share/doc", bare, "copyright")  # several packages may share one by a link
        if notice.exists():
            target = root / notice.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(notice, target)


def _without_the_unused(packages: Path) -> None:
    """Drop the commands that dependencies bring, which nothing in the image could want to run, and unused parts."""
    for folder in ("bin", *UNUSED_IN_PACKAGES):
        shutil.rmtree(packages / site().removeprefix("/") / folder)


def _with_the_command(agent: Path) -> None:
    """Put our own command where the PATH finds it."""
    scripts = agent / site().removeprefix("/") / "bin"
    target = agent / "usr/local/bin/nodediag"
    target.parent.mkdir(parents=True)
    shutil.move(scripts / "nodediag", target)
    shutil.rmtree(scripts)


def _compile(layer: Path) -> None:
    """Compile every module, as it will be named in the image."""
    done = compileall.compile_dir(
        layer,
        maxlevels=50,
        quiet=1,
        stripdir=layer,
        prependdir="/",
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    if not done:
        raise SystemExit(f"not every module below {layer} compiles")


def _harden(layer: Path) -> None:
    """Leave nobody but root anything to write to, no bit that changes who somebody is, and two programs to run."""
    for path in [layer, *layer.rglob("*")]:
        if not path.is_symlink():
            os.chown(path, 0, 0)
            runs = path.is_dir() or path.parent.name == "bin" or path.name.startswith("ld-linux")
            path.chmod(0o755 if runs else 0o644)


if __name__ == "__main__":
    main(sys.argv[1:])
