"""Processes that fit one model together, each with some of the users and all their ratings; every one has all movies.

What sums over ratings or users is summed over the processes, and comes out the same, to the bit, in each of them. A fit by one
process is that of a team of one.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_DRAWN = 1 << 16  # rows of random numbers at a time: a multiple of what a generator makes at once


class Team:
    """One process alone."""

    rank = 0
    size = 1

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes of a tensor of the same shape in each; it may be changed in place."""
        return values

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, one after the other, in each of them."""
        return rows


class Processes(Team):
    """Those of ``torch.distributed``, once it is set up."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def sum(self, values: Tensor) -> Tensor:
        """As of one process alone, over all."""
        import torch.distributed as dist

        values = values.contiguous()
        dist.all_reduce(values)
        return values

    def gather(self, rows: Tensor) -> Tensor:
        """As of one process alone, of all."""
        import torch.distributed as dist

        counts = torch.zeros(self.size, dtype=torch.int64, device=rows.device)
        counts[self.rank] = len(rows)
        parts = [rows.new_empty(count, *rows.shape[1:]) for count in self.sum(counts).tolist()]
        for rank, part in enumerate(parts):
            part.copy_(rows) if rank == self.rank else None
            dist.broadcast(part, rank)
        return torch.cat(parts)


ALONE = Team()


class Share(NamedTuple):
    """The rows that a process has, of a side that may be shared out."""

    team: Team = ALONE
    first: int = 0  # the first of them, among all
    of: int | None = None  # how many there are in all; None: this process has all

    def randn(self, rows: int, width: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Standard normal numbers for the own rows, (rows, width): those that one process would draw for them."""
        if self.of is None:
            return torch.randn(rows, width, generator=generator, dtype=dtype)
        found = torch.empty(rows, width, dtype=dtype)
        for start in range(0, self.of, _DRAWN):
            drawn = torch.randn(min(_DRAWN, self.of - start), width, generator=generator, dtype=dtype)
            low, high = max(start, self.first), min(start + len(drawn), self.first + rows)
            if low < high:
                found[low - self.first : high - self.first] = drawn[low - start : high - start]
        return found


WHOLE = Share()
