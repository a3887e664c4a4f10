"""Several posteriors as one: a linear pool of their predictive distributions.

    p(r) = sum_k w_k p_k(r)          w = argmax  sum over held-out ratings of log p(r) + (a - 1) sum_k log w_k

Yao, Vehtari, Simpson & Gelman, "Using stacking to average Bayesian predictive distributions" (Bayesian Analysis 2018); the
second term is a Dirichlet prior, by which few ratings leave the weights nearly equal.

What answers ask of a posterior is here too, for one of any kind: a person, and what they would give.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pmfcli.core import neighbourhood
from pmfcli.core import predict as one
from pmfcli.core.fold_in import fold_in
from pmfcli.core.neighbourhood import Neighbourhood, Rated
from pmfcli.core.predict import Draws, Laplace, Pairs, Rank, Rows, Seen
from pmfcli.core.predictive import Predictive, pooled

_PRIOR = 10.0  # ratings that the prior counts for each part
_ROUNDS, _STILL = 1000, 1e-9  # of EM, at most, and when it stands still
_LEAST = 1e-12  # of a rating's probability
_RANKED = 1024  # movies at a time
_CHUNK = 4096  # pairs at a time, of a neighbourhood


class Blend(NamedTuple):
    """Posteriors of the same ratings, with a weight each."""

    parts: tuple[Laplace | Draws | Neighbourhood, ...]
    weight: Tensor  # (parts,)
    movies: tuple[int, ...]  # how many movies, the first ones, each part knows: one with features may know more
    powers: tuple[float, ...]  # of the hierarchical mean of users, of each part
    grid: Tensor | None  # (K,) the steps of the scale, on the unit scale; None if there are none


Posterior = Laplace | Draws | Neighbourhood | Blend


class Views(NamedTuple):
    """Somebody as each part of a blend sees them."""

    of: tuple[Rows | Rated, ...]


Person = Rows | Rated | Views


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


def chunk_of(posterior: Posterior) -> int:
    """How many pairs to answer at a time, so that memory is bounded."""
    if isinstance(posterior, Blend):
        return min(map(chunk_of, posterior.parts))
    return _CHUNK if isinstance(posterior, Neighbourhood) else one.chunk_of(posterior)


@torch.no_grad()
def predict_pairs(posterior: Posterior, seen: Seen, pairs: Pairs) -> Predictive:
    """The predictive distributions of pairs, known or not, given which ratings the posterior saw."""
    if isinstance(posterior, Blend):
        known = [pairs._replace(movie_known=pairs.movie_known & (pairs.movie < count)) for count in posterior.movies]
        parts = [
            predict_pairs(part, seen, own._replace(movie=own.movie * own.movie_known))
            for part, own in zip(posterior.parts, known, strict=True)
        ]
        return pooled(parts, posterior.weight, posterior.grid)
    if isinstance(posterior, Neighbourhood):
        return neighbourhood.predict_pairs(posterior, seen, pairs)
    return one.predict_pairs(posterior, seen, pairs)


def person(posterior: Posterior, seen: Seen, user: int) -> Person:
    """A user of the training data, by row."""
    if isinstance(posterior, Blend):
        return Views(tuple(_alone(person(part, seen, user)) for part in posterior.parts))
    if isinstance(posterior, Neighbourhood):
        return neighbourhood.people(posterior, seen, torch.tensor([user]))
    return one.users_of(posterior, seen, torch.tensor([user]))


@torch.no_grad()
def visitor(posterior: Posterior, seen: Seen, movies: Tensor, t: Tensor, user_power: float) -> Person:
    """Somebody who is not in the data, by their ratings.

    Args:
        movies: (n,) ascending movie rows. t: (n,) ratings on the unit scale.
        user_power: of the hierarchical mean, as in training; a blend has its own.
    """
    if isinstance(posterior, Blend):
        found = []
        for part, count, power in zip(posterior.parts, posterior.movies, posterior.powers, strict=True):
            known = movies < count
            found.append(_alone(visitor(part, seen, movies[known], t[known], power)))
        return Views(tuple(found))
    if isinstance(posterior, Neighbourhood):
        return neighbourhood.visitor(posterior, movies, t)
    return fold_in(posterior, seen, movies, t, user_power)


@torch.no_grad()
def predict_movies(posterior: Posterior, seen: Seen, who: Person, movies: Tensor) -> Predictive:
    """What a person would give movies (n,); -1 is an unknown one."""
    if isinstance(posterior, Blend) and isinstance(who, Views):
        parts = [
            predict_movies(part, seen, own, torch.where(movies < count, movies, -1))
            for part, own, count in zip(posterior.parts, who.of, posterior.movies, strict=True)
        ]
        return pooled(parts, posterior.weight, posterior.grid)
    if isinstance(posterior, Neighbourhood) and isinstance(who, Rated):
        return neighbourhood.predict(posterior, who, torch.zeros_like(movies), movies)
    assert isinstance(posterior, Laplace | Draws)
    assert isinstance(who, Rows)
    rows, at = movies.unique(return_inverse=True)
    return one.predictive(posterior, who, one.movies_of(posterior, seen, rows).at(at))


@torch.no_grad()
def rank(posterior: Posterior, seen: Seen, who: Person, movies: Tensor, by: Rank, interval: float) -> Tensor:
    """What movies (n,) are ranked by for one person, (n,): the predictive mean, or an end of the interval."""
    if isinstance(posterior, Laplace | Draws) and isinstance(who, Rows):
        return one.rank(posterior, seen, who, movies, by, interval)
    found = []
    for block in movies.split(min(_RANKED, chunk_of(posterior))):
        said = predict_movies(posterior, seen, who, block)
        found.append(said.mean() if by == "mean" else said.by_end(interval, upper=by == "upper"))
    return torch.cat(found) if found else torch.zeros(0)


def vectors(posterior: Posterior, of_movies: bool) -> Tensor:
    """Factors of users or movies, (draws, rows, latent); of a blend those of the part with the most weight that has them.

    Rows that this part does not know are 0.
    """
    p = posterior
    if isinstance(p, Blend):
        best = max(range(len(p.parts)), key=lambda k: (not isinstance(p.parts[k], Neighbourhood), float(p.weight[k])))
        found = vectors(p.parts[best], of_movies)
        missing = max(p.movies) - found.shape[1] if of_movies else 0
        return torch.nn.functional.pad(found, (0, 0, 0, missing))
    if isinstance(p, Draws):
        return (p.V if of_movies else p.U)[..., : p.head.latent].float()
    assert isinstance(p, Laplace)
    return (p.factors.V if of_movies else p.factors.U)[None]


def _alone(who: Person) -> Rows | Rated:
    assert not isinstance(who, Views)  # no part of a blend is one
    return who
