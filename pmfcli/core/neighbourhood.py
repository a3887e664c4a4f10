"""An item neighbourhood: a rating is like the same user's ratings of movies that people rate alike.

    t_ij = m + b_i + c_j + sum_k s_jk e_ik / (d + sum_k |s_jk|) + noise          e_ik = t_ik - m - b_i - c_k
    s_jk = (n_jk - 1) / (n_jk - 1 + shrink) rho_jk

over those of the movies nearest to j that the user rated; rho_jk is the correlation of e over the n_jk people who rated both.
Koren, "Factor in the neighbors: scalable and accurate collaborative filtering" (TKDD 2010), sections 2.1 and 2.2.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pmfcli.core.baselines import damped, fit_biases
from pmfcli.core.pairs import Pairs, Seen
from pmfcli.core.parallel import NUMBERS
from pmfcli.core.predictive import Mixture
from pmfcli.core.sparse import Pattern, spmm

NEAREST = 100
_SHRINK, _DAMPING = 50.0, 0.5
_BLOCK = 256  # movies whose neighbours are searched at a time, at most
_LEAST, _LEAST_NOISE = 1e-12, 1e-3


class Neighbourhood(NamedTuple):
    """Which movies are alike, with a baseline, in stars."""

    mean: Tensor  # ()
    b: Tensor  # (n_users,)
    c: Tensor  # (n_movies,)
    near: Tensor  # (n_movies, K) int32 rows of the nearest
    weight: Tensor  # (n_movies, K) half precision, s: 0 where there are fewer
    noise: Tensor  # () standard deviation of a rating
    scale: Tensor  # (2,) the lowest and highest rating


class Rated(NamedTuple):
    """People by their ratings: ``Seen`` of them alone, and their biases."""

    seen: Seen
    b: Tensor  # (people,)

    def at(self, index: Tensor) -> "Rated":
        """The people of an index (k,); -1 is one without ratings."""
        start, place = self.seen.places_of(index)
        own = Seen(start, self.seen.movie[place], self.seen.stars[place])
        return Rated(own, self.b[index.clamp(min=0)] * (index >= 0))


@torch.no_grad()
def fit(seen: Seen, shape: tuple[int, int], lo: float, hi: float) -> Neighbourhood:
    """The neighbourhood of ratings between lo and hi stars. Its noise is that of the baseline."""
    pattern, t = Pattern.of(seen.users(), seen.movie, shape), seen.stars
    bias = fit_biases(pattern, t)
    row, col = pattern.row.long(), pattern.col.long()
    e = t - (bias.mean + bias.b[row] + bias.c[col]).float()
    e, by_movie = e[pattern.perm], pattern.T
    squares, ones = e.square(), torch.ones_like(e)
    near, weight = [], []
    count = min(NEAREST, pattern.shape[1])
    block = max(1, min(_BLOCK, NUMBERS // pattern.shape[0]))
    for start in range(0, pattern.shape[1], block):
        here = torch.arange(start, min(start + block, pattern.shape[1]))
        ratings = slice(int(by_movie.crow[here[0]]), int(by_movie.crow[here[-1] + 1]))
        place = by_movie.col[ratings].long(), by_movie.row[ratings].long() - start
        own, square, one = (
            torch.zeros(pattern.shape[0], len(here)).index_put(place, values[ratings]) for values in (e, squares, ones)
        )
        both = spmm(ones, one, by_movie)
        rho = spmm(e, own, by_movie) / (spmm(squares, one, by_movie) * spmm(ones, square, by_movie)).sqrt().clamp(min=_LEAST)
        s = (both - 1).clamp(min=0) / (both - 1 + _SHRINK) * rho
        s[here, here - start] = 0
        best = s.abs().topk(count, 0).indices
        near.append(best.T.int())
        weight.append(s.gather(0, best).T)
    baseline = torch.tensor(bias.mean).float(), bias.b.float(), bias.c.float()
    return Neighbourhood(
        *baseline, torch.cat(near), torch.cat(weight).half(), least_noise(e.std(correction=0), lo, hi), torch.tensor([lo, hi])
    )


def least_noise(noise: Tensor, lo: float, hi: float) -> Tensor:
    """A standard deviation that is not nothing."""
    return noise.float().clamp(min=_LEAST_NOISE * (hi - lo))


def people(found: Neighbourhood, seen: Seen, user: Tensor) -> Rated:
    """Users of the training data by row (u,); -1 is one without ratings."""
    return Rated(seen, found.b).at(user)


def visitor(found: Neighbourhood, movies: Tensor, t: Tensor) -> Rated:
    """Somebody who is not in the data, by their ratings t (n,), on the unit scale, of movies (n,), ascending rows."""
    lo, hi = found.scale
    stars = lo + (hi - lo) * t
    bias = damped((stars - found.mean - found.c[movies]).sum(), len(movies))
    return Rated(Seen(torch.tensor([0, len(movies)]), movies.int(), stars), bias[None])


@torch.no_grad()
def predict(found: Neighbourhood, of: Rated, person: Tensor, movie: Tensor) -> Mixture:
    """Ratings by people (n,), by place in ``of``, or by one of them, (1,), of movies (n,); -1 is an unknown movie."""
    n_movies, (seen, b) = len(found.c), of
    known = movie >= 0
    movie = movie.clamp(min=0)
    x = found.mean + b[person] + found.c[movie] * known
    if len(seen.movie):
        who = seen.users()
        e = seen.stars - found.mean - b[who] - found.c[seen.movie.long()]
        wanted = person[:, None] * n_movies + found.near[movie].long()
        key = who * n_movies + seen.movie
        place = torch.searchsorted(key, wanted).clamp(max=len(key) - 1)
        s = found.weight[movie].float() * (key[place] == wanted) * known[:, None]
        x = x + (s * e[place]).sum(1) / (_DAMPING + s.abs().sum(1))
    lo, hi = found.scale
    return Mixture(((x - lo) / (hi - lo))[None], (found.noise / (hi - lo)).expand(1, len(x)))


def predict_pairs(found: Neighbourhood, seen: Seen, pairs: Pairs) -> Mixture:
    """Ratings of pairs, known or not, given the ratings that it was fitted to."""
    user, movie = pairs.rows()
    person, place = user.unique(return_inverse=True)
    return predict(found, people(found, seen, person), place, movie)
