"""The different values among many numbers, where these are few: each is looked up, which takes a fraction of sorting them."""

import torch
from torch import Tensor

from pmfcli.core.parallel import by_parts

_FIRST, _PIECE = 1 << 16, 1 << 18


def distinct(values: Tensor, most: int | None = None) -> Tensor:
    """What ``unique`` finds, (m,) ascending, of values (n,): those that are not among the first are sorted, no others.

    Args:
        most: where there are more than so many, not all need to be found.
    """
    found: Tensor = values[:_FIRST].unique()
    if most is not None and len(found) > most:
        return found

    def others(some: slice) -> Tensor:
        part = values[some]
        return part[found[torch.searchsorted(found, part).clamp(max=len(found) - 1)] != part]

    more = torch.cat(by_parts(others, len(values), values.device, _PIECE))
    if len(more):
        found = torch.cat([found, more]).unique()
    return found


def places(values: Tensor, among: Tensor, kind: torch.dtype) -> Tensor:
    """Where values (n,) are among distinct ones (m,), ascending, as numbers of a kind, (n,)."""

    def place(some: slice) -> Tensor:
        return torch.searchsorted(among, values[some]).to(kind)

    return torch.cat(by_parts(place, len(values), values.device, _PIECE))
