"""The different values among many numbers, where these are few: each is looked up, which takes a fraction of sorting them."""

import functools

import torch
from torch import Tensor

from pmfcli.core.parallel import by_parts

_FIRST, _PIECE = 1 << 16, 1 << 18


def index_kind(count: int) -> torch.dtype:
    """The narrowest type that tells so many apart; of 16 bits the sign is one more."""
    return torch.uint8 if count <= 1 << 8 else torch.int16 if count <= 1 << 16 else torch.int32


def distinct(values: Tensor, most: int | None = None) -> Tensor:
    """What ``unique`` finds, (m,) ascending, of values (n,).

    Args:
        most: where there are more than so many, not all need to be found.
    """
    first: Tensor = values[:_FIRST].unique()
    return first if most is not None and len(first) > most else indexed(values)[0]


def nearest(grid: Tensor, values: Tensor) -> Tensor:
    """The place (n,) in a grid (m,) ascending of what is nearest to each value (n,)."""
    return torch.searchsorted(0.5 * (grid[1:] + grid[:-1]), values)


def indexed(values: Tensor) -> tuple[Tensor, Tensor]:
    """The same, and the place there of each value, (n,) of ``index_kind``: those not among the first are sorted, no others."""
    found: Tensor = values[:_FIRST].unique()
    while True:
        parts = by_parts(functools.partial(_looked_up, values, found), len(values), values.device, _PIECE)
        place, others = map(torch.cat, zip(*parts, strict=True))
        if not len(others):
            return found, place
        found = torch.cat([found, others]).unique()


def _looked_up(values: Tensor, among: Tensor, some: slice) -> tuple[Tensor, Tensor]:
    """The places of some values, and which of them are not there."""
    part = values[some]
    place = torch.searchsorted(among, part).clamp(max=len(among) - 1)
    return place.to(index_kind(len(among))), part[among[place] != part]
