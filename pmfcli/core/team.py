"""Processes that fit one model together, each with some of the users and all their ratings; every one has all movies.

What sums over ratings or users is summed over the processes, and comes out the same, to the bit, in each of them. A fit by one
process is that of a team of one.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from pmfcli.errors import ProcessError

_DRAWN = 1 << 16  # rows of random numbers at a time: a multiple of what a generator makes at once


class Team:
    """One process alone."""

    rank = 0
    size = 1

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes of a tensor of the same shape in each; it may be changed in place.

        Raises:
            ProcessError: another process is gone.
        """
        return values

    def collect(self, rows: Tensor) -> Tensor:
        """The rows of all processes, one after the other, in the first of them; the own ones in the others.

        Raises:
            ProcessError: another process is gone.
        """
        return rows

    def exchange(self, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        """Rows in the order of whom they are for, so many each, for those that this process gets, in the order of whom from.

        Raises:
            ProcessError: another process is gone.
        """
        return rows


class Processes(Team):
    """Those of ``torch.distributed``, once it is set up."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def sum(self, values: Tensor) -> Tensor:
        """As of one process alone, over all."""
        values = values.contiguous()
        if self.size == 2 and values.device.type == "cpu":
            return self._of_two(values)
        with _gone():
            dist.all_reduce(values)
        return values

    def _of_two(self, values: Tensor) -> Tensor:
        """Each sends the other all it has: not more than a ring of two sends, in one piece."""
        theirs = torch.empty_like(values)
        with _gone():
            waiting = dist.isend(values, 1 - self.rank), dist.irecv(theirs, 1 - self.rank)
            for one in waiting:
                if one is not None:
                    one.wait()
        return theirs.add_(values)

    def collect(self, rows: Tensor) -> Tensor:
        """As of one process alone, of all."""
        rows = rows.contiguous()
        counts = torch.zeros(self.size, dtype=torch.int64, device=rows.device)
        counts[self.rank] = len(rows)
        parts = [rows]
        sizes = self.sum(counts).tolist()
        with _gone():
            if self.rank:
                dist.send(rows, 0)
            else:
                for rank, size in enumerate(sizes[1:], 1):
                    parts.append(rows.new_empty(size, *rows.shape[1:]))
                    dist.recv(parts[-1], rank)
        return torch.cat(parts)

    def exchange(self, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        """As of one process alone, among all."""
        table = torch.zeros(self.size, self.size, dtype=torch.int64)
        table[self.rank] = torch.tensor(sizes)
        given, got = [part.contiguous() for part in rows.split(list(sizes))], []
        with _gone():
            for size in self.sum(table)[:, self.rank].tolist():
                got.append(rows.new_empty(size, *rows.shape[1:]))
            got[self.rank] = given[self.rank]
            others = [rank for rank in range(self.size) if rank != self.rank]
            waiting = [dist.isend(given[rank], rank) for rank in others] + [dist.irecv(got[rank], rank) for rank in others]
            for one in waiting:
                if one is not None:
                    one.wait()
        return torch.cat(got)


@contextlib.contextmanager
def _gone() -> Iterator[None]:
    try:
        yield
    except RuntimeError:
        raise ProcessError(
            "another process of this run is gone; start all of them again, with --resume from the checkpoint"
        ) from None


ALONE = Team()


def everywhere(team: Team, values: Tensor) -> Tensor:
    """The values (n,) of all processes, one after the other, in each of them."""
    counts = torch.zeros(team.size, dtype=torch.int64, device=values.device)
    counts[team.rank] = len(values)
    counts = team.sum(counts)
    first = int(counts[: team.rank].sum())
    found = values.new_zeros(int(counts.sum()))
    found[first : first + len(values)] = values
    return team.sum(found)


class Share(NamedTuple):
    """The rows that a process has, of a side that may be shared out."""

    team: Team = ALONE
    first: int = 0  # the first of them, among all
    of: int | None = None  # how many there are in all; None: this process has all

    @property
    def shared(self) -> bool:
        """Whether other processes have rows too."""
        return self.team.size > 1

    def mean(self, rows: Tensor) -> Tensor:
        """The mean of the rows of all."""
        return rows.mean(0) if self.of is None else self.team.sum(rows.sum(0)) / self.of

    def some(self, rows: int, most: int) -> Tensor:
        """Which of the own rows are among at most so many of all, (k,): the same, however many processes share them."""
        apart = -(-(self.of or rows) // most)
        return torch.arange(min(-self.first % apart, rows), rows, apart)

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
