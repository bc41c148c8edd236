"""Who listens where, on real sockets of this process, and in tables that no kernel would write."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.host import listeners
from agent.host.listeners import Listeners
from agent.model import CannotSeeError
from tests.unit.builders import FakeProc

REAL = Listeners("/proc")
HEADING = b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
UNIX_HEADING = b"Num       RefCount Protocol Flags    Type St Inode Path\n"


def inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


@contextmanager
def listening(
    address: str, port: int = 0, *, shared: bool = False, v6_only: bool = False
) -> Iterator[tuple[socket.socket, int]]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6_only)
        sock.bind((address, port))
        sock.listen()
        yield sock, sock.getsockname()[1]


# --- TCP


@pytest.mark.parametrize("bound", ["127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1"])
def test_whoever_gets_a_connection_to_ipv4_is_found(bound: str) -> None:
    with listening(bound) as (sock, port):
        assert REAL.tcp("127.0.0.1", port) == {inode(sock)}
    assert REAL.tcp("127.0.0.1", port) == frozenset()


@pytest.mark.parametrize("bound", ["::1", "::"])
def test_whoever_gets_a_connection_to_ipv6_is_found(bound: str) -> None:
    with listening(bound) as (sock, port):
        assert REAL.tcp("::1", port) == {inode(sock)}


def test_the_socket_bound_most_closely_gets_the_connection() -> None:
    with listening("127.0.0.1") as (close, port), listening("::", port, v6_only=True) as (wide, _):
        assert REAL.tcp("127.0.0.1", port) == {inode(close)}
        assert REAL.tcp("::1", port) == {inode(wide)}


def test_another_address_or_port_is_not_it() -> None:
    with listening("127.0.0.2") as (_, port):
        assert REAL.tcp("127.0.0.1", port) == frozenset()


def test_all_that_share_a_port_are_named() -> None:
    with listening("127.0.0.1", shared=True) as (one, port), listening("127.0.0.1", port, shared=True) as (two, _):
        assert REAL.tcp("127.0.0.1", port) == {inode(one), inode(two)}


def test_a_connection_is_no_listener() -> None:
    with listening("127.0.0.1") as (sock, port), socket.create_connection(("127.0.0.1", port)):
        own = inode(sock)
        assert REAL.tcp("127.0.0.1", port) == {own}


def test_the_table_is_read_no_further_than_its_listeners(tmp_path: Path) -> None:
    proc = FakeProc(tmp_path)
    row = "   0: 0100007F:2808 00000000:0000 {} 00000000:00000000 00:00000000 00000000     0        0 {} 1\n"
    proc.write("self/net/tcp", HEADING + row.format("0A", 11).encode() + row.format("01", 12).encode() + b"\xff")
    assert Listeners(str(tmp_path)).tcp("127.0.0.1", 10248) == {11}


# --- unix


def test_who_listens_at_a_path_is_found_through_links_too(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "var").symlink_to("run")
    with socket.socket(socket.AF_UNIX) as sock, socket.socket(socket.AF_UNIX) as silent:
        sock.bind(str(tmp_path / "run" / "c.sock"))
        sock.listen()
        silent.bind(str(tmp_path / "run" / "d.sock"))
        assert REAL.unix(str(tmp_path / "run" / "c.sock")) == {inode(sock)}
        assert REAL.unix(str(tmp_path / "var" / "c.sock")) == {inode(sock)}
        assert REAL.unix(str(tmp_path / "run" / "d.sock")) == frozenset(), "bound, but does not listen"
        assert REAL.unix(str(tmp_path / "run" / "c.soc")) == frozenset()


def test_an_accepted_connection_at_the_path_is_no_listener(tmp_path: Path) -> None:
    path = str(tmp_path / "c.sock")
    with socket.socket(socket.AF_UNIX) as sock, socket.socket(socket.AF_UNIX) as client:
        sock.bind(path)
        sock.listen()
        client.connect(path)
        connection, _ = sock.accept()
        with connection:
            assert REAL.unix(path) == {inode(sock)}


def test_a_socket_whose_file_was_replaced_is_named_beside_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    with socket.socket(socket.AF_UNIX) as old, socket.socket(socket.AF_UNIX) as new:
        for sock in (old, new):
            path.unlink(missing_ok=True)
            sock.bind(str(path))
            sock.listen()
        assert REAL.unix(str(path)) == {inode(old), inode(new)}


def test_paths_with_blanks_and_broken_lines_do_no_harm(tmp_path: Path) -> None:
    rows = b"0: 2 0 00010000 0001 01 77 /run/a b.sock\nfoo\n0: 2 0 zz 0001 01 78 /run/a b.sock\n\n\xff\xfe\n0: 2 0 1\n"
    FakeProc(tmp_path).write("self/net/unix", UNIX_HEADING + rows)
    assert Listeners(str(tmp_path)).unix("/run/a b.sock") == {77}


# --- what a process holds


def test_the_sockets_a_process_holds_are_told(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock, (tmp_path / "file").open("w"):
        number = inode(sock)
        assert number in REAL.held_by(os.getpid())
    assert number not in REAL.held_by(os.getpid())


def test_a_process_that_is_gone_holds_nothing(tmp_path: Path) -> None:
    assert Listeners(str(tmp_path)).held_by(4711) == frozenset()


def test_without_rights_it_is_said_which_are_missing() -> None:
    """As any other user this process may not look into those of root."""
    os.seteuid(65534)
    try:
        with pytest.raises(CannotSeeError, match=r"/proc/1/fd may not be read.*CAP_SYS_PTRACE"):
            REAL.held_by(1)
    finally:
        os.seteuid(0)


def test_more_files_than_can_be_read_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "MAX_LINKS", 2)
    with pytest.raises(CannotSeeError, match="more than 2 files open"):
        REAL.held_by(os.getpid())


# --- no table


def test_a_procfs_without_tables_is_an_error_and_one_without_ipv6_is_none(tmp_path: Path) -> None:
    with pytest.raises(CannotSeeError, match="this is not the node's procfs"):
        Listeners(str(tmp_path)).unix("/run/c.sock")
    with pytest.raises(CannotSeeError, match="this is not the node's procfs"):
        Listeners(str(tmp_path)).tcp("::1", 80)
    FakeProc(tmp_path).write("self/net/tcp", HEADING)
    assert Listeners(str(tmp_path)).tcp("127.0.0.1", 80) == frozenset()


def test_a_table_that_is_too_long_is_an_error_not_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "MAX_TABLE_BYTES", 100)
    FakeProc(tmp_path).write("self/net/unix", UNIX_HEADING + b"0: 2 0 00010000 0001 01 77 /run/other.sock\n" * 9)
    with pytest.raises(CannotSeeError, match="longer than"):
        Listeners(str(tmp_path)).unix("/run/c.sock")
