"""The C library's allocator, told how this process lives.

glibc gives each thread that allocates beside another an arena of its own, up to eight a core (mallopt(3)), and what was
freed in one is of no use to the others. Our threads hold Python's lock nearly always, so one arena costs them nothing.
"""

import ctypes

_M_ARENA_MAX = -8
"""M_ARENA_MAX of glibc's malloc.h."""


def share_one_arena() -> bool:
    """Have all threads allocate from one arena; call it before there are others. False where the libc has no arenas."""
    try:
        return bool(ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1))
    except AttributeError:  # not glibc
        return False
