"""Work that falls into parts which do not touch each other, on threads that share the cores."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from pmfcli.core.sparse import Pattern

_RATINGS, NUMBERS = 1 << 22, 1 << 23  # in a block, at most: ratings, and numbers of its rows
_FEW = 1 << 12  # ratings for which a thread is not worth starting


@contextlib.contextmanager
def workers(count: int, device: torch.device) -> Iterator[Callable[..., list[Any]]]:
    """A ``map`` for at most so many parts at once, where there are cores for it; else one part after the other.

    Small matrices are factored one at a time by a single thread, whatever the number of cores; and many small operations wait
    for all cores each. Parts do not.
    """
    cores = torch.get_num_threads()
    count = min(count, cores)
    if count <= 1 or device.type != "cpu":
        yield _one_by_one
        return
    with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(max(1, cores // count),)) as pool:
        yield lambda function, parts: list(pool.map(function, parts))
    torch.set_num_threads(cores)


def by_blocks(function: Callable[[int, int], Any], pattern: Pattern, numbers: int, in_order: bool = False) -> list[Any]:
    """What a function of some rows of a pattern, start and stop, gives for all of them, in blocks of bounded memory.

    Args:
        numbers: that a row takes. in_order: one block after the other, by numbers of rows alone.
    """
    device = pattern.col.device
    many = device.type == "cpu" and not in_order and pattern.n > _FEW
    least = torch.get_num_threads() if many else 1
    ratings = max(1, pattern.n) if in_order else min(_RATINGS, max(1, -(-pattern.n // least)))
    bounds = pattern.blocks(ratings, max(1, NUMBERS // numbers))
    with workers(1 if in_order else len(bounds), device) as each:
        return each(lambda bound: function(*bound), bounds)


def _one_by_one(function: Callable[..., Any], parts: Iterable[Any]) -> list[Any]:
    return [function(part) for part in parts]
