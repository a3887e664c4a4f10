"""A posterior after its ratings changed: rows are added, taken out, and found again where ratings came or went; the rest stays.

Of a mode the rows of some users and movies are put at the mode of their conditional given the other side, in turn, as training
puts users in the end. Of draws some users get a new row from their conditional on every draw, as a visitor does, and movies
that are new get theirs. A movie that was drawn with others stays.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pmfcli.core.approximation import Draws, Fitted, Laplace, Weights
from pmfcli.core.conditional import Prior
from pmfcli.core.drift import Drift
from pmfcli.core.fold_in import MINI_SWEEPS, SEED, fold_in_draws
from pmfcli.core.half_step import settle
from pmfcli.core.neighbourhood import Neighbourhood
from pmfcli.core.noise import noise_scales, squared_errors
from pmfcli.core.pairs import Seen
from pmfcli.core.posterior import Factors, Observations
from pmfcli.core.row_sampler import RowSampler
from pmfcli.core.rows import Rows, of_unknown, shares_of, stacked, users_of
from pmfcli.core.settling import spread_of
from pmfcli.core.sparse import Pattern, named, spmm

_SWEEPS = 2  # over the rows of a mode that are found again, users and movies in turn
_AT_A_TIME = 1 << 20  # ratings of new movies, counted on every draw


def extended(posterior: Fitted, users: int, movies: int) -> Fitted:
    """The same with so many rows: the new ones lie behind the others, at the mean of their prior."""
    p = posterior
    if isinstance(p, Laplace):
        noise_u = torch.cat([p.noise_u, p.noise_u.mean().expand(users - len(p.noise_u))])
        return _each(p, lambda rows: _longer(rows, users), lambda rows: _longer(rows, movies))._replace(noise_u=noise_u)

    def behind(rows: Tensor, one: Tensor, count: int) -> Tensor:
        new = one.unsqueeze(1).to(rows).expand(-1, count - rows.shape[1], *rows.shape[2:])
        return torch.cat([rows, new], 1)

    ones = torch.ones_like(p.alpha)
    ordinal, weights = p.ordinal, p.weights
    if ordinal is not None:
        ordinal = ordinal._replace(share=behind(ordinal.share, ordinal.usual, users))
    if weights is not None:  # the variance of the prior is not kept, that of the movie known least comes near
        W, var_w = weights
        var_w = torch.cat([var_w, var_w.max().expand(movies - len(var_w))])
        weights = Weights(behind(W, torch.zeros_like(p.mu_v), movies), var_w)
    return p._replace(
        U=behind(p.U, p.mu_u, users),
        V=behind(p.V, p.mu_v, movies),
        weights=weights,
        gamma_u=behind(p.gamma_u, ones, users),
        gamma_v=behind(p.gamma_v, ones, movies),
        ordinal=ordinal,
    )


def kept(posterior: Fitted | Neighbourhood, users: Tensor, movies: Tensor) -> Fitted | Neighbourhood:
    """The rows of some users and movies alone, by ascending index."""
    p = posterior
    if isinstance(p, Laplace):
        return _each(p, lambda rows: rows[users], lambda rows: rows[movies])
    if isinstance(p, Neighbourhood):
        near = _places(movies, len(p.c))[p.near[movies].long()]
        weight = p.weight[movies] * (near >= 0)
        return p._replace(b=p.b[users], c=p.c[movies], near=near.clamp(min=0).int(), weight=weight)
    U = p.U[:, users]
    return p._replace(
        U=U,
        V=p.V[:, movies],
        weights=None if p.weights is None else Weights(p.weights.W[:, movies], p.weights.var_w[movies]),
        gamma_u=p.gamma_u[:, users],
        gamma_v=p.gamma_v[:, movies],
        mean_u=U.mean(1, dtype=torch.float32),
        ordinal=None if p.ordinal is None else p.ordinal._replace(share=p.ordinal.share[:, users]),
        drift=None if p.drift is None else _kept_in_time(p.drift, users, movies, p.U.shape[1], p.V.shape[1]),
    )


def undated(posterior: Fitted | Neighbourhood) -> Fitted | Neighbourhood:
    """The same without the dates at which movies' stretches of time begin and end, which are those of ratings."""
    p = posterior
    if not isinstance(p, Draws) or p.drift is None:
        return p
    return p._replace(drift=p.drift._replace(stretches=p.drift.stretches.without_dates()))


@torch.no_grad()
def resettled(laplace: Laplace, seen: Seen, observations: Observations, users: Tensor, movies: Tensor) -> Laplace:
    """The same with some users and movies at the mode of their conditional given the others, in turn, the users last.

    They begin at their own part on their new prior mean. What else depends on who rated what is Z: a user with more ratings
    counts less for each of their movies (``observe``). These movies stay where they are, and their own part makes up for it.

    Args:
        observations: all ratings, in the order of ``seen``, with the offset of the mode and what its users have in common.
        users, movies: (n,) ascending rows.
    """
    o, q, f = observations, laplace.parameters, laplace.factors
    k = laplace.head.latent
    U, V = stacked(f.U, f.b).clone(), stacked(f.V, f.c).clone()
    mean_u, mean_v = torch.zeros_like(U), torch.zeros_like(V)
    if q.W is not None and o.crowd is not None and laplace.common is not None:
        mean_u[:, :k] = o.crowd.added_to(spmm(o.F, q.W, o.pattern), laplace.common.mean_w)
    if q.X is not None:
        mean_v[:, :k] = spmm(o.G, q.X, o.pattern.T)
    U[users, :k], V[movies, :k] = (q.Y + mean_u[:, :k])[users], (q.Z + mean_v[:, :k])[movies]
    of_users, their_movies = _ratings_of(users, o)
    of_movies, their_users = _ratings_of(movies, o.flipped())

    def now() -> Laplace:
        Y, Z = q.Y.clone(), q.Z.clone()
        Y[users] = (U - mean_u)[users, :k]
        moved = torch.cat([movies, their_movies]).unique()
        Z[moved] = (V - mean_v)[moved, :k]
        b, c = (None, None) if f.b is None else (U[:, k].clone(), V[:, k].clone())
        return laplace._replace(
            factors=f._replace(U=U[:, :k].clone(), V=V[:, :k].clone(), b=b, c=c), parameters=q._replace(Y=Y, Z=Z, b=b, c=c)
        )

    for turn in range(2 * _SWEEPS + 1):
        if turn % 2 == 0 and len(users):
            spread = spread_of(now(), seen, their_movies, of_movies=True)
            prior = Prior(mean_u[users], laplace.precision_u)
            U[users] = settle(U[users], prior, V[their_movies], spread, of_users, q.sigma, k)
        elif turn % 2 == 1 and len(movies):
            spread = spread_of(now(), seen, their_users, of_movies=False)
            prior = Prior(mean_v[movies], laplace.precision_v)
            V[movies] = settle(V[movies], prior, U[their_users], spread, of_movies, q.sigma, k)
    of_theirs = Factors.of(U[users], V[their_movies], k, o.offset, o.link)
    sums, counts = squared_errors(of_theirs, of_users), of_users.pattern.row_counts()
    scales = noise_scales(sums, counts, laplace.residual, laplace.noise_u.mean())
    return now()._replace(noise_u=laplace.noise_u.index_copy(0, users, scales))


@torch.no_grad()
def redrawn(draws: Draws, seen: Seen, t: Tensor, users: Tensor, old: tuple[int, int], user_power: float) -> Draws:
    """The same with a new row of some users on every draw, and of movies that are new.

    First the users given the movies that were drawn with others, then the new movies given the users, then those who rated them
    given all: a Gibbs sampler on every draw. (More rounds of it do not predict better, and take longer.)

    Args:
        seen, t: all ratings, and the same on the unit scale (n,). users: (u,) ascending rows, all new ones among them.
        old: how many users and movies, the first ones, are drawn already.
    """
    p = draws._replace(**{name: getattr(draws, name).clone() for name in ("U", "V", "gamma_u", "gamma_v")})
    if p.ordinal is not None:
        p = p._replace(ordinal=p.ordinal._replace(share=p.ordinal.share.clone()))
    g = torch.Generator().manual_seed(SEED)
    n_users, n_movies = p.U.shape[1], p.V.shape[1]
    _draw_users(p, seen, t, users, old, user_power, g)
    new = torch.arange(old[1], n_movies)
    for some in _parts(new, seen.movie_counts(n_movies)[new] * len(p.alpha)):
        _draw_movies(p, seen, t, some, old[1], g)
    raters = seen.users()[seen.movie >= old[1]].unique()
    _draw_users(p, seen, t, raters, (n_users, n_movies), user_power, g)
    return p._replace(mean_u=p.U.mean(1, dtype=torch.float32))


def _draw_users(
    p: Draws, seen: Seen, t: Tensor, users: Tensor, known: tuple[int, int], power: float, g: torch.Generator
) -> None:
    """New rows of users, in place, by their ratings of the movies that are known; known users begin at the row they have."""
    for user in users.tolist():
        mine = torch.arange(int(seen.start[user]), int(seen.start[user + 1]))
        mine = mine[seen.movie[mine] < known[1]]
        start = users_of(p, seen, torch.tensor([user])) if user < known[0] else None
        found = fold_in_draws(p, seen.movie[mine].long(), t[mine], power, g, start)
        p.U[:, user], p.gamma_u[:, user] = _draw(found, g).half(), found.gamma[:, 0].half()
        if p.ordinal is not None and found.share is not None:
            p.ordinal.share[:, user] = found.share[:, 0].half()


def _draw(row: Rows, g: torch.Generator) -> Tensor:
    """One row on every draw, (draws, d), from its Gaussian."""
    assert row.covariance is not None
    size, axes = torch.linalg.eigh(row.covariance[:, 0])
    white = torch.randn(size.shape, generator=g)
    away: Tensor = (axes @ (size.clamp(min=0).sqrt() * white)[:, :, None])[:, :, 0]
    return row.A[:, 0] + away


def _draw_movies(p: Draws, seen: Seen, t: Tensor, movies: Tensor, known: int, g: torch.Generator) -> None:
    """New rows of movies, in place, by who rated them, on every draw (``row_sampler.py``).

    The prior given tau is as wide as the first ``known`` movies, with their hierarchical means, differ: what the ratings say of
    X is not kept. (Averaged over tau it is a little wider; without that it predicts no better.)
    """
    place = _places(movies, p.V.shape[1])[seen.movie.long()]
    mine = torch.nonzero(place >= 0)[:, 0]
    mine = mine[torch.argsort(place[mine], stable=True)]
    user = seen.users()[mine]
    one = Pattern.of(place[mine], torch.arange(len(mine)), (len(movies), len(mine)))
    prior = Prior(p.mu_v, torch.linalg.inv(of_unknown(p.V[:, :known], p.mu_v, p.Lambda_v)))
    sampler = RowSampler.of(p, True, one, user, t[mine], prior)
    now = sampler.start(None if p.ordinal is None else shares_of(p.ordinal.share, user).flatten(0, 1))
    for _ in range(1 if sampler.exact else MINI_SWEEPS):
        now = sampler.sweep(now, g)
    p.V[:, movies] = now.A.unflatten(0, (len(p.V), -1)).half()
    p.gamma_v[:, movies] = now.gamma.unflatten(0, (len(p.V), -1)).half()


def _parts(rows: Tensor, size: Tensor) -> list[Tensor]:
    """Rows (n,) in parts whose sizes (n,) add up to about what is done at a time."""
    part = (size.cumsum(0) - size) // _AT_A_TIME
    return [rows[part == number] for number in part.unique().tolist()]


def _ratings_of(rows: Tensor, o: Observations) -> tuple[Observations, Tensor]:
    """The ratings of some rows alone, and which columns, (n,), these are of: the columns of the ratings' pattern.

    F and G are left out: they are in the prior mean.
    """
    place = _places(rows, o.pattern.shape[0])[o.pattern.row.long()]
    mine = torch.nonzero(place >= 0)[:, 0]
    used, column = named(o.pattern.col[mine].long(), o.pattern.shape[1])
    pattern, t = Pattern.of(place[mine], column, (len(rows), len(used))), o.t[mine]
    return Observations(pattern, t, t[:0], t[:0], o.offset, o.link), used


def _places(rows: Tensor, count: int) -> Tensor:
    """Where each of so many rows stands in an index (n,), (count,); -1 where it does not."""
    place = torch.full((count,), -1)
    place[rows] = torch.arange(len(rows))
    return place


def _each(p: Laplace, users: Callable[[Tensor], Tensor], movies: Callable[[Tensor], Tensor]) -> Laplace:
    """A mode with something done to all that has rows of users, and of movies."""
    f, q = p.factors, p.parameters
    b, c = (None, None) if f.b is None or f.c is None else (users(f.b), movies(f.c))
    W, X = None if q.W is None else movies(q.W), None if q.X is None else users(q.X)
    return p._replace(
        noise_u=users(p.noise_u),
        spread_v=None,
        factors=f._replace(U=users(f.U), V=movies(f.V), b=b, c=c),
        parameters=q._replace(Y=users(q.Y), Z=movies(q.Z), W=W, X=X, b=b, c=c),
    )


def _longer(rows: Tensor, count: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros(count - len(rows), *rows.shape[1:])])


def _kept_in_time(drift: Drift, users: Tensor, movies: Tensor, n_users: int, n_movies: int) -> Drift:
    s = drift.stretches
    places = _places(users, n_users), _places(movies, n_movies)
    parts = [
        places[of_movies][row] for row, of_movies in zip(s.row.split(s.length.tolist()), s.of_movies.tolist(), strict=True)
    ]
    row, length = torch.cat(parts), torch.stack([(part >= 0).sum() for part in parts])
    stay = row >= 0
    usual_u = None if drift.usual_u is None else drift.usual_u[:, users]
    usual_v = None if drift.usual_v is None else drift.usual_v[:, movies]
    stretches = s._replace(length=length, row=row[stay], start=s.start[stay], end=s.end[stay])
    return drift._replace(stretches=stretches, value=drift.value[:, stay], usual_u=usual_u, usual_v=usual_v)
