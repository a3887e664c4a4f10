"""Random numbers of a sampler: of one generator, or, for rows that are shared out among processes, of ranges of them.

A range of users has its numbers by seed, by how many were asked for before, and by the range itself: the same, whichever of
the processes has it.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

RANGE = 64  # users
_LEAST = 1e-37  # of a part of a whole


class Ranges:
    """Numbers for the own part of something that all processes have parts of, range by range."""

    def __init__(self, seed: int, first: int, sizes: Sequence[int], device: torch.device) -> None:
        """Ranges of the sizes that are given, one after the other, the first of them of this number among all."""
        self.asked = 0  # what has to be kept to go on from here
        self._seed, self._first, self._sizes = seed, first, tuple(sizes)
        self._generator = torch.Generator(device)

    def each(self, draw: Callable[[torch.Generator, int, int], Tensor]) -> Tensor:
        """What is drawn for every range, from start to stop, one after the other."""
        self.asked += 1
        found, start = [], 0
        for number, size in enumerate(self._sizes, self._first):
            self._generator.manual_seed(hash((self._seed, self.asked, number)) % 2**63)
            found.append(draw(self._generator, start, start + size))
            start += size
        return torch.cat(found)


Source = torch.Generator | Ranges


def normal(shape: tuple[int, ...], like: Tensor, source: Source) -> Tensor:
    """Standard normal numbers."""
    return _drawn(torch.randn, shape, like, source)


def uniform(shape: tuple[int, ...], like: Tensor, source: Source) -> Tensor:
    """Numbers between 0 and 1."""
    return _drawn(torch.rand, shape, like, source)


def _drawn(draw: Callable[..., Tensor], shape: tuple[int, ...], like: Tensor, source: Source) -> Tensor:
    def some(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
        return draw(shape, generator=generator, dtype=like.dtype, device=like.device)

    if isinstance(source, Ranges):
        return source.each(lambda generator, start, stop: some(generator, (stop - start, *shape[1:])))
    return some(source, tuple(shape))


def gamma(shape: Tensor, rate: Tensor, source: Source) -> Tensor:
    """Gamma(shape, rate) numbers."""
    shape = shape.contiguous()
    if isinstance(source, Ranges):
        drawn = source.each(lambda generator, start, stop: torch._standard_gamma(shape[start:stop], generator=generator))
    else:
        drawn = torch._standard_gamma(shape, generator=source)
    return drawn / rate


def dirichlet(parameters: Tensor, source: Source) -> Tensor:
    """Dirichlet numbers, one for each row of (rows, S)."""
    drawn = gamma(parameters, parameters.new_ones(()), source).clamp(min=_LEAST)
    return drawn / drawn.sum(-1, keepdim=True)
