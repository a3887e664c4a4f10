"""Scales of the features of a sampler's factors, moved with all that goes by them.

What a sweep does to the rows given their precision, and to that given the rows, moves the two together only a little where
single ratings say little: factors that start small would grow for hundreds of sweeps. A move of both at once is a generalized
Gibbs step, here for the group of scalings: Liu & Sabatti, "Generalised Gibbs sampler and multigrid Monte Carlo for Bayesian
computation" (Biometrika 2000), Theorem 2.
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pmfcli.core.parallel import by_parts, take
from pmfcli.core.posterior import Observations
from pmfcli.core.streams import normal, uniform

if TYPE_CHECKING:
    from pmfcli.core.gibbs import Side

_ROUNDS = 3  # of Metropolis steps for each scale of a feature, a sweep
_STEP, _LONGEST = 2.4, 1.0  # standard deviations of its logarithm that such a step is long, and how long at most


def rescale(
    users: "Side", movies: "Side", o: Observations, weight: Tensor, z: Tensor, latent: int, generator: torch.Generator
) -> "tuple[Side, Side]":
    """The features of each side on scales c (latent,), with all that goes by them.

        A_ik -> c_k A_ik        W_k, mu_k alike        Lambda_kl -> Lambda_kl / (c_k c_l)
        log p(log c | all else) = B'c - c'G c / 2 - sum_k (Lambda_kk / (2 c_k^2) + d log c_k) + const

    G and B are of the regression of z, less the biases, on the U_ik V_jk; d is the number of columns of A. The densities of
    rows, weights and mu given Lambda change as their volume does, so that they do not appear.

    Args:
        weight, z: (n,) precision of each rating, and ratings less the offset, in the order of ``o``.
    """
    row, col, left = o.pattern.row, o.pattern.col, z
    if users.A.shape[1] > latent:
        left = z - take(users.A[:, latent], row) - take(movies.A[:, latent], col)
    U, V = users.A[:, :latent].contiguous(), movies.A[:, :latent].contiguous()

    def regressed(own: slice) -> Tensor:
        X = U.index_select(0, row[own]).mul_(V.index_select(0, col[own]))
        heard = weight[own, None] * X
        return torch.cat([heard.mT @ X, (heard.mT @ left[own])[:, None]], 1).double()

    both = o.users.team.sum(torch.stack(by_parts(regressed, len(z), z.device)).sum(0)).cpu()
    G, B = both[:, :latent], both[:, latent]
    found = []
    for side in (users, movies):
        c = draw_feature_scales(G, B, side.Lambda.diagonal()[:latent].double().cpu(), side.A.shape[1], generator)
        G, B = c[:, None] * G * c, c * B
        every = torch.cat([c, c.new_ones(side.A.shape[1] - latent)]).to(side.A)
        W = None if side.W is None else side.W * every
        Lambda = side.Lambda / (every[:, None] * every)
        found.append(side._replace(A=side.A * every, W=W, M=side.M * every, mu=side.mu * every, Lambda=Lambda))
    return found[0], found[1]


def draw_feature_scales(G: Tensor, B: Tensor, precision: Tensor, freedom: int, generator: torch.Generator) -> Tensor:
    """Scales c, (latent,), from 1 by Metropolis steps of their logarithms, one after the other, for the density in ``rescale``.

    Args:
        G: (latent, latent). B, precision: (latent,), the latter the diagonal of Lambda. freedom: d.
    """
    like = G.to(generator.device, torch.float32)
    steps = normal((_ROUNDS, len(B)), like, generator).tolist()
    chances = uniform((_ROUNDS, len(B)), like, generator).log().tolist()
    c, prior = [1.0] * len(B), precision.tolist()
    pull, own = B.tolist(), G.tolist()

    def length(k: int, scale: float) -> float:
        return min(_STEP / math.sqrt(own[k][k] * scale**2 + 2 * prior[k] * scale**-2), _LONGEST)

    for step, chance in zip(steps, chances, strict=True):
        for k, normals in enumerate(step):
            old, there = c[k], length(k, c[k])
            new = old * math.exp(there * normals)
            back = length(k, new)
            rest = pull[k] - sum(g * value for g, value in zip(own[k], c, strict=True)) + own[k][k] * old
            gain = rest * (new - old) - 0.5 * own[k][k] * (new**2 - old**2)
            gain -= 0.5 * prior[k] * (new**-2 - old**-2) + freedom * math.log(new / old)
            gain += math.log(there / back) + 0.5 * normals**2 * (1 - (there / back) ** 2)  # the way back is of another length
            if chance[k] < gain:
                c[k] = new
    return G.new_tensor(c)
