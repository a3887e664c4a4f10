"""What EM learns of a mean-field fit by least squares (``als.py``): the priors and the noise, from rows and their covariances.

    sigma_u^2 = (1 / ND) sum_i ( |u_i - mean_i|^2 + tr Cov_i )          by column, or as a matrix, alike
    sigma^2   = (1 / n) sum_O ( (t - g)^2 + g'^2 Var x_ij )

Lim & Teh, "Variational Bayesian approach to movie rating prediction" (KDD Cup 2007), for rows with hierarchical means.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from pmfcli.core.conditional import features, outer, pack, unpack
from pmfcli.core.half_step import Side, factors_of
from pmfcli.core.means import Means
from pmfcli.core.posterior import Observations, mean, score, slope
from pmfcli.core.sparse import Pattern, sampled_dot

Shape = Literal["spherical", "diagonal", "full"]

LEAST = 1e-8  # of a variance that is learned
_LEAST_PRIOR = 1e-4  # of that of a feature: one this small says nothing, and would shrink for ever


def doubted(side: Side, means: Means, k: int, shape: Shape | None) -> Side:
    """The rows as unsure as their hierarchical means make them, whose weights are new; then the prior, if it is learned.

    The covariance of W given the ratings is that of a ridge in which a row counts by the part of it that its ratings, not its
    prior, decide: 1 - tr(Cov_i Lambda) / latent. Each W_k is taken with the others known (``Means.variances``). The variance of
    F_i W is in units of Lambda^-1; the row's own covariance grows by it.
    """
    assert side.spread is not None
    covariance = unpack(side.spread, side.A.shape[1])
    within = covariance @ side.precision
    part = (1 - within.diagonal(dim1=1, dim2=2)[:, :k].mean(1)).clamp(0, 1)
    variances = means.variances(part, side.lam)
    doubt = means.up_squared(variances).mean(1)
    grown = covariance.clone()
    grown[:, :k, :k] += doubt[:, None, None] * (within[:, :k, :k] @ covariance[:, :k, :k])
    if shape is not None:
        side = learned(side, (part.square() * doubt).sum(), variances.mean(1).sum(), k, shape)
    return side._replace(spread=pack(grown))


def learned(side: Side, doubt: Tensor, doubt_w: Tensor, k: int, shape: Shape) -> Side:
    """The prior of one side from its rows and their covariance.

    Args:
        doubt, doubt_w: the summed variances of the rows' prior means and of W, in units of the prior covariance.
    """
    rows = len(side.A)
    assert side.spread is not None
    off = side.A - side.M
    total = _scatter(off) + unpack(side.spread.sum(0), off.shape[1])
    prior = torch.linalg.inv(side.precision[:k, :k])
    own = total[:k, :k] + doubt * prior
    own_w = None if side.W is None else _scatter(side.W) + doubt_w * prior
    lam = side.lam
    if shape == "full":
        count = rows
        if own_w is not None and side.W is not None:
            own, count = own + lam[0] * own_w, rows + len(side.W)
        covariance = 0.5 * (own + own.mT) / count + _LEAST_PRIOR * torch.eye(k).to(own)
        if own_w is not None and side.W is not None:
            lam = (len(side.W) * k / torch.linalg.solve(covariance, own_w).diagonal().sum()).expand(k)
    else:
        variance = own.diagonal() / rows
        variance = variance.mean().expand(k) if shape == "spherical" else variance
        covariance = torch.diag(variance.clamp(min=_LEAST_PRIOR))
        if own_w is not None and side.W is not None:
            variance_w = own_w.diagonal() / len(side.W)
            variance_w = variance_w.mean().expand(k) if shape == "spherical" else variance_w
            lam = covariance.diagonal() / variance_w.clamp(min=LEAST)
    precision = torch.zeros_like(side.precision)
    precision[:k, :k] = torch.linalg.inv(covariance)
    precision[k:, k:] = rows / total[k:, k:].clamp(min=LEAST)
    return side._replace(precision=precision, lam=lam)


def variance_of_x(users: Tensor, movies: Tensor, U: Tensor, V: Tensor, k: int, pattern: Pattern) -> Tensor:
    """Var x_ij of every pair for independent Gaussian rows, (n,).

    Args:
        users, movies: packed covariances. U, V: means as [factors, bias], or factors alone, (rows, d).
    """
    d = U.shape[1]
    i, j = torch.triu_indices(d, d, device=U.device)
    twice = torch.where(i == j, 1.0, 2.0).to(U)

    left = sampled_dot(users * twice, outer(features(V, k)), pattern)
    right = sampled_dot(outer(features(U, k)), movies * twice, pattern)
    both = sampled_dot(users * twice * (j < k), movies, pattern)
    return left + right + both


def expected_error(users: Side, movies: Side, o: Observations, k: int) -> Tensor:
    """E (t - g(x))^2 of every pair, to first order in the spread of x, (n,)."""
    x = score(factors_of(users, movies, o, k), o.pattern)
    error = (o.t - mean(x, o.link)).square()
    assert users.spread is not None
    assert movies.spread is not None
    variance = variance_of_x(users.spread, movies.spread, users.A, movies.A, k, o.pattern)
    return error + slope(x, o.link).square() * variance


def bound(users: Side, movies: Side, o: Observations, sigma: Tensor, k: int) -> float:
    """The evidence bound given the hierarchical weights."""
    n = len(o.t)
    log_2pi = math.log(2 * math.pi)
    found = -0.5 * float(expected_error(users, movies, o, k).double().sum() / sigma.double() ** 2)
    found -= n * (math.log(float(sigma)) + 0.5 * log_2pi)
    for side in (users, movies):
        d = side.A.shape[1]
        assert side.spread is not None
        precision = side.precision.double()
        covariances = unpack(side.spread, d).double()
        off = (side.A - side.M).double()
        fit = (off @ precision * off).sum() + (unpack(side.spread.double().sum(0), d) * precision).sum()
        found += 0.5 * float(len(off) * (torch.logdet(precision) + d) - fit + torch.logdet(covariances).sum())
    return found


def _scatter(rows: Tensor) -> Tensor:
    return rows.mT @ rows
