"""The users of the training data at rest: at the mode given all else, wherever the fit was stopped, and by which noise."""

import math

import torch
from torch import Tensor

from pmfcli.core.approximation import Laplace
from pmfcli.core.conditional import Prior, pack
from pmfcli.core.half_step import settle
from pmfcli.core.pairs import Pairs, Seen
from pmfcli.core.posterior import Observations
from pmfcli.core.predict import means_of_pairs
from pmfcli.core.rows import movies_of, stacked, users_of

_MEAN_FIELD_ROUNDS = 4  # in which users settle
_TO_TELL = 1000  # users, of the noise that they should settle by, and held-out ratings at least
_STEP, _STEPS, _CLEARLY = 0.5**0.5, 4, 0.005  # of it, downwards; of the RMSE


@torch.no_grad()
def settled(laplace: Laplace, seen: Seen, observations: Observations, users: Tensor | None = None) -> Laplace:
    """The same with the users at the mode given all else, wherever the fit was stopped: where ``fold_in`` puts them.

    Args:
        users: (u,) these alone, where nothing else depends on the others; None for all.
    """
    if users is not None and not len(users):
        return laplace
    p, f = laplace.parameters, laplace.factors
    k = laplace.head.latent
    rows, V = stacked(f.U, f.b).clone(), stacked(f.V, f.c)
    who = slice(None) if users is None else users
    own = observations if users is None else observations.only(users)[0]
    means = torch.cat([f.U - p.Y, torch.zeros_like(rows[:, k:])], 1)
    for _ in range(_MEAN_FIELD_ROUNDS if laplace.mean_field else 1):  # the doubt of the movies depends on the users
        spread = spread_of(laplace, seen, torch.arange(len(V)), of_movies=True)
        rows[who] = settle(rows[who], Prior(means[who], laplace.precision_u), V, spread, own, p.sigma, k)
        U, b = rows[:, :k].clone(), None if f.b is None else rows[:, k].clone()
        laplace = laplace._replace(parameters=p._replace(Y=U - means[:, :k], b=b), factors=f._replace(U=U, b=b))
    return laplace


@torch.no_grad()
def noise_at_rest(laplace: Laplace, seen: Seen, observations: Observations, pairs: Pairs, t: Tensor) -> float:
    """The noise, on the unit scale, that users should settle by: less than that of the fit where errors then clearly fall.

    The noise of a fit is for the way, which early stopping ends. Where it is far more than ratings show, users who rated much
    are too much alike at the mode by it. Some users are enough to tell.

    Args:
        pairs, t: (n,) held-out pairs and their ratings on the unit scale; if too few are theirs, the noise of the fit remains.
    """
    share, rows, sigma = observations.users, len(laplace.factors.U), float(laplace.parameters.sigma)
    users = share.some(rows, _TO_TELL)
    among = torch.zeros(rows, dtype=torch.bool)
    among[users] = True
    own = torch.nonzero(pairs.user_known & among[pairs.user])[:, 0]
    pairs, t = pairs.at(own), t[own]
    if int(share.team.sum(torch.tensor(len(own)))) < _TO_TELL:
        return sigma

    def error(sigma: float) -> float:
        tried = settled(by_noise(laplace, sigma), seen, observations, users)
        square = (means_of_pairs(tried.factors, pairs, share) - t).square().sum(dtype=torch.float64)
        return math.sqrt(float(share.team.sum(square)))

    least = error(sigma)
    for _ in range(_STEPS):
        tried = error(sigma * _STEP)
        if tried >= least * (1 - _CLEARLY):
            break
        sigma, least = sigma * _STEP, tried
    return sigma


def by_noise(laplace: Laplace, sigma: float) -> Laplace:
    """The same, whose rows settle, are folded in, and are found again by this noise."""
    p = laplace.parameters
    return laplace._replace(parameters=p._replace(sigma=torch.full_like(p.sigma, sigma)))


def spread_of(p: Laplace, seen: Seen, rows: Tensor, of_movies: bool) -> Tensor | None:
    """Packed covariances of movies or users (n,) ascending, where the other side is fitted to their distribution."""
    if not p.mean_field:
        return None
    side = movies_of if of_movies else users_of
    covariance = side(p._replace(noise=p.parameters.sigma, doubt=torch.ones(()), spread_v=None), seen, rows).covariance
    assert covariance is not None
    return pack(covariance[0])
