"""A posterior of any kind, and what answers ask of it: people, movies, and what people would give them."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pmfcli.core import neighbourhood, predict, rows
from pmfcli.core.approximation import Draws, Fitted, Laplace
from pmfcli.core.blend import Blend
from pmfcli.core.fold_in import fold_in
from pmfcli.core.neighbourhood import Neighbourhood, Rated
from pmfcli.core.pairs import Pairs, Seen
from pmfcli.core.predictive import Predictive, pooled
from pmfcli.core.rows import Rows

_CHUNK = 4096  # pairs at a time, of a neighbourhood

Posterior = Fitted | Neighbourhood | Blend


class Views(NamedTuple):
    """People as each part of a blend sees them."""

    of: tuple[Rows | Rated, ...]

    def at(self, index: Tensor) -> "Views":
        """The people of an index (k,)."""
        return Views(tuple(part.at(index) for part in self.of))


People = Rows | Rated | Views
Movies = Rows | Tensor | tuple[Any, ...]  # a tuple: as each part of a blend sees them


def chunk_of(posterior: Posterior) -> int:
    """How many pairs to answer at a time, so that memory is bounded."""
    if isinstance(posterior, Blend):
        return min(map(chunk_of, posterior.parts))
    return _CHUNK if isinstance(posterior, Neighbourhood) else rows.chunk_of(posterior)


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
    return predict.predict_pairs(posterior, seen, pairs)


def ready(posterior: Posterior, seen: Seen) -> Posterior:
    """The same, for many answers: what all of them need of the movies is computed once."""
    if isinstance(posterior, Blend):
        return posterior._replace(parts=tuple(_part(ready(part, seen)) for part in posterior.parts))
    return posterior if isinstance(posterior, Neighbourhood) else rows.ready(posterior, seen)


def people(posterior: Posterior, seen: Seen, users: Tensor) -> People:
    """Users of the training data, by row (u,)."""
    if isinstance(posterior, Blend):
        return Views(tuple(_alone(people(part, seen, users)) for part in posterior.parts))
    if isinstance(posterior, Neighbourhood):
        return neighbourhood.people(posterior, seen, users)
    return rows.users_of(posterior, seen, users)


@torch.no_grad()
def visitor(posterior: Posterior, seen: Seen, movies: Tensor, t: Tensor, user_power: float) -> People:
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


def movies_of(posterior: Posterior, seen: Seen, movies: Tensor) -> Movies:
    """Movies by row, (n,), as ``predictive`` needs them; -1 is an unknown one."""
    if isinstance(posterior, Blend):
        known = [torch.where(movies < count, movies, -1) for count in posterior.movies]
        return tuple(movies_of(part, seen, own) for part, own in zip(posterior.parts, known, strict=True))
    if isinstance(posterior, Neighbourhood):
        return movies
    distinct, at = movies.unique(return_inverse=True)
    return rows.movies_of(posterior, seen, distinct).at(at)


@torch.no_grad()
def predictive(posterior: Posterior, who: People, person: Tensor, movies: Movies) -> Predictive:
    """What people, by place (n,), or one of them, (1,), would give movies (n,)."""
    if isinstance(posterior, Blend):
        assert isinstance(who, Views)
        of_parts = zip(posterior.parts, who.of, movies, strict=True)
        return pooled([predictive(part, own, person, its) for part, own, its in of_parts], posterior.weight, posterior.grid)
    if isinstance(posterior, Neighbourhood):
        assert isinstance(who, Rated)
        assert isinstance(movies, Tensor)
        return neighbourhood.predict(posterior, who, person, movies)
    assert isinstance(who, Rows)
    assert isinstance(movies, Rows)
    return predict.predictive(posterior, who.at(person), movies)


def vectors(posterior: Posterior, of_movies: bool) -> Tensor:
    """Factors of users or movies, (draws, rows, latent); of a blend those of the part with the most weight that has them."""
    p = posterior
    if isinstance(p, Blend):
        best = max(range(len(p.parts)), key=lambda k: (not isinstance(p.parts[k], Neighbourhood), float(p.weight[k])))
        return vectors(p.parts[best], of_movies)
    if isinstance(p, Draws):
        return (p.V if of_movies else p.U)[..., : p.head.latent]
    assert isinstance(p, Laplace)
    return (p.factors.V if of_movies else p.factors.U)[None]


def _part(posterior: Posterior) -> Fitted | Neighbourhood:
    assert not isinstance(posterior, Blend)  # no part of a blend is one
    return posterior


def _alone(who: People) -> Rows | Rated:
    assert not isinstance(who, Views)  # no part of a blend is one
    return who
