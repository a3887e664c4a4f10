"""Work that falls into parts which do not touch each other, on threads that share the cores."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pmfcli.core.sparse import Pattern

RATINGS, NUMBERS = 1 << 22, 1 << 23  # at a time, at most: ratings, and numbers of rows
_LONG = 1 << 19  # ratings for which threads are worth starting: of fewer, operations end sooner than threads take turns
_CACHED = 1 << 15  # elements whose numbers a cache holds through one operation after the other


@contextlib.contextmanager
def workers(count: int, device: torch.device) -> Iterator[Callable[..., list[Any]]]:
    """A ``map`` for at most so many parts at once, where there are cores for it; else one part after the other.

    Small matrices are factored one at a time by a single thread, whatever the number of cores; and each of many small
    operations waits for all cores. Parts do not.
    """
    cores = torch.get_num_threads()
    count = min(count, cores)
    if count <= 1 or device.type != "cpu":
        yield _one_by_one
        return
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(max(1, cores // count),)) as pool:
            yield lambda function, parts: list(pool.map(function, parts))
    finally:
        torch.set_num_threads(cores)


def by_blocks(function: Callable[[int, int], Any], pattern: "Pattern", numbers: int, in_order: bool = False) -> list[Any]:
    """What a function of some rows of a pattern, start and stop, gives for all of them, in blocks of bounded memory.

    Args:
        numbers: that a row takes. in_order: one block after the other, by numbers of rows alone.
    """
    device = pattern.col.device
    many = device.type == "cpu" and not in_order and pattern.n >= _LONG
    least = torch.get_num_threads() if many else 1
    ratings = max(1, pattern.n) if in_order else min(RATINGS, max(1, -(-pattern.n // least)))
    bounds = pattern.blocks(ratings, max(1, NUMBERS // numbers))
    with workers(len(bounds) if many else 1, device) as each:
        return each(lambda bound: function(*bound), bounds)


def _one_by_one(function: Callable[..., Any], parts: Iterable[Any]) -> list[Any]:
    return [function(part) for part in parts]


def by_parts(function: Callable[[slice], Any], length: int, device: torch.device, size: int | None = None) -> list[Any]:
    """What a function of some of so many elements gives for all, in parts, whose results do not depend on the cores.

    One operation after the other on all elements waits for memory. A GPU has them all at once.
    """
    size = (size or _CACHED) if device.type == "cpu" else max(1, length)
    parts = [slice(start, start + size) for start in range(0, max(1, length), size)]
    with workers(len(parts) if len(parts) * _CACHED >= _LONG else 1, device) as each:
        return each(function, parts)


def take(values: Tensor, index: Tensor) -> Tensor:
    """Values (m,) at an index (n,), on all cores: ``index_select``, which works on one."""
    cores = torch.get_num_threads()
    differentiable = values.requires_grad and torch.is_grad_enabled()
    if len(index) < _LONG or cores == 1 or index.device.type != "cpu" or differentiable:
        return values.index_select(0, index)
    found, values, size = values.new_empty(len(index)), values.detach(), -(-len(index) // cores)
    with ThreadPoolExecutor(cores) as pool:
        parts = zip(index.split(size), found.split(size), strict=True)
        list(pool.map(lambda part: torch.index_select(values, 0, part[0], out=part[1]), parts))
    return found
