"""Users and movies of a posterior by row, known or not: their factors, and how unsure those are.

An unknown user is the average user, for the movies were fitted beside these; an unknown movie has its prior mean. (An average
movie would be a worse guess than none: movies that nobody in training rated are not average ones.) Both are as unsure as known
ones differ from there: by the prior, and by the hierarchical means, which are not known of them.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pmfcli.core.approximation import Draws, Fitted, Laplace
from pmfcli.core.conditional import Gaussians, Prior, conditional, features, pack, unpack
from pmfcli.core.drift import at_no_time
from pmfcli.core.pairs import Pairs, Seen
from pmfcli.core.parallel import RATINGS
from pmfcli.core.posterior import Factors, linearise, mean, score
from pmfcli.core.sparse import Pattern, named
from pmfcli.core.team import ALONE, Team

_CHUNK, _CHUNK_NUMBERS = 4096, 8_000_000  # pairs answered at a time: at most so many, nor more numbers of their covariances
_ENOUGH, _LEAST_ROWS = 4096, 64  # rows, to say how rows differ; of however many draws


class Rows(NamedTuple):
    """Users or movies, as pairs need them."""

    A: Tensor  # (draws, n, d)
    gamma: Tensor  # (draws, n) noise scales: the precision of a rating is as many times the usual one
    covariance: Tensor | None = None  # (draws, 1 or n, d, d) of a row given the draw
    unknown: Tensor | None = None  # (n,) bool: rows of which nothing is known; of draws, only their covariance counts, if given
    share: Tensor | None = None  # (draws, n, S) of users, where ratings are steps of a scale
    drift: tuple[Tensor, Tensor] | None = None  # (draws, n) mean and variance of the effects of time, on the scale of x

    def at(self, index: Tensor) -> "Rows":
        """The rows of an index (k,)."""
        C, share, drift = self.covariance, self.share, self.drift
        C = C[:, index] if C is not None and C.shape[1] > 1 else C
        share = None if share is None else share[:, index]
        drift = None if drift is None else (drift[0][:, index], drift[1][:, index])
        unknown = None if self.unknown is None else self.unknown[index]
        return Rows(self.A[:, index], self.gamma[:, index], C, unknown, share, drift)


def chunk_of(posterior: Fitted) -> int:
    """How many pairs to answer at a time, so that memory is bounded: the fewer, the wider the rows."""
    return chunk(posterior.V[:, 0].numel() if isinstance(posterior, Draws) else posterior.precision_v.numel())


def chunk(numbers: int) -> int:
    """The same, where each needs so many numbers."""
    return max(64, min(_CHUNK, _CHUNK_NUMBERS // numbers))


@torch.no_grad()
def ready(posterior: Fitted, seen: Seen) -> Fitted:
    """The same, for many answers: what all of them need of the movies is computed once."""
    if isinstance(posterior, Draws) or posterior.spread_v is not None:
        return posterior
    everything = torch.arange(len(posterior.factors.V))
    return posterior._replace(spread_v=torch.cat([pack(part) for part in _spreads_of_movies(posterior, seen, everything)]))


def rows_of(posterior: Fitted, seen: Seen, pairs: Pairs) -> tuple[Rows, Rows]:
    """The users and the movies of pairs, aligned."""
    (users, user_at), (movies, movie_at) = each_of(posterior, seen, pairs)
    return users.at(user_at), movies.at(movie_at)


def each_of(posterior: Fitted, seen: Seen, pairs: Pairs) -> tuple[tuple[Rows, Tensor], tuple[Rows, Tensor]]:
    """The users and the movies of pairs, each of them once, and where among these those of each pair are, (n,)."""
    (user, user_at), (movie, movie_at) = (rows.unique(return_inverse=True) for rows in pairs.rows())
    return (users_of(posterior, seen, user), user_at), (movies_of(posterior, seen, movie), movie_at)


def users_of(posterior: Fitted, seen: Seen, rows: Tensor) -> Rows:
    """Users by row, (n,); -1 is an unknown one."""
    p, known = posterior, rows >= 0
    if isinstance(p, Draws):
        found = _drawn(p.U, p.gamma_u, p.mean_u, p.Lambda_u, _of(p.noise_dof, 0), rows)
        if p.drift is not None:
            found = found._replace(drift=at_no_time(p.drift, rows, of_movies=False))
        if p.ordinal is None:
            return found
        return found._replace(share=torch.where(known[:, None], shares_of(p.ordinal.share, rows), p.ordinal.usual[:, None]))
    U, V = stacked(p.factors.U, p.factors.b), stacked(p.factors.V, p.factors.c)
    start, place = seen.places_of(rows)
    covariance = torch.cat(list(_spreads(p, U[rows], start, seen.movie[place], V, p.precision_u)))
    of = torch.arange(len(rows)).repeat_interleave(start.diff())
    share = None if p.usage is None else p.usage.shares(of, p.usage.to_unit(seen.stars[place]), len(rows))[None]
    if bool(known.all()):
        return Rows(U[rows][None], 1 / p.noise_u[rows][None], covariance[None], share=share)
    gamma = 1 / torch.where(known, p.noise_u[rows], p.noise_u.mean())
    return _with_unknown(U[rows], gamma, covariance, known, U.mean(0), of_unknown_users(p))._replace(share=share)


def movies_of(posterior: Fitted, seen: Seen, rows: Tensor) -> Rows:
    """Movies by row, (n,) ascending; -1 is an unknown one."""
    p, known = posterior, rows >= 0
    if isinstance(p, Draws):
        found = _drawn(p.V, p.gamma_v, p.mu_v, p.Lambda_v, _of(p.noise_dof, 1), rows)
        return found if p.drift is None else found._replace(drift=at_no_time(p.drift, rows, of_movies=True))
    V = stacked(p.factors.V, p.factors.c)
    if p.spread_v is not None:
        covariance = unpack(p.spread_v[rows], V.shape[1])
    else:
        covariance = torch.cat(list(_spreads_of_movies(p, seen, rows)))
    ones = V.new_ones(len(rows))
    if bool(known.all()):
        return Rows(V[rows][None], ones[None], p.doubt * covariance[None])
    return _with_unknown(V[rows], ones, p.doubt * covariance, known, torch.zeros_like(V[0]), p.doubt * of_unknown_movies(p))


def of_unknown_users(p: Laplace) -> Tensor:
    """The covariance, (d, d), of a user of whom nothing is known."""
    means = None if p.parameters.W is None else p.factors.U - p.parameters.Y
    return _wide(p.precision_u, means, None if means is None else means.mean(0))


def of_unknown_movies(p: Laplace) -> Tensor:
    """The covariance, (d, d), of a movie that nobody rated, before the doubt."""
    means = None if p.parameters.X is None else p.factors.V - p.parameters.Z
    return _wide(p.precision_v, means, None)


def _wide(precision: Tensor, means: Tensor | None, centre: Tensor | None) -> Tensor:
    """The prior, and how hierarchical means (n, latent) differ from a centre, (latent,), which is 0 if not given."""
    wide: Tensor = torch.linalg.inv(precision)
    if means is not None:
        k = means.shape[1]
        wide[:k, :k] += _differ(means[None], means.new_zeros(1, k) if centre is None else centre[None])[0]
    return wide


def _spreads_of_movies(p: Laplace, seen: Seen, rows: Tensor) -> Iterator[Tensor]:
    """Covariances of movies by row, (n,) ascending, some at a time; -1 counts as one without ratings."""
    U, V = stacked(p.factors.U, p.factors.b), stacked(p.factors.V, p.factors.c)
    return _spreads(p, V[rows], *seen.raters_of(rows, len(V)), U, p.precision_v)


def _spreads(p: Laplace, A: Tensor, start: Tensor, others: Tensor, B: Tensor, precision: Tensor) -> Iterator[Tensor]:
    """The conditional covariances of rows A (n, d), some at a time, so that memory is bounded.

    Args:
        start: (n + 1,) where the ratings of each begin. others: (ratings,) row in B of each.
    """
    first, most = 0, max(1, _CHUNK_NUMBERS // precision.numel())
    while True:
        full = int(torch.searchsorted(start, start[first] + RATINGS, right=True)) - 1
        last = min(max(full, first + 1), first + most, len(A))
        of = torch.arange(last - first).repeat_interleave(start[first : last + 1].diff())
        part = others[int(start[first]) : int(start[last])].long()
        yield curvature(p, of, A[first:last], part, B, precision).covariance()
        first = last
        if first == len(A):
            return


def curvature(p: Laplace, of: Tensor, A: Tensor, others: Tensor, B: Tensor, precision: Tensor, team: Team = ALONE) -> Gaussians:
    """The conditional covariance of rows A (n, d), at their modes.

    Args:
        of: (ratings,) ascending place in A, others: (ratings,) row in B, of each rating.
        team: processes that have some of the ratings each.
    """
    k, offset, link = p.head
    used, column = named(others, len(B))
    B = B[used]
    pattern = Pattern.of(of, column, (len(A), len(used)))
    x = score(Factors.of(A, B, k, offset, link), pattern)
    weight, _ = linearise(x, mean(x, link), p.noise, link)
    prior = Prior(torch.zeros_like(A), precision)
    return conditional(pattern, features(B, k), weight, torch.zeros_like(x), prior, team=team)


def _with_unknown(A: Tensor, gamma: Tensor, covariance: Tensor, known: Tensor, centre: Tensor, wide: Tensor) -> Rows:
    covariance = torch.where(known[:, None, None], covariance, wide)
    return Rows(torch.where(known[:, None], A, centre)[None], gamma[None], covariance[None], ~known)


def _of(dofs: Tensor | None, side: int) -> Tensor | float:
    return math.inf if dofs is None else dofs[:, side, None]


def _drawn(A: Tensor, gamma: Tensor, centre: Tensor, Lambda: Tensor, noise_dof: Tensor | float, rows: Tensor) -> Rows:
    known, every = rows >= 0, A
    A, gamma = A[:, rows].float(), gamma[:, rows].float()
    if bool(known.all()):
        return Rows(A, gamma)
    A = torch.where(known[:, None], A, centre[:, None])
    gamma = torch.where(known, gamma, torch.as_tensor(1 - 2 / noise_dof))  # 1 / E(1 / gamma)
    return Rows(A, gamma, of_unknown(every, centre, Lambda)[:, None], ~known)


def of_unknown(A: Tensor, centre: Tensor, Lambda: Tensor) -> Tensor:
    """The covariance on every draw, (draws, d, d), of a row of which nothing is known, by those that are, A (draws, n, d)."""
    n = A.shape[1]
    wide: Tensor = n * _differ(A, centre) + torch.linalg.inv(Lambda)
    return wide / (n + 1)  # the prior as one more, lest a few be too much alike


def shares_of(share: Tensor, rows: Tensor) -> Tensor:
    """The shares of habits of some users, (draws, n, S), which add up to 1 to more than half precision."""
    some = share[:, rows].float()
    found: Tensor = some / some.sum(2, keepdim=True)
    return found


def _differ(A: Tensor, centre: Tensor) -> Tensor:
    """The mean square of rows A (draws, n, d) around a centre (draws, d): (draws, d, d). Of many rows some say enough."""
    some = max(_LEAST_ROWS, min(_ENOUGH, _CHUNK_NUMBERS // A[:, 0].numel()))
    off = A[:, :: -(-A.shape[1] // some)].float() - centre[:, None]
    return off.mT @ off / off.shape[1]


def stacked(factors: Tensor, bias: Tensor | None) -> Tensor:
    """Rows as [factors, bias], or factors alone."""
    return factors if bias is None else torch.cat([factors, bias[:, None]], 1)
