"""The allocator, asked itself (malloc_info(3)) in a process of its own."""

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, sys, threading
from agent.allocator import share_one_arena
if sys.argv[1] == "shared":
    assert share_one_arena()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
start = threading.Barrier(8)
def allocate():
    start.wait()
    for _ in range(1000):
        libc.malloc(100)  # without Python's lock, as grpc's own threads do
    start.wait()
threads = [threading.Thread(target=allocate) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


def arenas(how: str) -> int:
    words = [sys.executable, "-c", PROGRAM, how]
    done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=30)
    return done.stdout.count("<heap nr=")


@pytest.mark.parametrize(("how", "one"), [("shared", True), ("each its own", False)])
def test_all_threads_allocate_from_one_arena_once_told_so(how: str, one: bool) -> None:
    assert (arenas(how) == 1) is one
