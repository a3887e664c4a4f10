"""How this process deals with memory that it has freed."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # as malloc.h numbers them
_KEPT, _LARGEST = 1 << 30, 1 << 25  # bytes: freed, at most; of one piece of memory, which the C library bounds by so many


def keep() -> None:
    """Keep what is freed for what is asked for next, where the C library is glibc.

    A step of training frees what the next one asks for again, and each page that was given back is cleared by the system first.
    All threads share one arena: in those of threads, what is freed is given back at once, and no thread has that of another.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, _KEPT)
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_ARENA_MAX, 1)
