"""Predictors without factors: they stand beside a model to say what it is worth."""

from typing import NamedTuple

import torch
from torch import Tensor

from pmfcli.core.pairs import Pairs
from pmfcli.core.sparse import Pattern, spmm
from pmfcli.core.team import ALONE, Team

_DAMPING_USER, _DAMPING_MOVIE, _SWEEPS = 15.0, 10.0, 10


class BiasOnly(NamedTuple):
    """mean + b_i + c_j, in stars: the predictor without factors."""

    mean: float
    b: Tensor  # (n_users,)
    c: Tensor  # (n_movies,)

    def predict(self, pairs: Pairs) -> Tensor:
        """Stars for pairs, (n,); the bias of an unknown side is 0."""
        return self.mean + self.b[pairs.user] * pairs.user_known + self.c[pairs.movie] * pairs.movie_known


def fit_biases(pattern: Pattern, stars: Tensor, team: Team = ALONE) -> BiasOnly:
    """Alternating ridge regressions of the stars (n,), in pattern order, on user and movie biases.

    Damping as in Koren, "Factor in the Neighbors" (TKDD 2010), section 2.1, with 15 for users and 10 for movies.

    Args:
        team: processes that have some of the users each.
    """
    r = stars.double()
    total, n = team.sum(torch.stack([r.sum(), r.new_tensor(len(r))])).tolist()
    mean = total / n
    n_i, m_j = pattern.row_counts(), team.sum(pattern.col_counts())
    ones = torch.ones_like(r)
    of_users, of_movies = r.new_zeros(pattern.shape[0]), r.new_zeros(pattern.shape[1])
    of_users.index_add_(0, pattern.row, r - mean)
    of_movies.index_add_(0, pattern.col, r - mean)
    b = torch.zeros_like(of_users)
    for _ in range(_SWEEPS):
        c = team.sum(of_movies - spmm(ones, b[:, None], pattern.T)[:, 0]) / (_DAMPING_MOVIE + m_j)
        b = damped(of_users - spmm(ones, c[:, None], pattern)[:, 0], n_i)
    return BiasOnly(mean, b, c)


def damped(total: Tensor, count: Tensor | int) -> Tensor:
    """The bias of a user whose ratings, so many, are above the mean and the movies' biases by this in sum."""
    return total / (_DAMPING_USER + count)


def predict_baselines(bias: BiasOnly, pairs: Pairs) -> dict[str, Tensor]:
    """Stars for pairs, (n,), by always answering the mean, and by biases alone."""
    return {"mean": bias.b.new_full((len(pairs.user),), bias.mean), "bias": bias.predict(pairs)}
