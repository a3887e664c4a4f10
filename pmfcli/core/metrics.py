"""Scores: arrays in, numbers out. The bias-only predictor stands beside a model to say what it is worth."""

from typing import NamedTuple

import torch
from torch import Tensor

from pmfcli.core.predict import Pairs
from pmfcli.core.sparse import Pattern

_DAMPING_USER, _DAMPING_MOVIE, _SWEEPS = 15.0, 10.0, 10


class Scores(NamedTuple):
    """Errors over n ratings, in stars."""

    n: int
    rmse: float
    mae: float


class BiasOnly(NamedTuple):
    """mean + b_i + c_j, in stars: the predictor without factors."""

    mean: float
    b: Tensor  # (n_users,)
    c: Tensor  # (n_movies,)

    def predict(self, pairs: Pairs) -> Tensor:
        """Stars for pairs, (n,); the bias of an unknown side is 0."""
        return self.mean + self.b[pairs.user] * pairs.user_known + self.c[pairs.movie] * pairs.movie_known


def scores(prediction: Tensor, truth: Tensor) -> Scores:
    """RMSE and MAE of predictions (n,) against the truth (n,), both in stars, n > 0."""
    error = prediction.cpu().double() - truth.cpu().double()
    return Scores(len(error), float(error.square().mean().sqrt()), float(error.abs().mean()))


def fit_biases(pattern: Pattern, stars: Tensor) -> BiasOnly:
    """Alternating ridge regressions of the stars (n,), in pattern order, on user and movie biases.

    Damping as in Koren, "Factor in the Neighbors" (TKDD 2010), section 2.1, with 15 for users and 10 for movies.
    """
    r = stars.double()
    mean = float(r.mean())
    n_i, m_j = pattern.row_counts(), pattern.col_counts()
    b, c = r.new_zeros(pattern.shape[0]), r.new_zeros(pattern.shape[1])
    for _ in range(_SWEEPS):
        c = torch.zeros_like(c).index_add_(0, pattern.col, r - mean - b[pattern.row]) / (_DAMPING_MOVIE + m_j)
        b = torch.zeros_like(b).index_add_(0, pattern.row, r - mean - c[pattern.col]) / (_DAMPING_USER + n_i)
    return BiasOnly(mean, b, c)


def predict_baselines(bias: BiasOnly, pairs: Pairs) -> dict[str, Tensor]:
    """Stars for pairs, (n,), by always answering the mean, and by biases alone."""
    return {"mean": bias.b.new_full((len(pairs.user),), bias.mean), "bias": bias.predict(pairs)}
