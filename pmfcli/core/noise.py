"""The noise of a rating at a mode, from how far ratings are from what it predicts."""

import random

import torch
from torch import Tensor

from pmfcli.core.approximation import Laplace
from pmfcli.core.conditional import Gaussians
from pmfcli.core.pairs import Pairs, Seen
from pmfcli.core.predict import mixture
from pmfcli.core.rows import Rows, chunk_of, curvature, of_unknown_movies, rows_of, stacked, users_of
from pmfcli.core.team import Team

_MOVIES_AMONG = 256  # movies at a time, whose ratings are several processes'
_NOISE_SAMPLE, _NOISE_STEPS, _LEAST_NOISE = 2000, 4, 1e-4


def chosen(n: int, laplace: Laplace, seed: int, team: Team) -> Tensor:
    """Which of so many ratings to find the noise from, (k,)."""
    most = min(_NOISE_SAMPLE, chunk_of(laplace)) // team.size
    return torch.tensor(random.Random(seed).sample(range(n), min(n, most)), dtype=torch.int64)


@torch.no_grad()
def estimate_noise(laplace: Laplace, seen: Seen, pairs: Pairs, t: Tensor, fitted: bool, team: Team) -> Tensor:
    """The noise of a rating at a mode, on the unit scale, (). The sigma of a fit may be fixed at more, against overfitting.

    Of ratings that were held out: squared errors, each divided by its predicted variance, are 1 on average. Of ratings that the
    mode was fitted to: sigma^2 = mean of (t - g)^2 + g'^2 Var x, the noise step of EM (``em.py``) with the mode's covariances.

    Args:
        pairs, t: (n,) pairs and their ratings on the unit scale.
        team: processes that have some of the users, and of the pairs, each.
    """
    users, movies = rows_of(laplace, seen, pairs) if team.size == 1 else _rows_among(laplace, seen, pairs, team)
    of_users, of_movies = _directions(users, laplace.precision_u), _directions(movies, laplace.precision_v)
    noise = laplace.noise
    for _ in range(_NOISE_STEPS):
        times = (laplace.noise.double() / noise).square()
        u, v = _heard(users, of_users, times, pairs.user_known), _heard(movies, of_movies, times, pairs.movie_known)
        found = mixture(laplace._replace(noise=noise), u, v)
        error, predicted = (t - found.centre[0]).square(), found.spread[0].square()
        each = error + predicted if fitted else error / predicted
        total, n = team.sum(torch.stack([each.sum(), each.new_tensor(len(each))]))
        square = total / n - noise.square() if fitted else noise.square() * total / n
        noise = square.sqrt().clamp(min=_LEAST_NOISE)
    return noise


def _directions(rows: Rows, prior: Tensor) -> tuple[Tensor, Tensor]:
    """Covariances as D diag(left) D' with D D' the prior's: (rows, d), of 0 to 1, and D (rows, d, d), in double precision.

    In these directions what ratings say adds up to the prior number by number, and no rounding makes a variance negative.
    """
    assert rows.covariance is not None
    R = torch.linalg.cholesky(prior.double())
    left, Q = torch.linalg.eigh(R.mT @ rows.covariance.double() @ R)
    return left.clamp(0, 1), torch.linalg.solve_triangular(R.mT, Q, upper=True)


def _heard(rows: Rows, directions: tuple[Tensor, Tensor], times: Tensor, known: Tensor) -> Rows:
    """Rows whose ratings are so many times as precise as when ``directions`` were found."""
    left, D = directions
    scaled = (D * (left / (left + times * (1 - left)))[..., None, :]) @ D.mT
    assert rows.covariance is not None
    return rows._replace(covariance=torch.where(known[:, None, None], scaled.to(rows.A), rows.covariance))


def _rows_among(p: Laplace, seen: Seen, pairs: Pairs, team: Team) -> tuple[Rows, Rows]:
    """The rows of pairs whose users are this process's; the ratings of their movies are everybody's."""
    user, user_at = torch.where(pairs.user_known, pairs.user, -1).unique(return_inverse=True)
    V = stacked(p.factors.V, p.factors.c)
    wanted = torch.zeros(len(V), dtype=torch.int64)
    wanted[pairs.movie[pairs.movie_known]] = 1
    rows = torch.nonzero(team.sum(wanted))[:, 0]
    covariance = torch.cat([_curvature_among(p, seen, part, team).covariance() for part in rows.split(_MOVIES_AMONG)])
    known = pairs.movie_known
    at = torch.searchsorted(rows, pairs.movie).clamp(max=len(rows) - 1)
    A = torch.where(known[:, None], V[pairs.movie], 0.0)
    movies = Rows(A[None], A.new_ones(1, len(A)), torch.where(known[:, None, None], covariance[at], of_unknown_movies(p))[None])
    return users_of(p, seen, user).at(user_at), movies


def _curvature_among(p: Laplace, seen: Seen, movies: Tensor, team: Team) -> Gaussians:
    U, V = stacked(p.factors.U, p.factors.b), stacked(p.factors.V, p.factors.c)
    start, user = seen.raters_of(movies, len(V))
    of = torch.arange(len(movies)).repeat_interleave(start.diff())
    return curvature(p, of, V[movies], user.long(), U, p.precision_v, team)
