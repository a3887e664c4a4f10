"""From factors to answers: the mean rating of any pair, the best unseen movies. Scored in blocks, never users x movies."""

from typing import NamedTuple

import torch
from torch import Tensor

from pmfcli.core.posterior import Factors, link

_BLOCK = 1 << 18  # pairs scored at a time


class Pairs(NamedTuple):
    """(user, movie) pairs by row. The row of an unknown side is valid but means nothing."""

    user: Tensor  # (n,) int64
    movie: Tensor  # (n,) int64
    user_known: Tensor  # (n,) bool
    movie_known: Tensor  # (n,) bool

    def to(self, device: torch.device) -> "Pairs":
        """The same pairs on another device."""
        return Pairs(*(part.to(device) for part in self))


@torch.no_grad()
def predict_pairs(factors: Factors, pairs: Pairs) -> Tensor:
    """Predictive means on the unit scale, (n,) in (0, 1).

    An unknown user or movie has its prior mean: zero factors and bias, so what is left is the other side's bias.
    """
    parts = []
    for start in range(0, len(pairs.user), _BLOCK):
        user, movie, user_known, movie_known = (part[start : start + _BLOCK] for part in pairs)
        x = (factors.U[user] * factors.V[movie]).sum(1) * (user_known & movie_known)
        if factors.b is not None and factors.c is not None:
            x = x + factors.b[user] * user_known + factors.c[movie] * movie_known
        parts.append(link(x + factors.offset))
    return torch.cat(parts) if parts else factors.U.new_zeros(0)


@torch.no_grad()
def recommend(factors: Factors, user: int, allowed: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The ``n`` allowed movies with the highest predictive mean for a user; ties go by row.

    Args:
        user: row. allowed: (n_movies,) bool.

    Returns:
        Movie rows and means on the unit scale, each at most (n,).
    """
    movies = torch.nonzero(allowed)[:, 0]
    x = factors.V[movies] @ factors.U[user] + factors.offset
    if factors.b is not None and factors.c is not None:
        x = x + factors.b[user] + factors.c[movies]
    order = torch.sort(x, descending=True, stable=True).indices[:n]
    return movies[order], link(x[order])
