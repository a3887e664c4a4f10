"""Somebody who is not in the data: the row of a user from their ratings, the other side as it is.

It is the row conditional once more (``conditional.py``): its mode for a mode, itself on each draw for draws. Training ends by
the same step on its own users (``settling.py``), so that the same ratings give the same answers.
"""

import torch
from torch import Tensor

from pmfcli.core.approximation import Draws, Fitted, Laplace
from pmfcli.core.conditional import Gaussians, Prior, conditional, features
from pmfcli.core.distinct import nearest
from pmfcli.core.drift import at_no_time
from pmfcli.core.gibbs import draw_scales, draw_tau
from pmfcli.core.half_step import settle
from pmfcli.core.noise import noise_scales, squared_errors
from pmfcli.core.ordinal import count_kinds, draw_kind, draw_latent, draw_share
from pmfcli.core.pairs import Seen
from pmfcli.core.posterior import Factors, Observations, inverse
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
    weight = max(len(movies), 1) ** -user_power
    return (
        _fold_in_mode(posterior, seen, movies, t, weight)
        if isinstance(posterior, Laplace)
        else fold_in_draws(posterior, movies, t, weight, torch.Generator().manual_seed(SEED))
    )


def _fold_in_mode(p: Laplace, seen: Seen, movies: Tensor, t: Tensor, weight: float) -> Rows:
    k, offset, link = p.head
    V = stacked(p.factors.V, p.factors.c)
    m = V.new_zeros(1, V.shape[1])
    if p.parameters.W is not None:
        m[0, :k] = weight * p.parameters.W[movies].sum(0)
    one = Pattern.of(torch.zeros_like(movies), torch.arange(len(movies)), (1, len(movies)))
    observations = Observations(one, t, t[:0], t[:0], offset, link)  # the means are in m and V
    spread = spread_of(p, seen, movies, of_movies=True)
    A = settle(m, Prior(m, p.precision_u), V[movies], spread, observations, p.parameters.sigma, k)
    covariance = curvature(p, torch.zeros_like(movies), A, movies, V, p.precision_u).covariance()
    sums = squared_errors(Factors.of(A, V[movies], k, offset, link), observations)
    scale = noise_scales(sums, one.row_counts(), p.residual, p.noise_u.mean())
    share = None if p.usage is None else p.usage.shares(torch.zeros_like(movies), t, 1)[None]
    return Rows(A[None], scale[None], covariance[None], share=share)


@torch.no_grad()
def fold_in_draws(
    p: Draws, movies: Tensor, t: Tensor, weight: float, generator: torch.Generator, start: Rows | None = None
) -> Rows:
    """The draws are the rows of one problem, each with its own copy of the user's ratings.

    W is what the training ratings say of it, to which this user's are new: the hierarchical mean is as uncertain as W still is.

    Args:
        weight: of each rating in the hierarchical mean.
        start: the user as drawn with other ratings, from where a few sweeps are enough.
    """
    k, offset, link = p.head
    draws, n = len(p.alpha), len(movies)
    V = p.V[:, movies].float().flatten(0, 1)
    d = V.shape[1]
    row = torch.arange(draws).repeat_interleave(n)
    pattern = Pattern.of(row, torch.arange(draws * n), (draws, draws * n))
    bias = V[:, k] if d > k else V.new_zeros(())
    f = features(V, k)
    noise = p.alpha[row] * p.gamma_v[:, movies].float().flatten()
    mood, drifting = None, noise.new_zeros(())
    if p.drift is not None:  # all is said in one sitting, whose mood moves the bias; of films at any time
        mean, drifting = (part.flatten() for part in at_no_time(p.drift, movies, of_movies=True))
        mood = at_no_time(p.drift, torch.tensor([-1]), of_movies=False)[1][:, 0]
        bias = bias + mean
    z = (inverse(t, link) - offset).repeat(draws) - bias
    centre, doubt = p.mu_u, p.alpha.new_zeros(())  # of the hierarchical mean: N(centre, doubt Lambda^-1)
    if p.weights is not None:
        centre = centre + weight * p.weights.W[:, movies].float().sum(1)
        doubt = weight**2 * p.weights.var_w[movies].sum()
    white = Gaussians(torch.zeros_like(centre), torch.linalg.cholesky(p.Lambda_u))
    tau, gamma = p.alpha.new_ones(draws), p.alpha.new_ones(draws)
    A, share, sweeps = centre, None, MINI_SWEEPS
    if p.ordinal is not None:
        cuts, share, habits = inverse(p.ordinal.cuts.flatten(0, 1), link) - offset, p.ordinal.usual, p.ordinal.habits
        level = nearest(p.ordinal.grid, t).repeat(draws)
        first = row * share.shape[1]

    def prior_precision(tau: Tensor) -> Tensor:
        P = p.Lambda_u / (doubt + 1 / tau)[:, None, None]
        return P if mood is None else with_mood(P, mood)

    def draw_scale(A: Tensor, tau: Tensor, P: Tensor) -> Tensor:
        if p.prior_dof is None:
            return tau
        part = 1 / (1 + tau * doubt)  # of what is not the mood, what is not due to the mean
        off = A - centre if mood is None else A - centre - draw_mood(A - centre, P, mood, generator)
        own = part[:, None] * off + (doubt * part).sqrt()[:, None] * white.draw(generator)
        return draw_tau(own, p.Lambda_u, p.prior_dof[:, 0], generator)

    if start is not None:
        A, gamma, sweeps = start.A[:, 0], start.gamma[:, 0], _FEW_SWEEPS
        share = share if start.share is None else start.share[:, 0]
        tau = draw_scale(A, tau, prior_precision(tau))
    for sweep in range(sweeps):
        precision = 1 / (1 / (noise * gamma[row]) + drifting)
        if share is not None:
            x, root = (f * A[row]).sum(1) + bias, precision.sqrt()
            kind, _, _ = draw_kind(cuts, share, level, row, first, x, root, generator)
            share = draw_share(habits, count_kinds(kind, row, share.shape), generator)
            z = draw_latent(cuts, level, first + kind, x, root, generator) - bias
        P = prior_precision(tau)
        found = conditional(pattern, f, precision, z, Prior(centre, P))
        if sweep + 1 == sweeps or (p.noise_dof is None and p.prior_dof is None and share is None):
            break
        A = found.draw(generator)
        tau = draw_scale(A, tau, P)
        if p.noise_dof is not None:
            error = z - (f * A[row]).sum(1)
            if p.drift is not None:  # less the movies' effects of time, drawn given that
                part = drifting * precision
                effect = (drifting * (1 - part)).sqrt() * torch.randn(error.shape, generator=generator)
                error = (1 - part) * error - effect
            gamma = draw_scales(noise * error.square(), pattern, p.noise_dof[:, 0], generator)
    return Rows(
        found.mean[:, None], gamma[:, None], found.covariance()[:, None], share=None if share is None else share[:, None]
    )


def with_mood(P: Tensor, mood: Tensor) -> Tensor:
    """The precision of rows whose last entry has an independent part more, of variance ``mood`` (draws,), by Sherman-Morrison.

    Args:
        P: (draws, d, d) without it.
    """
    last = P[:, :, -1]
    part = mood / (1 + mood * P[:, -1, -1])
    return P - part[:, None, None] * last[:, :, None] * last[:, None, :]


def draw_mood(off: Tensor, P: Tensor, mood: Tensor, generator: torch.Generator) -> Tensor:
    """That part, 0 in other entries, given how far the rows are from their mean, (draws, d), whose precision with it is P."""
    mean = mood * (P @ off[:, :, None])[:, -1, 0]
    variance = (mood - mood.square() * P[:, -1, -1]).clamp(min=0)
    found = torch.zeros_like(off)
    found[:, -1] = mean + variance.sqrt() * torch.randn(mean.shape, generator=generator)
    return found
