"""Somebody who is not in the data: the row of a user from their ratings, the other side as it is.

It is the row conditional once more (``conditional.py``): its mode for a mode, itself on each draw for draws. Training ends by
the same step on its own users (``settled``), so that the same ratings give the same answers.
"""

import torch
from torch import Tensor

from pmfcli.core.als import settle
from pmfcli.core.conditional import Gaussians, Prior, conditional, features, pack
from pmfcli.core.drift import at_no_time
from pmfcli.core.gibbs import draw_scales, draw_tau
from pmfcli.core.ordinal import count_kinds, draw_kind, draw_latent, draw_share
from pmfcli.core.posterior import Observations, inverse
from pmfcli.core.predict import Draws, Laplace, Posterior, Rows, Seen, curvature, movies_of, stacked
from pmfcli.core.sparse import Pattern

_MINI_SWEEPS = 12  # of the sampler that folds a user in on every draw
_MEAN_FIELD_ROUNDS = 4  # in which users settle


@torch.no_grad()
def fold_in(posterior: Posterior, seen: Seen, movies: Tensor, t: Tensor, user_power: float) -> Rows:
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
        else _fold_in_draws(posterior, movies, t, weight)
    )


@torch.no_grad()
def settled(laplace: Laplace, seen: Seen, observations: Observations) -> Laplace:
    """The same with the users at the mode given all else, wherever the fit was stopped: where ``fold_in`` puts them."""
    p, f = laplace.parameters, laplace.factors
    k = laplace.head.latent
    rows, V = stacked(f.U, f.b), stacked(f.V, f.c)
    means = torch.cat([f.U - p.Y, torch.zeros_like(rows[:, k:])], 1)
    for _ in range(_MEAN_FIELD_ROUNDS if laplace.mean_field else 1):  # the doubt of the movies depends on the users
        doubt = _doubt(laplace, seen, torch.arange(len(V)))
        rows = settle(rows, Prior(means, laplace.precision_u), V, doubt, observations, p.sigma, k)
        U, b = rows[:, :k].clone(), None if f.b is None else rows[:, k].clone()
        laplace = laplace._replace(parameters=p._replace(Y=U - means[:, :k], b=b), factors=f._replace(U=U, b=b))
    return laplace


def _doubt(p: Laplace, seen: Seen, movies: Tensor) -> Tensor | None:
    """Packed covariances of movies, where users are fitted to their distribution."""
    if not p.mean_field:
        return None
    covariance = movies_of(p._replace(noise=p.parameters.sigma), seen, movies).covariance
    assert covariance is not None
    return pack(covariance[0])


def _fold_in_mode(p: Laplace, seen: Seen, movies: Tensor, t: Tensor, weight: float) -> Rows:
    k, offset, link = p.head
    V = stacked(p.factors.V, p.factors.c)
    m = V.new_zeros(1, V.shape[1])
    if p.parameters.W is not None:
        m[0, :k] = weight * p.parameters.W[movies].sum(0)
    one = Pattern.of(torch.zeros_like(movies), torch.arange(len(movies)), (1, len(movies)))
    observations = Observations(one, one.T, t, t, t, offset, link)  # F and G are in m and V
    A = settle(m, Prior(m, p.precision_u), V[movies], _doubt(p, seen, movies), observations, p.parameters.sigma, k)
    covariance = curvature(p, torch.zeros_like(movies), A, movies, V, p.precision_u).covariance()
    return Rows(A[None], A.new_ones(1, 1), covariance[None])


def _fold_in_draws(p: Draws, movies: Tensor, t: Tensor, weight: float) -> Rows:
    """The draws are the rows of one problem, each with its own copy of the user's ratings.

    W is what the training ratings say of it, to which this user's are new: the hierarchical mean is as uncertain as W still is.
    """
    k, offset, link = p.head
    draws, n = len(p.alpha), len(movies)
    generator = torch.Generator().manual_seed(0)
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
    if p.W is not None and p.var_w is not None:
        centre, doubt = centre + weight * p.W[:, movies].float().sum(1), weight**2 * p.var_w[movies].sum()
    white = Gaussians(torch.zeros_like(centre), torch.linalg.cholesky(p.Lambda_u))
    tau, gamma = p.alpha.new_ones(draws), p.alpha.new_ones(draws)
    A, share = centre, None
    if p.cuts is not None and p.habits is not None and p.grid is not None:
        cuts, share = inverse(p.cuts.flatten(0, 1), link) - offset, p.habits / p.habits.sum(1, keepdim=True)
        level = torch.searchsorted(0.5 * (p.grid[1:] + p.grid[:-1]), t).repeat(draws)
        first = row * share.shape[1]
    for sweep in range(_MINI_SWEEPS):
        precision = 1 / (1 / (noise * gamma[row]) + drifting)
        if share is not None and p.habits is not None:
            x, root = (f * A[row]).sum(1) + bias, precision.sqrt()
            kind, _, _ = draw_kind(cuts, share, level, row, first, x, root, generator)
            share = draw_share(p.habits, count_kinds(kind, row, share.shape), generator)
            z = draw_latent(cuts, level, first + kind, x, root, generator) - bias
        P = p.Lambda_u / (doubt + 1 / tau)[:, None, None]
        P = P if mood is None else with_mood(P, mood)
        found = conditional(pattern, f, precision, z, Prior(centre, P))
        if sweep + 1 == _MINI_SWEEPS or (p.noise_dof is None and p.prior_dof is None and share is None):
            break
        A = found.draw(generator)
        if p.prior_dof is not None:
            part = 1 / (1 + tau * doubt)  # of what is not the mood, what is not due to the mean
            off = A - centre if mood is None else A - centre - draw_mood(A - centre, P, mood, generator)
            own = part[:, None] * off + (doubt * part).sqrt()[:, None] * white.draw(generator)
            tau = draw_tau(own, p.Lambda_u, p.prior_dof[:, 0], generator)
        if p.noise_dof is not None:
            error = z - (f * A[row]).sum(1)
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
