"""Several posteriors as one: a linear pool of their predictive distributions.

    p(r) = sum_k w_k p_k(r)          w = argmax  sum over held-out ratings of log p(r) + (a - 1) sum_k log w_k

Yao, Vehtari, Simpson & Gelman, "Using stacking to average Bayesian predictive distributions" (Bayesian Analysis 2018); the
second term is a Dirichlet prior, by which few ratings leave the weights nearly equal.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pmfcli.core.approximation import Fitted
from pmfcli.core.neighbourhood import Neighbourhood

_PRIOR = 10.0  # ratings that the prior counts for each part
_ROUNDS, _STILL = 1000, 1e-9  # of EM, at most, and when it stands still
_LEAST = 1e-12  # of a rating's probability


class Blend(NamedTuple):
    """Posteriors of the same ratings, with a weight each."""

    parts: tuple[Fitted | Neighbourhood, ...]
    weight: Tensor  # (parts,)
    movies: tuple[int, ...]  # how many movies, the first ones, each part knows: one with features may know more
    powers: tuple[float, ...]  # of the hierarchical mean of users, of each part
    grid: Tensor | None  # (K,) the steps of the scale, on the unit scale; None if there are none


@torch.no_grad()
def weights(p: Tensor) -> Tensor:
    """The weights of a pool, (parts,), by EM, given the probability that each part gave each held-out rating, (n, parts)."""
    p = p.double().clamp(min=_LEAST)
    w = torch.full((p.shape[1],), 1 / p.shape[1], dtype=torch.float64)
    for _ in range(_ROUNDS):
        share, old = p * w, w
        w = (share / share.sum(1, keepdim=True)).sum(0) + _PRIOR
        w = w / w.sum()
        if float((w - old).abs().max()) < _STILL:
            break
    return w.float()
