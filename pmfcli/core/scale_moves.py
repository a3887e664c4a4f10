"""Scales of a sampler's factors, biases and weights, moved together with all that depends on them.

What a sweep does to rows given their precision, and to that given the rows, moves the two together only a little where single
ratings say little: factors and biases that start small would grow for hundreds of sweeps, and weights W would stay as large as
they began. A move of all at once is a generalized Gibbs step, here for groups of scalings: Liu & Sabatti, "Generalised Gibbs
sampler and multigrid Monte Carlo for Bayesian computation" (Biometrika 2000), Theorem 2.
"""

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pmfcli.core.conditional import features
from pmfcli.core.means import Means
from pmfcli.core.parallel import by_parts
from pmfcli.core.posterior import Factors, Observations, sides
from pmfcli.core.sparse import sampled_dot
from pmfcli.core.streams import gamma

if TYPE_CHECKING:
    from pmfcli.core.gibbs import Side

Numbers = NDArray[np.float64]
Density = Callable[[Numbers], Numbers]  # the logarithm of one, up to a constant

_WIDTH = 2.0  # of the interval of logarithms that a scale is drawn on
_POINTS, _TAIL = 129, 20.0  # of a density there, down to how far, in logarithms, below its mode


class Heard(NamedTuple):
    """What is known of the ratings in a sweep."""

    o: Observations
    weight: Tensor  # (n,) precision of each rating
    z: Tensor  # (n,) ratings less the offset, and less all that is not of rows
    latent: int


def rescale(users: "Side", movies: "Side", heard: Heard, generator: torch.Generator) -> "tuple[Side, Side]":
    """The columns of each side, features and bias, on scales c (d,), with all that depends on them.

        A_ik -> c_k A_ik        W_k, mu_k alike        Lambda_kl -> Lambda_kl / (c_k c_l)
        log p(log c | all else) = B'c - c'G c / 2 - sum_k (Lambda_kk / (2 c_k^2) + d log c_k) + const

    G and B are of the regression of z on the U_ik V_jk, b_i and c_j. The densities of rows, weights and mu given Lambda change
    as their volume does, so that they do not appear.
    """
    o, weight, z, k = heard
    row, col, d = o.pattern.row, o.pattern.col, users.A.shape[1]
    U, V = (side.contiguous() for side in sides(Factors.of(users.A, movies.A, k, o.offset, o.link)))

    def regressed(own: slice) -> Tensor:
        X = U.index_select(0, row[own]).mul_(V.index_select(0, col[own]))
        weighted = weight[own, None] * X
        return torch.cat([weighted.mT @ X, (weighted.mT @ z[own])[:, None]], 1).double()

    both = o.users.team.sum(torch.stack(by_parts(regressed, len(z), z.device)).sum(0)).cpu()
    G, B = both[:, :-1], both[:, -1]
    found = []
    for bias, side in zip((k, k + 1), (users, movies), strict=True):
        own = [*range(k), bias][:d]
        as_it_is = [k + k + 1 - bias][: d - k]
        pull = B[own] - G[own][:, as_it_is].sum(1)
        c = draw_scales(G[own][:, own], pull, side.Lambda.diagonal().double().cpu(), generator)
        every = torch.ones_like(B).index_copy(0, torch.tensor(own), c)
        G, B, c = every[:, None] * G * every, every * B, c.to(side.A)
        W = None if side.W is None else side.W * c
        found.append(side._replace(A=side.A * c, W=W, M=side.M * c, mu=side.mu * c, Lambda=side.Lambda / (c[:, None] * c)))
    return found[0], found[1]


def draw_scales(G: Tensor, B: Tensor, precision: Tensor, generator: torch.Generator) -> Tensor:
    """Scales c, (d,), from 1, one after the other, by the density in ``rescale``.

    Args:
        G: (d, d). B, precision: (d,), the latter the diagonal of Lambda.
    """
    c, d = [1.0] * len(B), len(B)
    pull, own, prior, chances = B.tolist(), G.tolist(), precision.tolist(), _chances(d, generator)
    for k in range(d):
        rest = pull[k] - sum(g * value for g, value in zip(own[k], c, strict=True)) + own[k][k]
        c[k] = math.exp(draw_near(density_of_scale(rest, own[k][k], prior[k], d), *chances[k]))
    return G.new_tensor(c)


def density_of_scale(pull: float, curvature: float, precision: float, d: int) -> Density:
    """That of ``rescale`` for the logarithm of one scale, all others as they are."""

    def log_p(log_c: Numbers) -> Numbers:
        c = np.exp(log_c)
        return pull * c - 0.5 * curvature * c**2 - 0.5 * precision / c**2 - d * log_c

    return log_p


def reweigh(
    users: "Side", movies: "Side", means: tuple[Means | None, Means | None], heard: Heard, generator: torch.Generator
) -> "tuple[Side, Side]":
    """Each block of each side's W on another scale s, with its lambda, and the rows with their means.

        W_k -> s W_k        lambda -> lambda / s^2        A_i -> A_i + (s - 1) sum_k F_ik W_k, over the block
        log p(log s | all else) = B (s - 1) - G (s - 1)^2 / 2 + log p(log(lambda / s^2)) + const

    G and B are of the regression of z - x on what the block adds to x. What rows are beside their means stays: that is the
    ancillary half of Yu & Meng, "To center or not to center" (JCGS 2011), whose other half draws W and lambda given rows.

    Args:
        heard: with z - x in the place of z, which is kept up to date.
    """
    o, weight, error, k = heard
    now = [users, movies]
    for number, known in enumerate(means):
        weights = now[number].W
        if known is None or weights is None:
            continue
        for alone, W, M in _blocks(weights, now[number], known):
            side, f = now[number], features(now[1 - number].A, k)
            added = sampled_dot(M, f, o.pattern) if number == 0 else sampled_dot(f, M, o.pattern)
            weighted = weight * added
            density = density_of_share(_dot(weighted, error, o), _dot(weighted, added, o), float(alone @ side.lam))
            more = math.exp(draw_near(density, *_chances(1, generator)[0])) - 1
            weights = weights + more * W
            error.sub_(added, alpha=more)
            lam = side.lam / (1 + more * alone).square()
            now[number] = side._replace(A=side.A + more * M, W=weights, M=side.M + more * M, lam=lam)
    return now[0], now[1]


def _blocks(W: Tensor, side: "Side", means: Means) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Each block: 1 in its place among all, (blocks,); its W, 0 elsewhere; and what this adds to the rows' means."""
    if len(means.sizes) == 1:
        yield torch.ones_like(side.lam), W, side.M
        return
    for alone in torch.eye(len(means.sizes)).to(side.lam):
        part = means.each(alone) * W
        yield alone, part, means.up(part)


def _dot(one: Tensor, other: Tensor, o: Observations) -> float:
    """The sum of products of what ratings have, (n,) each, over all processes."""
    parts = by_parts(lambda own: (one[own] @ other[own]).double(), len(one), one.device)
    return float(o.users.team.sum(torch.stack(parts).sum()))


def density_of_share(pull: float, curvature: float, lam: float) -> Density:
    """That of ``reweigh`` for the logarithm of the scale; p(lambda) is (1 + lambda)^(-3/2) / 2."""

    def log_p(log_s: Numbers) -> Numbers:
        s = np.exp(log_s)
        return pull * (s - 1) - 0.5 * curvature * (s - 1) ** 2 - 2 * log_s - 1.5 * np.log1p(lam / s**2)

    return log_p


def draw_lam(counts: Tensor, squares: Tensor, lam: Tensor, generator: torch.Generator) -> Tensor:
    """lambda, (blocks,), given how many numbers each block of W has and the sum of W Lambda W'; lam: the one before.

    Its prior, (1 + lambda)^(-3/2) / 2, is Gamma(1, rate) whose rate is Gamma(1/2, 1): the scale 1 / sqrt(lambda) is half-t with
    2 degrees of freedom, and may be 0 (Gelman, "Prior distributions for variance parameters in hierarchical models", 2006).
    """
    rate = gamma(torch.full_like(lam, 1.5), 1 + lam, generator)
    return gamma(1 + 0.5 * counts, rate + 0.5 * squares, generator)


def draw_near(log_p: Density, place: float, chance: float) -> float:
    """A number by its density on an interval around 0, which leaves the density as it is where the place of the interval is
    drawn, too: by a grid that closes in on the mode, as in Ritter & Tanner, "Griddy-Gibbs sampler" (JASA 1992).

    It follows the density without a jump: where that is rounded otherwise, as by more processes, so is the number.

    Args:
        log_p: of (points,) numbers, up to a constant. place, chance: between 0 and 1.
    """
    left, width = -_WIDTH * place, _WIDTH
    while True:
        x = np.linspace(left, left + width, _POINTS)
        with np.errstate(all="ignore"):
            log_of = log_p(x)
        inside = np.flatnonzero(log_of > log_of.max() - _TAIL)
        if not len(inside):
            return 0.0  # not a number, as the ratings' loss then, which is looked at after the sweep
        first, last = max(int(inside[0]) - 1, 0), min(int(inside[-1]) + 1, _POINTS - 1)
        if 2 * (last - first) > _POINTS:
            break
        left, width = float(x[first]), float(x[last] - x[first])
    p = np.exp(log_of - log_of.max())
    mass = (0.5 * (p[1:] + p[:-1])).cumsum()
    looked_for = chance * float(mass[-1])
    cell = min(int(np.searchsorted(mass, looked_for)), _POINTS - 2)
    low, high = float(p[cell]), float(p[cell + 1])
    rest = looked_for - float(mass[cell]) + 0.5 * (low + high)
    slope = max(low + math.sqrt(max(low**2 + 2 * (high - low) * rest, 0.0)), float(np.finfo(p.dtype).tiny))
    return float(x[cell]) + float(x[1] - x[0]) * 2 * rest / slope


def _chances(count: int, generator: torch.Generator) -> list[list[float]]:
    """Two for each of so many numbers."""
    found: list[list[float]] = torch.rand(count, 2, generator=generator, device=generator.device).tolist()
    return found
