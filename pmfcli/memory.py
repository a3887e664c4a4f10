"""How much memory there is, how this process deals with what it has freed, and whether there was not enough."""

import contextlib
import ctypes
import errno
import os
import sys
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # as malloc.h numbers them
_KEPT, _LARGEST = 1 << 30, 1 << 25  # bytes: freed, at most; of one piece of memory, which the C library bounds by so many
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))  # of a container: v2, v1
_UNPACKED, _SMALL = 100, 1 << 30  # times its size, and bytes: a file that unpacks to more than both is a bomb


def of_this_machine() -> int:
    """Its bytes, or those of the container that this process runs in, where they are fewer."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # there is none: no file, or "max"
            found = min(found, int(limit.read_text()))
    return found


def most_unpacked(packed: int) -> int:
    """How many bytes a file of ``packed`` bytes may unpack to."""
    return min(max(_SMALL, _UNPACKED * packed), of_this_machine())


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


def ran_out(error: Exception) -> bool:
    """Whether an error of Python, torch or the system means that memory ran out."""
    if isinstance(error, OSError):  # whose text names a file
        return error.errno == errno.ENOMEM
    text = str(error)
    return isinstance(error, MemoryError) or "alloc" in text or "out of memory" in text.lower()
