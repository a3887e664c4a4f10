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

    An unknown movie has its prior mean: no factors, no bias. An unknown user is the average user, mean factors and mean bias,
    for the movies' factors and biases were fitted beside these. (An average movie would be a worse guess than none: movies that
    nobody in training rated are not average ones.)
    """
    mean_user = factors.U.mean(0)
    parts = []
    for start in range(0, len(pairs.user), _BLOCK):
        user, movie, user_known, movie_known = (part[start : start + _BLOCK] for part in pairs)
        u = torch.where(user_known[:, None], factors.U[user], mean_user)
        x = (u * factors.V[movie]).sum(1) * movie_known + factors.offset
        if factors.b is not None and factors.c is not None:
            x = x + torch.where(user_known, factors.b[user], factors.b.mean()) + factors.c[movie] * movie_known
        parts.append(link(x))
    return torch.cat(parts) if parts else factors.U.new_zeros(0)


@torch.no_grad()
def recommend(factors: Factors, user: int, allowed: Tensor, n: int) -> Tensor:
    """The ``n`` allowed movies with the highest predictive mean for a user; ties go by row.

    Args:
        user: row. allowed: (n_movies,) bool.

    Returns:
        Movie rows, at most (n,).
    """
    movies = torch.nonzero(allowed)[:, 0]
    x = factors.V[movies] @ factors.U[user] + factors.offset
    if factors.b is not None and factors.c is not None:
        x = x + factors.b[user] + factors.c[movies]
    return movies[torch.sort(x, descending=True, stable=True).indices[:n]]
