"""Somebody who is not in the data: the row of a user from their ratings, the other side as it is.

It is the row conditional once more (``conditional.py``): its mode for a mode, itself on each draw for draws. Training ends by
the same step on its own users (``settling.py``), so that the same ratings give the same answers.
"""

import torch
from torch import Tensor

from pmfcli.core.approximation import Common, Draws, Fitted, Laplace
from pmfcli.core.conditional import Prior
from pmfcli.core.drift import at_no_time
from pmfcli.core.half_step import settle
from pmfcli.core.noise import noise_scales, squared_errors
from pmfcli.core.pairs import Seen
from pmfcli.core.posterior import Factors, Observations, crowd_part
from pmfcli.core.row_sampler import RowSampler
from pmfcli.core.rows import Rows, curvature, stacked
from pmfcli.core.settling import spread_of
from pmfcli.core.sparse import Pattern

MINI_SWEEPS = 12  # of the sampler that folds a user in on every draw
_FEW_SWEEPS = 3  # where it starts at the user's row
SEED = 0  # of what is drawn for an answer or an update: the same ratings give the same, whoever asks, and whenever


@torch.no_grad()
def fold_in(posterior: Fitted, seen: Seen, movies: Tensor, t: Tensor, user_power: float) -> Rows:
    """A user who is not in the data, from their ratings: one row of users.

    Of a mode this is the mode of the row's conditional, of draws the conditional on each of them, with the user's own scales
    of prior and noise drawn as well. The same ratings give the same row as training did, once it stood still.

    Args:
        movies: (n,) ascending movie rows. t: (n,) ratings on the unit scale.
        user_power: of the hierarchical mean, as in training.
    """
    return (
        _fold_in_mode(posterior, seen, movies, t, user_power)
        if isinstance(posterior, Laplace)
        else fold_in_draws(posterior, movies, t, user_power, torch.Generator().manual_seed(SEED))
    )


def _prior_mean(W: Tensor, common: Common, power: float) -> Tensor:
    """The hierarchical mean of a user, (..., d), by what the movies that they rated say of them, W (..., n, d)."""
    n = W.shape[-2]
    found: Tensor = max(n, 1) ** -power * W.sum(-2) + crowd_part(torch.tensor(n), common.typical, power) * common.mean_w
    return found


def _fold_in_mode(p: Laplace, seen: Seen, movies: Tensor, t: Tensor, user_power: float) -> Rows:
    k, offset, link = p.head
    V = stacked(p.factors.V, p.factors.c)
    m = V.new_zeros(1, V.shape[1])
    if p.parameters.W is not None and p.common is not None:
        m[0, :k] = _prior_mean(p.parameters.W[movies], p.common, user_power)
    one = Pattern.of(torch.zeros_like(movies), torch.arange(len(movies)), (1, len(movies)))
    observations = Observations(one, t, t[:0], t[:0], offset, link)  # the means are in m and V
    spread = spread_of(p, seen, movies, of_movies=True)
    A = settle(m, Prior(m, p.precision_u), V[movies], spread, observations, p.parameters.sigma, k)
    covariance = curvature(p, torch.zeros_like(movies), A, movies, V, p.precision_u).covariance()
    sums = squared_errors(Factors.of(A, V[movies], k, offset, link), observations)
    scale = noise_scales(sums, one.row_counts(), p.residual, p.noise_u.mean())
    share = None if p.usage is None else p.usage.shares(torch.zeros_like(movies), t, 1)[None]
    return Rows(A[None], 1 / scale[None], covariance[None], share=share)


@torch.no_grad()
def fold_in_draws(
    p: Draws, movies: Tensor, t: Tensor, user_power: float, generator: torch.Generator, start: Rows | None = None
) -> Rows:
    """The same on every draw (``row_sampler.py``).

    W is what the training ratings say of it, to which this user's are new: the hierarchical mean is as uncertain as W still is.
    (The mean W is far less so, and counts as known.)

    Args:
        movies, t, user_power: as for ``fold_in``.
        start: the user as drawn with other ratings, from where a few sweeps are enough.
    """
    centre, doubt = p.mu_u, p.alpha.new_zeros(())  # of the hierarchical mean: N(centre, doubt Lambda^-1)
    if p.weights is not None and p.common is not None:
        centre = centre + _prior_mean(p.weights.W[:, movies].float(), p.common, user_power)
        doubt = max(len(movies), 1) ** (-2 * user_power) * p.weights.var_w[movies].sum()
    one = Pattern.of(torch.zeros_like(movies), torch.arange(len(movies)), (1, len(movies)))
    sampler = RowSampler.of(p, False, one, movies, t, Prior(centre, p.Lambda_u))._replace(doubt=doubt)
    if p.drift is not None:  # all is said in one sitting, whose mood moves the bias; of films at any time
        mean, drifting = (part.flatten() for part in at_no_time(p.drift, movies, of_movies=True))
        mood = at_no_time(p.drift, torch.tensor([-1]), of_movies=False)[1][:, 0]
        sampler = sampler._replace(bias=sampler.bias + mean, drifting=drifting, mood=mood)
    now = sampler.start(None if p.ordinal is None else p.ordinal.usual)
    if start is not None:
        share = now.share if start.share is None else start.share[:, 0]
        now = sampler.with_tau(now._replace(A=start.A[:, 0], gamma=start.gamma[:, 0], share=share), generator)
    sweeps = 1 if sampler.exact else MINI_SWEEPS if start is None else _FEW_SWEEPS
    for _ in range(sweeps - 1):
        now = sampler.sweep(now, generator)
    now, found, _ = sampler.conditional(now, generator)
    share = None if now.share is None else now.share[:, None]
    return Rows(found.mean[:, None], now.gamma[:, None], found.covariance()[:, None], share=share)
