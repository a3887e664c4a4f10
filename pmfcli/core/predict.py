"""From a posterior to answers: the predictive distribution of any pair.

Two posteriors. ``Laplace`` is a mode with the covariance of each row given the other side: a Gaussian with the curvature that
the posterior has there. ``Draws`` are draws of everything, from ``gibbs.py``. Both give rows of users and movies, known,
unknown or folded in, and the predictive distribution of pairs of them: a ``Mixture``, or the ``Masses`` of an ordinal model.

An unknown movie has its prior. An unknown user is the average user, as unsure as the prior of a user (of a mode: as users
differ), for the movies were fitted beside these. (An average movie would be a worse guess than none: movies that nobody in
training rated are not average ones.)
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pmfcli.core import ordinal
from pmfcli.core.conditional import Gaussians, Prior, conditional, features, pack, unpack
from pmfcli.core.drift import Drift, at_no_time, at_times
from pmfcli.core.posterior import Factors, Link, Parameters, linearise, mean, score, slope
from pmfcli.core.predictive import Masses, Mixture, Predictive
from pmfcli.core.sparse import Pattern
from pmfcli.core.team import ALONE, Team

_CHUNK, _CHUNK_NUMBERS = 4096, 8_000_000  # pairs answered at a time: at most so many, nor more numbers of their covariances
_AT_ONCE = 1 << 17  # pairs whose means alone are wanted
_MOVIES_AMONG = 256  # movies at a time, whose ratings are several processes'
_RATINGS = 1 << 22  # whose curvature is added up at a time
_NOISE_SAMPLE, _NOISE_STEPS, _LEAST_NOISE = 2000, 4, 1e-4


class Pairs(NamedTuple):
    """(user, movie) pairs by row. The row of an unknown side is valid but means nothing."""

    user: Tensor  # (n,) int64
    movie: Tensor  # (n,) int64
    user_known: Tensor  # (n,) bool
    movie_known: Tensor  # (n,) bool
    time: Tensor | None = None  # (n,) int64 seconds since 1970, where it is known when the ratings are given

    def to(self, device: torch.device) -> "Pairs":
        """The same pairs on another device."""
        return self._each(lambda part: part.to(device))

    def split(self, size: int) -> Iterator["Pairs"]:
        """Parts of at most so many pairs."""
        return (self.at(torch.arange(start, min(start + size, len(self.user)))) for start in range(0, len(self.user), size))

    def at(self, index: Tensor) -> "Pairs":
        """The pairs of an index (k,)."""
        return self._each(lambda part: part[index])

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Pairs":
        time = None if self.time is None else change(self.time)
        return Pairs(*map(change, (self.user, self.movie, self.user_known, self.movie_known)))._replace(time=time)


class Seen(NamedTuple):
    """The ratings that a model was trained on, by user."""

    start: Tensor  # (n_users + 1,) int64: ratings start[i] .. start[i + 1] are user i's
    movie: Tensor  # (n,) int32 movie rows, ascending within a user
    stars: Tensor  # (n,) float32

    def of(self, user: int) -> tuple[Tensor, Tensor]:
        """A user's movie rows (int64) and stars."""
        s = slice(int(self.start[user]), int(self.start[user + 1]))
        return self.movie[s].long(), self.stars[s]

    def places_of(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """All ratings of users (u,), user by user: where those of each begin, (u + 1,), and their places here. -1 has none."""
        known = users >= 0
        counts = self.start.diff()[users.clamp(min=0)] * known
        start = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        first = self.start[users.clamp(min=0)] - start[:-1]
        return start, torch.arange(int(start[-1])) + first.repeat_interleave(counts)

    def find(self, user: Tensor, movie: Tensor) -> Tensor:
        """The place of the rating of each pair of rows (n,) here; -1 where there is none."""
        users, at = user.unique(return_inverse=True)
        start, place = self.places_of(users)
        key = (torch.arange(len(users)).repeat_interleave(start.diff()) << 32) + self.movie[place]
        wanted = (at << 32) + movie
        found = torch.searchsorted(key, wanted)
        there = torch.cat([key, key.new_full((1,), -1)])[found] == wanted
        return torch.where(there, torch.cat([place, place.new_zeros(1)])[found], -1)

    def movie_counts(self, n_movies: int) -> Tensor:
        """Ratings of each movie, (n_movies,)."""
        return torch.bincount(self.movie, minlength=n_movies)

    def users(self) -> Tensor:
        """The user row of every rating, (n,) int64."""
        return torch.repeat_interleave(torch.arange(len(self.start) - 1), self.start.diff())


class Head(NamedTuple):
    """How factors become a rating."""

    latent: int
    offset: float
    link: Link


class Laplace(NamedTuple):
    """A mode, with what its curvature needs."""

    factors: Factors
    parameters: Parameters
    precision_u: Tensor  # (d, d) of the prior of a user's own row: factors, then the bias if there is one
    precision_v: Tensor  # (d, d) of a movie's
    noise: Tensor  # () standard deviation of a rating on the unit scale; the sigma of the fit may be fixed, this is not
    mean_field: bool  # whether a row is fitted to the distribution of the other side's rows (EM), or to their mode alone
    spread_v: Tensor | None = None  # (n_movies, d (d + 1) / 2) packed covariance of the movies, by ``ready``; None: not yet

    @property
    def head(self) -> Head:
        """How factors become a rating."""
        return Head(self.factors.U.shape[1], self.factors.offset, self.factors.link)


class Draws(NamedTuple):
    """Draws of a posterior, stacked. Rows are factors, then the bias if there is one: d of them."""

    U: Tensor  # (draws, n_users, d) half precision, as everything that has rows
    V: Tensor  # (draws, n_movies, d)
    W: Tensor | None  # (draws, n_movies, d) what rating a movie says of its rater: the mean given the rows of the draw
    var_w: Tensor | None  # (n_movies,) about its variance given the draw, as a part of Lambda_u^-1
    gamma_u: Tensor  # (draws, n_users) noise scales
    gamma_v: Tensor  # (draws, n_movies)
    mean_u: Tensor  # (draws, d) the average user
    mu_u: Tensor  # (draws, d) prior mean of users, less F W
    mu_v: Tensor  # (draws, d) of movies, less G X
    Lambda_u: Tensor  # (draws, d, d) prior precision
    Lambda_v: Tensor  # (draws, d, d)
    alpha: Tensor  # (draws,) precision of the noise, on the scale of x
    prior_dof: Tensor | None  # (draws, 2) degrees of freedom of the t priors of users and movies; None if they are Gaussian
    noise_dof: Tensor | None  # (draws, 2) of their noise scales; None if there are none
    share: Tensor | None  # (draws, n_users, S) of a user's ratings, by habit; None, as the next three, if ratings are numbers
    cuts: Tensor | None  # (draws, S, K - 1) cut points of each habit, on the unit scale
    habits: Tensor | None  # (draws, S) parameters of the Dirichlet prior of shares
    grid: Tensor | None  # (K,) the different ratings, on the unit scale
    drift: Drift | None  # effects of time
    head: Head


Posterior = Laplace | Draws


class Rows(NamedTuple):
    """Users or movies, as pairs need them."""

    A: Tensor  # (draws, n, d)
    gamma: Tensor  # (draws, n) noise scales
    covariance: Tensor | None = None  # (draws, 1 or n, d, d) of a row given the draw
    open: Tensor | None = None  # (n,) bool: the rows that have it; None for all
    share: Tensor | None = None  # (draws, n, S) of users, in an ordinal model
    drift: tuple[Tensor, Tensor] | None = None  # (draws, n) mean and variance of the effects of time, on the scale of x

    def at(self, index: Tensor) -> "Rows":
        """The rows of an index (k,)."""
        C, share, drift = self.covariance, self.share, self.drift
        C = C[:, index] if C is not None and C.shape[1] > 1 else C
        share = None if share is None else share[:, index]
        drift = None if drift is None else (drift[0][:, index], drift[1][:, index])
        return Rows(self.A[:, index], self.gamma[:, index], C, None if self.open is None else self.open[index], share, drift)


def chunk_of(posterior: Posterior) -> int:
    """How many pairs to answer at a time, so that memory is bounded: the fewer, the wider the rows."""
    size = posterior.V[:, 0].numel() if isinstance(posterior, Draws) else posterior.precision_v.numel()
    return max(64, min(_CHUNK, _CHUNK_NUMBERS // size))


@torch.no_grad()
def predictive(posterior: Posterior, users: Rows, movies: Rows) -> Predictive:
    """The predictive distributions of pairs: users and movies aligned, or one of them alone for all of the others."""
    found = mixture(posterior, users, movies)
    if isinstance(posterior, Laplace) or posterior.cuts is None or posterior.grid is None or users.share is None:
        return found
    return Masses(ordinal.masses(posterior.cuts, users.share, found.centre, found.spread), posterior.grid)


@torch.no_grad()
def mixture(posterior: Posterior, users: Rows, movies: Rows) -> Mixture:
    """What it is before a rating becomes a step of the scale: of a model of ratings as numbers the same."""
    k, offset, link = posterior.head
    left, right = users.A[..., :k], movies.A[..., :k]
    one = left.shape[1] == 1  # a user for all movies: a product of matrices
    x = ((right @ left.mT)[..., 0] if one else (left * right).sum(-1)) + offset
    if users.A.shape[-1] > k:
        x = x + users.A[..., k] + movies.A[..., k]
    if isinstance(posterior, Laplace):
        noise = posterior.noise.square()
    else:
        noise = 0.0625 / (posterior.alpha[:, None] * users.gamma * movies.gamma)  # dt = dx / 4
    for rows in (users, movies):
        if rows.drift is not None:
            x, noise = x + rows.drift[0], noise + 0.0625 * rows.drift[1]
    return Mixture(mean(x, link), (noise + slope(x, link).square() * _variance(users, movies, k)).sqrt().expand_as(x))


@torch.no_grad()
def predict_pairs(posterior: Posterior, seen: Seen, pairs: Pairs) -> Predictive:
    """The predictive distributions of pairs, known or not, given which ratings the posterior saw."""
    users, movies = _rows_of(posterior, seen, pairs)
    if isinstance(posterior, Draws) and posterior.drift is not None and pairs.time is not None:
        user, movie = torch.where(pairs.user_known, pairs.user, -1), torch.where(pairs.movie_known, pairs.movie, -1)
        users = users._replace(drift=at_times(posterior.drift, user, movie, pairs.time))
        movies = movies._replace(drift=None)
    return predictive(posterior, users, movies)


def _rows_of(posterior: Posterior, seen: Seen, pairs: Pairs) -> tuple[Rows, Rows]:
    user, user_at = torch.where(pairs.user_known, pairs.user, -1).unique(return_inverse=True)
    movie, movie_at = torch.where(pairs.movie_known, pairs.movie, -1).unique(return_inverse=True)
    users, movies = users_of(posterior, seen, user), movies_of(posterior, seen, movie)
    return users.at(user_at), movies.at(movie_at)


@torch.no_grad()
def means_of_pairs(factors: Factors, pairs: Pairs) -> Tensor:
    """The predictive means alone, (n,), of factors that are still in training."""
    usual, found = factors.U.mean(0), []
    for part in pairs.split(_AT_ONCE):
        u = torch.where(part.user_known[:, None], factors.U[part.user], usual)
        x = (u * factors.V[part.movie]).sum(1) * part.movie_known + factors.offset
        if factors.b is not None and factors.c is not None:
            x = x + torch.where(part.user_known, factors.b[part.user], factors.b.mean())
            x = x + factors.c[part.movie] * part.movie_known
        found.append(mean(x, factors.link).clamp(0, 1))
    return torch.cat(found)


@torch.no_grad()
def estimate_noise(
    laplace: Laplace, seen: Seen, pairs: Pairs, t: Tensor, fitted: bool, seed: int, team: Team = ALONE
) -> Tensor:
    """The noise of a rating at a mode, on the unit scale, (). The sigma of a fit may be fixed at more, against overfitting.

    Of ratings that were held out: squared errors, each divided by its predicted variance, are 1 on average. Of ratings that the
    mode was fitted to: sigma^2 = mean of (t - g)^2 + g'^2 Var x, the noise step of EM (``als.py``) with the mode's covariances.

    Args:
        pairs, t: (n,) pairs and their ratings on the unit scale; a sample of them is used.
        team: processes that have some of the users, and of the pairs, each.
    """
    most = min(_NOISE_SAMPLE, chunk_of(laplace)) // team.size
    some = torch.randperm(len(t), generator=torch.Generator().manual_seed(seed))[:most]
    pairs, t = pairs.at(some), t[some]
    noise = laplace.noise
    for _ in range(_NOISE_STEPS):
        laplace = laplace._replace(noise=noise)
        rows = _rows_of(laplace, seen, pairs) if team.size == 1 else _rows_among(laplace, seen, pairs, team)
        found = mixture(laplace, *rows)
        error, predicted = (t - found.centre[0]).square(), found.spread[0].square()
        each = error + predicted if fitted else error / predicted
        total, n = team.sum(torch.stack([each.sum(), each.new_tensor(len(each))]))
        square = total / n - noise.square() if fitted else noise.square() * total / n
        noise = square.sqrt().clamp(min=_LEAST_NOISE)
    return noise


def _rows_among(p: Laplace, seen: Seen, pairs: Pairs, team: Team) -> tuple[Rows, Rows]:
    """The rows of pairs whose users are this process's; the ratings of their movies are everybody's."""
    user, user_at = torch.where(pairs.user_known, pairs.user, -1).unique(return_inverse=True)
    V = stacked(p.factors.V, p.factors.c)
    wanted = torch.zeros(len(V), dtype=torch.int64)
    wanted[pairs.movie[pairs.movie_known]] = 1
    rows = torch.nonzero(team.sum(wanted))[:, 0]
    covariance = torch.cat([_curvature_among(p, seen, part, team).covariance() for part in rows.split(_MOVIES_AMONG)])
    known = pairs.movie_known
    at = torch.searchsorted(rows, pairs.movie).clamp(max=len(rows) - 1)
    prior = torch.linalg.inv(p.precision_v)
    A = torch.where(known[:, None], V[pairs.movie], 0.0)
    movies = Rows(A[None], A.new_ones(1, len(A)), torch.where(known[:, None, None], covariance[at], prior)[None])
    return users_of(p, seen, user).at(user_at), movies


def _curvature_among(p: Laplace, seen: Seen, movies: Tensor, team: Team) -> Gaussians:
    U, V = stacked(p.factors.U, p.factors.b), stacked(p.factors.V, p.factors.c)
    start, user = _raters(seen, movies, len(V))
    of = torch.arange(len(movies)).repeat_interleave(start.diff())
    return curvature(p, of, V[movies], user.long(), U, p.precision_v, team)


@torch.no_grad()
def ready(posterior: Posterior, seen: Seen) -> Posterior:
    """The same, for many answers: what all of them need of the movies is computed once."""
    if isinstance(posterior, Draws) or posterior.spread_v is not None:
        return posterior
    everything = torch.arange(len(posterior.factors.V))
    return posterior._replace(spread_v=torch.cat([pack(part) for part in _spreads_of_movies(posterior, seen, everything)]))


def users_of(posterior: Posterior, seen: Seen, rows: Tensor) -> Rows:
    """Users by row, (n,); -1 is an unknown one."""
    p, known = posterior, rows >= 0
    if isinstance(p, Draws):
        found = _drawn(p.U, p.gamma_u, p.mean_u, p.Lambda_u, _of(p.prior_dof, 0), _of(p.noise_dof, 0), rows)
        if p.drift is not None:
            found = found._replace(drift=at_no_time(p.drift, rows, of_movies=False))
        if p.share is None or p.habits is None:
            return found
        usual = (p.habits / p.habits.sum(1, keepdim=True))[:, None]
        return found._replace(share=torch.where(known[:, None], p.share[:, rows].float(), usual))
    U, V = stacked(p.factors.U, p.factors.b), stacked(p.factors.V, p.factors.c)
    start, place = seen.places_of(rows)
    covariance = torch.cat(list(_spreads(p, U[rows], start, seen.movie[place], V, p.precision_u)))
    if bool(known.all()):
        return Rows(U[rows][None], U.new_ones(1, len(rows)), covariance[None])
    spread = torch.atleast_2d(U.mT.cov()) if len(U) > 1 else torch.linalg.inv(p.precision_u)
    return _with_unknown(U[rows], covariance, known, U.mean(0), spread)


def movies_of(posterior: Posterior, seen: Seen, rows: Tensor) -> Rows:
    """Movies by row, (n,) ascending; -1 is an unknown one."""
    p, known = posterior, rows >= 0
    if isinstance(p, Draws):
        found = _drawn(p.V, p.gamma_v, p.mu_v, p.Lambda_v, _of(p.prior_dof, 1), _of(p.noise_dof, 1), rows)
        return found if p.drift is None else found._replace(drift=at_no_time(p.drift, rows, of_movies=True))
    V = stacked(p.factors.V, p.factors.c)
    if p.spread_v is not None:
        covariance = unpack(p.spread_v[rows], V.shape[1])
    else:
        covariance = torch.cat(list(_spreads_of_movies(p, seen, rows)))
    return _with_unknown(V[rows], covariance, known, torch.zeros_like(V[0]), torch.linalg.inv(p.precision_v))


def _spreads_of_movies(p: Laplace, seen: Seen, rows: Tensor) -> Iterator[Tensor]:
    """Covariances of movies by row, (n,) ascending, some at a time; -1 counts as one without ratings."""
    U, V = stacked(p.factors.U, p.factors.b), stacked(p.factors.V, p.factors.c)
    return _spreads(p, V[rows], *_raters(seen, rows, len(V)), U, p.precision_v)


def _raters(seen: Seen, rows: Tensor, n_movies: int) -> tuple[Tensor, Tensor]:
    """Who rated movies (n,), movie by movie: where those of each begin, (n + 1,), and their rows, int32."""
    place = torch.full((n_movies,), -1, dtype=torch.int32)
    place[rows[rows >= 0]] = torch.arange(len(rows), dtype=torch.int32)[rows >= 0]
    of = place.index_select(0, seen.movie)
    rating = torch.nonzero(of >= 0)[:, 0]
    user = torch.searchsorted(seen.start, rating, right=True, out_int32=True) - 1
    of, order = torch.sort(of[rating], stable=True)
    return torch.searchsorted(of, torch.arange(len(rows) + 1, dtype=torch.int32)), user[order]


def _spreads(p: Laplace, A: Tensor, start: Tensor, others: Tensor, B: Tensor, precision: Tensor) -> Iterator[Tensor]:
    """The conditional covariances of rows A (n, d), some at a time, so that memory is bounded.

    Args:
        start: (n + 1,) where the ratings of each begin. others: (ratings,) row in B of each.
    """
    first, most = 0, max(1, _CHUNK_NUMBERS // precision.numel())
    while True:
        full = int(torch.searchsorted(start, start[first] + _RATINGS, right=True)) - 1
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
    used, column = others.unique(return_inverse=True)
    B = B[used]
    pattern = Pattern.of(of, column, (len(A), len(used)))
    x = score(Factors.of(A, B, k, offset, link), pattern)
    weight, _ = linearise(x, mean(x, link), p.noise, link)
    prior = Prior(torch.zeros_like(A), precision)
    return conditional(pattern, features(B, k), weight, torch.zeros_like(x), prior, team=team)


def _with_unknown(A: Tensor, covariance: Tensor, known: Tensor, centre: Tensor, wide: Tensor) -> Rows:
    covariance = torch.where(known[:, None, None], covariance, wide)
    return Rows(torch.where(known[:, None], A, centre)[None], A.new_ones(1, len(A)), covariance[None])


def _of(dofs: Tensor | None, side: int) -> Tensor | float:
    return math.inf if dofs is None else dofs[:, side, None]


def _drawn(
    A: Tensor, gamma: Tensor, centre: Tensor, Lambda: Tensor, prior_dof: Tensor | float, noise_dof: Tensor | float, rows: Tensor
) -> Rows:
    known = rows >= 0
    A, gamma = A[:, rows].float(), gamma[:, rows].float()
    if bool(known.all()):
        return Rows(A, gamma)
    A = torch.where(known[:, None], A, centre[:, None])
    gamma = torch.where(known, gamma, torch.as_tensor(1 - 2 / noise_dof))  # 1 / E(1 / gamma)
    tau = torch.as_tensor(1 - 2 / prior_dof)  # the same, so that the covariance is that of a multivariate t
    return Rows(A, gamma, torch.linalg.inv(tau[..., None] * Lambda)[:, None], ~known)


def _variance(users: Rows, movies: Rows, k: int) -> Tensor:
    """Var x of pairs given the draw, rows independent, (draws, n)."""
    total = users.A.new_zeros(())
    for own, other in ((users, movies), (movies, users)):
        if own.covariance is not None:
            total = total + _only(_quadratic(features(other.A, k), own.covariance), own.open)
    if users.covariance is not None and movies.covariance is not None:
        among = (users.covariance[..., :k, :k] * movies.covariance[..., :k, :k]).sum((-2, -1))
        total = total + _only(_only(among, users.open), movies.open)
    return total


def _only(values: Tensor, rows: Tensor | None) -> Tensor:
    return values if rows is None else values * rows


def _quadratic(f: Tensor, C: Tensor) -> Tensor:
    """f' C f for f (draws, n, d) and C (draws, 1 or n, d, d); one f serves all C, one C all f."""
    if C.shape[1] == 1:
        return ((f @ C[:, 0]) * f).sum(-1)
    return ((C @ f[..., None])[..., 0] * f).sum(-1)


def stacked(factors: Tensor, bias: Tensor | None) -> Tensor:
    """Rows as [factors, bias], or factors alone."""
    return factors if bias is None else torch.cat([factors, bias[:, None]], 1)
